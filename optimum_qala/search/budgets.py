"""Which candidates of a front become the named budgets of config.json."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from optimum_qala.errors import ConfigurationError
from optimum_qala.search.pareto import Candidate, pareto_front, spread


__all__ = [
    "ACCURATE_LOSS",
    "BUDGET_NAMES",
    "MAX_LOSS",
    "best_within_cost",
    "cheapest_within_loss",
    "check_losses",
    "choose_budgets",
    "select_budgets",
]

# Largest loss of "accurate", and of any budget, relative to the full score.
ACCURATE_LOSS, MAX_LOSS = 0.01, 0.5
# From slow to fast. `NAMES_BY_COUNT` says which of them a front of few candidates fills: "fast" always exists.
BUDGET_NAMES = ("accurate", "balanced", "fast", "fastest")
NAMES_BY_COUNT: tuple[tuple[str, ...], ...] = (
    (),
    ("fast",),
    ("accurate", "fast"),
    ("accurate", "balanced", "fast"),
    BUDGET_NAMES,
)


def best_within_cost(candidates: Iterable[Candidate], max_cost: float) -> Candidate | None:
    """Return the candidate with the best score at or under a cost, or None if none is cheap enough."""
    affordable = [candidate for candidate in pareto_front(candidates) if candidate.cost <= max_cost]
    return affordable[-1] if affordable else None


def cheapest_within_loss(candidates: Iterable[Candidate], full: Candidate, max_loss: float) -> Candidate | None:
    """Return the cheapest candidate that loses at most a share of the full config's score, or None.

    Args:
        candidates: Scored candidates in any order.
        full: The full config's candidate.
        max_loss: Largest loss relative to the full config's score: 0.01 accepts 99 % of it.

    Returns:
        The candidate, or None if every candidate loses more.
    """
    floor = _score_floor(full, max_loss)
    return next((c for c in pareto_front(candidates) if c.score is not None and c.score >= floor), None)


def check_losses(accurate_loss: float = ACCURATE_LOSS, max_loss: float = MAX_LOSS) -> None:
    """Raise unless the losses of `select_budgets` are shares in order: before a search, for it takes long.

    Args:
        accurate_loss: See `select_budgets`.
        max_loss: See `select_budgets`.

    Raises:
        ConfigurationError: If they are not 0 <= accurate_loss <= max_loss <= 1.
    """
    if not 0.0 <= accurate_loss <= max_loss <= 1.0:
        raise ConfigurationError(
            f"accurate_loss {accurate_loss:g} and max_loss {max_loss:g} must be 0 <= accurate_loss <= max_loss <= 1"
        )


def select_budgets(
    candidates: Iterable[Candidate],
    full: Candidate,
    *,
    accurate_loss: float = ACCURATE_LOSS,
    max_loss: float = MAX_LOSS,
) -> dict[str, Candidate]:
    """Name up to four candidates that are cheaper than full length.

    - "accurate": the cheapest that keeps 1 - `accurate_loss` of the full score; where none does, the best one.
    - "fastest": the cheapest that keeps 1 - `max_loss` of the full score.
    - "balanced" and "fast": between these two, nearest to a third and two thirds of the way in cost.

    Candidates above "accurate" in cost are of no use and get no name. No candidate gets two names: with three
    candidates left the names are accurate, balanced, fast; with two, accurate, fast; with one, fast; the last of them
    is always the cheapest. So "fast" exists whenever anything is cheaper than full length: the best such candidate is
    named even if it loses more than `max_loss`.

    Args:
        candidates: Scored candidates in any order; only their Pareto front counts.
        full: The full config's candidate.
        accurate_loss: Largest loss of "accurate", relative to the full score.
        max_loss: Largest loss of any budget, relative to the full score.

    Returns:
        Candidates by name, from slow to fast; empty if none is cheaper than full length.

    Raises:
        ConfigurationError: If the full config has no score, or the losses are not 0 <= accurate_loss <= max_loss <= 1.
    """
    check_losses(accurate_loss, max_loss)
    floor = _score_floor(full, max_loss)
    cheaper = [candidate for candidate in pareto_front(candidates) if candidate.cost < full.cost]
    usable = [c for c in cheaper if c.score is not None and c.score >= floor] or cheaper[-1:]
    accurate = cheapest_within_loss(usable, full, accurate_loss)
    if accurate is not None:
        usable = usable[: usable.index(accurate) + 1]
    usable.reverse()  # now from slow to fast, as the names
    names = NAMES_BY_COUNT[min(len(usable), len(BUDGET_NAMES))]
    return dict(zip(names, spread(usable, len(names)), strict=True))


def choose_budgets(
    candidates: Iterable[Candidate],
    full: Candidate,
    *,
    accurate_loss: float = 0.01,
    max_loss: float = 0.5,
    describe: Callable[[Candidate], Mapping[str, Any]] | None = None,
) -> dict[str, dict[str, Any]]:
    """Write the budgets of `select_budgets`, and "full" before them, in the form of config.json.

    Args:
        candidates: Scored candidates in any order, their scores F1 in percent.
        full: The full config's candidate.
        accurate_loss: See `select_budgets`.
        max_loss: See `select_budgets`.
        describe: Gives further fields of a budget, such as macs, em, latency_ms, dataset and split. What it gives wins
            over the search's own f1.

    Returns:
        Fields by budget name: "retention", "exit_layer" if it stops early, "f1" and what `describe` gives. "full" is
        always there.

    Raises:
        ConfigurationError: See `select_budgets`.
    """
    selected = {
        "full": full,
        **select_budgets(candidates, full, accurate_loss=accurate_loss, max_loss=max_loss),
    }
    return {
        name: {
            **candidate.length_config.to_budget(),
            "f1": candidate.score,
            **(describe(candidate) if describe is not None else {}),
        }
        for name, candidate in selected.items()
    }


def _score_floor(full: Candidate, max_loss: float) -> float:
    if full.score is None:
        raise ConfigurationError(f"full length, {full.length_config}, has no score; score it before naming budgets")
    return full.score * (1.0 - max_loss)
