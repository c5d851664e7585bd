from __future__ import annotations

import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from optimum_qala.errors import ConfigurationError
from optimum_qala.inference.bucket_options import BucketOptions
from optimum_qala.inference.buckets import BucketCounters
from optimum_qala.question_answering.windows import Window
from optimum_qala.reporting.benchmark import (
    BenchmarkOptions,
    Candidate,
    count_passes,
    measure,
    sample_windows,
)


def window(length):
    return Window(0, [1] * length, None, 0, 1, 0, np.zeros((0, 2), dtype=np.int64))


def candidate(name, seconds, calls, tokenizer):
    def model(input_ids, attention_mask, budget, **_):
        calls.append((name, tuple(input_ids.shape), budget))
        time.sleep(seconds)
        return SimpleNamespace()

    return Candidate(name, model, tokenizer, "full", "torch", "f32", 1, "slow")


def test_windows_are_spread_over_the_lengths():
    windows = [window(length) for length in (9, 3, 7, 1, 5, 8, 2, 6, 4, 10)]
    assert [len(one) for one in sample_windows(windows, 5)] == [2, 4, 6, 8, 10]
    assert [len(one) for one in sample_windows(windows, 20)] == list(range(1, 11))


def test_candidates_take_turns_at_every_batch(tiny_tokenizer):
    calls = []
    candidates = [candidate(name, 0, calls, tiny_tokenizer) for name in ("slow", "quick", "other")]
    measure(candidates, [window(4), window(6)], BenchmarkOptions(repeats=3, warmup=1, batch_sizes=(1,)))
    turns = [calls[first : first + 3] for first in range(0, len(calls), 3)]
    assert all({name for name, _, _ in turn} == {"slow", "quick", "other"} for turn in turns)
    assert [turn[0][1] for turn in turns] == [(1, 4), (1, 6)] * 4
    assert all(len({shape for _, shape, _ in turn}) == 1 for turn in turns)


def test_nobody_always_follows_the_same_candidate(tiny_tokenizer):
    calls = []
    candidates = [candidate(name, 0, calls, tiny_tokenizer) for name in ("slow", "quick", "other")]
    measure(candidates, [window(4)] * 8, BenchmarkOptions(repeats=2, warmup=0, batch_sizes=(1,)))
    orders = {tuple(name for name, _, _ in calls[first : first + 3]) for first in range(0, len(calls), 3)}
    assert len(orders) > 3


def test_warmup_is_not_counted_and_progress_is_told(tiny_tokenizer):
    slow_start = iter([0.2, 0.0, 0.0])
    told = []

    def model(**_):
        time.sleep(next(slow_start))

    one = Candidate("slow", model, tiny_tokenizer, "full", "torch", "f32", 1, "slow")
    options = BenchmarkOptions(repeats=2, warmup=1, batch_sizes=(1,))
    (row,) = measure([one], [window(4)], options, told.append)
    assert row.p90_ms < 100
    assert sum(told) == count_passes(options) == 3


def test_speedup_and_time_per_window(tiny_tokenizer):
    candidates = [candidate("slow", 0.06, [], tiny_tokenizer), candidate("quick", 0.02, [], tiny_tokenizer)]
    options = BenchmarkOptions(repeats=2, warmup=0, batch_sizes=(2,))
    slow, quick = measure(candidates, [window(4), window(6)], options)
    assert slow.speedup == 1.0
    assert slow.median_ms >= 30  # two windows in 60 ms
    assert quick.speedup > 1.5


def test_padding_is_measured_beside_true_lengths(tiny_tokenizer):
    calls = []
    options = BenchmarkOptions(repeats=1, warmup=0, batch_sizes=(2,), pad_to=16)
    rows = measure([candidate("slow", 0, calls, tiny_tokenizer)], [window(4), window(6)], options)
    assert [row.padding for row in rows] == ["longest", "fixed 16"]
    assert [shape for _, shape, _ in calls] == [(2, 6), (2, 16)]


class Clock:
    """A clock that only models move, so that times are exact."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr("optimum_qala.reporting.benchmark.time", SimpleNamespace(perf_counter=lambda: self.now))

    def candidate(self, name, tokenizer, seconds, **fields):
        def model(input_ids, **_):
            self.now += seconds * input_ids.numel()  # so many seconds a token

        return Candidate(name, model, tokenizer, "full", "torch", "f32", 1, **fields)


def test_slow_candidates_run_some_batches_of_some_passes(tiny_tokenizer):
    calls = []
    slow = replace(candidate("slow", 0, calls, tiny_tokenizer), is_slow=True)
    options = BenchmarkOptions(repeats=3, warmup=1, batch_sizes=(1,), slow_batches=2, slow_repeats=1)
    windows = [window(length) for length in (2, 4, 6, 8)]
    quick, row = measure([candidate("quick", 0, calls, tiny_tokenizer), slow], windows, options)
    assert [shape for name, shape, _ in calls if name == "slow"] == [(1, 4), (1, 8)] * 2
    assert [shape for name, shape, _ in calls if name == "quick"] == [(1, 2), (1, 4), (1, 6), (1, 8)] * 4
    assert (quick.num_windows, row.num_windows) == (4, 2)


@pytest.mark.parametrize(("batches", "repeats", "count"), [(1, 1, 2), (2, 1, 4), (9, 1, 8), (1, 3, 4), (1, 9, 4)])
def test_options_say_how_often_slow_candidates_run(tiny_tokenizer, batches, repeats, count):
    calls = []
    slow = replace(candidate("slow", 0, calls, tiny_tokenizer), is_slow=True)
    options = BenchmarkOptions(repeats=3, warmup=1, batch_sizes=(1,), slow_batches=batches, slow_repeats=repeats)
    measure([slow], [window(4)] * 4, options)
    assert len(calls) == count


def test_ratio_of_a_slow_candidate_is_over_the_batches_that_both_ran(monkeypatch, tiny_tokenizer):
    """Each takes so many seconds a token, so over all batches of the other the ratio would be another."""
    clock = Clock(monkeypatch)
    quick = clock.candidate("quick", tiny_tokenizer, 0.5)
    slow = clock.candidate("slow", tiny_tokenizer, 5.0, is_slow=True)
    options = BenchmarkOptions(repeats=2, warmup=0, batch_sizes=(1,), slow_batches=1, slow_repeats=1)
    first, second = measure([quick, slow], [window(2), window(10)], options, reference="quick")
    assert first.ratio == 1.0
    assert second.ratio == pytest.approx(0.1)
    assert second.median_ms == pytest.approx(50_000)


def test_ratio_and_speedup_refer_to_different_rows(monkeypatch, tiny_tokenizer):
    clock = Clock(monkeypatch)
    full = clock.candidate("full", tiny_tokenizer, 2.0, baseline="full")
    fast = clock.candidate("fast", tiny_tokenizer, 1.0, baseline="full")
    plain = clock.candidate("plain", tiny_tokenizer, 3.0)
    options = BenchmarkOptions(repeats=1, warmup=0, batch_sizes=(1,))
    rows = measure([full, fast, plain], [window(4)], options, reference="plain")
    assert [row.ratio for row in rows] == pytest.approx([1.5, 3.0, 1.0])
    assert [row.speedup for row in rows] == [1.0, 2.0, None]
    assert {row.ratio for row in measure([full], [window(4)], options)} == {None}


def test_macs_and_their_rate(monkeypatch, tiny_tokenizer):
    clock = Clock(monkeypatch)
    counted = clock.candidate("counted", tiny_tokenizer, 0.001, macs=lambda window: 5_000_000 * len(window))
    unknown = clock.candidate("unknown", tiny_tokenizer, 0.001)
    options = BenchmarkOptions(repeats=2, warmup=0, batch_sizes=(1, 2), pad_to=8)
    rows = measure([counted, unknown], [window(2), window(4)], options)
    assert [row.mmacs for row in rows] == [15.0, None] * 4
    # 5 million a millisecond; padding takes time and does nothing.
    assert [row.gmacs_per_s for row in rows[::2]] == pytest.approx([5.0, 15 / 8, 3.75, 15 / 8])
    assert {row.gmacs_per_s for row in rows[1::2]} == {None}


def test_padding_is_what_the_model_runs_at(tiny_tokenizer):
    plain = candidate("slow", 0, [], tiny_tokenizer)
    in_buckets = replace(candidate("thrifty", 0, [], tiny_tokenizer), buckets=BucketOptions(length_multiple=32))
    in_buckets.model.leaves_padding_out = True
    in_buckets.model.bucket_counters = BucketCounters()
    options = BenchmarkOptions(repeats=1, warmup=0, batch_sizes=(1,), pad_to=200)
    rows = measure([plain, in_buckets], [window(4)], options)
    assert {(row.name, row.padding, row.pad_to) for row in rows} == {
        ("slow", "longest", None),
        ("slow", "fixed 200", 200),
        ("thrifty", "multiple of 32", None),
        ("thrifty", "multiple of 32", 200),
    }


@pytest.mark.parametrize(("warmup", "num_compiled"), [(0, 3), (1, 2)])
def test_graphs_that_are_compiled_while_the_clock_runs_are_counted(tiny_tokenizer, warmup, num_compiled):
    one = replace(candidate("thrifty", 0, [], tiny_tokenizer), buckets=BucketOptions())
    counters = iter(range(9))

    class Model:
        """Compiles a graph at every call."""

        bucket_counters = BucketCounters()

        def __call__(self, **_):
            self.bucket_counters = replace(self.bucket_counters, compilations=next(counters) + 1)

    options = BenchmarkOptions(repeats=3 - warmup, warmup=warmup, batch_sizes=(1,))
    rows = measure([replace(one, model=Model()), candidate("slow", 0, [], tiny_tokenizer)], [window(4)], options)
    assert [row.num_compiled for row in rows] == [num_compiled, 0]


def test_batch_larger_than_the_timed_windows_does_not_pass_for_one(tiny_tokenizer):
    calls = []
    options = BenchmarkOptions(num_windows=3, repeats=1, warmup=0, batch_sizes=(1, 3, 8))
    rows = measure([candidate("slow", 0, calls, tiny_tokenizer)], [window(4)] * 9, options)
    assert [row.batch_size for row in rows] == [1, 3]
    assert [shape for _, shape, _ in calls] == [(1, 4)] * 3 + [(3, 4)]


def test_padding_that_does_not_fit_is_refused_before_anything_is_timed(tiny_tokenizer):
    calls, windows = [], [window(4), window(40)]
    with pytest.raises(ConfigurationError, match="pad_to 16 is less than the 40 tokens of the longest window"):
        measure([candidate("slow", 0, calls, tiny_tokenizer)], windows, BenchmarkOptions(pad_to=16))
    assert calls == []
    with pytest.raises(ConfigurationError, match="pad_to 600 is more than the 512 tokens that the models take"):
        BenchmarkOptions(pad_to=600).for_windows(windows, 512)
    assert BenchmarkOptions(pad_to=40).for_windows(windows, 40).pad_to == 40


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slow_batches": 0}, "slow_batches 0 is less than 1"),
        ({"slow_repeats": 0}, "slow_repeats 0 is less than 1"),
        ({"num_windows": 0}, "num_windows 0 is less than 1"),
        ({"repeats": 0}, "repeats 0 is less than 1"),
        ({"warmup": -1}, "warmup -1 is less than 0"),
        ({"batch_sizes": (1, 0)}, "batch size 0 is less than 1"),
        ({"batch_sizes": ()}, "batch_sizes is empty"),
    ],
)
def test_illegal_option_is_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        BenchmarkOptions(**options)
