"""Run any question answering model over any number of records, in a stream, and score it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from optimum_qala.errors import BackendError, ConfigurationError, DataError, QuaLAError
from optimum_qala.question_answering.answers import Answer, DecodedRecord, DecodeOptions, decode_record
from optimum_qala.question_answering.features import collate, padded_length
from optimum_qala.question_answering.metrics import (
    QuestionScore,
    find_best_thresholds,
    score_question,
    summarize_scores,
)
from optimum_qala.question_answering.records import QARecord
from optimum_qala.question_answering.windows import Window, WindowOptions, make_windows_until_problem


__all__ = ["evaluate", "plan_batches", "position_capacity", "predict"]

# Characters of context per record of the buffer; longer contexts end a buffer early, which bounds its memory.
BUFFERED_CHARACTERS = 4096

_ROBERTA_POSITIONS = {"camembert", "roberta", "xlm-roberta"}

Progress = Callable[[int], None]


@dataclass(frozen=True)
class _Run:
    """The settings of one call, checked."""

    model: Any
    tokenizer: Any
    budget: Any
    window_options: WindowOptions
    decode_options: DecodeOptions
    batch_size: int
    pad_to_length: int | None
    pad_to_multiple_of: int | None
    buffer_size: int
    progress: Progress | None

    def __post_init__(self) -> None:
        for name in ("batch_size", "buffer_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigurationError(f"{name} {value!r} is not a positive integer")
        longest = padded_length(self.window_options.max_length, self.pad_to_multiple_of, self.pad_to_length)
        capacity = position_capacity(self.model)
        if capacity is not None and longest > capacity:
            # Some runtimes read past the position table without any error.
            raise ConfigurationError(
                f"windows of up to {longest} tokens exceed the {capacity} positions of the model; lower max_length"
            )


def predict(
    model: Any,
    tokenizer: Any,
    records: Iterable[QARecord],
    *,
    budget: Any = None,
    window_options: WindowOptions | None = None,
    decode_options: DecodeOptions | None = None,
    batch_size: int = 32,
    pad_to_length: int | None = None,
    pad_to_multiple_of: int | None = None,
    buffer_size: int = 1024,
    progress: Progress | None = None,
) -> Iterator[tuple[QARecord, list[Answer]]]:
    """Answer records in a stream: input order, flat memory.

    Records are buffered; the windows of a buffer are sorted by length and batched, so that little is padding. If a
    record is bad or the source fails, the answers of all records before it are given out first.

    Args:
        model: A torch module or any callable that takes `input_ids`, `attention_mask` and, if its tokenizer makes
            them, `token_type_ids`, and gives `start_logits` and `end_logits`. A torch module runs in evaluation mode
            and is left in the mode that it was in. A model may have a method `fill_batch(lengths)` that says how many
            of the next windows, given by their padded lengths from the longest on, it wants in one call.
        tokenizer: Its fast tokenizer.
        records: The records.
        budget: Passed to the model as `budget=` unless None.
        window_options: How contexts are cut.
        decode_options: How answers are chosen.
        batch_size: Windows per call of the model; at most, where the model has `fill_batch`.
        pad_to_length: Pad every batch to this length, instead of to its longest window.
        pad_to_multiple_of: Pad every batch to a multiple of this.
        buffer_size: Records that are read ahead, fewer if their contexts are long.
        progress: Called with the number of records finished since its last call.

    Returns:
        Each record with its answers, best first.

    Raises:
        ConfigurationError: If an argument is out of range or windows are longer than the model can take.
        DataError: If a record is bad; the message names it.
        BackendError: If the model gives logits of a wrong shape or that are not a number.
    """
    run = _Run(
        model,
        tokenizer,
        budget,
        window_options or WindowOptions(),
        decode_options or DecodeOptions(),
        batch_size,
        pad_to_length,
        pad_to_multiple_of,
        buffer_size,
        progress,
    )
    return ((record, decoded.answers) for record, decoded in _decode_all(run, records))


def evaluate(
    model: Any,
    tokenizer: Any,
    records: Iterable[QARecord],
    *,
    budget: Any = None,
    window_options: WindowOptions | None = None,
    decode_options: DecodeOptions | None = None,
    batch_size: int = 32,
    pad_to_length: int | None = None,
    pad_to_multiple_of: int | None = None,
    buffer_size: int = 1024,
    progress: Progress | None = None,
) -> dict[str, float | int]:
    """Answer records and score the best answer of each. Keeps scores only, so memory stays flat.

    Args:
        model: As for `predict`.
        tokenizer: As for `predict`.
        records: Records with gold answers or `is_impossible`.
        budget: As for `predict`.
        window_options: As for `predict`.
        decode_options: As for `predict`; set `allow_no_answer` for SQuAD v2.
        batch_size: As for `predict`.
        pad_to_length: As for `predict`.
        pad_to_multiple_of: As for `predict`.
        buffer_size: As for `predict`.
        progress: As for `predict`.

    Returns:
        As `metrics.summarize_scores`; with `allow_no_answer` also the best thresholds, in units of
        `DecodeOptions.null_threshold`; and `seconds`, wall time from reading the first record to scoring the last.

    Raises:
        ConfigurationError: As `predict`.
        DataError: As `predict`, and if there are no records or one cannot be scored.
        BackendError: As `predict`.
    """
    run = _Run(
        model,
        tokenizer,
        budget,
        window_options or WindowOptions(),
        decode_options or DecodeOptions(),
        batch_size,
        pad_to_length,
        pad_to_multiple_of,
        buffer_size,
        progress,
    )
    began = time.perf_counter()
    scores: list[QuestionScore] = []
    span_scores: list[QuestionScore] = []
    null_margins: dict[str, float] = {}
    for record, decoded in _decode_all(run, records):
        scores.append(score_question(record, decoded.answers[0].text))
        if run.decode_options.allow_no_answer:
            span_scores.append(score_question(record, decoded.best_span.text if decoded.best_span else ""))
            null_margins[record.id] = decoded.null_margin
    result = summarize_scores(scores)
    if run.decode_options.allow_no_answer:
        result |= find_best_thresholds(span_scores, null_margins)
    return result | {"seconds": time.perf_counter() - began}


def _decode_all(run: _Run, records: Iterable[QARecord]) -> Iterator[tuple[QARecord, DecodedRecord]]:
    for buffer, source_error in _buffers(records, run.buffer_size):
        windows, problem = make_windows_until_problem(buffer, run.tokenizer, run.window_options)
        good = buffer[: windows[-1].record_index + 1] if windows else []
        start_logits, end_logits = _run_model(run, windows, good)
        first = 0
        for index, record in enumerate(good):
            last = first
            while last < len(windows) and windows[last].record_index == index:
                last += 1
            part = slice(first, last)
            yield (
                record,
                decode_record(record, windows[part], start_logits[part], end_logits[part], run.decode_options),
            )
            first = last
        if run.progress is not None and good:
            run.progress(len(good))
        if problem is not None:
            raise problem
        if source_error is not None:
            raise source_error


def _buffers(records: Iterable[QARecord], buffer_size: int) -> Iterator[tuple[list[QARecord], Exception | None]]:
    """Collect records; if the source fails, give out what came before, with the error."""
    buffer: list[QARecord] = []
    num_characters = 0
    source = iter(records)
    while True:
        try:
            record = next(source)
        except StopIteration:
            break
        except QuaLAError as error:
            yield buffer, error
            return
        if not isinstance(record, QARecord):
            found = f"{type(record).__name__} {repr(record)[:80]}"
            yield buffer, DataError(f"expected a QARecord, found {found}; read other data with iter_records")
            return
        buffer.append(record)
        num_characters += len(record.context)
        if len(buffer) == buffer_size or num_characters >= buffer_size * BUFFERED_CHARACTERS:
            yield buffer, None
            buffer, num_characters = [], 0
    if buffer:
        yield buffer, None


def _run_model(
    run: _Run, windows: Sequence[Window], records: Sequence[QARecord]
) -> tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]]:
    """Return the start and the end logits of each window, without those of the padding."""
    empty: NDArray[np.float32] = np.empty(0, dtype=np.float32)
    start_logits, end_logits = [empty] * len(windows), [empty] * len(windows)
    batches = plan_batches(run.model, windows, run.batch_size, run.pad_to_multiple_of, run.pad_to_length)
    with _evaluation_mode(run.model):
        for chosen in batches:
            tensors = collate(
                [windows[index] for index in chosen], run.tokenizer, run.pad_to_multiple_of, run.pad_to_length
            )
            starts, ends = _call(run, tensors)
            for row, index in enumerate(chosen):
                length = len(windows[index])
                for name, logits, target in (("start", starts, start_logits), ("end", ends, end_logits)):
                    # A copy, so that the padded batch is freed.
                    target[index] = logits[row, :length].copy()
                    if np.isnan(target[index]).any():
                        raise BackendError(
                            f"the model gave {name} logits that are not a number for record "
                            f"'{records[windows[index].record_index].id}'; check its weights and its precision"
                        )
    return start_logits, end_logits


def plan_batches(
    model: Any,
    windows: Sequence[Window],
    batch_size: int,
    pad_to_multiple_of: int | None = None,
    pad_to_length: int | None = None,
) -> Iterator[Sequence[int]]:
    """Cut windows into batches of similar length, of the size that the model wants at it if it wants one.

    Args:
        model: As for `predict`.
        windows: The windows.
        batch_size: As for `predict`.
        pad_to_multiple_of: As for `predict`.
        pad_to_length: As for `predict`.

    Yields:
        Indices of the windows of a batch, the longest windows first.

    Raises:
        BackendError: If `fill_batch` of the model wants none, or more than there are.
    """
    # The longest batch comes first: it fails at once if memory is short. The sort is stable, so batches are
    # reproducible.
    order = sorted(range(len(windows)), key=lambda index: -len(windows[index]))
    fill = getattr(model, "fill_batch", None)
    first = 0
    while first < len(order):
        chosen = order[first : first + batch_size]
        if fill is not None:
            lengths = [padded_length(len(windows[one]), pad_to_multiple_of, pad_to_length) for one in chosen]
            count = fill(lengths)
            if not 1 <= count <= len(chosen):
                raise BackendError(
                    f"fill_batch of the model gave {count} for {len(chosen)} windows; 1 to all are legal"
                )
            chosen = chosen[:count]
        yield chosen
        first += len(chosen)


def _call(run: _Run, tensors: dict[str, torch.Tensor]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    shape = tuple(tensors["input_ids"].shape)
    device = getattr(run.model, "device", None)
    if isinstance(device, torch.device):
        tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
    options = {} if run.budget is None else {"budget": run.budget}
    output = run.model(**tensors, **options)
    logits = _to_numpy(output.start_logits), _to_numpy(output.end_logits)
    for name, array in zip(("start", "end"), logits, strict=True):
        if array.shape != shape:
            raise BackendError(f"the model gave {name} logits of shape {array.shape} for inputs of shape {shape}")
    return logits


def _to_numpy(logits: Any) -> NDArray[np.float32]:
    array: NDArray[np.float32] = torch.as_tensor(logits).float().cpu().numpy()
    return array


@contextmanager
def _evaluation_mode(model: Any) -> Iterator[None]:
    """Switch dropout and gradients off for a torch module, and dropout back on where it was."""
    if not isinstance(model, torch.nn.Module):
        yield
        return
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


def position_capacity(model: Any) -> int | None:
    """Longest sequence that the position embeddings of a model take; None if it does not say."""
    config = getattr(model, "config", None)
    num_positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(num_positions, int):
        return None
    is_roberta = (
        getattr(config, "model_type", None) in _ROBERTA_POSITIONS
        or getattr(config, "position_scheme", None) == "roberta"
    )
    # RoBERTa numbers positions from the padding id plus one.
    return num_positions - getattr(config, "pad_token_id", 1) - 1 if is_roberta else num_positions
