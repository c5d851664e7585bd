"""From start and end logits to answers: legal spans of all windows of a record, combined, scored and sorted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from optimum_qala.errors import ConfigurationError
from optimum_qala.question_answering.records import QARecord
from optimum_qala.question_answering.windows import Window


__all__ = ["Answer", "DecodeOptions", "DecodedRecord", "decode", "decode_record"]

FloatArray = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Answer:
    """One answer.

    Args:
        text: The answer, copied from the context; empty for "no answer".
        score: Probability among the candidates that were considered, in [0, 1].
        start: Offset of its first character in the context.
        end: Offset behind its last character; equal to `start` for "no answer".
    """

    text: str
    score: float
    start: int
    end: int


@dataclass(frozen=True)
class DecodeOptions:
    """How answers are chosen.

    Args:
        top_k: Answers to return, best first; fewer if there are fewer legal spans.
        n_best: Spans of each window that enter the comparison and share the probability; never less than `top_k`.
        max_answer_length: Tokens of an answer at most.
        allow_no_answer: Let "no answer", an `Answer` with empty text, compete with the spans.
        null_threshold: How far the "no answer" logit must exceed that of the best span to win; positive values favour
            answers. `metrics` reports the best one for a data set.

    Raises:
        ConfigurationError: If a value is out of range.
    """

    top_k: int = 1
    n_best: int = 20
    max_answer_length: int = 30
    allow_no_answer: bool = False
    null_threshold: float = 0.0

    def __post_init__(self) -> None:
        for name in ("top_k", "n_best", "max_answer_length"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigurationError(f"{name} {value!r} is not a positive integer")
        if not math.isfinite(self.null_threshold):
            raise ConfigurationError(f"null_threshold {self.null_threshold!r} is not a finite number")


@dataclass(frozen=True)
class DecodedRecord:
    """What the logits say about one record.

    Args:
        answers: At most `top_k` answers, best first.
        best_span: The best answer that is not "no answer"; None if the context has no legal span.
        null_margin: Logit of "no answer" minus that of the best span, before any threshold; infinite without a span.
    """

    answers: list[Answer]
    best_span: Answer | None
    null_margin: float


def decode(
    record: QARecord,
    windows: Sequence[Window],
    start_logits: Sequence[FloatArray],
    end_logits: Sequence[FloatArray],
    options: DecodeOptions | None = None,
) -> list[Answer]:
    """Choose the answers of one record.

    Args:
        record: The record.
        windows: All of its windows, from left to right.
        start_logits: Start logits of each window, (sequence_length,); may be longer than the window where it was
            padded.
        end_logits: End logits, the same.
        options: How to choose; `DecodeOptions()` by default.

    Returns:
        At most `top_k` answers, best first; at least one. A context without any legal span gives an empty answer, with
        score 0 unless "no answer" is allowed.
    """
    return decode_record(record, windows, start_logits, end_logits, options).answers


def decode_record(
    record: QARecord,
    windows: Sequence[Window],
    start_logits: Sequence[FloatArray],
    end_logits: Sequence[FloatArray],
    options: DecodeOptions | None = None,
) -> DecodedRecord:
    """Choose the answers of one record and say how close "no answer" came.

    A span is a candidate if it lies in the context, starts no later than it ends, and has at most `max_answer_length`
    tokens. Where windows overlap, a span counts in that window alone which shows most context around it, so no span is
    counted twice. A window scores a span with its start plus its end logit, and "no answer" with those of [CLS]. "No
    answer" holds only if every window says so: its score is the lowest of all windows (SQuAD v2, Rajpurkar et al.
    2018), compared with the best span of all windows. Probabilities are a softmax over all candidates together.

    Args:
        record: The record.
        windows: All of its windows, from left to right.
        start_logits: Start logits of each window.
        end_logits: End logits of each window.
        options: How to choose; `DecodeOptions()` by default.

    Returns:
        The answers, the best span and the margin of "no answer".
    """
    options = options or DecodeOptions()
    null_score = math.inf
    best: dict[tuple[int, int], float] = {}
    for index, window in enumerate(windows):
        start, end = start_logits[index], end_logits[index]
        null_score = min(null_score, float(start[window.cls_index]) + float(end[window.cls_index]))
        scores, spans = _window_candidates(windows, index, start, end, options)
        for score, span in zip(scores, spans, strict=True):
            # Tokens that are pieces of one character share its span.
            if score > best.get(span, -math.inf):
                best[span] = score

    candidates: list[tuple[float, int, int]] = [(score, *span) for span, score in best.items()]
    # At equal scores the earlier and shorter span wins, so that the result does not depend on the order of windows.
    candidates.sort(key=lambda candidate: (-candidate[0], candidate[1], candidate[2]))
    null_margin = null_score - candidates[0][0] if candidates else math.inf
    ranked: list[tuple[float, int, int]] = list(candidates)
    if options.allow_no_answer:
        # The threshold moves the logit, so the order and the probabilities agree; at equality the span wins.
        ranked.append((null_score - options.null_threshold, 0, 0))
        ranked.sort(key=lambda candidate: -candidate[0])  # stable
    if not ranked:
        return DecodedRecord([Answer("", 0.0, 0, 0)], None, null_margin)

    probabilities = _softmax([score for score, _, _ in ranked])
    everything = [
        Answer(record.context[start:end], probability, start, end)
        for probability, (_, start, end) in zip(probabilities, ranked, strict=True)
    ]
    best_span = next((answer for answer in everything if answer.end > answer.start), None)
    return DecodedRecord(everything[: options.top_k], best_span, null_margin)


def _window_candidates(
    windows: Sequence[Window], index: int, start: FloatArray, end: FloatArray, options: DecodeOptions
) -> tuple[list[float], list[tuple[int, int]]]:
    """Find the best spans that one window owns; return their scores and character spans."""
    window = windows[index]
    spans = window.char_spans
    num_tokens = len(spans)
    if not num_tokens:
        return [], []
    context = slice(window.context_position, window.context_position + num_tokens)
    legal = spans[:, 1] > spans[:, 0]
    start = np.where(legal, np.asarray(start[context], dtype=np.float64), -np.inf)
    end = np.where(legal, np.asarray(end[context], dtype=np.float64), -np.inf)

    # Row i, column j of the band is the span from token i to token i + j.
    width = min(options.max_answer_length, num_tokens)
    padded_end = np.concatenate([end, np.full(width - 1, -np.inf)])
    band = start[:, None] + sliding_window_view(padded_end, width)
    if len(windows) > 1:
        band = np.where(_owned(windows, index, width), band, -np.inf)

    flat = band.ravel()
    count = min(max(options.n_best, options.top_k), flat.size)
    chosen = np.argpartition(-flat, count - 1)[:count]
    chosen = chosen[np.isfinite(flat[chosen])]
    rows, columns = np.divmod(chosen, width)
    characters = zip(spans[rows, 0].tolist(), spans[rows + columns, 1].tolist(), strict=True)
    return flat[chosen].tolist(), list(characters)


def _owned(windows: Sequence[Window], index: int, width: int) -> NDArray[np.bool_]:
    """Tell which spans of the band this window shows with more context than its neighbours; shape (num_tokens, width).

    The context of a span is the smaller of the token counts on its two sides. From window to window the left count
    falls and the right count rises, so a window that beats both neighbours beats all; a tie goes to the earlier
    window.
    """
    window = windows[index]
    first = window.first_token + np.arange(len(window.char_spans))[:, None]
    last = first + np.arange(width)[None, :]

    def shown(other: Window) -> NDArray[np.int64]:
        end = other.first_token + len(other.char_spans) - 1
        context: NDArray[np.int64] = np.minimum(first - other.first_token, end - last)
        return context

    own = shown(window)
    owned = np.ones(own.shape, dtype=np.bool_)
    if index > 0:
        owned &= own > shown(windows[index - 1])
    if index + 1 < len(windows):
        owned &= own >= shown(windows[index + 1])
    return owned


def _softmax(logits: Sequence[float]) -> list[float]:
    exponentials = np.exp(np.array(logits) - max(logits))
    probabilities: list[float] = (exponentials / exponentials.sum()).tolist()
    return probabilities
