"""The search with Optuna, on a toy objective in which the last layers matter."""

from __future__ import annotations

import dataclasses
import logging
import random

import pytest

from optimum_qala import _compat
from optimum_qala.errors import ConfigurationError, MissingExtraError
from optimum_qala.search.options import SearchOptions
from optimum_qala.search.pareto import pareto_front
from optimum_qala.search.store import EvaluationStore


pytest.importorskip("optuna")

from optimum_qala.search.bayesian import _to_genome, _to_params, optimize  # noqa: E402
from optimum_qala.search.space import SearchSpace  # noqa: E402


WEIGHTS = (5.0, 1.0, 3.0, 20.0)
OPTIONS = SearchOptions(population_size=5, max_evaluations=16, exit_layers=(2, 3), step=0.1, seed=1)


def toy_cost(config):
    return sum(config.retention[: config.depth]) * 100


def toy_score(config):
    return sum(w * r**0.5 for w, r in zip(WEIGHTS, config.retention[: config.depth], strict=False))


def search(options=OPTIONS, **changes):
    return optimize(options=options, **({"num_layers": 4, "evaluate": toy_score, "cost": toy_cost} | changes))


def configs(result):
    return [candidate.length_config for candidate in result.evaluated]


def test_optimize_scores_seeds_then_trials_each_once():
    scored = []
    result = search(evaluate=lambda config: scored.append(config) or toy_score(config))
    assert len(scored) == len(set(scored)) == 16
    assert configs(result)[:2] == [result.full.length_config, result.smallest.length_config]
    assert list(result.front) == pareto_front(result.evaluated)
    assert result.stop_reason == "max_evaluations"
    assert all(result.smallest.cost <= candidate.cost <= result.full.cost for candidate in result.evaluated)
    assert {config.depth for config in scored} == {2, 3, 4}
    assert result.areas[-1] >= result.areas[0]


def test_optimize_same_seed_gives_same_result_and_leaves_the_global_rng_alone():
    state = random.getstate()
    first = search()
    assert random.getstate() == state
    assert search() == first
    assert configs(search(dataclasses.replace(OPTIONS, seed=2))) != configs(first)


@pytest.mark.parametrize(
    "change",
    [
        {"population_size": 3},
        {"drop_ratio_bound": 0.2},
        {"step": 0.2},
        {"drop_layers": (1, 3)},
        {"exit_layers": ()},
        {"max_evaluations": 12},
    ],
    ids=lambda change: next(iter(change)),
)
def test_optimize_options_change_what_is_evaluated(change):
    assert configs(search(dataclasses.replace(OPTIONS, **change))) != configs(search())


def test_optimize_ends_where_rounds_would():
    options = dataclasses.replace(OPTIONS, max_evaluations=None, iterations=2, mutations=2, crossovers=1)
    result = search(options)
    assert result.stop_reason == "iterations"
    assert len(result.evaluated) == options.evaluation_limit == 2 + 5 + 2 * 3


def test_optimize_stops_when_a_small_space_is_exhausted():
    options = SearchOptions(step=0.5, exit_layers=(), drop_ratio_bound=0.5)
    result = search(options, num_layers=2, cost=lambda config: sum(config.retention))
    assert result.stop_reason == "exhausted"
    assert len(result.evaluated) == 3


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("kill_at", [0, 5, 12])
def test_optimize_killed_resumes_to_the_same_result(tmp_path, kill_at):
    uninterrupted, scored = search(), []

    def evaluate(config):
        if len(scored) == kill_at:
            raise Killed
        scored.append(config)
        return toy_score(config)

    with pytest.raises(Killed):
        search(evaluate=evaluate, store=EvaluationStore(tmp_path / "search.json", {}))
    again = []
    resumed = search(
        evaluate=lambda config: again.append(config) or toy_score(config),
        store=EvaluationStore(tmp_path / "search.json", {}),
    )
    assert resumed == uninterrupted
    assert scored + again == configs(uninterrupted)


def test_optimize_reports_progress_and_logs_nothing(caplog):
    import optuna

    reports, verbosity = [], optuna.logging.get_verbosity()
    with caplog.at_level(logging.INFO):
        result = search(progress=reports.append)
    assert [report.candidate for report in reports] == list(result.evaluated)
    assert caplog.records == []
    assert optuna.logging.get_verbosity() == verbosity


def test_params_and_genomes_are_two_forms_of_one_thing():
    space, rng = SearchSpace(4, OPTIONS), random.Random(0)
    genome = space.full
    for _ in range(200):
        genome = space.mutate(rng, genome)
        assert _to_genome(_to_params(genome, space), space) == genome


def test_optimize_refuses_what_evolve_refuses():
    with pytest.raises(ConfigurationError, match="exit_layers names 9 layers, but the model can run 1 to 4"):
        search(dataclasses.replace(OPTIONS, exit_layers=(9,)))


def test_optimize_without_optuna_says_what_to_install(monkeypatch):
    monkeypatch.setitem(_compat.EXTRAS, "optuna", ("no_such_module",))
    with pytest.raises(MissingExtraError, match=r'--method optuna needs no_such_module.*"optimum-qala\[optuna\]"'):
        search()
