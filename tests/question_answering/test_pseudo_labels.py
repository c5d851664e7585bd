"""Labels are the teacher's answers, and a filter drops them for the reason that it names."""

from __future__ import annotations

import math

import pytest

from optimum_qala.errors import ConfigurationError
from optimum_qala.question_answering.answers import Answer
from optimum_qala.question_answering.pseudo_labels import LabelFilter, agreement, entropy, margin, pseudo_label
from optimum_qala.question_answering.records import QARecord


CONTEXT = "anna was born in paris"


def answers(*scores: float, best: str = "paris") -> list[Answer]:
    start = CONTEXT.index(best)
    texts = [best, *["anna"] * (len(scores) - 1)]
    return [Answer(text, score, start, start + len(text)) for text, score in zip(texts, scores, strict=True)]


def record(identifier: str = "q") -> QARecord:
    return QARecord(identifier, "where ?", CONTEXT, answers=("anna",), answer_starts=(0,))


def reason(found: list[Answer], opinion: list[Answer] | None = None, **thresholds: float) -> str | None:
    seconds = None if opinion is None else [(record(), opinion)]
    (label,) = pseudo_label([(record(), found)], LabelFilter(**thresholds), seconds)
    return label.reason


def test_margin_and_entropy_equal_literal_numbers() -> None:
    assert margin(answers(0.8, 0.2)) == pytest.approx(1.3862943611)
    assert entropy(answers(0.8, 0.2)) == pytest.approx(0.5004024235)
    assert entropy(answers(0.4, 0.1)) == pytest.approx(0.5004024235)  # those that are listed, scaled
    assert entropy(answers(0.25, 0.25, 0.25, 0.25)) == pytest.approx(math.log(4))


def test_one_answer_is_decided() -> None:
    for only in (answers(1.0), answers(1.0, 0.0)):
        assert margin(only) == math.inf
        assert entropy(only) == 0.0
    assert entropy([Answer("", 0.0, 0, 0)]) == 0.0


def test_agreement_is_the_f1_of_words() -> None:
    assert agreement(answers(1.0), answers(1.0)) == 1.0
    assert agreement(answers(1.0, best="born in paris"), answers(1.0)) == pytest.approx(0.5)
    assert agreement(answers(1.0, best="anna"), answers(1.0)) == 0.0


def test_label_replaces_the_answers_of_the_data() -> None:
    (label,) = pseudo_label([(record(), answers(0.9, 0.1))])
    assert label.record == QARecord("q", "where ?", CONTEXT, ("paris",), (17,))
    assert label.reason is None


@pytest.mark.parametrize(
    ("thresholds", "expected"),
    [
        ({}, None),
        ({"min_margin": 1.3}, None),
        ({"min_margin": 1.4}, "margin"),
        ({"max_entropy": 0.51}, None),
        ({"max_entropy": 0.5}, "entropy"),
        ({"min_margin": 9.0, "max_entropy": 0.0}, "margin"),  # the first reason counts
    ],
)
def test_uncertain_labels_are_dropped(thresholds: dict[str, float], expected: str | None) -> None:
    assert reason(answers(0.8, 0.2), **thresholds) == expected


def test_labels_that_a_second_opinion_denies_are_dropped() -> None:
    longer = answers(0.9, best="born in paris")
    assert reason(answers(0.9), longer) == "agreement"
    assert reason(answers(0.9), longer, min_agreement=0.5) is None
    assert reason(answers(0.9), answers(0.9)) is None
    assert reason(answers(0.9), answers(0.9, best="anna"), min_agreement=0.0) is None


def label_one(context: str, only: Answer, **options: bool) -> str | None:
    question = QARecord("q7", "where ?", context)
    (label,) = pseudo_label([(question, [only])], LabelFilter(min_margin=50.0), **options)
    return label.reason


@pytest.mark.parametrize("score", [0.9, 1.0])
@pytest.mark.parametrize("threshold", [{"min_margin": 50.0}, {"max_entropy": 0.0}], ids=["margin", "entropy"])
def test_threshold_is_not_passed_for_want_of_other_answers(score: float, threshold: dict[str, float]) -> None:
    """Alone, the best answer has an infinite margin and no entropy: every label would be kept."""
    message = (
        r"question 'q' came with one answer, so min_margin (50|0) and max_entropy (inf|0) have nothing to compare"
    )
    with pytest.raises(ConfigurationError, match=message):
        reason(answers(score), **threshold)
    with pytest.raises(ConfigurationError, match="ask for several"):  # the best of two, "no answer" the other
        label_one(CONTEXT, Answer("", 0.9, 0, 0), allow_no_answer=True)


def test_question_with_one_possible_answer_passes() -> None:
    assert label_one(" paris ", Answer("paris", 1.0, 1, 6)) is None
    assert label_one("", Answer("", 0.0, 0, 0)) == "no_span"
    assert label_one("", Answer("", 1.0, 0, 0), allow_no_answer=True) is None


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("ab", "a", "the second opinion has no question where the answers have question 'b'; both must"),
        ("a", "ab", "the second opinion has question 'b' where the answers have no question; both must"),
        ("ab", "ba", "the second opinion has question 'b' where the answers have question 'a'; both must"),
    ],
)
def test_second_opinion_on_other_questions_is_refused(first: str, second: str, message: str) -> None:
    pairs = ([(record(name), answers(0.9, 0.1)) for name in names] for names in (first, second))
    with pytest.raises(ConfigurationError, match=message):
        list(pseudo_label(next(pairs), None, next(pairs)))


def test_empty_answer_is_a_label_only_where_it_may_be() -> None:
    nothing = [Answer("", 1.0, 0, 0)]
    (label,) = pseudo_label([(record(), nothing)])
    assert label.reason == "no_span"
    (label,) = pseudo_label([(record(), nothing)], allow_no_answer=True)
    assert label.reason is None
    assert label.record == QARecord("q", "where ?", CONTEXT, is_impossible=True)


@pytest.mark.parametrize(
    ("thresholds", "message"),
    [
        ({"min_margin": -0.1}, "min_margin -0.1 is not a number of at least 0"),
        ({"max_entropy": math.nan}, "max_entropy nan is not a number of at least 0"),
        ({"min_agreement": 1.1}, r"min_agreement 1.1 is not in \[0, 1\]"),
    ],
)
def test_illegal_thresholds_are_refused(thresholds: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        LabelFilter(**thresholds)
