"""The Pareto front and the area it dominates."""

from __future__ import annotations

import random

import pytest

from optimum_qala.errors import ConfigurationError
from optimum_qala.models.length_config import LengthConfig
from optimum_qala.search.pareto import Candidate, dominated_area, pareto_front


def candidate(cost, score, *retention):
    return Candidate(LengthConfig(retention or (1.0,)), cost, score)


def points(front):
    return [(member.cost, member.score) for member in front]


def test_pareto_front_keeps_strictly_increasing_scores():
    front = pareto_front([candidate(3, 30), candidate(1, 10), candidate(2, 5), candidate(4, 30)])
    assert points(front) == [(1, 10), (3, 30)]


def test_pareto_front_equal_cost_keeps_the_best_score():
    assert points(pareto_front([candidate(1, 10), candidate(1, 12), candidate(1, 11)])) == [(1, 12)]


def test_pareto_front_most_expensive_candidate_is_not_kept_for_free():
    assert points(pareto_front([candidate(1, 10), candidate(9, 8)])) == [(1, 10)]


def test_pareto_front_score_of_zero_is_a_score_and_none_is_not():
    assert points(pareto_front([candidate(1, 0.0), candidate(0.5, None), candidate(2, 3)])) == [(1, 0.0), (2, 3)]


def test_pareto_front_of_nothing_is_empty():
    assert pareto_front([]) == []


def test_pareto_front_full_tie_does_not_depend_on_the_order():
    one, other = candidate(1, 10, 1.0, 0.5), candidate(1, 10, 0.8, 0.6)
    assert pareto_front([one, other]) == pareto_front([other, one]) == [one]


def test_pareto_front_equals_the_definition_on_random_candidates():
    rng = random.Random(0)
    for _ in range(200):
        pool = [candidate(rng.randint(1, 8), rng.randint(0, 8)) for _ in range(rng.randint(1, 12))]
        undominated = {
            (one.cost, one.score)
            for one in pool
            if not any(
                other.cost <= one.cost
                and other.score >= one.score
                and (other.cost, other.score) != (one.cost, one.score)
                for other in pool
            )
        }
        assert points(pareto_front(pool)) == sorted(undominated)


def test_dominated_area_equals_the_staircase_by_hand():
    # 0 on [0, 2), 10 on [2, 5), 30 on [5, 10): (0 + 30 + 150) / 10
    assert dominated_area([candidate(2, 10), candidate(5, 30), candidate(7, 20)], 0, 10) == pytest.approx(18.0)


def test_dominated_area_ignores_what_lies_beyond_the_range():
    assert dominated_area([candidate(1, 10), candidate(20, 90)], 5, 10) == pytest.approx(10.0)
    assert dominated_area([candidate(20, 90)], 5, 10) == 0.0


def test_dominated_area_lowest_score_raises_the_floor():
    assert dominated_area([candidate(5, 30)], 0, 10, lowest_score=20) == pytest.approx(25.0)
    assert dominated_area([candidate(5, 10)], 0, 10, lowest_score=20) == pytest.approx(20.0)


def test_dominated_area_equals_a_fine_sum_and_never_falls():
    rng = random.Random(0)
    for _ in range(30):
        pool, last = [], 0.0
        for _ in range(8):
            pool.append(candidate(rng.randint(0, 20), rng.randint(0, 50)))
            area = dominated_area(pool, 4, 16)
            assert area >= last - 1e-12
            last = area
        best = [max([c.score for c in pool if c.cost <= cost], default=0) for cost in range(4, 16)]
        assert last == pytest.approx(sum(best) / len(best))


def test_dominated_area_refuses_an_empty_range():
    with pytest.raises(ConfigurationError, match="costs from 7 to 7 are no range"):
        dominated_area([], 7, 7)


@pytest.mark.parametrize("cost", [float("nan"), float("inf"), -1.0])
def test_candidate_refuses_an_illegal_cost(cost):
    with pytest.raises(ConfigurationError, match=f"cost of LengthConfig 1,0.5 is {cost}"):
        candidate(cost, 1.0, 1.0, 0.5)


@pytest.mark.parametrize("score", [float("nan"), float("-inf")])
def test_candidate_refuses_an_illegal_score(score):
    with pytest.raises(ConfigurationError, match=f"score of LengthConfig 1,0.5 is {score}"):
        candidate(1.0, score, 1.0, 0.5)
