"""What a budget drops on one example: which tokens of a text left at which layer, in a real pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch

from optimum_qala.errors import BackendError
from optimum_qala.models.configuration_quala_minilm import FULL_BUDGET
from optimum_qala.models.modeling_quala_minilm import QuaLAMiniLMForQuestionAnswering
from optimum_qala.question_answering.features import collate, make_windows
from optimum_qala.question_answering.predictor import predict
from optimum_qala.question_answering.records import QARecord
from optimum_qala.question_answering.windows import Window, WindowOptions


__all__ = ["Example", "Piece", "trace_example"]


@dataclass(frozen=True)
class Piece:
    """A stretch of the text whose tokens went equally far.

    Args:
        text: The stretch.
        depth: Layers that its tokens went through; None for white space between tokens that went differently far.
        is_answer: Whether it belongs to the answer at this budget.
    """

    text: str
    depth: int | None
    is_answer: bool = False


@dataclass(frozen=True)
class Example:
    """A question, its text, and how far each token of it went.

    Args:
        question: The question.
        pieces: The text, or the window of it that holds the answer.
        budget: Name of the budget.
        answer: Answer at the budget.
        full_answer: Answer at full length.
        num_layers: Layers that run at the budget.
        num_tokens: Tokens of the text that entered.
        num_kept: Tokens of it that went through all layers that run.
    """

    question: str
    pieces: tuple[Piece, ...]
    budget: str
    answer: str
    full_answer: str
    num_layers: int
    num_tokens: int
    num_kept: int

    @property
    def depths(self) -> list[int]:
        """Depths that occur, the first that tokens left at first."""
        return sorted({piece.depth for piece in self.pieces if piece.depth is not None})

    def describe(self, depth: int) -> str:
        """Say in words how far tokens went.

        Args:
            depth: Layers that they went through.

        Returns:
            For example "left after layer 3".
        """
        if depth >= self.num_layers:
            return "stayed to the end"
        return f"left after layer {depth}" if depth else "left before layer 1"

    @property
    def summary(self) -> list[str]:
        """What to write below the text: the answers, and how many tokens stayed."""
        same = self.answer == self.full_answer
        full = "the same at full length" if same else f"at full length: {self.full_answer or 'none'}"
        return [
            f"Answer: {self.answer or 'none'} ({full}).",
            f"Budget {self.budget}: of {self.num_tokens} tokens of the text {self.num_kept} stayed through all "
            f"{self.num_layers} layers that run.",
        ]


def trace_example(
    model: QuaLAMiniLMForQuestionAnswering,
    tokenizer: Any,
    question: str,
    context: str,
    budget: str,
    window_options: WindowOptions | None = None,
) -> Example:
    """Answer a question and note how far each token of the text goes.

    Args:
        model: A torch model: graphs that were exported do not say which tokens they drop.
        tokenizer: Its tokenizer.
        question: The question.
        context: The text.
        budget: Name of the budget, or ratios.
        window_options: How a long text is cut; the window with the answer is shown.

    Returns:
        The example.

    Raises:
        BackendError: If the model is not a torch model.
        DataError: If the question is empty or too long.
        UnknownBudgetError: If the model has no such budget.
    """
    if not isinstance(model, QuaLAMiniLMForQuestionAnswering):
        raise BackendError(
            f"a {type(model).__name__} does not say which tokens it drops; give the torch model that it was made of"
        )
    options = window_options or WindowOptions()
    record = QARecord("example", question, context)
    answers = {}
    for name in (budget, FULL_BUDGET):
        ((_, (answers[name], *_)),) = predict(model, tokenizer, [record], budget=name, window_options=options)
    answer = answers[budget]
    window = _window_with(make_windows(record, tokenizer, options), answer.start, answer.end)
    length_config = model.config.resolve_budget(budget)
    num_layers = model.config.num_hidden_layers if length_config is None else length_config.depth
    is_training = model.training
    model.eval()
    with torch.no_grad():
        output = model(**collate([window], tokenizer), budget=budget, output_survival=True)
    model.train(is_training)
    survival = output.survival[0].tolist()
    first = window.context_position
    depths = survival[first : first + len(window.char_spans)]
    span = (answer.start, answer.end) if answer.text else (0, 0)
    return Example(
        question=question.strip(),
        pieces=tuple(_pieces(context, window, depths, span)),
        budget=budget,
        answer=answer.text,
        full_answer=answers[FULL_BUDGET].text,
        num_layers=num_layers,
        num_tokens=len(depths),
        num_kept=sum(depth >= num_layers for depth in depths),
    )


def _window_with(windows: list[Window], start: int, end: int) -> Window:
    """Choose the window that holds the answer; the first if none does."""
    for window in windows:
        spans = window.char_spans
        if len(spans) and spans[0][0] <= start and end <= spans[-1][1]:
            return window
    return windows[0]


def _pieces(context: str, window: Window, depths: list[int], answer: tuple[int, int]) -> Iterator[Piece]:
    """Join characters that share a depth; white space belongs to its neighbours where these are alike."""
    spans = [(int(start), int(end)) for start, end in window.char_spans]
    if not spans:
        return
    first, last = spans[0][0], max(end for _, end in spans)
    by_character: list[int | None] = [None] * (last - first)
    for (start, end), depth in zip(spans, depths, strict=True):
        by_character[start - first : end - first] = [int(depth)] * (end - start)
    for (_, end), (start, _) in zip(spans, spans[1:], strict=False):
        if start > end and by_character[end - 1 - first] == by_character[start - first]:
            by_character[end - first : start - first] = [by_character[start - first]] * (start - end)
    kinds = ((depth, answer[0] <= place < answer[1]) for place, depth in enumerate(by_character, start=first))
    begin = first
    for (reached, is_answer), characters in groupby(kinds):
        end = begin + len(list(characters))
        yield Piece(context[begin:end], reached, is_answer)
        begin = end
