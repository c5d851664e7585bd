"""The evolutionary search, on a toy objective: retention costs, and each layer's tokens help with their own weight."""

from __future__ import annotations

import dataclasses
import random

import pytest

from optimum_qala.errors import ConfigurationError
from optimum_qala.models.length_config import LengthConfig
from optimum_qala.search.evolution import SearchOptions, evolve
from optimum_qala.search.operators import uniform_path
from optimum_qala.search.pareto import Candidate, dominated_area, pareto_front
from optimum_qala.search.space import SearchSpace
from optimum_qala.search.store import EvaluationStore


WEIGHTS = (5.0, 1.0, 3.0, 20.0)  # the last layers matter: a search that drops evenly is not the best one
NUM_LAYERS = len(WEIGHTS)
OPTIONS = SearchOptions(iterations=4, population_size=5, mutations=6, crossovers=4, max_evaluations=None, seed=1)


def toy_cost(length_config):
    return sum(length_config.retention) * 100


def toy_score(length_config):
    return sum(w * r**0.5 for w, r in zip(WEIGHTS, length_config.retention, strict=True))


def search(options=OPTIONS, **changes):
    arguments = {"num_layers": NUM_LAYERS, "evaluate": toy_score, "cost": toy_cost, **changes}
    return evolve(options=options, **arguments)


def configs(result):
    return [candidate.length_config for candidate in result.evaluated]


def test_evolve_front_is_the_pareto_front_of_what_was_evaluated():
    result = search()
    assert list(result.front) == pareto_front(result.evaluated)
    assert len(result.front) > 5
    for candidate in result.evaluated:
        assert candidate.cost == toy_cost(candidate.length_config)
        assert candidate.score == toy_score(candidate.length_config)


def even_candidates(options=OPTIONS):
    """What the search would be without exits, single drops and rounds."""
    space = SearchSpace(NUM_LAYERS, options)
    found = [space.length_config(genome) for genome in space.even_path()]
    return [Candidate(config, toy_cost(config), toy_score(config)) for config in found]


def test_evolve_finds_what_even_dropping_does_not():
    result = search(dataclasses.replace(OPTIONS, iterations=30, mutations=20, crossovers=20))
    even = dominated_area(even_candidates(), result.smallest.cost, result.full.cost)
    assert result.areas[-1] > 1.02 * even


def test_evolve_finds_exits_where_depth_is_cheap():
    """A dropped token costs as much as a layer, so every exit beats whatever drops as much."""
    options = dataclasses.replace(OPTIONS, exit_layers=(2, 3), iterations=20)

    def depth_score(config):
        return 10.0 * config.depth * min(config.retention)

    result = search(options, evaluate=depth_score, cost=toy_depth_cost)
    assert {candidate.length_config.depth for candidate in result.evaluated} == {2, 3, 4}
    assert {candidate.length_config.depth for candidate in result.front} == {2, 3, 4}
    assert result.smallest.length_config.exit_layer == 2
    assert result.full.length_config.is_full


def toy_depth_cost(config):
    return sum(config.retention[: config.depth]) * 100


def test_evolve_config_that_computes_the_same_is_scored_once():
    """Ratios of layers after the exit change nothing."""
    scored = []
    options = dataclasses.replace(OPTIONS, exit_layers=(1, 2), iterations=20, step=0.25)
    search(options, evaluate=lambda config: scored.append(config) or toy_score(config), cost=toy_depth_cost)
    assert len(scored) == len(set(scored))
    assert any(config.exit_layer for config in scored)


def test_evolve_exits_alone_are_enough_to_search():
    options = dataclasses.replace(OPTIONS, drop_layers=(), exit_layers=(2, 3))
    result = search(options, cost=toy_depth_cost)
    assert [config.depth for config in configs(result)] == [4, 2, 3]
    assert result.stop_reason == "exhausted"


def test_evolve_starts_with_full_smallest_simple_and_evenly_spaced_seeds():
    result = search(dataclasses.replace(OPTIONS, iterations=0, step=0.01, population_size=12))
    assert result.full.length_config == LengthConfig.full(NUM_LAYERS)
    assert result.smallest.length_config.retention == (0.6, 0.36, 0.22, 0.13)
    assert configs(result)[:2] == [result.full.length_config, result.smallest.length_config]
    assert [config.retention for config in configs(result)[2:6]] == [
        (1.0, 1.0, 1.0, 0.6),
        (1.0, 1.0, 0.6, 0.6),
        (1.0, 1.0, 1.0, 0.36),
        (1.0, 0.6, 0.6, 0.6),
    ]
    assert all(len(config.drop_layers) == 1 for config in configs(result)[2:11])
    gap = (result.full.cost - result.smallest.cost) / 4
    assert [candidate.cost for candidate in result.evaluated[11:]] == pytest.approx(
        [result.smallest.cost + gap * number for number in range(1, 4)], abs=3.0
    )


@pytest.mark.parametrize("num_layers", [2, 6, 12])
def test_evolve_even_seeds_span_the_range_for_any_number_of_layers(num_layers):
    options = dataclasses.replace(OPTIONS, iterations=0, population_size=4, step=0.02)
    result = evolve(num_layers, lambda config: config.retention[-1], toy_cost, options)
    num_simple = min(3, 3 * num_layers)
    wanted = 4 - sum(len(config.drop_layers) == 1 for config in configs(result)[2 : 2 + num_simple])
    assert len(result.evaluated) <= 6
    gap = (result.full.cost - result.smallest.cost) / (wanted + 1)
    assert result.evaluated[-1].cost == pytest.approx(result.smallest.cost + gap * wanted, abs=gap / 4)


def test_evolve_even_seeds_are_the_nearest_of_their_path_on_a_coarse_grid():
    result = search(dataclasses.replace(OPTIONS, iterations=0, step=0.1, population_size=1))
    path = [sum(levels) * 10 for levels in uniform_path(NUM_LAYERS, OPTIONS.drop_ratio_bound, 10)]
    middle = (path[0] + path[-1]) / 2
    assert abs(result.evaluated[2].cost - middle) == pytest.approx(min(abs(cost - middle) for cost in path))


def test_evolve_more_seeds_than_configs_scores_each_once():
    scored = []
    options = dataclasses.replace(OPTIONS, iterations=0, step=0.25, population_size=30)
    search(options, evaluate=lambda config: scored.append(config) or toy_score(config))
    path = uniform_path(NUM_LAYERS, OPTIONS.drop_ratio_bound, 4)
    assert len(scored) == len(set(scored)) <= len(path) + 3 * NUM_LAYERS


def test_evolve_draws_again_until_it_has_the_children_asked_for():
    result = search(dataclasses.replace(OPTIONS, iterations=5, crossovers=0))
    assert len(result.evaluated) == 2 + 5 + 5 * 6


def test_evolve_skips_what_costs_more_than_full_length():
    costs = []

    def cost_with_overhead(config):
        costs.append(toy_cost(config) + 50 * len(config.drop_layers))
        return costs[-1]

    result = search(cost=cost_with_overhead)
    assert max(costs) > result.full.cost == max(candidate.cost for candidate in result.evaluated)
    assert len(result.evaluated) > 10


def test_evolve_skips_what_costs_less_than_the_smallest():
    costs = []
    options = dataclasses.replace(OPTIONS, parent_loss=1.0, iterations=10)
    result = search(options, cost=lambda config: costs.append(toy_cost(config)) or costs[-1])
    assert min(costs) < result.smallest.cost == min(candidate.cost for candidate in result.evaluated)


def test_evolve_never_scores_a_config_twice_or_outside_the_cost_bounds():
    scored, costed = [], []
    result = search(
        evaluate=lambda config: scored.append(config) or toy_score(config),
        cost=lambda config: costed.append(config) or toy_cost(config),
    )
    assert len(scored) == len(set(scored)) == len(result.evaluated)
    assert len(costed) == len(set(costed)) > len(scored)
    assert all(result.smallest.cost <= candidate.cost <= result.full.cost for candidate in result.evaluated)


def test_evolve_ratios_lie_on_the_grid():
    for config in configs(search(dataclasses.replace(OPTIONS, step=0.125))):
        assert all((ratio * 8).is_integer() for ratio in config.retention)


def test_evolve_areas_never_fall_and_grow():
    areas = search().areas
    assert len(areas) == OPTIONS.iterations + 1
    assert list(areas) == sorted(areas)
    assert areas[-1] > areas[0]


def test_evolve_same_seed_gives_same_result_and_leaves_the_global_rng_alone():
    state = random.getstate()
    random.seed(1)
    first = search()
    random.seed(2)
    assert search() == first
    random.setstate(state)
    search()
    assert random.getstate() == state


@pytest.mark.parametrize(
    "change",
    [
        {"iterations": 5},
        {"population_size": 6},
        {"mutations": 7},
        {"crossovers": 5},
        {"mutation_probability": 0.1},
        {"merge_probability": 0.9},
        {"parent_loss": 0.1},
        {"drop_ratio_bound": 0.3},
        {"step": 0.1},
        {"drop_layers": (1, 3)},
        {"exit_layers": (2,)},
        {"max_evaluations": 20},
        {"seed": 2},
    ],
    ids=lambda change: next(iter(change)),
)
def test_evolve_every_option_changes_what_is_evaluated(change):
    assert configs(search(dataclasses.replace(OPTIONS, **change))) != configs(search())


def test_search_options_every_field_has_a_case_above():
    marks = test_evolve_every_option_changes_what_is_evaluated.pytestmark
    changed = {name for mark in marks for change in mark.args[1] for name in change}
    assert changed == {field.name for field in dataclasses.fields(SearchOptions)}


def test_evolve_drops_only_in_drop_layers():
    result = search(dataclasses.replace(OPTIONS, drop_layers=[3, 1, 3]))
    dropped = {layer for config in configs(result) for layer in config.drop_layers}
    assert dropped == {1, 3}


def test_evolve_max_evaluations_is_kept_exactly_and_reported():
    for limit in (2, 3, 10, 13):
        result = search(dataclasses.replace(OPTIONS, max_evaluations=limit))
        assert len(result.evaluated) == limit
        assert result.stop_reason == "max_evaluations"
    assert search().stop_reason == "iterations"


def test_evolve_few_evaluations_still_space_the_seeds():
    result = search(dataclasses.replace(OPTIONS, population_size=50, max_evaluations=6, step=0.01))
    gap = (result.full.cost - result.smallest.cost) / 2
    assert len(configs(result)) == 6
    assert result.evaluated[-1].cost == pytest.approx(result.smallest.cost + gap, abs=3.0)


@pytest.mark.parametrize("change", [{"crossovers": 0}, {"mutations": 0}], ids=["mutations only", "crossovers only"])
def test_evolve_stops_when_a_small_space_is_exhausted(change):
    options = dataclasses.replace(OPTIONS, step=0.25, iterations=500, **change)
    result = evolve(2, lambda config: sum(config.retention), toy_cost, options)
    assert result.stop_reason == "exhausted"
    assert len(result.evaluated) < 10  # of the 10 configs that the grid has


def test_evolve_scores_of_zero_are_scores():
    calls = []
    result = search(evaluate=lambda config: calls.append(config) or 0.0)
    assert [(candidate.cost, candidate.score) for candidate in result.front] == [(result.smallest.cost, 0.0)]
    assert len(calls) == len(set(calls)) == len(result.evaluated)


def test_evolve_progress_reports_every_evaluation():
    reports = []
    result = search(progress=reports.append)
    assert [report.num_evaluations for report in reports] == list(range(1, len(result.evaluated) + 1))
    assert [report.candidate for report in reports] == list(result.evaluated)
    assert [report.iteration for report in reports] == sorted(report.iteration for report in reports)
    assert {report.iteration for report in reports} == {0, 1, 2, 3, 4}
    assert reports[-1].area == result.areas[-1]
    assert {report.num_reused for report in reports} == {0}
    assert {report.evaluation_limit for report in reports} == {2 + 5 + 4 * 10}


def test_evaluation_limit_is_cut_by_max_evaluations():
    assert dataclasses.replace(OPTIONS, max_evaluations=9).evaluation_limit == 9
    assert dataclasses.replace(OPTIONS, max_evaluations=900).evaluation_limit == 47


class Killed(Exception):
    """Stands for the end of the process."""


def noisy_cost(seed):
    """Return a cost that, like a measured one, differs from call to call and from process to process."""
    rng = random.Random(seed)
    return lambda config: toy_cost(config) * rng.uniform(0.97, 1.03)


def test_evolve_killed_at_any_evaluation_resumes_to_the_same_result(tmp_path):
    options = dataclasses.replace(OPTIONS, iterations=3)
    uninterrupted = search(options)
    for kill_at in range(len(uninterrupted.evaluated)):
        path, scored = tmp_path / f"{kill_at}.json", []

        def evaluate(config, kill_at=kill_at, scored=scored):
            if len(scored) == kill_at:
                raise Killed
            scored.append(config)
            return toy_score(config)

        with pytest.raises(Killed):
            search(options, evaluate=evaluate, store=EvaluationStore(path, {}))
        rescored = []
        resumed = search(
            options,
            evaluate=lambda config, rescored=rescored: rescored.append(config) or toy_score(config),
            store=EvaluationStore(path, {}),
        )
        assert resumed == uninterrupted
        assert scored + rescored == configs(uninterrupted)


def test_evolve_keeps_measured_costs_across_a_restart(tmp_path):
    path = tmp_path / "search.json"
    first = search(cost=noisy_cost(0), store=EvaluationStore(path, {}))

    def never(config):
        pytest.fail(f"{config} was measured again")

    assert search(cost=never, evaluate=never, store=EvaluationStore(path, {})) == first


def test_evolve_killed_while_measuring_a_cost_keeps_the_costs(tmp_path):
    path, measured = tmp_path / "search.json", []

    def cost(config):
        if len(measured) == 4:
            raise Killed
        measured.append(config)
        return toy_cost(config)

    with pytest.raises(Killed):
        search(cost=cost, store=EvaluationStore(path, {}))
    store = EvaluationStore(path, {})
    assert [store.get_cost(config) for config in measured] == [toy_cost(config) for config in measured]


def test_evolve_stored_zeros_are_not_measured_again(tmp_path):
    path = tmp_path / "search.json"
    smallest = toy_cost(search().smallest.length_config)
    first = search(
        evaluate=lambda config: 0.0,
        cost=lambda config: max(0.0, toy_cost(config) - smallest),
        store=EvaluationStore(path, {}),
    )
    assert first.smallest.cost == 0.0
    assert search(evaluate=lambda config: 1 / 0, cost=lambda config: 1 / 0, store=EvaluationStore(path, {})) == first


def test_evolve_writes_every_score_before_the_next_one_is_measured(tmp_path):
    path, on_disk = tmp_path / "search.json", []

    def evaluate(config):
        on_disk.append(len(EvaluationStore(path, {})))
        return toy_score(config)

    search(evaluate=evaluate, store=EvaluationStore(path, {}))
    assert on_disk == list(range(len(on_disk)))


def test_evolve_longer_search_reuses_a_shorter_one_and_says_so(tmp_path):
    path, reports = tmp_path / "search.json", []
    shorter = search(store=EvaluationStore(path, {}))
    longer = dataclasses.replace(OPTIONS, iterations=6)
    result = search(longer, store=EvaluationStore(path, {}), progress=reports.append)
    assert result == search(longer)
    assert reports[-1].num_reused == len(shorter.evaluated) < len(result.evaluated)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"iterations": -1}, "iterations is -1"),
        ({"population_size": -2}, "population_size is -2"),
        ({"mutations": -3}, "mutations is -3"),
        ({"crossovers": -4}, "crossovers is -4"),
        ({"mutation_probability": 0.0}, r"mutation_probability 0 is not in \(0, 1\]"),
        ({"mutation_probability": 1.5}, r"mutation_probability 1.5 is not in"),
        ({"merge_probability": -0.1}, r"merge_probability -0.1 is not in \[0, 1\]"),
        ({"parent_loss": 1.1}, r"parent_loss 1.1 is not in \[0, 1\]"),
        ({"drop_ratio_bound": 0.0}, r"drop_ratio_bound 0 is not in \(0, 1\); .*nothing to search"),
        ({"drop_ratio_bound": 1.0}, r"drop_ratio_bound 1 is not in"),
        ({"step": 0.3}, "step 0.3 is not 1 divided by an integer"),
        ({"step": 1.0}, "step 1 is not 1 divided by an integer of at least 2"),
        ({"step": 0.0}, "step 0 is not"),
        ({"max_evaluations": 0}, "max_evaluations is 0; the full and the smallest config alone take 2"),
        ({"iterations": 0, "population_size": 0}, "population_size is 0: there is nothing to search"),
        ({"mutations": 0, "crossovers": 0}, "4 iterations have nothing to search"),
        ({"drop_layers": ()}, "drop_layers is empty and so is exit_layers: .* there is nothing to search"),
    ],
)
def test_search_options_refuse_illegal_values(change, message):
    with pytest.raises(ConfigurationError, match=message):
        dataclasses.replace(OPTIONS, **change)


def test_evolve_refuses_layers_that_the_model_lacks():
    with pytest.raises(ConfigurationError, match="drop_layers names layer 4, but the model has layers 0 to 3"):
        search(dataclasses.replace(OPTIONS, drop_layers=(0, 4)))
    with pytest.raises(ConfigurationError, match="exit_layers names 5 layers, but the model can run 1 to 4"):
        search(dataclasses.replace(OPTIONS, exit_layers=(2, 5)))
    with pytest.raises(ConfigurationError, match="num_layers is 0: a model without layers"):
        search(num_layers=0)


def test_evolve_refuses_a_grid_too_coarse_for_the_bound():
    with pytest.raises(
        ConfigurationError, match="nothing to search: with step 0.5 .* drop_ratio_bound 0.01 rounds to"
    ):
        search(dataclasses.replace(OPTIONS, step=0.5, drop_ratio_bound=0.01))


def test_evolve_refuses_a_cost_that_dropping_does_not_lower():
    with pytest.raises(ConfigurationError, match="0.6,0.35,0.2,0.15, costs 7 and full length 7, .*saves nothing here"):
        search(cost=lambda config: 7)


def test_evolve_refuses_a_score_that_is_no_number_and_does_not_store_it(tmp_path):
    store = EvaluationStore(tmp_path / "search.json", {})
    with pytest.raises(ConfigurationError, match="score of LengthConfig 1,1,1,1 is nan"):
        search(evaluate=lambda config: float("nan"), store=store)
    assert len(EvaluationStore(tmp_path / "search.json", {})) == 0


def test_evolve_refuses_a_cost_that_is_no_number_and_does_not_store_it(tmp_path):
    store = EvaluationStore(tmp_path / "search.json", {})
    with pytest.raises(ConfigurationError, match="cost of LengthConfig 1,1,1,1 is inf"):
        search(cost=lambda config: float("inf"), store=store)
    assert not (tmp_path / "search.json").exists()


def test_evolve_configs_that_lose_too_much_have_no_children():
    """With a harsh limit, children cost nearly as much as full length."""

    def mean_cost(parent_loss):
        evaluated = search(dataclasses.replace(OPTIONS, parent_loss=parent_loss, iterations=20)).evaluated[7:]
        return sum(candidate.cost for candidate in evaluated) / len(evaluated)

    assert mean_cost(0.02) > 1.1 * mean_cost(1.0)
