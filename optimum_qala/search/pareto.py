"""Candidates of the search and their Pareto front: the best score at every cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from optimum_qala.errors import ConfigurationError
from optimum_qala.models.length_config import LengthConfig


__all__ = ["Candidate", "dominated_area", "pareto_front", "spread"]


@dataclass(frozen=True)
class Candidate:
    """A `LengthConfig` with what it costs and what it scores.

    Args:
        length_config: The token budget.
        cost: What it costs, lower is better: MACs or milliseconds.
        score: How good its answers are, higher is better, for example F1 in percent; None if not evaluated.

    Raises:
        ConfigurationError: If the cost or the score is not a finite number, or the cost is negative.
    """

    length_config: LengthConfig
    cost: float
    score: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.cost) and self.cost >= 0):
            raise ConfigurationError(
                f"the cost of LengthConfig {self.length_config} is {self.cost}; it must be finite and at least 0"
            )
        if self.score is not None and not math.isfinite(self.score):
            raise ConfigurationError(
                f"the score of LengthConfig {self.length_config} is {self.score}; it must be a finite number"
            )


def pareto_front(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Keep the candidates that no other candidate beats.

    A candidate stays if every other one that costs as much or less scores strictly less. So of equal costs the best
    score stays, of equal scores the cheapest, and the most expensive candidate earns its place like any other. Of
    candidates alike in both, the one with the larger ratios stays, whatever the order they come in.

    Args:
        candidates: Candidates in any order. Those without a score are left out; a score of 0 is a score.

    Returns:
        The front, cost and score strictly increasing.
    """
    scored = [(candidate, candidate.score) for candidate in candidates if candidate.score is not None]
    scored.sort(key=lambda item: (item[0].cost, -item[1], [-ratio for ratio in item[0].length_config.retention]))
    front: list[Candidate] = []
    best = -math.inf
    for candidate, score in scored:
        if score > best:
            front.append(candidate)
            best = score
    return front


def dominated_area(
    candidates: Iterable[Candidate], lowest_cost: float, highest_cost: float, lowest_score: float = 0.0
) -> float:
    """Measure a search's progress: the best score at or under a cost, averaged over a range of costs.

    This is the area between the staircase of the front and `lowest_score`, divided by the range of costs, plus
    `lowest_score` (Length-Adaptive Transformer, `evolution.py`, divides likewise). New candidates never lower it.

    Args:
        candidates: Candidates in any order, dominated ones allowed.
        lowest_cost: Where the range of costs begins.
        highest_cost: Where it ends.
        lowest_score: The score that counts where no candidate is cheap enough; lower scores count as this one.

    Returns:
        A number in the unit of the score.

    Raises:
        ConfigurationError: If the range of costs is empty.
    """
    if not lowest_cost < highest_cost:
        raise ConfigurationError(
            f"the costs from {lowest_cost:g} to {highest_cost:g} are no range; lowest_cost must be below highest_cost"
        )
    area, start, height = 0.0, lowest_cost, lowest_score
    for candidate in pareto_front(candidates):
        if candidate.cost >= highest_cost:
            break
        end = max(candidate.cost, lowest_cost)
        area += (end - start) * height
        start = end
        height = max(height, candidate.score if candidate.score is not None else lowest_score)
    area += (highest_cost - start) * height
    return area / (highest_cost - lowest_cost)


def spread(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """Pick the first, the last and those between that lie nearest to even steps in cost.

    Args:
        candidates: Candidates sorted by cost, either way.
        count: How many different ones, at most as many as there are.

    Returns:
        The picked ones in their order.
    """
    if count < 2:
        return list(candidates[:count])
    first, last = candidates[0].cost, candidates[-1].cost
    chosen = [0]
    for number in range(1, count - 1):
        target = first + (last - first) * number / (count - 1)
        # Each pick leaves at least one candidate for every pick that follows.
        free = range(chosen[-1] + 1, len(candidates) - (count - 1 - number))
        chosen.append(min(free, key=lambda index: (abs(candidates[index].cost - target), -index)))
    return [candidates[index] for index in (*chosen, len(candidates) - 1)]
