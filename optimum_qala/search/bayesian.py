"""Bayesian search for the `LengthConfig`s that answer best at every cost, with Optuna.

The method is that of Dynamic-TinyBERT (arXiv 2111.09645): no LengthDrop training, but the lengths that a finished
model bears best are searched, by score and measured latency. Its code used SigOpt; here it is Optuna's tree-structured
Parzen estimator with two objectives. It takes and gives what `evolve` does, on the same grid and within the same
bounds.
"""

from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from optimum_qala._compat import require
from optimum_qala.models.length_config import LengthConfig
from optimum_qala.search.options import SearchOptions, SearchProgress, SearchResult
from optimum_qala.search.scoring import Scorer, open_scorer
from optimum_qala.search.space import Genome, SearchSpace
from optimum_qala.search.store import EvaluationStore


__all__ = ["optimize"]

# Neighbours of a trial that are tried where it repeats a known config or costs too much or too little.
MOST_ATTEMPTS = 200


def optimize(
    num_layers: int,
    evaluate: Callable[[LengthConfig], float],
    cost: Callable[[LengthConfig], float],
    options: SearchOptions,
    store: EvaluationStore | None = None,
    progress: Callable[[SearchProgress], None] | None = None,
) -> SearchResult:
    """Search the `LengthConfig`s with the best score at every cost by Bayesian optimisation.

    As `evolve`, the search is a function of its arguments, and a killed search resumes by running it again with its
    store: the trials are drawn anew, and what the store holds is not measured again.

    Args:
        num_layers: Layers of the model.
        evaluate: Scores a config, higher is better. Called once per config.
        cost: Costs of a config, lower is better. Called once per config.
        options: Options of the search. The seeds are the first trials; `evaluation_limit` configs are scored.
        store: Keeps costs and scores on disk; written after every scored config.
        progress: Called after every scored config.

    Returns:
        The front and everything that was scored.

    Raises:
        MissingExtraError: If Optuna is not installed.
        ConfigurationError: As `evolve`.
    """
    require("optuna", "--method optuna")
    with open_scorer(SearchSpace(num_layers, options), evaluate, cost, store, progress) as scorer:
        with _quiet_optuna() as optuna:
            stop_reason = _run_trials(optuna, scorer)
        scorer.areas.append(scorer.area)
        return scorer.result(stop_reason)


def _run_trials(optuna: Any, scorer: Scorer) -> str:
    space = scorer.space
    sampler = optuna.samplers.TPESampler(seed=space.options.seed)
    study = optuna.create_study(directions=["minimize", "maximize"], sampler=sampler)
    distributions = {
        f"level_{layer}": optuna.distributions.IntDistribution(1, space.options.num_levels)
        for layer in space.drop_layers
    }
    if len(space.depths) > 1:
        distributions["depth"] = optuna.distributions.CategoricalDistribution(space.depths)
    for genome in scorer.scored:
        _tell(optuna, study, distributions, genome, scorer)
    rng = random.Random(space.options.seed)
    scorer.iteration = 1
    while len(scorer.scored) < space.options.evaluation_limit:
        trial = study.ask(distributions)
        study.tell(trial, state=optuna.trial.TrialState.FAIL)  # what becomes of it is told below
        genome = _to_genome(trial.params, space)
        for _ in range(MOST_ATTEMPTS):
            if scorer.is_new(genome):
                break
            # The sampler likes to propose again what is good; a neighbour of that is new.
            genome = space.mutate(rng, genome)
        else:
            return "exhausted"
        scorer.score([genome])
        _tell(optuna, study, distributions, genome, scorer)
    return "iterations"


def _tell(optuna: Any, study: Any, distributions: dict[str, Any], genome: Genome, scorer: Scorer) -> None:
    values = [scorer.scored[genome].cost, scorer.scored[genome].score]
    params = _to_params(genome, scorer.space)
    study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, values=values))


def _to_genome(params: dict[str, Any], space: SearchSpace) -> Genome:
    levels, level = [], space.options.num_levels
    for layer in space.drop_layers:
        # A proposal above what is left means that the layer drops nothing.
        level = min(level, params[f"level_{layer}"])
        levels.append(level)
    return space.canonical(levels, params.get("depth", space.num_layers))


def _to_params(genome: Genome, space: SearchSpace) -> dict[str, Any]:
    params: dict[str, Any] = {}
    entering = space.options.num_levels
    for layer, level in zip(space.drop_layers, genome.levels, strict=True):
        # A layer that drops nothing is proposed full, so that the layers seem independent.
        params[f"level_{layer}"] = level if level < entering else space.options.num_levels
        entering = level
    return params | ({"depth": genome.depth} if len(space.depths) > 1 else {})


@contextlib.contextmanager
def _quiet_optuna() -> Iterator[Any]:
    """Import Optuna and keep it from logging every trial, which the progress of the search reports."""
    import optuna

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield optuna
    finally:
        optuna.logging.set_verbosity(verbosity)
