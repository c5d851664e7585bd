"""Labels for questions that nobody answered: a teacher's answers, kept where it is sure of them.

Sources: Distil-Whisper (arXiv 2311.00430) trains a student on its teacher's labels that pass a filter, and
uDistil-Whisper (arXiv 2407.01257) filters without gold labels, by uncertainty and by the agreement of models.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import zip_longest

from optimum_qala.errors import ConfigurationError
from optimum_qala.question_answering.answers import Answer
from optimum_qala.question_answering.metrics import f1_score
from optimum_qala.question_answering.records import QARecord


__all__ = ["LabelFilter", "PseudoLabel", "agreement", "entropy", "margin", "pseudo_label"]

# Why a label is dropped, in the order in which they are looked for; the first one counts.
REASONS = ("no_span", "margin", "entropy", "agreement")

Answered = Iterable[tuple[QARecord, list[Answer]]]


@dataclass(frozen=True)
class LabelFilter:
    """Which labels are good enough to train on.

    Args:
        min_margin: Least `margin`; 0 keeps every answer. It needs several answers to a question.
        max_entropy: Largest `entropy`; infinity keeps every answer. It needs several answers to a question.
        min_agreement: Least `agreement`, where there is a second opinion; 0 keeps every answer.

    Raises:
        ConfigurationError: If a value is out of range.
    """

    min_margin: float = 0.0
    max_entropy: float = math.inf
    min_agreement: float = 1.0

    def __post_init__(self) -> None:
        for name in ("min_margin", "max_entropy"):
            if not getattr(self, name) >= 0.0:  # also catches nan
                raise ConfigurationError(f"{name} {getattr(self, name)} is not a number of at least 0")
        if not 0.0 <= self.min_agreement <= 1.0:
            raise ConfigurationError(f"min_agreement {self.min_agreement} is not in [0, 1]")

    @property
    def compares_candidates(self) -> bool:
        """Whether a threshold compares the answers to a question with each other."""
        return self.min_margin > 0.0 or self.max_entropy < math.inf

    def reason_to_drop(self, answers: list[Answer], opinion: list[Answer] | None, allow_no_answer: bool) -> str | None:
        """Judge the answers to one question.

        Args:
            answers: Those of the teacher, best first.
            opinion: Those of a second model or budget, if there is one.
            allow_no_answer: An empty answer is a label.

        Returns:
            One of `REASONS`, or None if the best answer is a good label.
        """
        if not (answers[0].text or allow_no_answer):
            return "no_span"
        if margin(answers) < self.min_margin:
            return "margin"
        if entropy(answers) > self.max_entropy:
            return "entropy"
        if opinion is not None and agreement(answers, opinion) < self.min_agreement:
            return "agreement"
        return None


@dataclass(frozen=True)
class PseudoLabel:
    """A question with the teacher's answer as its only label.

    Args:
        record: The question, labelled.
        reason: Why not to train on it, one of `REASONS`; None if it is good.
    """

    record: QARecord
    reason: str | None


def margin(answers: list[Answer]) -> float:
    """Compute by how much the best answer is more probable than the next.

    Args:
        answers: Candidates with their probabilities, best first.

    Returns:
        log p_1 - log p_2, in nats; infinite if there is no other answer.
    """
    if len(answers) < 2 or answers[1].score == 0.0:
        return math.inf
    return math.log(answers[0].score / answers[1].score)


def entropy(answers: list[Answer]) -> float:
    """Compute how undecided the candidates are.

    Args:
        answers: Candidates with their probabilities; those that are not listed do not count.

    Returns:
        -sum p log p in nats, with p scaled to the sum 1; 0 if there is one answer only, log n if n are alike.
    """
    total = math.fsum(answer.score for answer in answers) or 1.0
    shares = [answer.score / total for answer in answers if answer.score > 0.0]
    return abs(math.fsum(share * math.log(share) for share in shares))


def agreement(answers: list[Answer], opinion: list[Answer]) -> float:
    """Compute the F1 of the words of two best answers, in [0, 1]."""
    return f1_score(answers[0].text, opinion[0].text)


def pseudo_label(
    answered: Answered,
    label_filter: LabelFilter | None = None,
    second_opinion: Answered | None = None,
    allow_no_answer: bool = False,
) -> Iterator[PseudoLabel]:
    """Label questions in a stream.

    Args:
        answered: Questions with the teacher's answers, as `predict` gives them; answers that they have are replaced.
            Ask it for several answers (`DecodeOptions.top_k`), which margin and entropy compare.
        label_filter: Which labels are good; `LabelFilter()` by default.
        second_opinion: The same questions with the answers of another model, or of the teacher at another budget.
        allow_no_answer: An empty answer labels the question as impossible to answer.

    Yields:
        Every question, in the order of `answered`, with its label and whether it is good.

    Raises:
        ConfigurationError: If a threshold compares answers, but one question came with its best answer only although
            there are others; or if the second opinion is not about the same questions in the same order.
    """
    label_filter = label_filter or LabelFilter()
    for record, answers, opinion in _with_opinions(answered, second_opinion):
        if label_filter.compares_candidates and _others_are_missing(record, answers):
            raise ConfigurationError(
                f"question {record.id!r} came with one answer, so min_margin {label_filter.min_margin:g} and "
                f"max_entropy {label_filter.max_entropy:g} have nothing to compare it with; ask for several, as with "
                "DecodeOptions(top_k=20)"
            )
        best = answers[0]
        texts, starts = ((best.text,), (best.start,)) if best.text else ((), ())
        labelled = replace(record, answers=texts, answer_starts=starts, is_impossible=not best.text)
        yield PseudoLabel(labelled, label_filter.reason_to_drop(answers, opinion, allow_no_answer))


def _with_opinions(
    answered: Answered, second_opinion: Answered | None
) -> Iterator[tuple[QARecord, list[Answer], list[Answer] | None]]:
    if second_opinion is None:
        yield from ((record, answers, None) for record, answers in answered)
        return
    for first, second in zip_longest(answered, second_opinion):
        if first is None or second is None or first[0].id != second[0].id:
            one, other = ("no question" if pair is None else f"question {pair[0].id!r}" for pair in (first, second))
            raise ConfigurationError(
                f"the second opinion has {other} where the answers have {one}; both must be about the same questions "
                "in the same order"
            )
        yield *first, second[1]


def _others_are_missing(record: QARecord, answers: list[Answer]) -> bool:
    """Tell an answer that is the best of several from one without any other.

    The latter has all of the probability, or none, and nothing of the context is left to answer with.
    """
    only = answers[0]
    if len(answers) > 1:
        return False
    return 0.0 < only.score < 1.0 or only.text.strip() not in ("", record.context.strip())
