from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np
import pytest

from optimum_qala.errors import ConfigurationError
from optimum_qala.question_answering.windows import Window
from optimum_qala.reporting.benchmark import (
    BenchmarkOptions,
    Candidate,
    count_passes,
    describe_machine,
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
    candidates = [candidate("slow", 0, calls, tiny_tokenizer), candidate("quick", 0, calls, tiny_tokenizer)]
    measure(candidates, [window(4), window(6)], BenchmarkOptions(repeats=1, warmup=1, batch_sizes=(1,)))
    assert [name for name, _, _ in calls] == ["slow", "quick"] * 4
    assert [shape for _, shape, _ in calls[::2]] == [(1, 4), (1, 6)] * 2


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
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


def test_machine_is_described():
    machine = describe_machine()
    assert machine["cpu"]
    assert machine["torch_threads"] >= 1
