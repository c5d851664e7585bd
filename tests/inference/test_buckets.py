"""Buckets give the logits of the graph that takes any shape, compile what they need once, and forget in order."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from optimum_qala import BucketOptions
from optimum_qala.errors import BackendError, ConfigurationError
from tests.inference.batches import random_batch, random_retention


@pytest.fixture(scope="session")
def plain_graph(plain_exported):
    from optimum_qala.inference.graph import read_graph

    return read_graph(plain_exported / "openvino_model.xml")


@pytest.fixture(scope="session")
def adaptive_graph(exported):
    from optimum_qala.inference.graph import read_graph

    return read_graph(exported / "openvino_model.xml")


@pytest.fixture
def runner(plain_graph):
    """Make a runner of the plain graph."""
    from optimum_qala.inference.buckets import BucketedRunner

    settings = {"INFERENCE_PRECISION_HINT": "f32"}

    def make(graph=plain_graph, **options):
        return BucketedRunner(graph, BucketOptions(**options), ov_config=settings)

    return make


@pytest.fixture(scope="session")
def reference(plain_graph):
    """Logits of the graph that takes any shape."""
    return _dynamic(plain_graph)


@pytest.fixture(scope="session")
def adaptive_reference(adaptive_graph):
    return _dynamic(adaptive_graph)


def _dynamic(graph):
    from optimum.intel.openvino.modeling_base import core

    compiled = core.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(inputs):
        found = compiled.create_infer_request().infer(inputs)
        return {name: found[name] for name in ("start_logits", "end_logits")}

    return run


def batch(seed, batch_size, length):
    return {name: tensor.numpy() for name, tensor in random_batch(seed, batch_size, length).items()}


def of_budget(ratios, length):
    """The further inputs of a graph that takes budgets, at sizes that hold any batch of that length."""
    return {"retention": np.array(ratios, dtype=np.float32), "sizes": np.full(5, length, dtype=np.int64)}


def ones(batch_size, length):
    """A batch without padding, of any length."""
    shape = (batch_size, length)
    ids = np.random.default_rng(length).integers(5, 200, shape)
    ids[:, [min(2, length - 1), -1]] = 3
    types = np.broadcast_to(np.arange(length) > 2, shape).astype(np.int64)
    return {"input_ids": ids, "attention_mask": np.ones(shape, dtype=np.int64), "token_type_ids": types}


def assert_same(actual, expected, mask, tolerance=1e-5):
    for name in ("start_logits", "end_logits"):
        assert actual[name].shape == expected[name].shape
        np.testing.assert_allclose(actual[name] * mask, expected[name] * mask, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("hint", ["latency", "throughput"])
def test_logits_equal_the_graph_of_any_shape(runner, reference, hint):
    bucketed = runner(batch_tokens=256, batch_sizes=(1, 3), performance_hint=hint, threads=2)
    for seed in range(24):
        inputs = batch(seed, 1 + seed % 9, 9 + 17 * (seed % 7))
        assert_same(bucketed.run(inputs), reference(inputs), inputs["attention_mask"])
    assert bucketed.is_static


def test_folded_retention_gives_the_logits_of_the_graph_that_takes_it(runner, adaptive_graph, adaptive_reference):
    bucketed = runner(adaptive_graph, batch_tokens=128)
    different = []
    for seed in range(12):
        inputs = batch(seed, 1 + seed % 4, 20 + 9 * (seed % 5))
        retention = random_retention(seed, 4)
        expected = adaptive_reference(inputs | of_budget(retention, inputs["input_ids"].shape[1]))
        actual = bucketed.run(inputs, plan=lambda ids, _, ratios=retention: of_budget(ratios, ids.shape[1]))
        gap = np.abs(actual["start_logits"] - expected["start_logits"]) * inputs["attention_mask"]
        different += (gap.max(axis=1) > 1e-4).tolist()
    assert sum(different) <= 1  # two tokens whose scores differ by less than rounding may swap places


def test_arrays_of_any_layout_and_type_are_read(runner, reference):
    inputs = batch(3, 2, 32)
    expected = reference(inputs)
    odd = {name: np.asfortranarray(array.astype(np.int32)) for name, array in inputs.items()}
    assert_same(runner().run(odd), expected, inputs["attention_mask"])


def test_result_outlives_the_next_call(runner):
    bucketed = runner()
    first = bucketed.run(batch(7, 1, 30))["start_logits"]
    kept = first.copy()
    bucketed.run(batch(8, 1, 30))
    np.testing.assert_array_equal(first, kept)


def test_rows_that_fill_a_batch_up_are_not_given_back(runner, reference):
    bucketed = runner(batch_sizes=(8,), batch_tokens=256)
    inputs = batch(4, 3, 20)
    found = bucketed.run(inputs)
    assert bucketed.counters.compilations == 1
    assert all(np.isfinite(array).all() for array in found.values())
    assert_same(found, reference(inputs), inputs["attention_mask"])


def test_only_wanted_outputs_are_computed(runner, reference):
    from optimum_qala.inference.buckets import Variant

    inputs = batch(5, 1, 20)
    bucketed = runner()
    found = bucketed.run(inputs, outputs=("end_logits",))
    assert list(found) == ["end_logits"]
    np.testing.assert_allclose(found["end_logits"], reference(inputs)["end_logits"], atol=1e-5, rtol=1e-5)
    bucketed.run(inputs)
    assert bucketed.counters.compilations == 2
    bucketed.run(inputs, outputs=("start_logits", "end_logits"))  # which is all
    assert bucketed.counters.compilations == 2
    assert bucketed.warm_up([20], [1], [Variant(outputs=("end_logits",))]) == 0


class TestCompilation:
    """One graph for each batch size, bucket and set of constants."""

    def test_lengths_of_a_bucket_share_a_graph(self, runner):
        bucketed = runner()
        assert bucketed.is_static is None
        for length, compilations in ((1, 1), (20, 1), (32, 1), (33, 2), (64, 2), (5, 2)):
            bucketed.run(ones(1, length))
            assert bucketed.counters.compilations == compilations
        assert bucketed.counters.hits == 4
        assert bucketed.num_graphs == 2
        assert bucketed.counters.compile_seconds > 0

    def test_length_multiple_decides_the_buckets(self, runner):
        bucketed = runner(length_multiple=8)
        for length in (20, 30):
            bucketed.run(ones(1, length))
        assert bucketed.counters.compilations == 2

    def test_batch_sizes_and_tokens_decide_the_batches(self, runner):
        for options, compilations, batches in (
            ({}, 1, 7),  # single rows: too few for the bulk batch
            ({"batch_sizes": (1, 4)}, 1, 2),  # four, and three that fill four
            ({"batch_tokens": 32 * 6}, 2, 2),  # six, and one
        ):
            bucketed = runner(**options)
            bucketed.run(ones(7, 32))
            counters = bucketed.counters
            assert (counters.compilations, counters.compilations + counters.hits) == (compilations, batches), options

    def test_constants_have_graphs_of_their_own(self, runner, adaptive_graph):
        bucketed = runner(adaptive_graph)
        for ratio in (1.0, 0.5, 1.0, 0.5):
            bucketed.run(ones(1, 20), of_budget([ratio] * 4, 20))
        assert (bucketed.counters.compilations, bucketed.counters.hits) == (2, 2)

    def test_least_recently_used_graph_is_dropped(self, runner):
        bucketed = runner(max_graphs=2)
        for length in (10, 40, 10, 70):  # 70 drops 40
            bucketed.run(ones(1, length))
        assert (bucketed.counters.compilations, bucketed.counters.evictions, bucketed.num_graphs) == (3, 1, 2)
        bucketed.run(ones(1, 10))
        assert bucketed.counters.compilations == 3
        bucketed.run(ones(1, 40))
        assert (bucketed.counters.compilations, bucketed.counters.evictions) == (4, 2)

    def test_throughput_runs_batches_side_by_side(self, runner):
        latency, throughput = runner(threads=2), runner(threads=2, performance_hint="throughput")
        assert (latency.num_streams, latency.get_property("INFERENCE_NUM_THREADS")) == (1, None)
        for bucketed in (latency, throughput):
            bucketed.run(ones(1, 10))
            assert bucketed.get_property("INFERENCE_NUM_THREADS") == 2
        assert latency.num_streams == 1
        assert throughput.num_streams == 2

    def test_cache_serves_the_next_start(self, runner, reference, tmp_path):
        folder = tmp_path / "cache"
        inputs = batch(6, 1, 20)
        first = runner(cache_dir=folder)
        first.run(inputs)
        files = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
        assert files
        assert not first.get_property("LOADED_FROM_CACHE")
        second = runner(cache_dir=folder)
        assert_same(second.run(inputs), reference(inputs), inputs["attention_mask"])
        assert second.get_property("LOADED_FROM_CACHE")
        assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == files
        second.run(batch(6, 1, 50))
        assert len(list(folder.iterdir())) > len(files)

    def test_cache_does_not_mix_constants_up(self, runner, adaptive_graph, tmp_path):
        inputs = batch(6, 1, 20)
        first, second = (
            [
                runner(adaptive_graph, cache_dir=tmp_path).run(inputs, of_budget([ratio] * 4, 20))["end_logits"]
                for ratio in (1.0, 0.3)
            ]
            for _ in range(2)
        )
        assert not np.allclose(first[0], first[1])
        np.testing.assert_allclose(first, second, atol=1e-5, rtol=1e-5)


class TestPadding:
    """Each row costs what its own length costs."""

    def test_rows_go_to_the_buckets_of_their_own_lengths(self, runner, reference, monkeypatch):
        bucketed = runner(batch_tokens=128, batch_sizes=(1, 2))
        shapes, find_graph = [], bucketed._find_graph
        monkeypatch.setattr(bucketed, "_find_graph", lambda *key: shapes.append(key[:2]) or find_graph(*key))
        inputs = {name: array.copy() for name, array in ones(5, 100).items()}
        for row, length in enumerate((40, 90, 20, 64, 33)):
            inputs["attention_mask"][row, length:] = 0
        found = bucketed.run(inputs)
        assert shapes == [(1, 96), (2, 64), (1, 64), (1, 32)]
        assert_same(found, reference(inputs), inputs["attention_mask"])
        assert (found["start_logits"][2, 32:] == -1e4).all()
        assert (found["end_logits"][1, 96:] == -1e4).all()

    def test_padding_beyond_the_longest_bucket_does_not_matter(self, runner, reference):
        inputs = {name: np.pad(array, ((0, 0), (0, 70))) for name, array in batch(4, 3, 40).items()}
        found = runner(longest_bucket=64).run(inputs)
        assert found["start_logits"].shape == (3, 110)
        assert_same(found, reference(inputs), inputs["attention_mask"])

    def test_zeros_within_a_row_are_no_padding(self, runner, reference):
        inputs = batch(4, 1, 60)
        inputs["attention_mask"][0, 20:30] = 0
        inputs["attention_mask"][0, 50:] = 0
        assert_same(runner().run(inputs), reference(inputs), inputs["attention_mask"])

    def test_row_without_a_token_keeps_one(self, runner):
        inputs = batch(4, 2, 60)
        inputs["attention_mask"][1] = 0
        bucketed = runner()
        bucketed.run(inputs)
        assert bucketed.counters.compilations == 2  # 64 and 32


class TestPlan:
    """Constants that depend on the batch."""

    def test_plan_sees_padded_batches_and_its_constants_are_folded(self, runner, adaptive_graph, adaptive_reference):
        seen = []

        def plan(ids, mask):
            seen.append((ids.shape, mask.sum(axis=1).tolist()))
            return of_budget([1.0 if ids.shape[1] == 32 else 0.5] * 4, ids.shape[1])

        bucketed = runner(adaptive_graph, batch_tokens=128)
        for length, ratio in ((20, 1.0), (50, 0.5)):
            inputs = ones(2, length)
            expected = adaptive_reference(inputs | of_budget([ratio] * 4, length))
            assert_same(bucketed.run(inputs, plan=plan), expected, inputs["attention_mask"], 1e-4)
        assert seen == [((1, 32), [20])] * 2 + [((2, 64), [50, 50])]

    def test_warm_up_asks_the_plan(self, runner, adaptive_graph):
        from optimum_qala.inference.buckets import Variant

        def plan(ids, mask):
            return of_budget([0.5] * 4, ids.shape[1])

        bucketed = runner(adaptive_graph)
        assert bucketed.warm_up([20], [1], [Variant(plan=plan)]) == 1
        bucketed.run(ones(1, 25), plan=plan)
        assert bucketed.counters.compilations == 1


class TestWarmUp:
    """After it no call compiles."""

    def test_every_bucket_and_batch_size_is_compiled(self, runner):
        bucketed = runner(longest_bucket=80, batch_tokens=128)
        assert bucketed.warm_up() == 5  # 4 and 1 rows of 32, 2 and 1 of 64, 1 of 80
        for num_rows in range(1, 6):
            for length in (1, 33, 80):
                bucketed.run(ones(num_rows, length))
        assert bucketed.counters.compilations == 5
        assert bucketed.warm_up() == 0

    def test_named_lengths_and_rows_are_compiled(self, runner):
        bucketed = runner(batch_tokens=256)
        assert bucketed.warm_up(lengths=[20, 30, 60], batch_sizes=[1]) == 2
        assert bucketed.warm_up(lengths=[20], batch_sizes=[9]) == 1  # eight and one
        bucketed.run(ones(9, 32))
        bucketed.run(ones(3, 32))  # as do those rows of a call of nine that fall into this bucket
        assert bucketed.counters.compilations == 3

    def test_more_graphs_than_are_kept_are_refused(self, runner):
        bucketed = runner(longest_bucket=96, batch_tokens=96, max_graphs=3)
        with pytest.raises(ConfigurationError, match="warm-up asks for 4 graphs, but max_graphs is 3"):
            bucketed.warm_up()
        assert bucketed.counters.compilations == 0

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (([0], None), "lengths of the warm-up holds 0, which is not positive"),
            ((None, [1, -2]), "batch_sizes of the warm-up holds -2, which is not positive"),
            (([100], None), "100 tokens does not fit the longest bucket of 64"),
            ((64, None), r"lengths 64 is not a list; write \[64\]"),
            ((None, 1), r"batch_sizes 1 is not a list; write \[1\]"),
        ],
    )
    def test_illegal_argument_is_refused(self, runner, arguments, message):
        with pytest.raises(ConfigurationError, match=message):
            runner(longest_bucket=64).warm_up(*arguments)


class TestThreads:
    """Threads share graphs and nothing else."""

    def test_threads_that_need_the_same_graph_compile_it_once(self, runner, reference, monkeypatch):
        bucketed = runner()
        inputs = ones(1, 20)
        barrier, compile_graph = threading.Barrier(4), bucketed._compile

        def slow(*arguments):
            time.sleep(0.2)
            return compile_graph(*arguments)

        def call(_):
            barrier.wait()
            return bucketed.run(inputs)

        monkeypatch.setattr(bucketed, "_compile", slow)
        with ThreadPoolExecutor(max_workers=4) as pool:
            results = list(pool.map(call, range(4)))
        assert (bucketed.counters.compilations, bucketed.counters.hits) == (1, 3)
        for found in results:
            assert_same(found, reference(inputs), inputs["attention_mask"])

    @pytest.mark.parametrize("hint", ["latency", "throughput"])
    @pytest.mark.parametrize("max_graphs", [1, 64], ids=["dropped-in-use", "kept"])
    def test_many_shapes_in_many_threads(self, runner, reference, hint, max_graphs):
        """With one graph kept, each call drops the graph that another thread runs."""
        bucketed = runner(max_graphs=max_graphs, batch_tokens=128, performance_hint=hint, threads=2)
        calls = [batch(seed, 1 + seed % 5, 10 + 15 * (seed % 4)) for seed in range(40)]
        with ThreadPoolExecutor(max_workers=6) as pool:
            results = list(pool.map(bucketed.run, calls))
        for inputs, found in zip(calls, results, strict=True):
            assert_same(found, reference(inputs), inputs["attention_mask"])
        assert bucketed.num_graphs <= max_graphs
        assert (bucketed.counters.evictions > 0) == (max_graphs == 1)

    def test_failed_compilation_reaches_all_that_wait_and_is_tried_again(self, runner, monkeypatch):
        bucketed = runner()
        compile_graph, barrier = bucketed._compile, threading.Barrier(2)

        def fail(*_):
            time.sleep(0.2)
            raise BackendError("no memory")

        def call(_):
            barrier.wait()
            with pytest.raises(BackendError, match="no memory"):
                bucketed.run(ones(1, 20))

        monkeypatch.setattr(bucketed, "_compile", fail)
        with ThreadPoolExecutor(max_workers=2) as pool:
            list(pool.map(call, range(2)))
        assert bucketed.num_graphs == 0
        monkeypatch.setattr(bucketed, "_compile", compile_graph)
        bucketed.run(ones(1, 20))
        assert bucketed.counters.compilations == 1


class TestRefusals:
    """What cannot run says why."""

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"attention_mask": None}, r"attention_mask is missing; the inputs are \['input_ids', 'token_type_ids'\]"),
            ({"token_type_ids": None}, "the graph needs 'token_type_ids', which is neither an input nor a constant"),
            ({"position_ids": np.zeros((2, 20))}, "the graph has no input 'position_ids'; it has"),
            ({"attention_mask": np.ones((2, 19))}, r"attention_mask has shape \(2, 19\), but input_ids have shape"),
            ({"input_ids": np.zeros(20)}, r"input_ids have shape \(20,\); expected \(batch size, length\)"),
            ({"input_ids": np.zeros((0, 20))}, r"input_ids have shape \(0, 20\); expected .* both positive"),
        ],
    )
    def test_inputs(self, runner, change, message):
        inputs = {name: array for name, array in (batch(0, 2, 20) | change).items() if array is not None}
        with pytest.raises(BackendError, match=message):
            runner().run(inputs)

    def test_sequence_that_is_too_long(self, runner):
        with pytest.raises(ConfigurationError, match="70 tokens does not fit the longest bucket of 64"):
            runner(longest_bucket=64).run(ones(1, 70))

    def test_unknown_constant(self, runner):
        with pytest.raises(BackendError, match="the graph has no input 'retention'"):
            runner().run(ones(1, 20), {"retention": np.ones(4, dtype=np.float32)})

    def test_settings_that_openvino_does_not_know(self, plain_graph):
        from optimum_qala.inference.buckets import BucketedRunner

        bucketed = BucketedRunner(plain_graph, ov_config={"NO_SUCH_SETTING": "1"})
        with pytest.raises(BackendError, match=r"OpenVINO cannot compile the graph for 1 x 32: .*NO_SUCH_SETTING"):
            bucketed.run(ones(1, 20))

    def test_contradicting_settings(self, plain_graph):
        from optimum_qala.inference.buckets import BucketedRunner

        with pytest.raises(ConfigurationError, match="PERFORMANCE_HINT 'THROUGHPUT' in ov_config contradicts"):
            BucketedRunner(plain_graph, ov_config={"PERFORMANCE_HINT": "THROUGHPUT"})
