"""Windows: a question and as much of its context as fits, in tokens, with the way back to characters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimum_qala.errors import ConfigurationError, DataError, QuestionTooLongError
from optimum_qala.question_answering.records import QARecord


__all__ = ["Window", "WindowOptions", "make_windows", "make_windows_until_problem"]

MIN_SPECIAL_TOKENS = 3  # [CLS] question [SEP] context [SEP]; RoBERTa has one more, which only a tokenizer can tell


@dataclass(frozen=True)
class WindowOptions:
    """How contexts are cut.

    Args:
        max_length: Tokens of a window: question, context and special tokens.
        doc_stride: Context tokens that two neighbouring windows share, as in `transformers`, so that an answer at the
            end of one window is whole in the next.
        max_question_length: Question tokens at most. None allows half a window, or less where that would leave no more
            than `doc_stride` tokens for the context.
        truncate_question: Cut a longer question instead of refusing it.

    Raises:
        ConfigurationError: If a value is out of range, or if the longest legal question leaves no more than
            `doc_stride` tokens for the context, so that windows would not advance.
    """

    max_length: int = 384
    doc_stride: int = 128
    max_question_length: int | None = None
    truncate_question: bool = False

    def __post_init__(self) -> None:
        for name, lowest in (("max_length", 1), ("doc_stride", 0), ("max_question_length", 1)):
            value = getattr(self, name)
            if name == "max_question_length" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
                raise ConfigurationError(f"{name} {value!r} is not an integer of at least {lowest}")
        self.question_limit(MIN_SPECIAL_TOKENS)

    @classmethod
    def for_max_length(cls, max_length: int) -> WindowOptions:
        """Choose a stride that fits a window: the default, or a third of a shorter one."""
        return cls(max_length, doc_stride=min(cls.doc_stride, max_length // 3))

    def question_limit(self, num_special_tokens: int) -> int:
        """Count the tokens that a question may have.

        Args:
            num_special_tokens: Special tokens of a question and context pair.

        Returns:
            `max_question_length`, or its default.

        Raises:
            ConfigurationError: If such a question leaves no more than `doc_stride` tokens for the context.
        """
        # A window must show at least one context token more than the stride, or it shows nothing new.
        longest = self.max_length - num_special_tokens - self.doc_stride - 1
        limit = self.max_question_length
        if limit is None:
            limit = max(1, min(self.max_length // 2, longest))
        if limit > longest:
            room = self.max_length - num_special_tokens - limit
            raise ConfigurationError(
                f"doc_stride {self.doc_stride} is not below the {room} context tokens that max_length "
                f"{self.max_length} leaves beside a question of {limit} and {num_special_tokens} special tokens, so "
                "windows would not advance; lower doc_stride or max_question_length, or raise max_length"
            )
        return limit


@dataclass(slots=True)
class Window:
    """One model input: a question and a part of its context.

    Args:
        record_index: Position of the record in the list that was windowed.
        input_ids: Token ids, not padded.
        token_type_ids: Segment ids, or None if the tokenizer's model takes none.
        cls_index: Position of [CLS] in `input_ids`; its logits score "no answer".
        context_position: Position in `input_ids` of the first context token.
        first_token: Index of that token among the tokens of the whole context.
        char_spans: Start and end character of each context token of this window, without surrounding white space;
            shape (num_context_tokens, 2). Both are equal for a token of white space alone, which no answer starts or
            ends with.
        start_position: For training: position in `input_ids` of the first answer token, `cls_index` if the answer is
            not wholly inside this window.
        end_position: For training: the same for the last answer token.
    """

    record_index: int
    input_ids: list[int]
    token_type_ids: list[int] | None
    cls_index: int
    context_position: int
    first_token: int
    char_spans: NDArray[np.int64]
    start_position: int | None = None
    end_position: int | None = None

    @property
    def offsets(self) -> list[tuple[int, int] | None]:
        """Character span of every token of `input_ids`; None for special tokens and the question."""
        context = [(int(start), int(end)) for start, end in self.char_spans]
        after = len(self.input_ids) - self.context_position - len(context)
        return [None] * self.context_position + context + [None] * after

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True)
class _Template:
    """The special tokens that a tokenizer puts around a pair, and the segment ids of each part."""

    before: list[int]
    between: list[int]
    after: list[int]
    cls_index: int
    type_ids: tuple[list[int], int, list[int], int, list[int]] | None  # before, question, between, context, after


def make_windows(
    records: QARecord | Sequence[QARecord],
    tokenizer: Any,
    options: WindowOptions | None = None,
    with_positions: bool = False,
) -> list[Window]:
    """Cut records into windows.

    A context that several records share is tokenized once. White space around a question is removed: byte-level
    tokenizers would make tokens of it. An empty context gives one window without context tokens.

    Args:
        records: One record or several.
        tokenizer: A fast tokenizer of `transformers`.
        options: How to cut; `WindowOptions()` by default.
        with_positions: Find the answer in each window, for training. Of several gold answers the most frequent counts,
            and the first of those.

    Returns:
        The windows, record by record, each record's from left to right.

    Raises:
        ConfigurationError: If the tokenizer is not a fast one, has no [CLS], or `options` leave no room beside its
            special tokens.
        DataError: If a question is empty, or an answer is missing that `with_positions` needs; the message names the
            record.
        QuestionTooLongError: If a question has more than `max_question_length` tokens and may not be cut.
    """
    windows, problem = make_windows_until_problem(
        [records] if isinstance(records, QARecord) else records, tokenizer, options or WindowOptions(), with_positions
    )
    if problem is not None:
        raise problem
    return windows


def make_windows_until_problem(
    records: Sequence[QARecord], tokenizer: Any, options: WindowOptions, with_positions: bool = False
) -> tuple[list[Window], DataError | None]:
    """Cut records into windows up to the first bad record, so that the good ones before it are not lost.

    Args:
        records: The records.
        tokenizer: A fast tokenizer.
        options: How to cut.
        with_positions: Find the answer in each window.

    Returns:
        The windows of the records before the first bad one, and the error that it deserves, or None.

    Raises:
        ConfigurationError: As `make_windows`.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ConfigurationError(
            f"{type(tokenizer).__name__} is not a fast tokenizer, so answers cannot be traced back to characters; "
            "load it with AutoTokenizer.from_pretrained(..., use_fast=True)"
        )
    if not records:
        return [], None
    limit = options.question_limit(tokenizer.num_special_tokens_to_add(pair=True))
    questions, problem = _encode_questions(records, tokenizer, limit, options.truncate_question, with_positions)
    records = records[: len(questions)]
    if not records:
        return [], problem
    template = _read_template(tokenizer, records[0].question.strip())

    contexts = {context: index for index, context in enumerate(dict.fromkeys(record.context for record in records))}
    encoded = _encode(tokenizer, list(contexts), return_offsets_mapping=True)
    char_spans: list[NDArray[np.int64] | None] = [None] * len(contexts)

    windows: list[Window] = []
    for record_index, (record, question_ids) in enumerate(zip(records, questions, strict=True)):
        context_index = contexts[record.context]
        spans = char_spans[context_index]
        if spans is None:
            spans = char_spans[context_index] = _trim_spans(record.context, encoded["offset_mapping"][context_index])
        new = _cut(record_index, question_ids, encoded["input_ids"][context_index], spans, template, options)
        if with_positions:
            _set_positions(new, record, spans)
        windows += new
    return windows, problem


def _encode(tokenizer: Any, texts: list[str], **options: Any) -> Any:
    # Truncation and padding are switched off by name because tokenizer.json may carry its own.
    return tokenizer(
        texts,
        add_special_tokens=False,
        truncation=False,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,  # no warning about the length of a whole context
        **options,
    )


def _encode_questions(
    records: Sequence[QARecord], tokenizer: Any, limit: int, truncate: bool, with_positions: bool
) -> tuple[list[list[int]], DataError | None]:
    encoded = _encode(tokenizer, [record.question.strip() for record in records])["input_ids"]
    questions: list[list[int]] = []
    for record, ids in zip(records, encoded, strict=True):
        if not ids:
            return questions, DataError(
                f"record '{record.id}': the question {record.question!r} is empty or has no token"
            )
        if len(ids) > limit:
            if not truncate:
                return questions, QuestionTooLongError(
                    f"record '{record.id}': the question has {len(ids)} tokens, at most {limit} are allowed; shorten "
                    "it, raise max_question_length or max_length, or set truncate_question"
                )
            ids = ids[:limit]
        if with_positions and not record.answers and not record.is_impossible:
            return questions, DataError(
                f"record '{record.id}' has no answer; training needs one, or is_impossible where there is none"
            )
        questions.append(ids)
    return questions, None


def _read_template(tokenizer: Any, text: str) -> _Template:
    """Learn from one encoded pair what the tokenizer adds; `text` must have at least one token."""
    pair = tokenizer(text, text, truncation=False, padding=False, return_token_type_ids=True, verbose=False)
    ids, sequence = list(pair["input_ids"]), pair.sequence_ids(0)
    question_start, question_end = sequence.index(0), len(sequence) - sequence[::-1].index(0)
    context_start, context_end = sequence.index(1), len(sequence) - sequence[::-1].index(1)
    before = ids[:question_start]
    if not before:
        raise ConfigurationError(
            f"{type(tokenizer).__name__} puts no special token before the question, so nothing can score 'no answer'; "
            "use the tokenizer of a BERT, RoBERTa or XLM-R shaped model"
        )
    type_ids = None
    if "token_type_ids" in tokenizer.model_input_names:
        types = list(pair["token_type_ids"])
        type_ids = (
            types[:question_start],
            types[question_start],
            types[question_end:context_start],
            types[context_start],
            types[context_end:],
        )
    cls_index = before.index(tokenizer.cls_token_id) if tokenizer.cls_token_id in before else 0
    return _Template(before, ids[question_end:context_start], ids[context_end:], cls_index, type_ids)


def _trim_spans(context: str, offsets: Iterable[tuple[int, int]]) -> NDArray[np.int64]:
    """Take white space off token spans; SentencePiece and byte-level tokens may include the space before a word."""
    spans = []
    for start, end in offsets:
        while start < end and context[start].isspace():
            start += 1
        while end > start and context[end - 1].isspace():
            end -= 1
        spans.append((start, end))
    return np.array(spans, dtype=np.int64).reshape(-1, 2)


def _cut(
    record_index: int,
    question_ids: list[int],
    context_ids: list[int],
    spans: NDArray[np.int64],
    template: _Template,
    options: WindowOptions,
) -> list[Window]:
    head = template.before + question_ids + template.between
    room = options.max_length - len(head) - len(template.after)
    windows = []
    for first in range(0, max(1, len(context_ids) - options.doc_stride), room - options.doc_stride):
        part = context_ids[first : first + room]
        type_ids = None
        if template.type_ids is not None:
            before, question, between, context, after = template.type_ids
            type_ids = before + [question] * len(question_ids) + between + [context] * len(part) + after
        windows.append(
            Window(
                record_index=record_index,
                input_ids=head + part + template.after,
                token_type_ids=type_ids,
                cls_index=template.cls_index,
                context_position=len(head),
                first_token=first,
                char_spans=spans[first : first + room],
            )
        )
    return windows


def _set_positions(windows: list[Window], record: QARecord, spans: NDArray[np.int64]) -> None:
    inside: NDArray[np.intp] = np.empty(0, dtype=np.intp)
    if record.answers:
        text = Counter(record.answers).most_common(1)[0][0]  # ties go to the first
        start = record.answer_starts[record.answers.index(text)]
        stripped = text.lstrip()
        start += len(text) - len(stripped)
        end = start + len(stripped.rstrip())
        inside = np.flatnonzero((spans[:, 0] < end) & (spans[:, 1] > start))
    for window in windows:
        window.start_position = window.end_position = window.cls_index
        if inside.size:
            first, last = int(inside[0]) - window.first_token, int(inside[-1]) - window.first_token
            if first >= 0 and last < len(window.char_spans):
                window.start_position = window.context_position + first
                window.end_position = window.context_position + last
