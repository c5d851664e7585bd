"""Plain text to distil on: a text file, contexts of questions, or a column named "text", read as it comes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from optimum_qala.errors import ConfigurationError, DataError
from optimum_qala.question_answering.records import QARecord, open_source


_JSON_SUFFIXES = {".json", ".jsonl", ".ndjson"}


def iter_texts(source: Any, *, limit: int | None = None) -> Iterator[str]:
    """Read texts one by one, without the whole source in memory (a SQuAD JSON file is parsed whole).

    Args:
        source: A path to a file of plain text, one text a line, or whatever `iter_records` takes: then the texts are
            the "text" of each record or, where it has none, its context. A context that several questions in a row
            share comes once. An iterable may hold texts, too. A path that does not end in .json, .jsonl or .ndjson is
            plain text.
        limit: Read at most this many; all by default.

    Returns:
        The texts without surrounding blanks, in the order of the source; empty ones are left out.

    Raises:
        ConfigurationError: If `limit` is not a positive integer.
        DataError: If the source does not exist, holds no text, is not UTF-8 or has a record without text.
        MissingExtraError: If `source` is a `datasets` id and `datasets` is not installed.
    """
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise ConfigurationError(f"limit {limit!r} is not a positive integer; leave it out to read every text")
    if isinstance(source, str | Path) and Path(source).is_file() and Path(source).suffix not in _JSON_SUFFIXES:
        return islice(_checked(str(source), text_lines(Path(source))), limit)
    name, items = open_source(source)
    return islice(_checked(name, (_text_of(f"{name}, {position}", item) for position, item in items)), limit)


def text_lines(path: Path) -> Iterator[str]:
    """Read the lines of a file of plain text one by one.

    Args:
        path: The file, UTF-8 with or without a byte order mark.

    Yields:
        The lines, without the end of the line.

    Raises:
        DataError: If the file is not UTF-8.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from (line.removesuffix("\n") for line in file)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}); give a file with one text a line") from None


def _text_of(where: str, item: Any) -> str:
    if isinstance(item, QARecord):
        return item.context
    text = item.get("text", item.get("context")) if isinstance(item, Mapping) else item
    if not isinstance(text, str):
        raise DataError(f"{where} has neither a 'text' nor a 'context', found {repr(item)[:80]}")
    return text


def _checked(name: str, texts: Iterator[str]) -> Iterator[str]:
    last = ""
    for text in texts:
        text = text.strip()
        if text and text != last:
            last = text
            yield text
    if not last:
        raise DataError(f"{name} holds no text")


__all__ = ["iter_texts", "text_lines"]
