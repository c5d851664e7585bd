"""Exact match and F1 equal the official rules; `transformers` carries the official SQuAD v2 script as the oracle."""

from __future__ import annotations

import logging
import random
from typing import Any

import pytest
from transformers.data.metrics import squad_metrics

from optimum_qala.errors import DataError
from optimum_qala.question_answering.metrics import (
    QuestionScore,
    exact_match,
    f1_score,
    find_best_thresholds,
    normalize_answer,
    score_predictions,
    score_question,
    summarize_scores,
)
from optimum_qala.question_answering.records import QARecord


TEXTS = [
    "",
    "the",
    "The  Eiffel Tower!",
    "eiffel tower",
    "an apple a day",
    "a.b.c",
    "A",
    "theatre",
    "another one",
    "1,000 dollars",
    "São Paulo",
    "sao paulo",
    "tower tower eiffel",
    "«guillemets» – dash",
    "İstanbul",
    "x\u00a0y",
    "the-end",
    "'s",
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Eiffel Tower!", "eiffel tower"),
        ("an apple, a day", "apple day"),
        ("theatre and another", "theatre and another"),
        ("the-end", "theend"),  # punctuation goes before articles
        (" a\tthe \n", ""),
        ("1,000.5", "10005"),
        ("«x» – é", "«x» – é"),  # ASCII punctuation only
        ("x\u00a0y", "x y"),
    ],
)
def test_normalize_answer_follows_the_official_rule(text: str, expected: str) -> None:
    assert normalize_answer(text) == expected


@pytest.mark.parametrize("prediction", TEXTS)
def test_scores_of_a_pair_equal_the_oracle(prediction: str) -> None:
    for answer in TEXTS:
        assert normalize_answer(answer) == squad_metrics.normalize_answer(answer)
        assert exact_match(prediction, answer) == squad_metrics.compute_exact(answer, prediction)
        assert f1_score(prediction, answer) == pytest.approx(squad_metrics.compute_f1(answer, prediction))


@pytest.mark.parametrize(
    ("prediction", "answer", "f1"),
    [("old red tower", "the red tower", 0.8), ("a b b", "b b c", 1.0 * 4 / 5), ("x", "y", 0.0), ("", "the", 1.0)],
)
def test_f1_of_known_pairs(prediction: str, answer: str, f1: float) -> None:
    # "a" is an article, so the second pair compares (b, b) with (b, b, c): 2 * 1 * 2/3 / (5/3).
    assert f1_score(prediction, answer) == pytest.approx(f1)


def record(record_id: str, *answers: str) -> QARecord:
    return QARecord(record_id, "?", "c", answers, (0,) * len(answers), is_impossible=not answers)


class _Example:
    """What the oracle reads of an example."""

    def __init__(self, one: QARecord) -> None:
        self.qas_id = one.id
        self.answers = [{"text": text} for text in one.answers]


def sample(seed: int) -> tuple[list[QARecord], dict[str, str], dict[str, float]]:
    rng = random.Random(seed)
    records = [record(f"q{i}", *rng.choices(TEXTS[2:], k=rng.choice([0, 1, 3]))) for i in range(60)]
    predictions = {one.id: rng.choice(TEXTS[2:]) for one in records}
    return records, predictions, {one.id: rng.random() for one in records}


@pytest.mark.parametrize("seed", range(3))
def test_data_set_scores_equal_the_oracle(seed: int) -> None:
    records, predictions, no_answer = sample(seed)
    found = score_predictions(records, predictions, no_answer)
    expected = squad_metrics.squad_evaluate(
        [_Example(one) for one in records], predictions, no_answer, no_answer_probability_threshold=2.0
    )
    names = {
        "f1": "f1",
        "exact_match": "exact",
        "num_questions": "total",
        "has_answer_f1": "HasAns_f1",
        "has_answer_exact_match": "HasAns_exact",
        "num_has_answer": "HasAns_total",
        "no_answer_f1": "NoAns_f1",
        "no_answer_exact_match": "NoAns_exact",
        "num_no_answer": "NoAns_total",
        "best_f1": "best_f1",
        "best_exact_match": "best_exact",
        "best_f1_threshold": "best_f1_thresh",
        "best_exact_match_threshold": "best_exact_thresh",
    }
    assert found == pytest.approx({ours: expected[theirs] for ours, theirs in names.items()})


def test_best_gold_answer_counts() -> None:
    assert score_question(record("q", "red house", "tower"), "the tower").exact_match == 1.0
    assert score_question(record("q", "red house", "tower"), "red") == QuestionScore(
        "q", 0.0, pytest.approx(2 / 3), True
    )


def test_gold_answers_without_words_do_not_count() -> None:
    assert score_question(record("q", ".", "tower"), "").f1 == 0.0
    assert score_question(record("q", "."), "the").exact_match == 1.0


def test_impossible_question_wants_an_empty_prediction() -> None:
    assert score_question(record("q"), "") == QuestionScore("q", 1.0, 1.0, False)
    assert score_question(record("q"), "tower").f1 == 0.0


def test_v1_summary_has_no_v2_fields() -> None:
    assert score_predictions([record("q", "tower")], {"q": "the tower"}) == {
        "f1": 100.0,
        "exact_match": 100.0,
        "num_questions": 1,
    }


def test_missing_prediction_scores_zero_and_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = score_predictions([record("q1", "x"), record("q2"), record("q3", "z")], {"q3": "z", "other": "w"})
    assert found["f1"] == pytest.approx(100 / 3)
    assert "2 of 3 questions have no prediction and score 0, first 'q1'" in caplog.text


def test_thresholds_of_ties_take_all_of_them() -> None:
    """Questions with the same value cannot be told apart by a threshold."""
    scores = [
        QuestionScore("a", 1.0, 1.0, True),
        QuestionScore("b", 0.0, 0.0, False),
        QuestionScore("c", 0.0, 0.0, False),
    ]
    assert find_best_thresholds(scores, {"a": 0.5, "b": 0.5, "c": 0.5})["best_f1"] == pytest.approx(200 / 3)
    found = find_best_thresholds(scores, {"a": -3.0, "b": 0.5, "c": 0.7})
    assert (found["best_f1"], found["best_f1_threshold"]) == (100.0, -3.0)


def test_threshold_that_answers_nothing_lies_below_every_value() -> None:
    scores = [QuestionScore("a", 0.0, 0.0, False), QuestionScore("b", 0.0, 0.0, False)]
    found = find_best_thresholds(scores, {"a": -7.0, "b": 2.0})
    assert found["best_exact_match"] == 100.0
    assert found["best_exact_match_threshold"] < -7.0


@pytest.mark.parametrize(
    ("records", "predictions", "no_answer", "message"),
    [
        ([], {}, None, "no questions to score"),
        ([record("q1", "x")], {"p": "x", "r": "y"}, None, "none of the 2 predictions belongs to any of the 1 .*'q1'"),
        ([record("q1", "x")], {"q1": 5}, None, "the prediction 5 for record 'q1' is not a text"),
        ([QARecord("u", "?", "c")], {"u": "x"}, None, "record 'u' has no gold answer, so its prediction 'x' cannot"),
        ([record("q1", "x")], {"q1": "x"}, {}, "no_answer_probs has no value for question 'q1'"),
    ],
)
def test_what_cannot_be_scored_is_refused(records: Any, predictions: Any, no_answer: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        score_predictions(records, predictions, no_answer)


def test_empty_collections_are_refused() -> None:
    with pytest.raises(DataError, match="no questions to score"):
        summarize_scores([])
    with pytest.raises(DataError, match="no questions to find a threshold for"):
        find_best_thresholds([], {})
