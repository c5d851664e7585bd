from __future__ import annotations

import json
from pathlib import Path

import pytest

from optimum_qala.errors import DataError
from optimum_qala.students.corpus import load_texts


def test_lines_of_text(tmp_path: Path) -> None:
    path = tmp_path / "corpus.txt"
    path.write_text("one line\n\n  \nanother\none line\n", encoding="utf-8")
    assert load_texts(path) == ["one line", "another"]


def test_questions_and_contexts_once_each(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    records = [{"question": question, "context": "here"} for question in ("who ?", "where ?")]
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    assert load_texts(str(path)) == ["who ?", "here", "where ?"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"corpus\.txt does not exist; give a text file, one text a line, or question answering data"),
        (b" \n", r"corpus\.txt holds no text"),
        (b"a\xff", r"corpus\.txt is not UTF-8 text \(byte 1\)"),
    ],
)
def test_bad_text_file_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "corpus.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_texts(path)
