"""The second look: which questions come first, and which candidates come again."""

from __future__ import annotations

import random

import pytest

from optimum_qala.errors import ConfigurationError
from optimum_qala.models.length_config import LengthConfig
from optimum_qala.search.finalists import FinalistOptions, choose_finalists, choose_subset
from optimum_qala.search.pareto import Candidate


FULL = Candidate(LengthConfig.full(1), 100.0, 80.0)


def candidates(*points):
    return [Candidate(LengthConfig((cost / 100,)), cost, score) for cost, score in points]


def costs(found):
    return [candidate.cost for candidate in found]


def test_subset_is_seeded_sorted_and_without_repeats():
    chosen = choose_subset(range(1000), FinalistOptions(subset_size=50))
    assert chosen == sorted(set(chosen))
    assert len(chosen) == 50
    state = random.getstate()
    assert choose_subset(range(1000), FinalistOptions(subset_size=50)) == chosen
    assert random.getstate() == state
    assert choose_subset(range(1000), FinalistOptions(subset_size=50, subset_seed=1)) != chosen
    assert len(choose_subset(range(1000), FinalistOptions())) == 256


def test_subset_of_few_questions_is_all():
    assert choose_subset("abc", FinalistOptions(subset_size=3)) == ["a", "b", "c"]


POINTS = candidates((40, 50.0), (45, 45.0), (50, 60.0), (55, 59.5), (60, 59.2), (70, 70.0), (80, 69.0), (90, 60.0))


def test_finalists_are_the_front_and_what_lies_near():
    assert costs(choose_finalists([*POINTS, FULL], FULL, FinalistOptions())) == [40, 50, 55, 60, 70, 80]


def test_finalists_every_option_changes_the_result():
    assert costs(choose_finalists(POINTS, FULL, FinalistOptions(tolerance=0.6))) == [40, 50, 55, 70]
    assert costs(choose_finalists(POINTS, FULL, FinalistOptions(finalists=4))) == [40, 50, 55, 70]
    assert costs(choose_finalists(POINTS, FULL, FinalistOptions(), max_loss=0.25)) == [50, 55, 60, 70, 80]
    assert costs(choose_finalists(POINTS, FULL, FinalistOptions(tolerance=0), max_loss=0.25)) == [50, 70]


def test_finalists_of_a_long_front_are_spread():
    long = candidates(*((cost, 40.0 + cost / 10) for cost in range(10, 100, 10)))
    assert costs(choose_finalists(long, FULL, FinalistOptions(finalists=3))) == [10, 50, 90]


def test_finalists_of_bad_candidates_are_still_some():
    assert costs(choose_finalists(candidates((40, 1.0), (60, 2.0)), FULL, FinalistOptions())) == [40, 60]
    assert choose_finalists([FULL], FULL, FinalistOptions()) == []


def test_finalists_need_a_score_of_full_length():
    with pytest.raises(ConfigurationError, match="full length, 1, has no score; score it before choosing finalists"):
        choose_finalists(POINTS, Candidate(LengthConfig.full(1), 100.0), FinalistOptions())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"subset_size": 0}, "subset_size is 0; it must be at least 1"),
        ({"finalists": 0}, "finalists is 0; it must be at least 1"),
        ({"tolerance": -0.5}, "tolerance is -0.5; it must be at least 0"),
    ],
)
def test_finalist_options_refuse_illegal_values(change, message):
    with pytest.raises(ConfigurationError, match=message):
        FinalistOptions(**change)
