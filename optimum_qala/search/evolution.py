"""Evolutionary search for the `LengthConfig`s that answer best at every cost.

The method is that of the Length-Adaptive Transformer (Kim & Cho, arXiv 2010.07003, `evolution.py`): seeds
between the smallest and the full config, then rounds of mutation and crossover, each followed by a cut to the Pareto
front. Differences: candidates are retention ratios on a grid and a number of layers, so repeats are recognised and
never measured again; seeds are spaced evenly in cost and stand beside exits and drops in a single layer; a mutation
may have a layer stop dropping; attempts are bounded; what costs less than the smallest config or more than the full
one is not scored.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from optimum_qala.models.length_config import LengthConfig
from optimum_qala.search.options import SearchOptions, SearchProgress, SearchResult
from optimum_qala.search.scoring import Scorer, open_scorer
from optimum_qala.search.space import Genome, SearchSpace
from optimum_qala.search.store import EvaluationStore


__all__ = ["SearchOptions", "SearchProgress", "SearchResult", "evolve"]

# Children that repeat a known config or cost too much or too little are drawn again, this often per child asked for.
ATTEMPTS_PER_CHILD = 20


def evolve(
    num_layers: int,
    evaluate: Callable[[LengthConfig], float],
    cost: Callable[[LengthConfig], float],
    options: SearchOptions,
    store: EvaluationStore | None = None,
    progress: Callable[[SearchProgress], None] | None = None,
) -> SearchResult:
    """Search the `LengthConfig`s with the best score at every cost.

    The search is a function of its arguments: same options, same costs and scores, same result. A killed search
    resumes by running it again with its store: it takes the same path, and what the store holds is not measured again.
    That holds for measured latencies too, since the store keeps them.

    Args:
        num_layers: Layers of the model.
        evaluate: Scores a config, higher is better. It gets the config as an argument and must not leave it set on a
            model. Called once per config.
        cost: Costs of a config, lower is better. Called once per config.
        options: Options of the search.
        store: Keeps costs and scores on disk; written after every scored config.
        progress: Called after every scored config.

    Returns:
        The front and everything that was scored.

    Raises:
        ConfigurationError: If `drop_layers` or `exit_layers` do not fit the model, if nothing is left to search
            because the smallest config on the grid is the full one or costs no less, or if a cost or a score is not a
            finite number.
    """
    rng = random.Random(options.seed)
    with open_scorer(SearchSpace(num_layers, options), evaluate, cost, store, progress) as scorer:
        while scorer.iteration < options.iterations and not scorer.is_spent:
            scorer.iteration += 1
            children = _breed(rng, scorer)
            if not children:
                return scorer.result("exhausted")
            scorer.score(children)
            scorer.areas.append(scorer.area)
        return scorer.result("iterations")


def _breed(rng: random.Random, scorer: Scorer) -> list[Genome]:
    """Make the children of one round, all different and all worth scoring."""
    space, parents = scorer.space, scorer.parents()
    children: dict[Genome, None] = {}  # a set that keeps its order

    def breed(number: int, make: Callable[[], Genome]) -> None:
        wanted = len(children) + number
        for _ in range(number * ATTEMPTS_PER_CHILD):
            if len(children) == wanted:
                return
            child = make()
            if scorer.is_new(child):
                children[child] = None

    breed(space.options.mutations, lambda: space.mutate(rng, rng.choice(parents)))
    if len(parents) > 1:
        breed(space.options.crossovers, lambda: space.cross(*rng.sample(parents, 2)))
    return list(children)
