"""A table of latencies: milliseconds of any config at any length, from a few that were measured.

The time of a window is modelled as a sum of what its layers do, each part of it proportional to a number that follows
from the tokens which enter and leave every layer. The factors come from timings of some configs on windows of some
lengths. A search then knows the cost of a config at once, and with far less noise than one measurement has.
"""

from __future__ import annotations

import itertools
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimum_qala.errors import ConfigurationError
from optimum_qala.inference.sizes import plan_sizes, round_sizes
from optimum_qala.models.configuration_quala_minilm import QuaLAMiniLMConfig
from optimum_qala.models.length_config import LengthConfig
from optimum_qala.search.space import SearchSpace


__all__ = [
    "FEATURES",
    "CalibrationOptions",
    "LatencyTable",
    "calibrate",
    "calibration_configs",
    "fit_non_negative",
    "table_cost",
    "time_in_turns",
    "window_features",
]

# What the time of a window is a sum of.
FEATURES = (
    "call",  # once
    "token",  # tokens of the padded window: embeddings, span head
    "layer",  # layers that run
    "projection",  # rows through the linear layers, added up over layers, in rows of a layer that drops nothing
    "attention",  # pairs of a query and a key, added up over layers
    "choice",  # layers that drop
    "candidate",  # tokens that enter these layers
    "score",  # pairs of tokens whose attention only the choice reads
)

Bucket = Callable[[int], int]


@dataclass(frozen=True)
class CalibrationOptions:
    """What is timed to make a `LatencyTable`.

    Args:
        configs: Configs to fit the table to.
        held_out_configs: Further configs to check it on.
        windows: Windows to time each config on, spread over their lengths.
        repeats: Timed runs of each config on each window.
        warmup: Runs before them that are not timed.
        seed: Seed of the choice of configs.

    Raises:
        ConfigurationError: If a number is out of range, or there are fewer timings than factors.
    """

    configs: int = 12
    held_out_configs: int = 4
    windows: int = 6
    repeats: int = 15
    warmup: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("configs", 1), ("held_out_configs", 1), ("windows", 1), ("repeats", 1), ("warmup", 0)):
            if getattr(self, name) < least:
                raise ConfigurationError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.configs * self.windows < len(FEATURES):
            raise ConfigurationError(
                f"{self.configs} configs on {self.windows} windows are {self.configs * self.windows} timings, too few "
                f"for the {len(FEATURES)} factors of a table; raise configs or windows"
            )


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds of a window for each unit of each of its `FEATURES`.

    Args:
        factors: Milliseconds by feature, none negative.

    Raises:
        ConfigurationError: If the factors are not those of `FEATURES`, or one is negative or not a number.
    """

    factors: Mapping[str, float]

    def __post_init__(self) -> None:
        if set(self.factors) != set(FEATURES):
            raise ConfigurationError(f"a latency table needs factors of {list(FEATURES)}, got {sorted(self.factors)}")
        for name, value in self.factors.items():
            if not 0 <= value < float("inf"):
                raise ConfigurationError(f"factor {name!r} of a latency table is {value}; it must be at least 0")

    def predict(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Predict times.

        Args:
            features: What `window_features` gives. *Shape:* `(..., len(FEATURES))`

        Returns:
            Milliseconds. *Shape:* `(...)`
        """
        factors = np.array([self.factors[name] for name in FEATURES])
        return np.asarray(features @ factors, dtype=np.float64)


def window_features(
    config: QuaLAMiniLMConfig, length_config: LengthConfig, size: tuple[int, int], bucket: Bucket | None = None
) -> NDArray[np.float64]:
    """Count what the time of a window depends on, with the very sizes that its graph has.

    Args:
        config: Configuration of the model.
        length_config: The budget.
        size: Real tokens of the window, and those of [CLS], question and separator.
        bucket: Gives the tokens that a window of a number of tokens is padded to, where the model runs in buckets.

    Returns:
        A number for each of `FEATURES`. *Shape:* `(len(FEATURES),)`
    """
    num_tokens, num_question_tokens = size
    length = num_tokens if bucket is None else bucket(num_tokens)
    mask = (np.arange(length) < num_tokens).astype(np.int64)[None]
    ids = np.full((1, length), config.sep_token_id + 1, dtype=np.int64)  # any token but a separator
    ids[0, [num_question_tokens - 1, num_tokens - 1]] = config.sep_token_id
    sizes = plan_sizes(ids, mask, config, length_config)
    if bucket is not None:
        sizes = round_sizes(sizes, length, config, length_config)
    leaving = dict(zip(config.dropping_layers, sizes[1:].tolist(), strict=True))
    source, drop_layers = config.score_source, set(length_config.drop_layers)
    width = config.intermediate_size / config.hidden_size  # of the feed-forward layer
    found = dict.fromkeys(FEATURES, 0.0) | {"call": 1.0, "token": length, "layer": length_config.depth}
    entering = length
    for layer in range(length_config.depth):
        queries = leaving[layer] if layer in drop_layers else entering
        keys = queries if source == "answer" else entering  # by "answer", tokens leave before the layer
        # Keys and values; queries, attention output and the two feed-forward layers.
        found["projection"] += (2 * keys + (2 + 2 * width) * queries) / (4 + 2 * width)
        found["attention"] += keys * queries
        if layer in drop_layers:
            found["choice"] += 1
            found["candidate"] += entering
            found["score"] += {"answer": 0, "question": int(sizes[0]), "attention": entering}[source] * entering
        entering = queries
    return np.array([found[name] for name in FEATURES], dtype=np.float64)


def fit_non_negative(features: NDArray[np.float64], times: NDArray[np.float64]) -> LatencyTable:
    """Fit a table to timings: least squares of the relative errors, no factor below zero.

    Of the few features every subset is tried, which is exact where iterative methods are only nearly so.

    Args:
        features: *Shape:* `(num_timings, len(FEATURES))`
        times: Milliseconds, above zero. *Shape:* `(num_timings,)`

    Returns:
        The table.

    Raises:
        ConfigurationError: If a time is not above zero.
    """
    if not (times > 0).all():
        raise ConfigurationError(f"a timing of {times.min():g} ms is not above 0; the clock is too coarse")
    scale = np.maximum(features.max(axis=0), 1e-30)  # for the numbers' sake
    relative = features / scale / times[:, None]
    best, factors = float("inf"), np.zeros(len(FEATURES))
    for count in range(1, len(FEATURES) + 1):
        for chosen in map(list, itertools.combinations(range(len(FEATURES)), count)):
            solution = np.linalg.lstsq(relative[:, chosen], np.ones(len(times)), rcond=None)[0]
            error = float(((relative[:, chosen] @ solution - 1.0) ** 2).sum())
            # Among equal fits the one with fewer factors stays.
            if (solution >= 0).all() and error < best * (1.0 - 1e-9):
                best, factors = error, np.zeros(len(FEATURES))
                factors[chosen] = solution
    return LatencyTable(dict(zip(FEATURES, (factors / scale).tolist(), strict=True)))


def calibration_configs(space: SearchSpace, count: int, seed: int = 0) -> list[LengthConfig]:
    """Choose configs to time: the ends, then simple and random ones in turns.

    Args:
        space: The configs that the search looks at.
        count: How many.
        seed: Seed of the random ones.

    Returns:
        Different configs, fewer than `count` if the space has no more.
    """
    rng = random.Random(seed)
    chosen = dict.fromkeys((space.full, space.smallest))
    simple = iter(space.simple_configs())
    for number in range(20 * count):
        if len(chosen) >= count:
            break
        genome = space.full
        for _ in range(2):
            genome = space.mutate(rng, genome)
        chosen[genome if number % 2 else next(simple, genome)] = None
    return [space.length_config(genome) for genome in list(chosen)[:count]]


def time_in_turns(
    run: Callable[[LengthConfig, int], None],
    length_configs: Sequence[LengthConfig],
    num_windows: int,
    repeats: int,
    warmup: int,
    clock: Callable[[], float] = time.perf_counter,
    progress: Callable[[int], object] | None = None,
) -> NDArray[np.float64]:
    """Time configs in turns on one window after the other, so that slow moments of the machine hit all alike.

    Turns are in random order, seeded, so that none always comes after the same other one, whose data fill the caches.
    Only the graphs of one window's length are needed at a time.

    Args:
        run: Runs a config on the window of a number.
        length_configs: The configs.
        num_windows: Number of windows.
        repeats: Timed runs of each config on each window.
        warmup: Runs before them that are not timed.
        clock: Gives seconds.
        progress: Called with the number of windows finished since its last call.

    Returns:
        Median milliseconds. *Shape:* `(num_configs, num_windows)`
    """
    medians = np.zeros((len(length_configs), num_windows))
    rng = random.Random(0)
    for window in range(num_windows):
        times: list[list[float]] = [[] for _ in length_configs]
        turns = list(zip(times, length_configs, strict=True))
        for number in range(warmup + repeats):
            rng.shuffle(turns)
            for own_times, length_config in turns:
                start = clock()
                run(length_config, window)
                if number >= warmup:
                    own_times.append((clock() - start) * 1000.0)
        medians[:, window] = [statistics.median(own_times) for own_times in times]
        if progress is not None:
            progress(1)
    return medians


def calibrate(
    run: Callable[[LengthConfig, int], None],
    sizes: Sequence[tuple[int, int]],
    config: QuaLAMiniLMConfig,
    space: SearchSpace,
    options: CalibrationOptions | None = None,
    *,
    bucket: Bucket | None = None,
    clock: Callable[[], float] = time.perf_counter,
    progress: Callable[[int], object] | None = None,
) -> tuple[LatencyTable, dict[str, Any]]:
    """Time some configs, fit a table to most of them, and check it on the others.

    Args:
        run: Runs a config on the window of a number.
        sizes: Real tokens of each of these windows, and those of [CLS], question and separator.
        config: Configuration of the model.
        space: The configs that the search looks at.
        options: What to time; as many windows are timed as there are `sizes`.
        bucket: See `window_features`.
        clock: Gives seconds.
        progress: Called with the number of windows finished since its last call.

    Returns:
        The table, and how well it predicts: "mean_error" and "max_error", relative, of the configs that it was not
        fitted to, and "held_out" with "predicted_ms" and "measured_ms" per window of each.

    Raises:
        ConfigurationError: If the space has no config to spare for the check, or the clock is too coarse.
    """
    options = options or CalibrationOptions()
    configs = calibration_configs(space, options.configs + options.held_out_configs, options.seed)
    num_held_out = min(options.held_out_configs, len(configs) // 4)
    if not num_held_out:
        raise ConfigurationError(
            f"a latency table needs at least 4 configs to time, but the search has only {len(configs)}; search by MACs"
        )
    fitted = len(configs) - num_held_out
    if fitted * len(sizes) < len(FEATURES):
        raise ConfigurationError(
            f"{fitted} configs on {len(sizes)} windows are {fitted * len(sizes)} timings, too few for the "
            f"{len(FEATURES)} factors of a latency table; give more questions, or search by MACs"
        )
    features = np.array([[window_features(config, one, size, bucket) for size in sizes] for one in configs])
    times = time_in_turns(run, configs, len(sizes), options.repeats, options.warmup, clock, progress)
    table = fit_non_negative(features[:fitted].reshape(-1, len(FEATURES)), times[:fitted].reshape(-1))
    rows = [
        compare(one, float(table.predict(own).mean()), float(measured.mean()))
        for one, own, measured in zip(configs[fitted:], features[fitted:], times[fitted:], strict=True)
    ]
    return table, {"calibration": asdict(options), **summarize_errors(rows), "held_out": rows}


def compare(length_config: LengthConfig, predicted_ms: float, measured_ms: float) -> dict[str, Any]:
    """Set a prediction beside its measurement, with the relative error."""
    return {
        **length_config.to_budget(),
        "predicted_ms": predicted_ms,
        "measured_ms": measured_ms,
        "error": abs(predicted_ms - measured_ms) / measured_ms,
    }


def summarize_errors(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Give the mean and the largest error of what `compare` made."""
    errors = [row["error"] for row in rows]
    return {"mean_error": statistics.mean(errors), "max_error": max(errors)}


def table_cost(
    table: LatencyTable,
    windows: Iterable[tuple[int, int]],
    config: QuaLAMiniLMConfig,
    bucket: Bucket | None = None,
) -> Callable[[LengthConfig], float]:
    """Build a cost: the mean milliseconds of one window, as a table predicts.

    Args:
        table: The table.
        windows: Size of each window: its real tokens, and those of [CLS], question and separator.
        config: Configuration of the model.
        bucket: See `window_features`.

    Returns:
        A function of a `LengthConfig` that gives milliseconds per window.

    Raises:
        ConfigurationError: If there are no windows.
    """
    histogram = Counter(windows)
    if not histogram:
        raise ConfigurationError("table_cost got no windows; give the size of at least one")
    weights = np.array(list(histogram.values())) / histogram.total()

    def mean_milliseconds(length_config: LengthConfig) -> float:
        features = np.array([window_features(config, length_config, size, bucket) for size in histogram])
        return float(weights @ table.predict(features))

    return mean_milliseconds
