"""Which candidates of a search on few questions are scored on all of them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from optimum_qala.errors import ConfigurationError
from optimum_qala.search.budgets import MAX_LOSS
from optimum_qala.search.pareto import Candidate, pareto_front, spread


__all__ = ["FinalistOptions", "choose_finalists", "choose_subset"]

T = TypeVar("T")


@dataclass(frozen=True)
class FinalistOptions:
    """How a search saves time: many configs on few questions, then few of them on all.

    Args:
        subset_size: Questions that every config is scored on; all if there are no more.
        subset_seed: Seed of their choice.
        finalists: Configs that are scored on all questions afterwards, beside the full one; at most.
        tolerance: How far below the front a config may lie on the subset to be among them, in points of the score.

    Raises:
        ConfigurationError: If an option is out of range.
    """

    subset_size: int = 256
    subset_seed: int = 0
    finalists: int = 12
    tolerance: float = 1.0

    def __post_init__(self) -> None:
        for name in ("subset_size", "finalists"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not self.tolerance >= 0:
            raise ConfigurationError(f"tolerance is {self.tolerance:g}; it must be at least 0")


def choose_subset(records: Sequence[T], options: FinalistOptions) -> list[T]:
    """Choose the questions of the first stage.

    Args:
        records: All questions.
        options: Their number and the seed.

    Returns:
        The chosen ones in their order; all if there are no more than that.
    """
    if len(records) <= options.subset_size:
        return list(records)
    chosen = random.Random(options.subset_seed).sample(range(len(records)), options.subset_size)
    return [records[index] for index in sorted(chosen)]


def choose_finalists(
    candidates: Iterable[Candidate], full: Candidate, options: FinalistOptions, *, max_loss: float = MAX_LOSS
) -> list[Candidate]:
    """Choose the candidates that are worth a second look: those on the front or nearly so.

    Args:
        candidates: Candidates scored on the subset, in any order.
        full: The full config's candidate, which needs no choice.
        options: How many, and how near.
        max_loss: Candidates that lose more than this share of the full score, and the tolerance, are left out, unless
            no others are on the front.

    Returns:
        The chosen ones, cheapest first. If there are more than `finalists`: members of the front before others and
        near ones before far ones; if the front alone is longer, evenly spread over its costs.

    Raises:
        ConfigurationError: If the full config has no score.
    """
    if full.score is None:
        raise ConfigurationError(
            f"full length, {full.length_config}, has no score; score it before choosing finalists"
        )
    floor = full.score * (1.0 - max_loss) - options.tolerance
    scored = sorted((one for one in candidates if one != full and one.score is not None), key=lambda one: one.cost)
    front = [one for one in pareto_front([*scored, full]) if one != full]
    useful = [one for one in front if one.score is not None and one.score >= floor] or front
    if len(useful) >= options.finalists:
        return spread(useful, options.finalists)
    short: list[tuple[float, Candidate]] = []
    for one in scored:
        best = max((other.score or 0.0 for other in (*front, full) if other.cost <= one.cost), default=-float("inf"))
        shortfall = best - (one.score or 0.0)
        if one not in front and (one.score or 0.0) >= floor and shortfall <= options.tolerance:
            short.append((shortfall, one))
    short.sort(key=lambda item: item[0])
    return sorted([*useful, *(one for _, one in short[: options.finalists - len(useful)])], key=lambda one: one.cost)
