"""Windows cover every context token, know their characters, and refuse what would skip tokens quietly."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from optimum_qala.errors import ConfigurationError, DataError, QuestionTooLongError
from optimum_qala.question_answering.records import QARecord
from optimum_qala.question_answering.windows import Window, WindowOptions, make_windows, make_windows_until_problem


QUESTION = "who built the old tower ?"
CONTEXT = ("the old tower in rome was built by king peter in one day . " * 12).strip()


def record(question: str = QUESTION, context: str = CONTEXT, **fields: Any) -> QARecord:
    return QARecord(**({"id": "q1", "question": question, "context": context} | fields))


@pytest.fixture(params=["bert", "roberta"])
def tokenizer(request: pytest.FixtureRequest, tiny_tokenizer: Any, roberta_tokenizer: Any) -> Any:
    return tiny_tokenizer if request.param == "bert" else roberta_tokenizer


OPTIONS = WindowOptions(max_length=64, doc_stride=8)


@pytest.mark.parametrize(
    "context", [CONTEXT, "rome .", "a é 😀 \u200b b", "x" * 500], ids=["long", "short", "uni", "word"]
)
@pytest.mark.parametrize("stride", [0, 8, 16])
def test_windows_equal_those_of_the_tokenizer(tokenizer: Any, context: str, stride: int) -> None:
    """Oracle: `transformers`' own truncation with overflow, which encodes every pair anew."""
    options = WindowOptions(max_length=64, doc_stride=stride)
    expected = tokenizer(
        QUESTION,
        context,
        max_length=64,
        stride=stride,
        truncation="only_second",
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    windows = make_windows(record(context=context), tokenizer, options)
    assert [window.input_ids for window in windows] == expected["input_ids"]
    assert [window.token_type_ids for window in windows] == expected.get("token_type_ids", [None] * len(windows))
    for index, window in enumerate(windows):
        for found, offset, sequence in zip(
            window.offsets, expected["offset_mapping"][index], expected.sequence_ids(index), strict=True
        ):
            if sequence == 1:
                assert context[slice(*found)] == context[slice(*offset)].strip()
            else:
                assert found is None


def test_every_context_token_is_in_a_window(tokenizer: Any) -> None:
    """Reported failure: tokens at the stride limit are lost."""
    windows = make_windows(record(), tokenizer, OPTIONS)
    assert len(windows) > 2
    assert windows[0].first_token == 0
    for before, after in zip(windows, windows[1:], strict=False):
        assert after.first_token == before.first_token + len(before.char_spans) - 8
    last = windows[-1].char_spans[-1]
    assert CONTEXT[last[0] : last[1]] == "."
    assert all(len(window) <= 64 for window in windows)


def test_records_that_share_a_context_get_the_windows_they_get_alone(tokenizer: Any) -> None:
    records = [record(), record("what city ?", id="q2"), record(context="paris .", id="q3")]
    together = make_windows(records, tokenizer, OPTIONS)
    alone = [window for one in records for window in make_windows(one, tokenizer, OPTIONS)]
    assert [window.input_ids for window in together] == [window.input_ids for window in alone]
    assert sorted({window.record_index for window in together}) == [0, 1, 2]


def test_white_space_around_a_question_is_removed(tokenizer: Any) -> None:
    """Reported failure: leading blanks become tokens, and push the context out of the window."""
    plain = make_windows(record(), tokenizer, OPTIONS)
    padded = make_windows(record(question=f" \n\t {QUESTION} "), tokenizer, OPTIONS)
    assert [window.input_ids for window in plain] == [window.input_ids for window in padded]


@pytest.mark.parametrize("context", ["", " ", "\n\n\n"])
def test_context_without_text_gives_one_window(tokenizer: Any, context: str) -> None:
    """Reported failure: crash on an empty context."""
    (window,) = make_windows(record(context=context), tokenizer, OPTIONS)
    assert all(start == end for start, end in window.char_spans)


def test_spans_of_pieces_of_one_character_cover_it(roberta_tokenizer: Any) -> None:
    (window,) = make_windows(record("?", "a 😀"), roberta_tokenizer, OPTIONS)
    assert [tuple(span) for span in window.char_spans] == [(0, 1), (2, 2), (2, 3), (2, 3), (2, 3), (2, 3)]


def test_truncation_and_padding_of_tokenizer_json_are_ignored(tiny_tokenizer: Any) -> None:
    """all-MiniLM ships a tokenizer.json that truncates to 128 and pads."""
    expected = [window.input_ids for window in make_windows(record(), tiny_tokenizer, OPTIONS)]
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.backend_tokenizer.enable_truncation(16)
    tokenizer.backend_tokenizer.enable_padding(length=32)
    assert [window.input_ids for window in make_windows(record(), tokenizer, OPTIONS)] == expected


def test_segment_ids_follow_the_model_inputs_of_the_tokenizer(tiny_tokenizer: Any, roberta_tokenizer: Any) -> None:
    (window,) = make_windows(record(context="rome ."), tiny_tokenizer, OPTIONS)
    assert window.token_type_ids == [0] * 8 + [1] * 3
    assert make_windows(record(), roberta_tokenizer, OPTIONS)[0].token_type_ids is None


class TestPositions:
    """The gold answer in training windows."""

    def spans(self, windows: list[Window], context: str) -> list[str | None]:
        found: list[str | None] = []
        for window in windows:
            assert window.start_position is not None
            assert window.end_position is not None
            if window.start_position == window.cls_index:
                assert window.end_position == window.cls_index
                found.append(None)
                continue
            start, end = window.offsets[window.start_position], window.offsets[window.end_position]
            assert start is not None
            assert end is not None
            found.append(context[start[0] : end[1]])
        return found

    def positions(
        self, tokenizer: Any, context: str, answer: str, start: int | None = None, **fields: Any
    ) -> list[Any]:
        start = context.index(answer) if start is None else start
        one = record(context=context, answers=(answer,), answer_starts=(start,), **fields)
        return self.spans(make_windows(one, tokenizer, OPTIONS, with_positions=True), context)

    def test_answer_is_found_in_the_windows_that_hold_it(self, tokenizer: Any) -> None:
        start = CONTEXT.index("king peter", 100)
        found = self.positions(tokenizer, CONTEXT, "king peter", start)
        assert set(found) == {None, "king peter"}
        assert found.count("king peter") <= 2

    @pytest.mark.parametrize(("before", "after", "is_whole_in_next"), [(4, 5, True), (9, 2, False)])
    def test_answer_over_the_border_points_to_cls_where_it_is_cut(
        self, tiny_tokenizer: Any, before: int, after: int, is_whole_in_next: bool
    ) -> None:
        """Tokens are counted from the end of the first window; the overlap is 8 tokens."""
        (whole,) = make_windows(record(), tiny_tokenizer, WindowOptions(max_length=512))
        border = len(make_windows(record(), tiny_tokenizer, OPTIONS)[0].char_spans)
        start, end = int(whole.char_spans[border - before, 0]), int(whole.char_spans[border + after - 1, 1])
        answer = CONTEXT[start:end]
        assert self.positions(tiny_tokenizer, CONTEXT, answer, start)[:2] == [
            None,
            answer if is_whole_in_next else None,
        ]

    @pytest.mark.parametrize(
        ("context", "answer"),
        [
            ("it is in São Paulo .", "São Paulo"),
            ("😀 anna 😀", "anna"),
            ("in  rome\n\nnow", "rome\n\nnow"),
            ("é", "é"),
        ],
    )
    def test_unicode_answers_are_exact(self, tokenizer: Any, context: str, answer: str) -> None:
        assert self.positions(tokenizer, context, answer) == [answer]

    def test_white_space_around_an_answer_is_ignored(self, tokenizer: Any) -> None:
        assert self.positions(tokenizer, "born in rome today", " rome ") == ["rome"]

    def test_part_of_a_token_gives_the_token(self, tiny_tokenizer: Any) -> None:
        assert self.positions(tiny_tokenizer, "rome hundred", "hund") == ["hundred"]

    def test_impossible_record_points_to_cls(self, tokenizer: Any) -> None:
        windows = make_windows(record(context="rome", is_impossible=True), tokenizer, OPTIONS, with_positions=True)
        assert self.spans(windows, "rome") == [None]

    def test_most_frequent_answer_counts_and_ties_go_to_the_first(self, tokenizer: Any) -> None:
        context = "anna in paris or rome"
        starts = tuple(context.index(word) for word in ("anna", "rome", "paris", "rome"))
        one = record(context=context, answers=("anna", "rome", "paris", "rome"), answer_starts=starts)
        assert self.spans(make_windows(one, tokenizer, OPTIONS, with_positions=True), context) == ["rome"]
        tie = record(context=context, answers=("paris", "anna"), answer_starts=(starts[2], starts[0]))
        assert self.spans(make_windows(tie, tokenizer, OPTIONS, with_positions=True), context) == ["paris"]

    def test_unlabelled_record_is_refused(self, tokenizer: Any) -> None:
        with pytest.raises(DataError, match="record 'q1' has no answer; training needs one"):
            make_windows(record(), tokenizer, OPTIONS, with_positions=True)


class TestLongQuestion:
    """A question that crowds out its context is an error, not a silent cut."""

    def test_is_refused_by_name(self, tiny_tokenizer: Any) -> None:
        options = WindowOptions(max_length=64, doc_stride=8, max_question_length=5)
        with pytest.raises(
            QuestionTooLongError, match="record 'q1': the question has 6 tokens, at most 5 are allowed"
        ):
            make_windows(record(), tiny_tokenizer, options)

    def test_is_cut_on_request(self, tiny_tokenizer: Any) -> None:
        options = WindowOptions(max_length=64, doc_stride=8, max_question_length=5, truncate_question=True)
        assert make_windows(record(), tiny_tokenizer, options)[0].context_position == 1 + 5 + 1

    @pytest.mark.parametrize(("max_length", "doc_stride", "limit"), [(384, 128, 192), (64, 8, 32), (64, 40, 20)])
    def test_default_limit_is_half_a_window_or_what_the_stride_leaves(
        self, max_length: int, doc_stride: int, limit: int
    ) -> None:
        assert WindowOptions(max_length, doc_stride).question_limit(3) == limit

    def test_longest_legal_question_still_advances(self, tiny_tokenizer: Any) -> None:
        options = WindowOptions(max_length=64, doc_stride=40)
        windows = make_windows(record(question="who " * 20), tiny_tokenizer, options)
        assert [window.first_token for window in windows] == list(range(len(windows)))
        assert windows[-1].char_spans[-1, 1] == len(CONTEXT)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_length": 0}, "max_length 0 is not an integer of at least 1"),
        ({"max_length": 384.0}, r"max_length 384\.0 is not"),
        ({"doc_stride": -1}, "doc_stride -1 is not an integer of at least 0"),
        ({"doc_stride": True}, "doc_stride True is not"),
        ({"max_question_length": 0}, "max_question_length 0 is not an integer of at least 1"),
        (
            {"max_length": 128},
            r"doc_stride 128 is not below the 124 context tokens that max_length 128 leaves beside a ",
        ),
        (
            {"max_question_length": 300},
            "doc_stride 128 is not below the 81 context tokens that max_length 384 leaves beside a question of 300",
        ),
    ],
)
def test_options_that_skip_tokens_are_refused(values: dict[str, Any], message: str) -> None:
    """Reported failure: a stride longer than the room for the context skips tokens silently."""
    with pytest.raises(ConfigurationError, match=message):
        WindowOptions(**values)


def test_special_tokens_of_the_tokenizer_count(roberta_tokenizer: Any) -> None:
    options = WindowOptions(max_length=16, doc_stride=4, max_question_length=8)  # fits with 3 special tokens
    with pytest.raises(ConfigurationError, match="doc_stride 4 is not below the 4 context tokens .* and 4 special"):
        make_windows(record("?"), roberta_tokenizer, options)


@pytest.mark.parametrize("max_length", [16, 64, 128, 384, 512])
def test_options_for_any_length_are_legal(max_length: int) -> None:
    options = WindowOptions.for_max_length(max_length)
    assert options.max_length == max_length
    assert options.doc_stride == min(128, max_length // 3)


@pytest.mark.parametrize("question", ["", " \n "])
def test_empty_question_is_refused(tokenizer: Any, question: str) -> None:
    with pytest.raises(DataError, match=r"record 'q1': the question '.*' is empty or has no token"):
        make_windows(record(question=question), tokenizer, OPTIONS)


def test_records_before_a_problem_are_windowed(tokenizer: Any) -> None:
    records = [record(), record("", id="bad"), record(id="after")]
    windows, problem = make_windows_until_problem(records, tokenizer, OPTIONS)
    assert {window.record_index for window in windows} == {0}
    assert "record 'bad'" in str(problem)
    assert make_windows_until_problem(records[1:], tokenizer, OPTIONS)[0] == []
    assert make_windows_until_problem([], tokenizer, OPTIONS) == ([], None)


def test_slow_tokenizer_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="SimpleNamespace is not a fast tokenizer"):
        make_windows(record(), SimpleNamespace(is_fast=False), OPTIONS)


def test_tokenizer_without_cls_is_refused() -> None:
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]")
    with pytest.raises(ConfigurationError, match="puts no special token before the question"):
        make_windows(record(), tokenizer, OPTIONS)
