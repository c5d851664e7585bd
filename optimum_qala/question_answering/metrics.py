"""Exact match and F1 by the rules of SQuAD v1.1 and v2."""

from __future__ import annotations

import logging
import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from optimum_qala.errors import DataError
from optimum_qala.question_answering.records import QARecord


__all__ = [
    "QuestionScore",
    "exact_match",
    "f1_score",
    "find_best_thresholds",
    "normalize_answer",
    "score_predictions",
    "score_question",
    "summarize_scores",
]

logger = logging.getLogger(__name__)

_ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class QuestionScore:
    """Score of one question.

    Args:
        id: Id of the record.
        exact_match: 1.0 or 0.0.
        f1: Between 0.0 and 1.0.
        has_answer: False if the right answer is that there is none.
    """

    id: str
    exact_match: float
    f1: float
    has_answer: bool


def normalize_answer(text: str) -> str:
    """Lower the case, remove ASCII punctuation, then articles, then surplus white space (official SQuAD rule)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answer: str) -> float:
    """Compare two answers after normalization; 1.0 if they are equal, else 0.0."""
    return float(normalize_answer(prediction) == normalize_answer(answer))


def f1_score(prediction: str, answer: str) -> float:
    """Compute the F1 of the words that two answers share, counting repeats.

    Args:
        prediction: The predicted answer.
        answer: The gold answer.

    Returns:
        Harmonic mean of precision and recall. If either has no word after normalization: 1.0 if both have none, else
        0.0.
    """
    predicted, gold = normalize_answer(prediction).split(), normalize_answer(answer).split()
    if not predicted or not gold:
        return float(predicted == gold)
    num_common = sum((Counter(predicted) & Counter(gold)).values())
    if not num_common:
        return 0.0
    precision, recall = num_common / len(predicted), num_common / len(gold)
    return 2 * precision * recall / (precision + recall)


def score_question(record: QARecord, prediction: str) -> QuestionScore:
    """Score one prediction by the best matching gold answer.

    Gold answers without a word after normalization do not count, as in the SQuAD v2 script. (That of v1.1 keeps them;
    the two differ on no question that has another gold answer unless the prediction has no word either.)

    Args:
        record: The record; empty context is fine.
        prediction: The predicted text, empty for "no answer".

    Returns:
        The score.

    Raises:
        DataError: If the record has neither a gold answer nor `is_impossible`.
    """
    if not record.answers and not record.is_impossible:
        raise DataError(f"record '{record.id}' has no gold answer, so its prediction {prediction!r} cannot be scored")
    answers = [answer for answer in record.answers if normalize_answer(answer)] or [""]
    return QuestionScore(
        id=record.id,
        exact_match=max(exact_match(prediction, answer) for answer in answers),
        f1=max(f1_score(prediction, answer) for answer in answers),
        has_answer=bool(record.answers),
    )


def score_predictions(
    records: Iterable[QARecord],
    predictions: Mapping[str, str],
    no_answer_probs: Mapping[str, float] | None = None,
) -> dict[str, float | int]:
    """Score predicted texts against gold answers.

    Args:
        records: Records with gold answers or `is_impossible`.
        predictions: Record id -> predicted text, empty for "no answer". A question without a prediction scores 0.
        no_answer_probs: Record id -> how likely there is no answer, on any scale that grows with it. If given, the
            best thresholds are searched (SQuAD v2): for this `predictions` should hold the best span even where "no
            answer" is likelier, and texts of questions above the threshold count as empty.

    Returns:
        As `summarize_scores` and, with `no_answer_probs`, as `find_best_thresholds`.

    Raises:
        DataError: If there are no records, a record cannot be scored, no prediction belongs to any record, a predicted
            value is not a text, or `no_answer_probs` lacks a question.
    """
    scores: list[QuestionScore] = []
    missing: list[str] = []
    for record in records:
        prediction = predictions.get(record.id)
        if prediction is None:
            missing.append(record.id)
            scores.append(QuestionScore(record.id, 0.0, 0.0, bool(record.answers)))
            continue
        if not isinstance(prediction, str):
            raise DataError(f"the prediction {prediction!r} for record '{record.id}' is not a text")
        scores.append(score_question(record, prediction))
    if scores and len(missing) == len(scores):
        raise DataError(
            f"none of the {len(predictions)} predictions belongs to any of the {len(scores)} records, with ids such "
            f"as '{missing[0]}'; check that both are of the same data set"
        )
    if missing:
        logger.warning(
            "%d of %d questions have no prediction and score 0, first '%s'", len(missing), len(scores), missing[0]
        )
    summary = summarize_scores(scores)
    if no_answer_probs is not None:
        summary |= find_best_thresholds(scores, no_answer_probs)
    return summary


def summarize_scores(scores: Sequence[QuestionScore]) -> dict[str, float | int]:
    """Average the scores of questions.

    Args:
        scores: Scores of questions.

    Returns:
        `f1` and `exact_match`, in percent, and `num_questions`. If a question has no answer (SQuAD v2), also the same
        for both kinds of question: `has_answer_f1`, `has_answer_exact_match`, `num_has_answer`, `no_answer_f1`,
        `no_answer_exact_match`, `num_no_answer`.

    Raises:
        DataError: If there are no scores.
    """
    if not scores:
        raise DataError("there are no questions to score, got an empty collection")
    summary: dict[str, float | int] = _average(scores, "") | {"num_questions": len(scores)}
    if not all(score.has_answer for score in scores):
        for kind, has_answer in (("has_answer", True), ("no_answer", False)):
            part = [score for score in scores if score.has_answer is has_answer]
            summary[f"num_{kind}"] = len(part)
            if part:
                summary |= _average(part, f"{kind}_")
    return summary


def _average(scores: Sequence[QuestionScore], prefix: str) -> dict[str, float | int]:
    return {
        f"{prefix}f1": 100.0 * sum(score.f1 for score in scores) / len(scores),
        f"{prefix}exact_match": 100.0 * sum(score.exact_match for score in scores) / len(scores),
    }


def find_best_thresholds(scores: Sequence[QuestionScore], no_answer_probs: Mapping[str, float]) -> dict[str, float]:
    """Find the "no answer" thresholds that give the best scores (SQuAD v2).

    A question whose value in `no_answer_probs` exceeds the threshold counts as answered by "no answer".

    Args:
        scores: Scores of the best span of each question, whatever its "no answer" value.
        no_answer_probs: Question id -> how likely there is no answer, on any scale. With the `null_margin` of
            `decode_record` the thresholds can be used as `DecodeOptions.null_threshold`.

    Returns:
        `best_f1`, `best_exact_match` in percent, and `best_f1_threshold`, `best_exact_match_threshold`; of several
        equally good thresholds the lowest.

    Raises:
        DataError: If a question has no value.
    """
    if not scores:
        raise DataError("there are no questions to find a threshold for, got an empty collection")
    for score in scores:
        if score.id not in no_answer_probs:
            raise DataError(f"no_answer_probs has no value for question '{score.id}'")
    ordered = sorted(scores, key=lambda score: no_answer_probs[score.id])
    num_no_answer = sum(not score.has_answer for score in scores)
    result: dict[str, float] = {}
    for metric in ("f1", "exact_match"):
        # Below the lowest value every question is unanswered; then questions are answered one group of ties after the
        # other.
        total = best = float(num_no_answer)
        lowest = no_answer_probs[ordered[0].id]
        threshold = 0.0 if lowest > 0.0 else lowest - 1.0  # 0 as in the official script, where that is below all
        for index, score in enumerate(ordered):
            # An unanswerable question that gets answered loses its point, unless its span is empty anyway.
            total += getattr(score, metric) - (0.0 if score.has_answer else 1.0)
            value = no_answer_probs[score.id]
            is_last_of_ties = index + 1 == len(ordered) or no_answer_probs[ordered[index + 1].id] > value
            if is_last_of_ties and total > best:
                best, threshold = total, value
        result[f"best_{metric}"] = 100.0 * best / len(scores)
        result[f"best_{metric}_threshold"] = threshold
    return result
