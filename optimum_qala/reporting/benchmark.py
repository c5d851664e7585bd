"""Latency of several models or budgets, measured so that they can be compared.

All candidates run in one process and take turns at every batch, so a slow moment of the machine hits them alike. Every
row says what it depends on: back end, precision, threads, batch size and padding.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from optimum_qala.errors import ConfigurationError
from optimum_qala.quantization.cpu import read_cpu_flags
from optimum_qala.question_answering.features import collate
from optimum_qala.question_answering.windows import Window


__all__ = [
    "BenchmarkOptions",
    "BenchmarkRow",
    "Candidate",
    "count_passes",
    "describe_machine",
    "measure",
    "sample_windows",
]

# The flags that decide how fast int8 and bfloat16 run.
REPORTED_FLAGS = ("avx2", "avx512_f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16")


@dataclass(frozen=True)
class BenchmarkOptions:
    """What is timed.

    Args:
        num_windows: Windows of the data to time on, spread over their lengths.
        repeats: Timed passes over them.
        warmup: Passes before that are not timed.
        batch_sizes: Windows per call; each is measured on its own.
        pad_to: Measure with every window padded to this length too, beside true lengths; not if None.

    Raises:
        ConfigurationError: If a number is out of range.
    """

    num_windows: int = 64
    repeats: int = 5
    warmup: int = 1
    batch_sizes: tuple[int, ...] = (1, 32)
    pad_to: int | None = None

    def __post_init__(self) -> None:
        for name, lowest in (("num_windows", 1), ("repeats", 1), ("warmup", 0)):
            if getattr(self, name) < lowest:
                raise ConfigurationError(f"{name} {getattr(self, name)} is less than {lowest}")
        for batch_size in self.batch_sizes:
            if batch_size < 1:
                raise ConfigurationError(f"batch size {batch_size} is less than 1")
        if not self.batch_sizes:
            raise ConfigurationError("batch_sizes is empty; give at least one, for example 1")


@dataclass(frozen=True)
class Candidate:
    """One thing to time.

    Args:
        name: How the row is called; unique.
        model: Called with tensors and `budget=`.
        tokenizer: Its tokenizer.
        budget: The budget it runs at.
        backend: "torch" or "openvino".
        precision: What float operations run in.
        threads: Threads it runs on.
        baseline: Name of the candidate that its speed-up refers to.
        padding: How the model itself pads what it is given, if it does.
    """

    name: str
    model: Any
    tokenizer: Any
    budget: str
    backend: str
    precision: str
    threads: int
    baseline: str
    padding: str | None = None


@dataclass(frozen=True)
class BenchmarkRow:
    """One result.

    Args:
        name: Name of the candidate.
        budget: Its budget.
        backend: Its back end.
        precision: Precision of its float operations.
        threads: Threads it ran on.
        batch_size: Windows per call.
        padding: "longest" (to the longest window of the batch; with one window none at all), "multiple of N" (that,
            rounded up) or "fixed N".
        median_ms: Median milliseconds per window.
        p90_ms: 90th percentile of the same.
        speedup: How many times faster than the baseline: median over the passes of the ratio of total times.
    """

    name: str
    budget: str
    backend: str
    precision: str
    threads: int
    batch_size: int
    padding: str
    median_ms: float
    p90_ms: float
    speedup: float

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


def sample_windows(windows: Sequence[Window], count: int) -> list[Window]:
    """Choose windows spread evenly over the sorted lengths, shortest first.

    Args:
        windows: All windows.
        count: How many; fewer if there are fewer.

    Returns:
        The windows.
    """
    ordered = sorted(windows, key=len)
    if len(ordered) <= count:
        return ordered
    return [ordered[(2 * index + 1) * len(ordered) // (2 * count)] for index in range(count)]


def measure(
    candidates: Sequence[Candidate],
    windows: Sequence[Window],
    options: BenchmarkOptions,
    progress: Callable[[int], object] | None = None,
) -> list[BenchmarkRow]:
    """Time every candidate on the same windows.

    Args:
        candidates: What to compare; they share one vocabulary.
        windows: All windows of the data; `options` says how many are used.
        options: What to time.
        progress: Called with the number of passes finished since its last call, of `count_passes(options)`.

    Returns:
        Rows by batch size and padding, in the order of `candidates` within each.
    """
    chosen = sample_windows(windows, options.num_windows)
    rows: list[BenchmarkRow] = []
    for batch_size in options.batch_sizes:
        # The windows are sorted by length, so that a batch holds little padding, as bulk prediction does.
        groups = [chosen[first : first + batch_size] for first in range(0, len(chosen), batch_size)]
        for pad_to in (None, options.pad_to)[: 1 if options.pad_to is None else 2]:
            times = _time(candidates, groups, pad_to, options, progress)
            rows += _rows(candidates, groups, times, batch_size, pad_to)
    return rows


def count_passes(options: BenchmarkOptions) -> int:
    """Count the passes over the windows, for the total of a progress bar."""
    paddings = 1 if options.pad_to is None else 2
    return len(options.batch_sizes) * paddings * (options.warmup + options.repeats)


def _time(
    candidates: Sequence[Candidate],
    groups: Sequence[Sequence[Window]],
    pad_to: int | None,
    options: BenchmarkOptions,
    progress: Callable[[int], object] | None,
) -> dict[str, list[list[float]]]:
    """Return seconds by candidate, pass and batch."""
    tokenizer = candidates[0].tokenizer
    batches = [collate(group, tokenizer, pad_to_length=pad_to) for group in groups]
    times: dict[str, list[list[float]]] = {candidate.name: [] for candidate in candidates}
    for number in range(options.warmup + options.repeats):
        passes: dict[str, list[float]] = {candidate.name: [] for candidate in candidates}
        for batch in batches:
            for candidate in candidates:
                began = time.perf_counter()
                with torch.inference_mode():
                    candidate.model(**batch, budget=candidate.budget)
                passes[candidate.name].append(time.perf_counter() - began)
        if number >= options.warmup:
            for name, seconds in passes.items():
                times[name].append(seconds)
        if progress is not None:
            progress(1)
    return times


def _rows(
    candidates: Sequence[Candidate],
    groups: Sequence[Sequence[Window]],
    times: dict[str, list[list[float]]],
    batch_size: int,
    pad_to: int | None,
) -> Iterator[BenchmarkRow]:
    for candidate in candidates:
        own, base = times[candidate.name], times[candidate.baseline]
        per_window = [
            1000.0 * seconds / len(group) for one_pass in own for seconds, group in zip(one_pass, groups, strict=True)
        ]
        yield BenchmarkRow(
            name=candidate.name,
            budget=candidate.budget,
            backend=candidate.backend,
            precision=candidate.precision,
            threads=candidate.threads,
            batch_size=batch_size,
            padding=candidate.padding or "longest" if pad_to is None else f"fixed {pad_to}",
            median_ms=statistics.median(per_window),
            p90_ms=_percentile(per_window, 0.9),
            speedup=statistics.median(sum(b) / sum(o) for b, o in zip(base, own, strict=True)),
        )


def _percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def describe_machine() -> dict[str, Any]:
    """Say what the measurements were taken on.

    Returns:
        Name of the CPU, its flags that matter, logical cores, torch threads, and versions.
    """
    flags = read_cpu_flags()
    return {
        "cpu": torch.cpu.get_capabilities()["cpu_name"],
        "flags": [name for name in REPORTED_FLAGS if flags.get(name)],
        "torch_threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
