"""Texts of a corpus: lines of a text file, or the questions and contexts of question answering data."""

from __future__ import annotations

from pathlib import Path

from optimum_qala.distillation.texts import text_lines
from optimum_qala.errors import DataError
from optimum_qala.question_answering.records import iter_records


def load_texts(source: str | Path) -> list[str]:
    """Read a corpus.

    Args:
        source: A `.txt` file, one text a line, or anything that `iter_records` takes.

    Returns:
        Every distinct text once. Questions and contexts are texts of their own, as a tokenizer sees them.

    Raises:
        DataError: If the source does not exist, is empty or cannot be read.
    """
    if Path(source).suffix != ".txt":
        records = iter_records(source)
        return list(dict.fromkeys(text for record in records for text in (record.question, record.context)))
    path = Path(source)
    if not path.is_file():
        raise DataError(f"{path} does not exist; give a text file, one text a line, or question answering data")
    texts = list(dict.fromkeys(filter(str.strip, text_lines(path))))
    if not texts:
        raise DataError(f"{path} holds no text")
    return texts


__all__ = ["load_texts"]
