"""What a `LengthConfig` costs: MACs over the lengths of real windows, or measured milliseconds."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from optimum_qala.errors import ConfigurationError
from optimum_qala.models.length_config import LengthConfig


__all__ = ["MeasuredLatency", "mac_cost", "measured_latency_cost"]


def mac_cost(
    windows: Iterable[tuple[int, int]], count: Callable[[LengthConfig, int, int], int]
) -> Callable[[LengthConfig], float]:
    """Build a cost: the mean MACs of one window over a distribution of windows.

    Args:
        windows: Size of each window, for example of the validation split: its real tokens, padding not counted, and
            those of [CLS], question and separator.
        count: Counts the MACs of one window, given a `LengthConfig` and the window's size: `QuaLAMiniLMConfig.macs`
            of the model.

    Returns:
        A function of a `LengthConfig` that gives multiply-accumulate operations per window.

    Raises:
        ConfigurationError: If there are no windows, or one has less than 1 token.
    """
    histogram = sorted(Counter(windows).items())
    if not histogram:
        raise ConfigurationError("mac_cost got no windows; give the size of at least one")
    shortest = histogram[0][0][0]
    if shortest < 1:
        raise ConfigurationError(f"mac_cost got a window of {shortest} tokens; a window has at least 1")
    num_windows = sum(number for _, number in histogram)

    def mean_macs(length_config: LengthConfig) -> float:
        return sum(number * count(length_config, *size) for size, number in histogram) / num_windows

    return mean_macs


class MeasuredLatency:
    """A cost that is measured: median milliseconds of a run per window, each config timed once and remembered.

    A machine drifts while a search runs for hours. With a `reference`, every timed run follows one of the reference,
    and the result is the median of the ratios times the reference's own median, so slow minutes weigh on both alike.

    Args:
        run: Runs the workload once at a config: the same inputs every time.
        repeats: Timed runs per config.
        warmup: Runs before them that are not timed.
        reference: Config to time beside every other, usually full length; none if None.
        reference_ms: Median of the reference from an earlier process, to continue on its scale; measured if None.
        num_windows: Windows that one run reads, by which its time is divided.
        clock: Gives seconds.

    Raises:
        ConfigurationError: If an argument is out of range.
    """

    def __init__(
        self,
        run: Callable[[LengthConfig], None],
        repeats: int = 5,
        warmup: int = 1,
        reference: LengthConfig | None = None,
        reference_ms: float | None = None,
        num_windows: int = 1,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if repeats < 1:
            raise ConfigurationError(f"repeats is {repeats}; a latency needs at least 1 timed run")
        if warmup < 0:
            raise ConfigurationError(f"warmup is {warmup}; it must be at least 0")
        if num_windows < 1:
            raise ConfigurationError(f"num_windows is {num_windows}; a run reads at least 1 window")
        if reference_ms is not None and (reference is None or not reference_ms > 0):
            raise ConfigurationError(f"reference_ms is {reference_ms:g}; it must be above 0 and needs a reference")
        self._run = run
        self._repeats = repeats
        self._warmup = warmup
        self._reference = reference
        self._num_windows = num_windows
        self._clock = clock
        self._measured: dict[LengthConfig, float] = {}
        if reference is not None and reference_ms is not None:
            self._measured[reference] = reference_ms

    def __call__(self, length_config: LengthConfig) -> float:
        """Return the median milliseconds of a config per window, measuring it the first time."""
        if length_config not in self._measured:
            if self._reference is None or length_config == self._reference:
                self.measure([length_config])
            else:
                reference_ms = self(self._reference)
                times = self._time([self._reference, length_config])
                ratios = [own / other for other, own in zip(*times, strict=True)]
                self._measured[length_config] = statistics.median(ratios) * reference_ms
        return self._measured[length_config]

    def measure(self, length_configs: Sequence[LengthConfig]) -> list[float]:
        """Time several configs in turns and remember the results in place of earlier ones.

        The figures of one call are comparable with one another; use it for the configs that are reported.

        Args:
            length_configs: Configs to compare.

        Returns:
            Median milliseconds per window of each.
        """
        medians = [statistics.median(times) for times in self._time(length_configs)]
        self._measured.update(zip(length_configs, medians, strict=True))
        return medians

    def _time(self, length_configs: Sequence[LengthConfig]) -> list[list[float]]:
        for length_config in length_configs:
            for _ in range(self._warmup):
                self._run(length_config)
        times: list[list[float]] = [[] for _ in length_configs]
        for _ in range(self._repeats):
            for own_times, length_config in zip(times, length_configs, strict=True):
                start = self._clock()
                self._run(length_config)
                own_times.append((self._clock() - start) * 1000.0 / self._num_windows)
        return times


def measured_latency_cost(
    run: Callable[[LengthConfig], None],
    repeats: int = 5,
    warmup: int = 1,
    reference: LengthConfig | None = None,
    reference_ms: float | None = None,
    num_windows: int = 1,
) -> MeasuredLatency:
    """Build a cost: the median milliseconds of a run per window; see `MeasuredLatency` for the arguments."""
    return MeasuredLatency(run, repeats, warmup, reference, reference_ms, num_windows)
