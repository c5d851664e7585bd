"""Decoding finds the best legal spans of all windows together, and knows when there is no answer."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from optimum_qala.errors import ConfigurationError
from optimum_qala.question_answering.answers import Answer, DecodeOptions, decode, decode_record
from optimum_qala.question_answering.features import Window, WindowOptions, make_windows
from optimum_qala.question_answering.records import QARecord


LONG = "the old tower in rome was built by king peter in one day and the new bridge in paris by queen anna . " * 4
RECORD = QARecord("q", "who built it ?", LONG.strip())
SHORT = QARecord("s", "who ?", "anna and peter .")


def windows_of(record: QARecord, tokenizer: Any, doc_stride: int = 12, max_length: int = 48) -> list[Window]:
    return make_windows(record, tokenizer, WindowOptions(max_length=max_length, doc_stride=doc_stride))


def random_logits(windows: list[Window], seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    generator = np.random.default_rng(seed)
    return tuple([generator.normal(size=len(window)) for window in windows] for _ in range(2))  # type: ignore[return-value]


def flat_logits(windows: list[Window]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    return [np.zeros(len(window)) for window in windows], [np.zeros(len(window)) for window in windows]


def brute_force(windows: list[Window], starts: Any, ends: Any, max_answer_length: int) -> dict[tuple[int, int], float]:
    """Score every span, in the window that shows most context around it: the definition, without any array."""
    scores: dict[tuple[int, int], tuple[int, int, float]] = {}
    for index, window in enumerate(windows):
        size = len(window.char_spans)
        for first in range(size):
            for last in range(first, min(size, first + max_answer_length)):
                span = (int(window.char_spans[first, 0]), int(window.char_spans[last, 1]))
                score = float(
                    starts[index][window.context_position + first] + ends[index][window.context_position + last]
                )
                shown = min(first, size - 1 - last)
                if span not in scores or shown > scores[span][0]:
                    scores[span] = (shown, index, score)
    return {span: score for span, (_, _, score) in scores.items()}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("doc_stride", [0, 12, 30], ids=["apart", "overlap", "three-deep"])
def test_answers_equal_a_slow_reference(tiny_tokenizer: Any, seed: int, doc_stride: int) -> None:
    windows = windows_of(RECORD, tiny_tokenizer, doc_stride)
    assert len(windows) > 2
    starts, ends = random_logits(windows, seed)
    expected = sorted(brute_force(windows, starts, ends, 5).items(), key=lambda item: -item[1])
    answers = decode(RECORD, windows, starts, ends, DecodeOptions(top_k=30, n_best=10**6, max_answer_length=5))
    assert [(answer.start, answer.end) for answer in answers] == [span for span, _ in expected[:30]]
    total = sum(math.exp(score) for _, score in expected)
    for answer, (_, score) in zip(answers, expected, strict=False):
        assert answer.text == RECORD.context[answer.start : answer.end]
        assert answer.score == pytest.approx(math.exp(score) / total)


def test_padding_behind_the_window_is_ignored(tiny_tokenizer: Any) -> None:
    windows = windows_of(SHORT, tiny_tokenizer)
    starts, ends = random_logits(windows, 0)
    padded = (
        [np.concatenate([logits, [99.0] * 5]) for logits in starts],
        [np.concatenate([x, [99.0] * 5]) for x in ends],
    )
    assert decode(SHORT, windows, *padded) == decode(SHORT, windows, starts, ends)


def test_question_and_special_tokens_are_no_answer(tiny_tokenizer: Any) -> None:
    windows = windows_of(SHORT, tiny_tokenizer)
    (starts,), (ends,) = flat_logits(windows)
    for position, offset in enumerate(windows[0].offsets):
        if offset is None:
            starts[position] = ends[position] = 99.0
    starts[windows[0].context_position] = ends[windows[0].context_position] = 1.0
    assert decode(SHORT, windows, [starts], [ends])[0].text == "anna"


def test_answer_may_not_end_before_it_starts(tiny_tokenizer: Any) -> None:
    windows = windows_of(SHORT, tiny_tokenizer)
    (starts,), (ends,) = flat_logits(windows)
    first = windows[0].context_position
    starts[first + 2], ends[first] = 9.0, 8.0
    assert decode(SHORT, windows, [starts], [ends])[0].text.startswith("peter")


def test_max_answer_length_counts_tokens(tiny_tokenizer: Any) -> None:
    windows = windows_of(SHORT, tiny_tokenizer)
    (starts,), (ends,) = flat_logits(windows)
    first = windows[0].context_position
    starts[first], ends[first + 2] = 5.0, 5.0
    texts = [
        decode(SHORT, windows, [starts], [ends], DecodeOptions(max_answer_length=length))[0].text for length in (2, 3)
    ]
    assert texts[0] != "anna and peter"
    assert texts[1] == "anna and peter"


def test_answer_late_in_a_long_context_is_found(tiny_tokenizer: Any) -> None:
    """Reported failures: only the last window was read; answers late in a context were lost."""
    windows = windows_of(RECORD, tiny_tokenizer)
    for index in range(len(windows)):
        starts, ends = flat_logits(windows)
        position = windows[index].context_position + len(windows[index].char_spans) // 2
        starts[index][position] = ends[index][position] = 7.0
        offset = windows[index].offsets[position]
        answer = decode(RECORD, windows, starts, ends)[0]
        assert (answer.start, answer.end) == offset


def test_overlap_gives_a_span_once(tiny_tokenizer: Any) -> None:
    windows = windows_of(RECORD, tiny_tokenizer, doc_stride=30)
    answers = decode(RECORD, windows, *flat_logits(windows), DecodeOptions(top_k=2000, max_answer_length=4))
    spans = [(answer.start, answer.end) for answer in answers]
    assert len(spans) == len(set(spans)) > 300
    assert sum(answer.score for answer in answers) == pytest.approx(1.0)


def test_pieces_of_one_character_give_one_answer(roberta_tokenizer: Any) -> None:
    record = QARecord("q", "?", "😀")
    windows = windows_of(record, roberta_tokenizer)
    answers = decode(record, windows, *random_logits(windows, 0), DecodeOptions(top_k=9))
    assert [(answer.text, answer.score) for answer in answers] == [("😀", 1.0)]


@pytest.mark.parametrize("top_k", [1, 3])
def test_top_k_is_the_number_of_answers(tiny_tokenizer: Any, top_k: int) -> None:
    windows = windows_of(SHORT, tiny_tokenizer)
    answers = decode(SHORT, windows, *random_logits(windows, 1), DecodeOptions(top_k=top_k, n_best=1))
    assert len(answers) == top_k
    assert [answer.score for answer in answers] == sorted((answer.score for answer in answers), reverse=True)


def test_n_best_spans_of_each_window_share_the_probability(tiny_tokenizer: Any) -> None:
    windows = windows_of(SHORT, tiny_tokenizer)
    logits = random_logits(windows, 1)
    scores = [decode(SHORT, windows, *logits, DecodeOptions(n_best=n_best))[0].score for n_best in (1, 2, 20)]
    assert scores[0] == 1.0 > scores[1] > scores[2]


class TestNoAnswer:
    """Null scores are kept per window and compared after the windows are combined."""

    def logits(self, windows: list[Window], nulls: list[float], span: float) -> tuple[list[Any], list[Any]]:
        """One good span, in the first window."""
        starts, ends = flat_logits(windows)
        for start, end, null, window in zip(starts, ends, nulls, windows, strict=True):
            start[window.cls_index] = end[window.cls_index] = null / 2
        position = windows[0].context_position + 1
        starts[0][position] = ends[0][position] = span / 2
        return starts, ends

    @pytest.mark.parametrize(
        ("lowest_null", "span", "is_null"), [(1.0, 3.0, False), (3.0, 1.0, True), (2.0, 2.0, False)]
    )
    def test_lowest_null_score_of_all_windows_counts(
        self, tiny_tokenizer: Any, lowest_null: float, span: float, is_null: bool
    ) -> None:
        """Windows without the answer say "no answer" with a high score; they must not outvote the one that has it."""
        windows = windows_of(RECORD, tiny_tokenizer)
        nulls = [lowest_null] + [50.0] * (len(windows) - 1)
        decoded = decode_record(
            RECORD, windows, *self.logits(windows, nulls, span), DecodeOptions(allow_no_answer=True)
        )
        assert (decoded.answers[0].text == "") is is_null
        assert decoded.null_margin == pytest.approx(lowest_null - span)
        assert decoded.best_span is not None
        assert decoded.best_span.text == "old"

    def test_null_is_not_given_unless_allowed(self, tiny_tokenizer: Any) -> None:
        windows = windows_of(SHORT, tiny_tokenizer)
        answers = decode(SHORT, windows, *self.logits(windows, [99.0], 1.0), DecodeOptions(top_k=9))
        assert "" not in [answer.text for answer in answers]

    @pytest.mark.parametrize(("threshold", "is_null"), [(0.0, True), (1.9, True), (2.0, False), (5.0, False)])
    def test_threshold_favours_answers(self, tiny_tokenizer: Any, threshold: float, is_null: bool) -> None:
        windows = windows_of(SHORT, tiny_tokenizer)
        options = DecodeOptions(top_k=20, allow_no_answer=True, null_threshold=threshold)
        decoded = decode_record(SHORT, windows, *self.logits(windows, [5.0], 3.0), options)
        assert (decoded.answers[0].text == "") is is_null
        assert decoded.null_margin == pytest.approx(2.0)  # whatever the threshold
        assert [answer.text for answer in decoded.answers].count("") == 1
        assert sum(answer.score for answer in decoded.answers) == pytest.approx(1.0)
        assert decoded.answers[0].score == max(answer.score for answer in decoded.answers)

    @pytest.mark.parametrize("context", ["", "\n \n"])
    @pytest.mark.parametrize(("allow", "score"), [(False, 0.0), (True, 1.0)])
    def test_context_without_text_gives_an_empty_answer(
        self, roberta_tokenizer: Any, context: str, allow: bool, score: float
    ) -> None:
        record = QARecord("q", "who?", context)
        windows = windows_of(record, roberta_tokenizer)
        decoded = decode_record(
            record, windows, *random_logits(windows, 0), DecodeOptions(allow_no_answer=allow, top_k=3)
        )
        assert decoded.answers == [Answer("", score, 0, 0)]
        assert decoded.best_span is None
        assert decoded.null_margin == math.inf


def test_minus_infinity_is_never_chosen(tiny_tokenizer: Any) -> None:
    windows = windows_of(SHORT, tiny_tokenizer)
    starts, ends = flat_logits(windows)
    starts[0][:] = -np.inf
    starts[0][windows[0].context_position + 2] = -3.0
    answers = decode(SHORT, windows, starts, ends, DecodeOptions(top_k=9))
    assert {answer.text for answer in answers} == {"peter", "peter ."}


def test_equal_scores_prefer_the_earlier_then_the_shorter(tiny_tokenizer: Any) -> None:
    windows = windows_of(SHORT, tiny_tokenizer)
    assert [answer.text for answer in decode(SHORT, windows, *flat_logits(windows), DecodeOptions(top_k=3))] == [
        "anna",
        "anna and",
        "anna and peter",
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"top_k": 0}, "top_k 0 is not a positive integer"),
        ({"n_best": -3}, "n_best -3 is not a positive integer"),
        ({"max_answer_length": 1.5}, r"max_answer_length 1\.5 is not a positive integer"),
        ({"top_k": True}, "top_k True is not a positive integer"),
        ({"null_threshold": math.nan}, "null_threshold nan is not a finite number"),
    ],
)
def test_bad_option_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        DecodeOptions(**values)
