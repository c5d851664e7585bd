"""What a `LengthConfig` costs: MACs over the lengths of real windows, or measured milliseconds."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from optimum_qala.errors import ConfigurationError
from optimum_qala.models.length_config import LengthConfig, count_macs


__all__ = ["MeasuredLatency", "mac_cost", "measured_latency_cost"]


def mac_cost(
    lengths: Iterable[int],
    hidden_size: int,
    intermediate_size: int,
    *,
    token_scoring: str | None,
    min_tokens: int = 1,
    num_question_tokens: int = 0,
) -> Callable[[LengthConfig], float]:
    """Build a cost: the mean MACs of one window over a distribution of window lengths.

    Args:
        lengths: Real tokens of each window, padding not counted, for example of the validation split.
        hidden_size: Width of the hidden states.
        intermediate_size: Width of the feed-forward layer.
        token_scoring: Name of the token score, or None for the published way of counting; see `count_macs`.
        min_tokens: Fewest tokens that a layer keeps.
        num_question_tokens: Typical number of rows that "question" scoring reads, [CLS] and separator included.

    Returns:
        A function of a `LengthConfig` that gives multiply-accumulate operations per window.

    Raises:
        ConfigurationError: If there are no lengths, one is below 1, or "question" scoring is given no question tokens.
    """
    histogram = sorted(Counter(lengths).items())
    if not histogram:
        raise ConfigurationError("mac_cost got no window lengths; give the real length of at least one window")
    if histogram[0][0] < 1:
        raise ConfigurationError(f"mac_cost got a window of {histogram[0][0]} tokens; a window has at least 1")
    if token_scoring == "question" and num_question_tokens < 1:
        raise ConfigurationError(
            f'num_question_tokens is {num_question_tokens}, but token_scoring "question" reads at least 1 row'
        )
    num_windows = sum(count for _, count in histogram)

    def mean_macs(length_config: LengthConfig) -> float:
        total = 0
        for length, count in histogram:
            total += count * count_macs(
                length_config.num_tokens(length, min_tokens),
                length,
                hidden_size,
                intermediate_size,
                token_scoring,
                min(num_question_tokens, length),
            )
        return total / num_windows

    return mean_macs


class MeasuredLatency:
    """A cost that is measured: median milliseconds of a run, each config timed once and remembered.

    A machine drifts while a search runs for hours. With a `reference`, every timed run follows one of the reference,
    and the result is the median of the ratios times the reference's own median, so slow minutes weigh on both alike.

    Args:
        run: Runs the workload once at a config: the same inputs every time.
        repeats: Timed runs per config.
        warmup: Runs before them that are not timed.
        reference: Config to time beside every other, usually full length; none if None.
        reference_ms: Median of the reference from an earlier process, to continue on its scale; measured if None.
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
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if repeats < 1:
            raise ConfigurationError(f"repeats is {repeats}; a latency needs at least 1 timed run")
        if warmup < 0:
            raise ConfigurationError(f"warmup is {warmup}; it must be at least 0")
        if reference_ms is not None and (reference is None or not reference_ms > 0):
            raise ConfigurationError(f"reference_ms is {reference_ms:g}; it must be above 0 and needs a reference")
        self._run = run
        self._repeats = repeats
        self._warmup = warmup
        self._reference = reference
        self._clock = clock
        self._measured: dict[LengthConfig, float] = {}
        if reference is not None and reference_ms is not None:
            self._measured[reference] = reference_ms

    def __call__(self, length_config: LengthConfig) -> float:
        """Return the median milliseconds of a config, measuring it the first time."""
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
            Median milliseconds of each.
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
                own_times.append((self._clock() - start) * 1000.0)
        return times


def measured_latency_cost(
    run: Callable[[LengthConfig], None],
    repeats: int = 5,
    warmup: int = 1,
    reference: LengthConfig | None = None,
    reference_ms: float | None = None,
) -> MeasuredLatency:
    """Build a cost: the median milliseconds of a run; see `MeasuredLatency` for the arguments."""
    return MeasuredLatency(run, repeats, warmup, reference, reference_ms)
