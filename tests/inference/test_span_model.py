"""A QuaLA-MiniLM in buckets answers as the one graph of any shape, at any budget, without compiling anything again."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from optimum_qala import BucketOptions, LengthConfig, OVQuaLAMiniLMForQuestionAnswering
from optimum_qala.errors import BackendError, ConfigurationError, UnknownBudgetError
from tests.inference.batches import assert_threads_agree, distances, random_batch


TOLERANCE = 1e-4


@pytest.fixture
def bucketed(exported):
    options = BucketOptions(batch_tokens=256)
    return OVQuaLAMiniLMForQuestionAnswering.from_pretrained(exported, buckets=options)


@pytest.mark.parametrize("budget", ["full", "fast", "1,1,0.5,0.5"])
def test_logits_equal_those_without_buckets(bucketed, model, budget):
    for seed in range(8):
        batch = random_batch(seed, 1 + seed % 5, 12 + 13 * seed)
        found = bucketed(**batch, budget=budget)
        assert found.start_logits.shape == batch["input_ids"].shape
        assert distances(found, model(**batch, budget=budget), batch["attention_mask"]).max() < TOLERANCE


@pytest.mark.parametrize("budget", ["full", "late", "shallow", "1,0.5,0.4,0.4@3"])
def test_exits_in_buckets_equal_those_without(answer_exported, budget):
    plain = OVQuaLAMiniLMForQuestionAnswering.from_pretrained(answer_exported)
    bucketed = OVQuaLAMiniLMForQuestionAnswering.from_pretrained(
        answer_exported, buckets=BucketOptions(batch_tokens=256)
    )
    for seed in range(4):
        batch = random_batch(seed, 1 + seed, 12 + 13 * seed)
        found, expected = (made(**batch, budget=budget) for made in (bucketed, plain))
        assert distances(found, expected, batch["attention_mask"]).max() < TOLERANCE
        assert bucketed.runner.is_static


@pytest.mark.parametrize("budget", ["full", "fast"])
def test_padding_that_all_rows_share_is_not_computed(model, budget, monkeypatch):
    seen, infer_request = [], model._infer_request

    class Request:
        def __init__(self, exit_layer):
            self.request = infer_request(exit_layer)

        def infer(self, inputs, **options):
            seen.append({name: inputs[name].shape for name in ("input_ids", "attention_mask", "token_type_ids")})
            return self.request.infer(inputs, **options)

    monkeypatch.setattr(model, "_infer_request", Request)
    batch = random_batch(5, 3, 40)
    padded = {name: torch.nn.functional.pad(tensor, (0, 25)) for name, tensor in batch.items()}
    expected, found = model(**batch, budget=budget), model(**padded, budget=budget)
    assert seen == 2 * [dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), (3, 40))]
    assert found.start_logits.shape == (3, 65)
    assert (found.end_logits[:, 40:] == -1e4).all()
    torch.testing.assert_close(found.start_logits[:, :40], expected.start_logits, atol=0, rtol=0)


def test_graph_of_fixed_length_gets_that_length(exported, model):
    batch = random_batch(5, 2, 40)
    padded = {name: torch.nn.functional.pad(tensor, (0, 24)) for name, tensor in batch.items()}
    fixed = OVQuaLAMiniLMForQuestionAnswering.from_pretrained(exported)
    fixed.reshape(2, 64)
    for budget in ("full", "fast"):
        expected, found = (made(**padded, budget=budget) for made in (model, fixed))
        assert distances(found, expected, padded["attention_mask"]).max() < TOLERANCE


@pytest.mark.parametrize("budget", ["full", "fast", "1,1,0.5,0.5"])
def test_no_shape_inside_is_left_open(bucketed, budget):
    bucketed(**random_batch(0, 2, 40), budget=budget)
    assert bucketed.runner.is_static


def test_long_questions_get_graphs_of_their_own(bucketed, model):
    """Their tokens survive every layer, whatever the budget says."""
    budget, usual = "1,1,0.5,0.2", random_batch(3, 1, 60)
    long = {name: tensor.clone() for name, tensor in random_batch(4, 1, 60).items()}
    end = int((long["input_ids"][0] == 3).nonzero()[0])
    long["input_ids"][0, end], long["input_ids"][0, 40] = 7, 3
    for batch, compilations in ((usual, 1), (long, 2), (usual, 2), (long, 2)):
        found = bucketed(**batch, budget=budget)
        assert distances(found, model(**batch, budget=budget), batch["attention_mask"]).max() < TOLERANCE
        assert bucketed.bucket_counters.compilations == compilations


def test_calls_are_those_of_the_class(bucketed, model):
    batch = random_batch(4, 2, 50)
    bucketed.set_budget("fast")
    assert distances(bucketed(**batch), model(**batch, budget="fast"), batch["attention_mask"]).max() < TOLERANCE
    arrays = bucketed(**{name: tensor.numpy() for name, tensor in batch.items()}, budget="full")
    assert isinstance(arrays.start_logits, np.ndarray)
    full = model(**batch).start_logits
    np.testing.assert_allclose(
        arrays.start_logits * batch["attention_mask"].numpy(), full * batch["attention_mask"], atol=TOLERANCE
    )
    ids = batch["input_ids"][:1]
    torch.testing.assert_close(bucketed(ids, budget="full").end_logits, model(ids).end_logits, atol=1e-4, rtol=1e-4)
    with pytest.raises(UnknownBudgetError, match="no budget 'slow'"):
        bucketed(**batch, budget="slow")


def test_switching_budgets_inside_a_warmed_set_compiles_nothing(bucketed):
    budgets = ["full", "fast", "faster"]
    # One row of each length, and the four rows of the longer one that three rows fill; all at three budgets.
    compiled = bucketed.warm_up(lengths=[30, 60], batch_sizes=[1, 2, 3], budgets=budgets)
    assert compiled == bucketed.bucket_counters.compilations == 9
    calls = [(random_batch(seed, 1 + seed % 3, 8 + seed), budgets[seed % 3]) for seed in range(48)]
    with ThreadPoolExecutor(max_workers=4) as pool:
        list(pool.map(lambda call: bucketed(**call[0], budget=call[1]), calls))
    for batch, budget in calls[:6]:
        bucketed.set_budget(budget)
        bucketed(**batch)
    counters = bucketed.bucket_counters
    assert (counters.compilations, counters.evictions) == (9, 0)
    assert counters.hits > 48


def test_budget_that_is_named_twice_is_warmed_up_once(bucketed):
    assert bucketed.warm_up(lengths=[30], batch_sizes=[1], budgets=["full", None, "1,1,1,1", "fast"]) == 2


@pytest.mark.parametrize("budget", ["fast", LengthConfig((1.0, 1.0, 0.5, 0.5))], ids=["name", "LengthConfig"])
def test_warm_up_of_one_budget_is_refused(bucketed, budget):
    message = f"budgets {budget!r} is not a list; write [{budget!r}]"
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        bucketed.warm_up(lengths=[30], batch_sizes=[1], budgets=budget)


@pytest.mark.parametrize("buckets", [False, True])
def test_budget_of_a_call_is_read_once(exported, monkeypatch, buckets):
    """Another thread may choose another one at any moment."""
    changing = OVQuaLAMiniLMForQuestionAnswering.from_pretrained(exported, buckets=buckets)
    batch = random_batch(0, 2, 50)
    expected = changing(**batch, budget="fast").start_logits
    budgets = iter([changing.config.resolve_budget("fast")] + [changing.config.resolve_budget("faster")] * 9)
    monkeypatch.setattr(type(changing), "_budget", property(lambda self: next(budgets)), raising=False)
    del vars(changing)["_budget"]
    torch.testing.assert_close(changing(**batch).start_logits, expected, atol=1e-5, rtol=1e-5)


def test_warm_up_takes_the_chosen_budget(bucketed):
    bucketed.set_budget("fast")
    bucketed.warm_up(lengths=[20], batch_sizes=[1])
    bucketed(**random_batch(0, 1, 20))
    assert bucketed.bucket_counters.compilations == 1
    bucketed(**random_batch(0, 1, 20), budget="full")
    assert bucketed.bucket_counters.compilations == 2


def test_threads_with_different_budgets_do_not_disturb_each_other(bucketed):
    budgets = ["full", "fast", "faster", "1,1,0.5,0.5"]
    calls = [(random_batch(seed, 1 + seed % 3, 20 + seed), budgets[seed % 4]) for seed in range(32)]

    assert_threads_agree(bucketed, calls)


def test_buckets_end_at_the_positions_of_the_model(exported):
    for longest, expected in ((None, 128), (500, 128), (100, 100)):
        model = OVQuaLAMiniLMForQuestionAnswering.from_pretrained(
            exported, buckets=BucketOptions(longest_bucket=longest)
        )
        assert model.buckets.longest_bucket == expected
    with pytest.raises(ConfigurationError, match="110 tokens does not fit the longest bucket of 100"):
        model(**random_batch(0, 1, 110))
    with pytest.raises(ConfigurationError, match="129 tokens exceeds the 128 positions"):
        model(torch.zeros(1, 129, dtype=torch.int64))


def test_settings_reach_the_runtime(exported):
    for threads in (1, 2):
        options = BucketOptions(threads=threads)
        model = OVQuaLAMiniLMForQuestionAnswering.from_pretrained(exported, buckets=options)
        assert model.precision == "f32"
        assert model.threads == threads
        assert model.bucket_counters.compilations == 1  # asked before the first call
        assert model.precision == "f32"
    with pytest.raises(ConfigurationError, match="INFERENCE_NUM_THREADS 1 in ov_config contradicts 2"):
        OVQuaLAMiniLMForQuestionAnswering.from_pretrained(
            exported, buckets=options, ov_config={"INFERENCE_NUM_THREADS": 1}
        )


def test_nothing_is_compiled_before_it_is_needed(exported):
    model = OVQuaLAMiniLMForQuestionAnswering.from_pretrained(exported, buckets=True, compile=True)
    assert model.buckets == BucketOptions(longest_bucket=128)
    assert model.request is None
    assert model.bucket_counters.compilations == 0


def test_new_device_or_precision_forgets_what_was_compiled(bucketed):
    batch = random_batch(1, 1, 20)
    bucketed(**batch)
    before = bucketed.runner
    assert bucketed.to("cpu").runner is not before
    bucketed(**batch)
    assert bucketed.bucket_counters.compilations == 1
    exact, rough = bucketed(**batch).start_logits, bucketed.half()(**batch).start_logits
    assert not torch.equal(exact, rough)
    torch.testing.assert_close(exact, rough, atol=0.1, rtol=0.1)


def test_saved_model_holds_the_graph_and_not_the_buckets(bucketed, tmp_path):
    batch = random_batch(11, 1, 40)
    expected = bucketed(**batch, budget="faster").start_logits
    bucketed.save_pretrained(tmp_path / "saved")
    loaded = OVQuaLAMiniLMForQuestionAnswering.from_pretrained(tmp_path / "saved", export=False)
    assert loaded.buckets is None
    torch.testing.assert_close(loaded(**batch, budget="faster").start_logits, expected, atol=1e-4, rtol=1e-4)


def test_batch_is_filled_from_one_bucket(bucketed, model):
    assert bucketed.fill_batch([30] * 20) == 8  # 256 tokens
    assert bucketed.fill_batch([120, 100, 90, 20]) == 2
    assert bucketed.fill_batch([20]) == 1
    assert model.fill_batch([30] * 20) == 20


def test_batch_is_filled_for_every_stream(exported):
    options = BucketOptions(batch_tokens=64, performance_hint="throughput", threads=2)
    model = OVQuaLAMiniLMForQuestionAnswering.from_pretrained(exported, buckets=options)
    assert model.fill_batch([30] * 20) == 2
    model.warm_up(lengths=[30], batch_sizes=[1])
    assert model.fill_batch([30] * 20) == 4


class TestRefusals:
    def test_reshape(self, bucketed):
        with pytest.raises(ConfigurationError, match=r"runs in buckets.*leave reshape\(1, 32\) out"):
            bucketed.reshape(1, 32)

    def test_buckets_of_a_model_without_them(self, model):
        for use in (lambda: model.runner, lambda: model.bucket_counters, lambda: model.warm_up([20])):
            with pytest.raises(BackendError, match="loaded without buckets; pass buckets=True"):
                use()

    def test_something_else_than_options(self, exported):
        with pytest.raises(ConfigurationError, match="buckets 'yes' are neither BucketOptions"):
            OVQuaLAMiniLMForQuestionAnswering.from_pretrained(exported, buckets="yes")
