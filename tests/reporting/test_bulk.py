from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from optimum_qala.errors import ConfigurationError
from optimum_qala.inference.bucket_options import BucketOptions
from optimum_qala.question_answering.windows import Window
from optimum_qala.reporting.benchmark import Candidate
from optimum_qala.reporting.bulk import BulkOptions, count_bulk_turns, measure_bulk


class Model:
    """Takes as many seconds as it is given tokens, padding too, and remembers the shapes."""

    def __init__(self, clock, most=None):
        self.clock, self.shapes = clock, []
        if most is not None:
            self.fill_batch = lambda lengths: min(most, len(lengths))

    def __call__(self, input_ids, **_):
        self.shapes.append(tuple(input_ids.shape))
        self.clock.now += input_ids.numel()


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("optimum_qala.reporting.bulk.time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


def windows(*lengths):
    return [
        Window(index, [1] * length, None, 0, 1, 0, np.zeros((0, 2), dtype=np.int64))
        for index, length in enumerate(lengths)
    ]


def candidate(name, model, tokenizer, **fields):
    return Candidate(name, model, tokenizer, "full", "torch", "f32", 1, **fields)


def test_batches_are_those_of_predict(clock, tiny_tokenizer):
    """Longest first, 32 at a time, or as many as the model wants."""
    dynamic, filled = Model(clock), Model(clock, most=3)
    candidates = [candidate("dynamic", dynamic, tiny_tokenizer), candidate("filled", filled, tiny_tokenizer)]
    rows = measure_bulk(candidates, windows(*range(1, 41)), BulkOptions())
    assert dynamic.shapes[1:] == [(32, 40), (8, 8)]  # after the one that warms up
    assert filled.shapes[1:] == [(3, 40 - 3 * index) for index in range(13)] + [(1, 1)]
    assert [row.num_windows for row in rows] == [40, 40]
    assert rows[0].median_ms == pytest.approx(1000 * (32 * 40 + 8 * 8) / 40)


def test_buffers_are_those_of_predict(clock, tiny_tokenizer, monkeypatch):
    monkeypatch.setattr("optimum_qala.reporting.bulk.BUFFERED_RECORDS", 2)
    model, told = Model(clock), []
    one, options = candidate("one", model, tiny_tokenizer), BulkOptions(bulk_repeats=2)
    measure_bulk([one], windows(3, 5, 9, 7, 1), options, told.append)
    assert model.shapes[1:] == [(2, 5), (2, 9), (1, 1)] * 2
    assert sum(told) == count_bulk_turns([one], windows(3, 5, 9, 7, 1), options) == 6


class BucketedModel(Model):
    """Compiles a graph for each shape that it does not keep, which takes a thousand seconds."""

    def __init__(self, clock, max_graphs):
        super().__init__(clock, most=2)
        self.kept, self.max_graphs, self.bucket_counters = [], max_graphs, SimpleNamespace(compilations=0)

    def __call__(self, input_ids, **_):
        super().__call__(input_ids)
        if input_ids.shape not in self.kept:
            self.bucket_counters.compilations += 1
            self.clock.now += 1000
            self.kept = [*self.kept, input_ids.shape][-self.max_graphs :]


@pytest.mark.parametrize(("max_graphs", "num_compiled"), [(3, 0), (2, 2 * 3)])
def test_compiling_is_not_timed_if_all_graphs_of_a_turn_are_kept(clock, tiny_tokenizer, max_graphs, num_compiled):
    model = BucketedModel(clock, max_graphs)
    one = candidate("one", model, tiny_tokenizer, buckets=BucketOptions(length_multiple=8))
    (row,) = measure_bulk([one], windows(3, 4, 5, 6, 12), BulkOptions(bulk_repeats=2))
    assert row.batching == "filled by tokens"
    assert row.num_compiled == num_compiled
    assert row.median_ms == pytest.approx(1000 * (24 + 10 + 3 + 1000 * num_compiled / 2) / 5)


def test_options_say_which_windows_and_how_often(clock, tiny_tokenizer):
    model = Model(clock)
    one = candidate("one", model, tiny_tokenizer)
    (row,) = measure_bulk([one], windows(2, 4, 6, 8), BulkOptions(bulk_windows=2, bulk_repeats=3))
    assert row.num_windows == 2
    assert model.shapes == [(2, 8)] * 4


def test_ratios_macs_and_slow_candidates(clock, tiny_tokenizer):
    full = candidate("full", Model(clock), tiny_tokenizer, baseline="full", macs=lambda window: 10**9 * len(window))
    plain = candidate("plain", Model(clock, most=1), tiny_tokenizer)
    slow = replace(plain, name="slow", is_slow=True)
    first, second = measure_bulk([full, plain, slow], windows(2, 6), BulkOptions(), reference="plain")
    assert (first.ratio, first.speedup) == (pytest.approx(8 / 12), 1.0)
    assert (second.ratio, second.speedup) == (1.0, None)
    assert first.mmacs == 4000.0
    assert first.gmacs_per_s == pytest.approx(8 / 12)
    assert second.mmacs is second.gmacs_per_s is None


@pytest.mark.parametrize("name", ["bulk_windows", "bulk_repeats"])
def test_illegal_option_is_refused(name):
    with pytest.raises(ConfigurationError, match=f"{name} 0 is less than 1"):
        BulkOptions(**{name: 0})
