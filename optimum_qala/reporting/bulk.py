"""Milliseconds per window where many windows are answered at once, batched as `predict` batches them."""

from __future__ import annotations

import inspect
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import torch

from optimum_qala.errors import ConfigurationError
from optimum_qala.question_answering.features import collate
from optimum_qala.question_answering.predictor import plan_batches, predict
from optimum_qala.question_answering.windows import Window
from optimum_qala.reporting.benchmark import Candidate, sample_windows


__all__ = ["BulkOptions", "BulkRow", "count_bulk_turns", "measure_bulk"]

# What `predict` reads ahead, and the windows of its batches.
_PREDICT = inspect.signature(predict).parameters
BUFFERED_RECORDS: int = _PREDICT["buffer_size"].default
BATCH_SIZE: int = _PREDICT["batch_size"].default


@dataclass(frozen=True)
class BulkOptions:
    """What is timed in bulk.

    Args:
        bulk_windows: Windows of the data to answer, spread over their lengths; all if None.
        bulk_repeats: Timed passes over them.

    Raises:
        ConfigurationError: If a number is out of range.
    """

    bulk_windows: int | None = None
    bulk_repeats: int = 1

    def __post_init__(self) -> None:
        for name in ("bulk_windows", "bulk_repeats"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigurationError(f"{name} {value} is less than 1")


@dataclass(frozen=True)
class BulkRow:
    """One result.

    Args:
        name: Name of the candidate.
        kind: As in `Candidate`.
        budget: Its budget.
        backend: Its back end.
        compiled: As in `Candidate`.
        arithmetic: What its matrix products ran in.
        precision: Precision of its float operations.
        threads: Threads it ran on.
        batching: "32 windows", or "filled by tokens" for a model that says how many it wants.
        num_windows: Windows of a pass.
        num_compiled: Graphs that were compiled while the clock ran, because a turn needs more than the model keeps.
        median_ms: Milliseconds per window: those of a whole pass divided by its windows, median over the passes.
        speedup: As in `BenchmarkRow`.
        ratio: As in `BenchmarkRow`.
        mmacs: As in `BenchmarkRow`.
        gmacs_per_s: As in `BenchmarkRow`.
    """

    name: str
    kind: str
    budget: str
    backend: str
    compiled: bool
    arithmetic: str
    precision: str
    threads: int
    batching: str
    num_windows: int
    num_compiled: int
    median_ms: float
    speedup: float | None
    ratio: float | None
    mmacs: float | None
    gmacs_per_s: float | None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


def measure_bulk(
    candidates: Sequence[Candidate],
    windows: Sequence[Window],
    options: BulkOptions,
    progress: Callable[[int], object] | None = None,
    reference: str | None = None,
) -> list[BulkRow]:
    """Time every candidate on many windows: padding them into batches and running these, not making the windows.

    The candidates take turns at every thousand records. A turn in which graphs were compiled is repeated once they are
    there: what is timed is answering.

    Args:
        candidates: What to compare; they share one vocabulary. Slow ones are left out.
        windows: All windows of the data; `options` says how many are used.
        options: What to time.
        progress: Called with the number of turns finished since its last call, of `count_bulk_turns`.
        reference: Name of the candidate that `ratio` refers to.

    Returns:
        Rows in the order of `candidates`.
    """
    candidates = [candidate for candidate in candidates if not candidate.is_slow]
    buffers = _buffers(windows, options)
    for candidate in candidates:
        _run(candidate, buffers[0][:BATCH_SIZE])  # the first call of a model is slower than all others
    seconds: dict[str, list[float]] = {candidate.name: [] for candidate in candidates}
    compiled = dict.fromkeys(seconds, 0)
    order = random.Random(0)
    for _ in range(options.bulk_repeats):
        totals = dict.fromkeys(seconds, 0.0)
        for buffer in buffers:
            for candidate in order.sample(candidates, len(candidates)):
                taken, num_compiled = _time_turn(candidate, buffer)
                totals[candidate.name] += taken
                compiled[candidate.name] += num_compiled
                if progress is not None:
                    progress(1)
        for name, total in totals.items():
            seconds[name].append(total)
    return list(_rows(candidates, [window for buffer in buffers for window in buffer], seconds, compiled, reference))


def count_bulk_turns(candidates: Sequence[Candidate], windows: Sequence[Window], options: BulkOptions) -> int:
    """Count the turns that candidates take, for the total of a progress bar."""
    return sum(not one.is_slow for one in candidates) * len(_buffers(windows, options)) * options.bulk_repeats


def _buffers(windows: Sequence[Window], options: BulkOptions) -> list[list[Window]]:
    """Group windows by what `predict` would have read at once, in the order of the data."""
    chosen = windows if options.bulk_windows is None else sample_windows(windows, options.bulk_windows)
    ordered = sorted(chosen, key=lambda window: window.record_index)
    return [list(group) for _, group in groupby(ordered, lambda window: window.record_index // BUFFERED_RECORDS)]


def _time_turn(candidate: Candidate, buffer: Sequence[Window]) -> tuple[float, int]:
    """Return the seconds that a buffer takes, and how many graphs were compiled in them: 0 if they are all kept."""
    for _ in range(2):
        before, began = candidate.num_compiled, time.perf_counter()
        for batch in plan_batches(candidate.model, buffer, BATCH_SIZE):
            _run(candidate, [buffer[index] for index in batch])
        taken, num_compiled = time.perf_counter() - began, candidate.num_compiled - before
        if num_compiled == 0:
            break
    return taken, num_compiled


def _run(candidate: Candidate, group: Sequence[Window]) -> None:
    with torch.inference_mode():
        candidate.model(**collate(group, candidate.tokenizer), budget=candidate.budget)


def _rows(
    candidates: Sequence[Candidate],
    windows: Sequence[Window],
    seconds: dict[str, list[float]],
    compiled: dict[str, int],
    reference: str | None,
) -> Iterator[BulkRow]:
    for candidate in candidates:
        own = seconds[candidate.name]
        macs = candidate.count_macs(windows)
        yield BulkRow(
            **candidate.identity,
            batching=f"{BATCH_SIZE} windows" if candidate.buckets is None else "filled by tokens",
            num_windows=len(windows),
            num_compiled=compiled[candidate.name],
            median_ms=1000.0 * statistics.median(own) / len(windows),
            speedup=None if candidate.baseline is None else _ratio(seconds[candidate.baseline], own),
            ratio=None if reference is None else _ratio(seconds[reference], own),
            mmacs=None if macs is None else macs / len(windows) / 1e6,
            gmacs_per_s=None if macs is None else macs / statistics.median(own) / 1e9,
        )


def _ratio(other: Sequence[float], own: Sequence[float]) -> float:
    return statistics.median(another / one for another, one in zip(other, own, strict=True))
