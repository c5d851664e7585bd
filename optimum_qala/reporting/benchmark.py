"""Latency of several models or budgets, measured so that they can be compared.

All candidates run in one process and take turns at every batch, so a slow moment of the machine hits them alike. Every
row says what it depends on: back end, arithmetic, precision, threads, batch size and padding.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from optimum_qala.errors import ConfigurationError
from optimum_qala.inference.bucket_options import BucketOptions
from optimum_qala.models.budget_choice import UNPADDED
from optimum_qala.question_answering.features import collate
from optimum_qala.question_answering.windows import Window


__all__ = [
    "BenchmarkOptions",
    "BenchmarkRow",
    "Candidate",
    "count_passes",
    "describe_padding",
    "measure",
    "sample_windows",
]


@dataclass(frozen=True)
class BenchmarkOptions:
    """What is timed.

    Args:
        num_windows: Windows of the data to time on, spread over their lengths.
        repeats: Timed passes over them.
        warmup: Passes before that are not timed.
        batch_sizes: Windows per call; each is measured on its own. At most as many as are timed.
        pad_to: Measure with every window padded to this length too, beside true lengths; not if None.
        slow_batches: Batches of a pass at which slow candidates take their turn, spread over the lengths.
        slow_repeats: Timed passes in which they do; at most `repeats`.

    Raises:
        ConfigurationError: If a number is out of range.
    """

    num_windows: int = 64
    repeats: int = 5
    warmup: int = 1
    batch_sizes: tuple[int, ...] = (1, 32)
    pad_to: int | None = None
    slow_batches: int = 8
    slow_repeats: int = 2

    def __post_init__(self) -> None:
        lowest = {"num_windows": 1, "repeats": 1, "warmup": 0, "slow_batches": 1, "slow_repeats": 1}
        for name, least in lowest.items():
            if getattr(self, name) < least:
                raise ConfigurationError(f"{name} {getattr(self, name)} is less than {least}")
        for batch_size in self.batch_sizes:
            if batch_size < 1:
                raise ConfigurationError(f"batch size {batch_size} is less than 1")
        if not self.batch_sizes:
            raise ConfigurationError("batch_sizes is empty; give at least one, for example 1")

    def for_windows(self, windows: Sequence[Window], capacity: int | None = None) -> BenchmarkOptions:
        """Check that windows can be timed as is asked.

        Args:
            windows: All windows of the data.
            capacity: Longest sequence that all models take, in tokens, if that is known.

        Returns:
            The options. A batch size above the number of timed windows becomes that number: a smaller batch must not
            pass for a larger one.

        Raises:
            ConfigurationError: If `pad_to` is less than the tokens of a timed window, or more than the models take.
        """
        chosen = sample_windows(windows, self.num_windows)
        longest = max(map(len, chosen), default=1)
        if self.pad_to is not None and self.pad_to < longest:
            raise ConfigurationError(
                f"pad_to {self.pad_to} is less than the {longest} tokens of the longest window that is timed; raise "
                "it, or cut shorter windows"
            )
        if self.pad_to is not None and capacity is not None and self.pad_to > capacity:
            raise ConfigurationError(f"pad_to {self.pad_to} is more than the {capacity} tokens that the models take")
        sizes = (min(size, max(len(chosen), 1)) for size in self.batch_sizes)
        return replace(self, batch_sizes=tuple(dict.fromkeys(sizes)))


@dataclass(frozen=True)
class Candidate:
    """One thing to time.

    Args:
        name: How the row is called; unique.
        model: Called with tensors and `budget=`.
        tokenizer: Its tokenizer.
        budget: The budget it runs at.
        backend: "torch", "openvino" or "inc".
        precision: What float operations run in.
        threads: Threads it runs on.
        baseline: Name of the candidate that its speed-up refers to, the same model at full length; None if it has no
            shorter budgets, so that there is no speed-up.
        buckets: Options of the buckets that the model runs in, if it does.
        kind: What the row stands for: "budget", "depth", "plain", "bert-base" or "peer".
        arithmetic: What its matrix products run in: "int8", or as `precision`.
        compiled: It runs machine code that `INCQuaLAMiniLMForQuestionAnswering.compile` made.
        is_slow: Take part in `slow_batches` and `slow_repeats` only.
        macs: Counts the multiply-accumulate operations of a window, padding left out; None if they are not known.
    """

    name: str
    model: Any
    tokenizer: Any
    budget: str
    backend: str
    precision: str
    threads: int
    baseline: str | None = None
    buckets: BucketOptions | None = None
    kind: str = "peer"
    arithmetic: str = "f32"
    compiled: bool = False
    is_slow: bool = False
    macs: Callable[[Window], int] | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """What every row says of its candidate, by the names of its fields."""
        names = ("name", "kind", "budget", "backend", "compiled", "arithmetic", "precision", "threads")
        return {name: getattr(self, name) for name in names}

    @property
    def num_compiled(self) -> int:
        """Graphs that its model has compiled for its buckets so far."""
        return 0 if self.buckets is None else int(self.model.bucket_counters.compilations)

    def padding(self, pad_to: int | None) -> str:
        """Say how what it is given is padded when it runs.

        Args:
            pad_to: Length that all windows are padded to; None if batches are padded to their longest window.

        Returns:
            As in `BenchmarkRow`.
        """
        if pad_to is None or getattr(self.model, "leaves_padding_out", False):
            return describe_padding(self.buckets)
        return f"fixed {pad_to}"

    def count_macs(self, windows: Sequence[Window]) -> int | None:
        """Add up the multiply-accumulate operations of windows; None if they are not known."""
        return None if self.macs is None else sum(map(self.macs, windows))


def describe_padding(buckets: BucketOptions | None) -> str:
    """Say how batches of true lengths are padded when they run.

    Args:
        buckets: Buckets of the model; None if it has none.

    Returns:
        As in `BenchmarkRow`.
    """
    return UNPADDED if buckets is None else buckets.padding


@dataclass(frozen=True)
class BenchmarkRow:
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
        batch_size: Windows per call.
        padding: "longest" (to the longest window of the batch; with one window none at all), "multiple of N" (that,
            rounded up) or "fixed N": the length that the model ran at.
        pad_to: Length that windows were padded to before the model got them; None for true lengths.
        num_windows: Windows that it was timed on.
        num_compiled: Graphs that were compiled while the clock ran: they had been dropped for lack of room, or nothing
            had warmed them up.
        median_ms: Median milliseconds per window.
        p90_ms: 90th percentile of the same.
        speedup: How many times faster than the baseline: median over the passes of the ratio of total times, on the
            batches that both ran; None without a baseline.
        ratio: How many times faster than the reference, in the same way; None without a reference.
        mmacs: Million multiply-accumulate operations per window, padding left out; None if they are not known.
        gmacs_per_s: Billions of them per second: median over the passes.
    """

    name: str
    kind: str
    budget: str
    backend: str
    compiled: bool
    arithmetic: str
    precision: str
    threads: int
    batch_size: int
    padding: str
    pad_to: int | None
    num_windows: int
    num_compiled: int
    median_ms: float
    p90_ms: float
    speedup: float | None
    ratio: float | None
    mmacs: float | None
    gmacs_per_s: float | None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


def spread(total: int, count: int) -> list[int]:
    """Choose indices spread evenly over a sequence.

    Args:
        total: Its length.
        count: How many; all if there are fewer.

    Returns:
        The indices, in order.
    """
    if total <= count:
        return list(range(total))
    return [(2 * index + 1) * total // (2 * count) for index in range(count)]


def sample_windows(windows: Sequence[Window], count: int) -> list[Window]:
    """Choose windows spread evenly over the sorted lengths, shortest first.

    Args:
        windows: All windows.
        count: How many; fewer if there are fewer.

    Returns:
        The windows.
    """
    ordered = sorted(windows, key=len)
    return [ordered[index] for index in spread(len(ordered), count)]


# Seconds by pass, each by the index of the batch: slow candidates do not run every batch.
Times = list[dict[int, float]]


def measure(
    candidates: Sequence[Candidate],
    windows: Sequence[Window],
    options: BenchmarkOptions,
    progress: Callable[[int], object] | None = None,
    reference: str | None = None,
) -> list[BenchmarkRow]:
    """Time every candidate on the same windows.

    Args:
        candidates: What to compare; they share one vocabulary.
        windows: All windows of the data; `options` says how many are used.
        options: What to time.
        progress: Called with the number of passes finished since its last call, of `count_passes(options)`.
        reference: Name of the candidate that `ratio` refers to.

    Returns:
        Rows by batch size and padding, in the order of `candidates` within each.

    Raises:
        ConfigurationError: As in `BenchmarkOptions.for_windows`.
    """
    options = options.for_windows(windows)
    chosen = sample_windows(windows, options.num_windows)
    rows: list[BenchmarkRow] = []
    for batch_size in options.batch_sizes:
        # The windows are sorted by length, so that a batch holds little padding, as bulk prediction does.
        groups = [chosen[first : first + batch_size] for first in range(0, len(chosen), batch_size)]
        for pad_to in (None, options.pad_to)[: 1 if options.pad_to is None else 2]:
            times, compiled = _time(candidates, groups, pad_to, options, progress)
            rows += _rows(candidates, groups, times, compiled, batch_size, pad_to, reference)
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
) -> tuple[dict[str, Times], dict[str, int]]:
    """Return the times by candidate, and how many graphs were compiled in them."""
    tokenizer = candidates[0].tokenizer
    batches = [collate(group, tokenizer, pad_to_length=pad_to) for group in groups]
    slow_batches = set(spread(len(batches), options.slow_batches))
    times: dict[str, Times] = {candidate.name: [] for candidate in candidates}
    compiled = dict.fromkeys(times, 0)
    # A large model leaves cold caches to whoever comes next, so nobody may always come next.
    order = random.Random(0)
    for number in range(-options.warmup, options.repeats):
        passes: dict[str, dict[int, float]] = {candidate.name: {} for candidate in candidates}
        for index, batch in enumerate(batches):
            slow_run = index in slow_batches and number < options.slow_repeats
            turn = [candidate for candidate in candidates if slow_run or not candidate.is_slow]
            for candidate in order.sample(turn, len(turn)):
                before, began = candidate.num_compiled, time.perf_counter()
                with torch.inference_mode():
                    candidate.model(**batch, budget=candidate.budget)
                passes[candidate.name][index] = time.perf_counter() - began
                if number >= 0:
                    compiled[candidate.name] += candidate.num_compiled - before
        for name, seconds in passes.items():
            if number >= 0 and seconds:
                times[name].append(seconds)
        if progress is not None:
            progress(1)
    return times, compiled


def _rows(
    candidates: Sequence[Candidate],
    groups: Sequence[Sequence[Window]],
    times: dict[str, Times],
    compiled: dict[str, int],
    batch_size: int,
    pad_to: int | None,
    reference: str | None,
) -> Iterator[BenchmarkRow]:
    for candidate in candidates:
        own = times[candidate.name]
        per_window = [1000.0 * seconds / len(groups[index]) for one in own for index, seconds in one.items()]
        group_macs = [candidate.count_macs(group) for group in groups]
        macs = [count for count in group_macs if count is not None]
        yield BenchmarkRow(
            **candidate.identity,
            batch_size=batch_size,
            padding=candidate.padding(pad_to),
            pad_to=pad_to,
            num_windows=sum(len(groups[index]) for index in own[0]),
            num_compiled=compiled[candidate.name],
            median_ms=statistics.median(per_window),
            p90_ms=percentile(per_window, 0.9),
            speedup=None if candidate.baseline is None else _ratio(times[candidate.baseline], own),
            ratio=None if reference is None else _ratio(times[reference], own),
            mmacs=sum(macs) / sum(map(len, groups)) / 1e6 if macs else None,
            gmacs_per_s=statistics.median(sum(macs[index] for index in one) / sum(one.values()) / 1e9 for one in own)
            if macs
            else None,
        )


def _ratio(other: Times, own: Times) -> float:
    """Divide the times of another candidate by one's own, on the batches and in the passes that both ran."""
    ratios = []
    for one, another in zip(own, other, strict=False):  # slow candidates run in the first passes only
        common = one.keys() & another.keys()
        ratios.append(sum(another[index] for index in common) / sum(one[index] for index in common))
    return statistics.median(ratios)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that `share` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
