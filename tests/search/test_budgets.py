"""Named budgets from a front."""

from __future__ import annotations

import json
import random
from itertools import pairwise

import pytest

from optimum_qala.errors import ConfigurationError
from optimum_qala.models.length_config import LengthConfig
from optimum_qala.search.budgets import (
    BUDGET_NAMES,
    best_within_cost,
    cheapest_within_loss,
    choose_budgets,
    select_budgets,
)
from optimum_qala.search.pareto import Candidate


FULL = Candidate(LengthConfig.full(1), 100.0, 80.0)


def front(*points):
    return [Candidate(LengthConfig((cost / 100,)), cost, score) for cost, score in points]


def costs(budgets):
    return {name: candidate.cost for name, candidate in budgets.items()}


LONG = front((30, 20.0), (40, 50.0), (50, 60.0), (60, 70.0), (70, 74.0), (80, 79.3), (90, 79.9), (100, 80.0))


def test_select_budgets_long_front_fills_all_four_names():
    # 79.3 loses 0.9 %; 20 of 80 loses more than half; a third and two thirds from 80 to 40 are 66.7 and 53.3.
    assert costs(select_budgets(LONG, FULL)) == {"accurate": 80, "balanced": 70, "fast": 50, "fastest": 40}
    assert tuple(select_budgets(LONG, FULL)) == BUDGET_NAMES


def test_select_budgets_every_option_changes_the_result():
    assert costs(select_budgets(LONG, FULL, accurate_loss=0.005))["accurate"] == 90
    assert costs(select_budgets(LONG, FULL, max_loss=0.8))["fastest"] == 30
    assert costs(select_budgets(LONG, FULL, max_loss=0.2)) == {"accurate": 80, "balanced": 70, "fast": 60}


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([], {}),
        ([(100, 80.0)], {}),
        ([(40, 60.0), (100, 80.0)], {"fast": 40}),
        ([(40, 60.0), (60, 70.0), (100, 80.0)], {"accurate": 60, "fast": 40}),
        ([(40, 60.0), (60, 70.0), (80, 79.9)], {"accurate": 80, "balanced": 60, "fast": 40}),
        ([(40, 60.0), (41, 61), (42, 62.0), (80, 79.9)], {"accurate": 80, "balanced": 42, "fast": 41, "fastest": 40}),
        ([(40, 60.0), (78, 61), (79, 62.0), (80, 79.9)], {"accurate": 80, "balanced": 79, "fast": 78, "fastest": 40}),
    ],
)
def test_select_budgets_short_fronts_use_fewer_names_and_none_twice(points, expected):
    assert costs(select_budgets(front(*points), FULL)) == expected


def test_select_budgets_equally_near_takes_the_cheaper():
    points = front((30, 60.0), (50, 65.0), (65, 70.0), (75, 75.0), (90, 79.9))
    assert costs(select_budgets(points, FULL)) == {"accurate": 90, "balanced": 65, "fast": 50, "fastest": 30}


def test_select_budgets_names_nothing_costlier_than_accurate():
    assert costs(select_budgets(front((40, 79.9), (60, 79.95), (70, 79.99)), FULL)) == {"fast": 40}


def test_select_budgets_without_an_accurate_one_takes_the_best():
    assert costs(select_budgets(front((40, 60.0), (60, 70.0)), FULL)) == {"accurate": 60, "fast": 40}


def test_select_budgets_front_of_bad_candidates_still_names_the_best_as_fast():
    assert costs(select_budgets(front((40, 1.0), (60, 2.0)), FULL)) == {"fast": 60}


def test_select_budgets_full_that_scores_zero_copes():
    assert costs(select_budgets(front((40, 0.0)), Candidate(FULL.length_config, 100.0, 0.0))) == {"fast": 40}


def test_select_budgets_better_than_full_counts_as_accurate():
    assert costs(select_budgets(front((40, 60.0), (60, 85.0), (70, 86.0)), FULL)) == {"accurate": 60, "fast": 40}


def test_select_budgets_random_fronts_keep_the_promises():
    rng = random.Random(0)
    for _ in range(500):
        pool = front(*((rng.randint(1, 100), rng.randint(0, 85)) for _ in range(rng.randint(1, 15))))
        budgets = select_budgets(pool, FULL)
        assert select_budgets(rng.sample(pool, len(pool)), FULL) == budgets
        assert list(budgets) == [name for name in BUDGET_NAMES if name in budgets]
        assert all(slow.cost > fast.cost for slow, fast in pairwise(budgets.values()))
        assert all(slow.score > fast.score for slow, fast in pairwise(budgets.values()))
        assert ("fast" in budgets) == any(candidate.cost < FULL.cost for candidate in pool)


def test_choose_budgets_writes_config_json_fields():
    budgets = choose_budgets(
        front((40, 60.0)), FULL, describe=lambda candidate: {"macs": int(candidate.cost), "em": 1.5}
    )
    assert budgets == {
        "full": {"retention": [1.0], "f1": 80.0, "macs": 100, "em": 1.5},
        "fast": {"retention": [0.4], "f1": 60.0, "macs": 40, "em": 1.5},
    }
    assert json.loads(json.dumps(budgets)) == budgets


def test_choose_budgets_keeps_exit_layers():
    full = Candidate(LengthConfig.full(3), 100.0, 80.0)
    shallow = Candidate(LengthConfig((1, 0.5, 0.5), exit_layer=2), 40.0, 60.0)
    assert choose_budgets([shallow], full)["fast"] == {"retention": [1.0, 0.5, 0.5], "exit_layer": 2, "f1": 60.0}


def test_choose_budgets_passes_its_options_on_and_lets_describe_win():
    assert choose_budgets(LONG, FULL, accurate_loss=0.005)["accurate"] == {"retention": [0.9], "f1": 79.9}
    assert choose_budgets(LONG, FULL, max_loss=0.8)["fastest"] == {"retention": [0.3], "f1": 20.0}
    assert choose_budgets([], FULL, describe=lambda _: {"f1": 81.0}) == {"full": {"retention": [1.0], "f1": 81.0}}


def test_best_within_cost_takes_the_best_affordable():
    assert best_within_cost(front((40, 60.0), (50, 55.0), (60, 70.0)), 55).cost == 40
    assert best_within_cost(front((40, 60.0), (60, 70.0)), 60).cost == 60
    assert best_within_cost(front((40, 60.0)), 39.9) is None


def test_cheapest_within_loss_takes_the_cheapest_that_keeps_the_score():
    assert cheapest_within_loss(LONG, FULL, 0.01).cost == 80
    assert cheapest_within_loss(LONG, FULL, 0.25).cost == 50
    assert cheapest_within_loss(LONG[:3], FULL, 0.01) is None


@pytest.mark.parametrize(("accurate_loss", "max_loss"), [(-0.1, 0.5), (0.6, 0.5), (0.1, 1.5), (float("nan"), 0.5)])
def test_select_budgets_refuses_illegal_losses(accurate_loss, max_loss):
    with pytest.raises(ConfigurationError, match=f"accurate_loss {accurate_loss:g} and max_loss {max_loss:g} must be"):
        select_budgets(LONG, FULL, accurate_loss=accurate_loss, max_loss=max_loss)


def test_select_budgets_refuses_a_full_config_without_score():
    with pytest.raises(ConfigurationError, match="full length, 1, has no score"):
        select_budgets(LONG, Candidate(LengthConfig.full(1), 100.0))
