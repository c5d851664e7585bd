"""Question answering records: SQuAD v1.1 and v2 JSON, JSON lines, `datasets` and plain Python objects, all checked."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

from optimum_qala._compat import require
from optimum_qala.errors import ConfigurationError, DataError


__all__ = ["QARecord", "iter_records", "load_records", "open_source", "record_to_json", "records_to_squad"]

_FILE_SUFFIXES = {".json", ".jsonl", ".ndjson", ".txt", ".gz", ".zip", ".csv"}
_LINE_SUFFIXES = {".jsonl", ".ndjson"}


@dataclass(frozen=True)
class QARecord:
    """One question about one context.

    Args:
        id: Identifier, unique within its source.
        question: The question.
        context: The text that holds the answer.
        answers: Gold answers, copied letter by letter from the context; empty if unknown or if there is none.
        answer_starts: Offset of each gold answer in `context`, in characters.
        is_impossible: True if the context is known to hold no answer (SQuAD v2).
    """

    id: str
    question: str
    context: str
    answers: tuple[str, ...] = ()
    answer_starts: tuple[int, ...] = ()
    is_impossible: bool = False


def iter_records(source: Any, *, require_answers: bool = False) -> Iterator[QARecord]:
    """Read records one by one.

    JSON lines, standard input, `datasets` and iterables are streamed; a SQuAD JSON file is one object and is parsed
    whole.

    Args:
        source: One of

            - a path to SQuAD v1.1 or v2 JSON (`{"data": [{"paragraphs": [...]}]}`), to a JSON array of records or to
              JSON lines, one record a line;
            - `"-"`: JSON lines from standard input;
            - a `datasets` id: `"name:split"` or `"name:configuration:split"`; the split may be left out if there is
              one;
            - a parsed SQuAD object, or an iterable of records: a `datasets.Dataset`, a list, a generator.

            A record is a `QARecord` or a mapping with `question`, `context` and, optionally, `id`, `is_impossible` and
            `answers`, either `{"text": [...], "answer_start": [...]}` or `[{"text": ..., "answer_start": ...}]`. In
            the first form, which is that of `datasets`, empty lists mean that there is no answer; in the second they
            do only with `is_impossible`, and the record is unlabelled otherwise. A record without an id is named by
            its position.
        require_answers: Refuse records that have neither an answer nor `is_impossible`, as training must.

    Returns:
        The records, in the order of the source.

    Raises:
        DataError: If the source does not exist, is empty or holds anything malformed, if two records share an id, or
            if an answer is not at its offset. The message names the source and the record.
        MissingExtraError: If `source` is a `datasets` id and `datasets` is not installed.
    """
    name, items = open_source(source)
    return _check_all(name, items, require_answers)


def load_records(source: Any, *, require_answers: bool = False, limit: int | None = None) -> list[QARecord]:
    """Read records into a list.

    Args:
        source: What `iter_records` takes.
        require_answers: Refuse records that have neither an answer nor `is_impossible`.
        limit: Read at most this many; all by default.

    Returns:
        The records, in the order of the source.

    Raises:
        ConfigurationError: If `limit` is not a positive integer.
        DataError: As `iter_records`.
    """
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise ConfigurationError(f"limit {limit!r} is not a positive integer; leave it out to read every record")
    return list(islice(iter_records(source, require_answers=require_answers), limit))


def record_to_json(record: QARecord) -> dict[str, Any]:
    """Make the object that a JSON lines file has for a record; `iter_records` reads it back."""
    answers = {"text": list(record.answers), "answer_start": list(record.answer_starts)}
    fields = {"id": record.id, "question": record.question, "context": record.context, "answers": answers}
    return fields | ({"is_impossible": True} if record.is_impossible else {})


def records_to_squad(records: Iterable[QARecord]) -> dict[str, Any]:
    """Make a SQuAD object, version 2.0 if a question has no answer; `iter_records` reads it back.

    Args:
        records: The records; neighbours with the same context share a paragraph.

    Returns:
        What a SQuAD JSON file holds.
    """
    paragraphs: list[dict[str, Any]] = []
    for record in records:
        if not paragraphs or paragraphs[-1]["context"] != record.context:
            paragraphs.append({"context": record.context, "qas": []})
        pairs = zip(record.answers, record.answer_starts, strict=True)
        question = {
            "id": record.id,
            "question": record.question,
            "answers": [{"text": text, "answer_start": start} for text, start in pairs],
        }
        paragraphs[-1]["qas"].append(question | ({"is_impossible": True} if record.is_impossible else {}))
    has_impossible = any("is_impossible" in question for paragraph in paragraphs for question in paragraph["qas"])
    return {"version": "v2.0" if has_impossible else "1.1", "data": [{"title": "", "paragraphs": paragraphs}]}


def open_source(source: Any) -> tuple[str, Iterator[tuple[str, Any]]]:
    """Find out what a source of records is, and read it as it comes, unchecked.

    Args:
        source: What `iter_records` takes.

    Returns:
        Its name for messages, and (position for messages, raw record) one by one.

    Raises:
        DataError: If it is nothing that can be read; while reading, if it is malformed.
        MissingExtraError: While reading, if `source` is a `datasets` id and `datasets` is not installed.
    """
    if isinstance(source, Path) or (isinstance(source, str) and _is_path(source)):
        path = Path(source)
        if not path.is_file():
            problem = "is a folder, not a file" if path.is_dir() else "does not exist"
            raise DataError(
                f"{path} {problem}; give a SQuAD JSON or JSON lines file, '-' or a datasets id such as squad"
            )
        return str(path), _read_file(path)
    if source == "-" and isinstance(source, str):
        return "standard input", _read_lines("standard input", sys.stdin)
    if isinstance(source, str):
        return source, _read_datasets(source)
    if isinstance(source, Mapping):
        if "data" in source:
            return "SQuAD object", _read_squad("SQuAD object", source)
        raise DataError(
            f"a mapping with the keys {_names(source)} is neither a SQuAD object, which has 'data', nor one split; "
            "pick a split of a DatasetDict, or put a single record into a list"
        )
    if isinstance(source, Iterable):
        return type(source).__name__, ((f"record {index}", item) for index, item in enumerate(source, start=1))
    raise DataError(
        f"cannot read records from {type(source).__name__} {source!r}; give a path, a datasets id or an iterable of "
        "records"
    )


def _is_path(source: str) -> bool:
    """Tell a path from a `datasets` id, also where the file is missing, so that a typing error is not looked up."""
    if source == "-":
        return False
    path = Path(source)
    return path.exists() or path.suffix in _FILE_SUFFIXES or source.startswith(("/", "./", "../", "~"))


def _names(keys: Iterable[Any]) -> str:
    return ", ".join(sorted(repr(key) for key in keys)) or "(none)"


def _read_file(path: Path) -> Iterator[tuple[str, Any]]:
    name = str(path)
    try:
        with path.open(encoding="utf-8-sig") as file:
            if path.suffix in _LINE_SUFFIXES:
                yield from _read_lines(name, file)
                return
            # Written by json.dump, a SQuAD file is one line; if that line is a record, the file is JSON lines.
            first_line = _first_line(file)
            try:
                first_value = json.loads(first_line) if first_line else None
            except json.JSONDecodeError:
                first_value = None  # an object over several lines, or not JSON
            if isinstance(first_value, Mapping) and "data" not in first_value and "question" in first_value:
                file.seek(0)
                yield from _read_lines(name, file)
                return
            rest = file.read()
            yield from _read_document(
                name, _parse(name, first_line + rest) if rest.strip() else first_value, first_line
            )
    except UnicodeDecodeError as error:
        raise DataError(
            f"{name} is not UTF-8 text (byte {error.start}); give a SQuAD JSON or JSON lines file"
        ) from None


def _first_line(file: IO[str]) -> str:
    for line in iter(file.readline, ""):
        if line.strip():
            return line
    return ""


def _parse(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{name} is not JSON: {error.msg}, line {error.lineno} column {error.colno}") from None


def _read_document(name: str, document: Any, first_line: str) -> Iterator[tuple[str, Any]]:
    if document is None and first_line.strip() != "null":
        if not first_line:
            raise DataError(f"{name} is empty")
        document = _parse(name, first_line)
    if isinstance(document, list):
        yield from ((f"record {index}", item) for index, item in enumerate(document, start=1))
    elif isinstance(document, Mapping) and "data" in document:
        yield from _read_squad(name, document)
    else:
        found = f"an object with the keys {_names(document)}" if isinstance(document, Mapping) else repr(document)[:80]
        raise DataError(f"{name} has no 'data': expected SQuAD JSON or one record a line, found {found}")


def _read_lines(name: str, lines: Iterable[str]) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield f"line {number}", _parse(f"{name}, line {number},", line)


def _read_squad(name: str, document: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Flatten articles -> paragraphs -> questions."""
    position = 0
    for article_index, article in enumerate(_list_of_mappings(document, "data", name)):
        article_name = f"{name}, data[{article_index}]"
        for paragraph_index, paragraph in enumerate(_list_of_mappings(article, "paragraphs", article_name)):
            paragraph_name = f"{article_name}.paragraphs[{paragraph_index}]"
            if not isinstance(paragraph.get("context"), str):
                raise DataError(f"{paragraph_name} has no 'context' text, found {paragraph.get('context')!r}")
            for question in _list_of_mappings(paragraph, "qas", paragraph_name):
                position += 1
                yield f"record {position}", {**question, "context": paragraph["context"]}


def _list_of_mappings(parent: Mapping[str, Any], key: str, name: str) -> list[Mapping[str, Any]]:
    value = parent.get(key)
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        raise DataError(f"{name}: '{key}' is not a list of objects, found {repr(value)[:80]}")
    return value


def _read_datasets(source: str) -> Iterator[tuple[str, Any]]:
    require("datasets", f"reading '{source}' (which is not a file)")
    import datasets

    name, *parts = source.split(":")
    if not name or len(parts) > 2 or not all(parts):
        raise DataError(
            f"'{source}' is neither a file nor a datasets id; write name:split or name:configuration:split"
        )
    split = parts[-1] if parts else None
    configuration = parts[0] if len(parts) == 2 else None
    try:
        dataset = datasets.load_dataset(name, configuration, split=split)
    except Exception as error:  # `datasets` raises a dozen unrelated types for a missing name, split or network
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise DataError(
            f"'{source}' is not a file and cannot be loaded as a datasets id: {reason}; check the path, the name and "
            "the split, or give a local SQuAD JSON file"
        ) from error
    if isinstance(dataset, Mapping):
        if len(dataset) > 1:
            raise DataError(
                f"'{source}' has the splits {_names(dataset)}; choose one, as in '{source}:{next(iter(dataset))}'"
            )
        dataset = next(iter(dataset.values()))
    for index, item in enumerate(dataset, start=1):
        yield f"record {index}", item


def _check_all(name: str, items: Iterable[tuple[str, Any]], require_answers: bool) -> Iterator[QARecord]:
    seen: set[str] = set()
    for index, (position, item) in enumerate(items, start=1):
        record = item if isinstance(item, QARecord) else _to_record(f"{name}, {position}", item, f"record-{index}")
        where = f"{name}, record '{record.id}'"
        if record.id in seen:
            raise DataError(f"{where} ({position}): another record has this id; ids must be unique")
        seen.add(record.id)
        _check_record(where, record, require_answers)
        yield record
    if not seen:
        raise DataError(f"{name} holds no questions")


def _to_record(where: str, item: Any, default_id: str) -> QARecord:
    if not isinstance(item, Mapping):
        raise DataError(f"{where} is not an object with 'question' and 'context', found {repr(item)[:80]}")
    record_id = item.get("id")
    if record_id is None:
        record_id = default_id
    elif isinstance(record_id, bool) or not isinstance(record_id, (str, int)) or record_id == "":
        raise DataError(
            f"{where}: the id {record_id!r} is not a non-empty text or an integer; leave it out to number records"
        )
    where = f"{where} (id '{record_id}')"
    for key in ("question", "context"):
        if not isinstance(item.get(key), str):
            found = f"found {repr(item[key])[:80]}" if key in item else f"only {_names(item)}"
            raise DataError(f"{where} has no '{key}' text, {found}")
    texts, starts = _read_answers(where, item.get("answers"))
    is_impossible = item.get("is_impossible")
    if is_impossible is None:
        is_impossible = not texts and isinstance(item.get("answers"), Mapping)
    elif not isinstance(is_impossible, bool):
        raise DataError(f"{where}: is_impossible {is_impossible!r} is neither true nor false")
    return QARecord(str(record_id), item["question"], item["context"], texts, starts, is_impossible)


def _read_answers(where: str, answers: Any) -> tuple[tuple[str, ...], tuple[int, ...]]:
    if answers is None:
        return (), ()
    if isinstance(answers, Mapping):
        texts, starts = answers.get("text"), answers.get("answer_start")
    elif isinstance(answers, list) and all(isinstance(answer, Mapping) for answer in answers):
        texts = [answer.get("text") for answer in answers]
        starts = [answer.get("answer_start") for answer in answers]
    else:
        texts = starts = None
    if not isinstance(texts, (list, tuple)) or not isinstance(starts, (list, tuple)):
        raise DataError(
            f'{where}: answers {repr(answers)[:80]} are neither {{"text": [...], "answer_start": [...]}} '
            'nor [{"text": ..., "answer_start": ...}]'
        )
    return tuple(texts), tuple(starts)


def _check_record(where: str, record: QARecord, require_answers: bool) -> None:
    if not record.question.strip():
        raise DataError(f"{where}: the question is empty")
    if len(record.answers) != len(record.answer_starts):
        raise DataError(f"{where} has {len(record.answers)} answer texts but {len(record.answer_starts)} offsets")
    if record.is_impossible and record.answers:
        raise DataError(f"{where} is marked is_impossible but has the answer {record.answers[0]!r}")
    if require_answers and not record.answers and not record.is_impossible:
        raise DataError(f"{where} has no answer; training needs one, or is_impossible where the context holds none")
    for text, start in zip(record.answers, record.answer_starts, strict=True):
        _check_answer(where, record.context, text, start)


def _check_answer(where: str, context: str, text: Any, start: Any) -> None:
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{where}: the answer text {text!r} is not a non-empty text")
    if isinstance(start, bool) or not isinstance(start, int):
        raise DataError(f"{where}: answer_start {start!r} of the answer {text!r} is not an integer")
    found = context[start : start + len(text)] if start >= 0 else ""
    if found != text:
        elsewhere = context.find(text)
        hint = f"it occurs at {elsewhere}" if elsewhere >= 0 else "the context does not contain it"
        raise DataError(
            f"{where}: expected the answer {text!r} at offset {start} of the context, found {found!r} ({hint}); "
            "offsets count characters, not bytes or UTF-16 units"
        )
