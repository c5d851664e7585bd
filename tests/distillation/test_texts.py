from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from optimum_qala.distillation.texts import iter_texts
from optimum_qala.errors import ConfigurationError, DataError
from optimum_qala.question_answering.records import QARecord


def write(path: Path, *lines: Any) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def test_lines_of_a_text_file_are_texts(tmp_path: Path) -> None:
    path = write(tmp_path / "wiki.txt", "\ufeffone text ", "", "  ", "second", "second", "third")
    assert list(iter_texts(path)) == ["one text", "second", "third"]
    assert list(iter_texts(str(path), limit=2)) == ["one text", "second"]


def test_text_files_are_read_as_needed(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_bytes(b"first line\n" * 1 + b"word " * 20_000 + b"\n" + b"\xff broken")
    texts = iter_texts(path)
    assert next(texts) == "first line"
    with pytest.raises(DataError, match=r"long.txt is not UTF-8 text \(byte \d+\); give a file with one text a line"):
        list(texts)


def test_records_give_their_text_or_context(tmp_path: Path) -> None:
    rows = [{"text": "plain", "context": "unused"}, {"question": "q", "context": "shared"}, {"context": "shared"}]
    assert list(iter_texts(write(tmp_path / "mixed.jsonl", *rows))) == ["plain", "shared"]
    qas = [{"id": "1", "question": "who ?"}, {"id": "2", "question": "where ?"}]
    squad = {"data": [{"paragraphs": [{"context": "a", "qas": qas}, {"context": "b", "qas": qas}]}]}
    assert list(iter_texts(write(tmp_path / "squad.json", squad))) == ["a", "b"]
    assert list(iter_texts([QARecord("1", "q", "of a record"), "of a list"])) == ["of a record", "of a list"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", "\n \n", "empty.txt holds no text"),
        ("empty.jsonl", "", "empty.jsonl holds no text"),
        (
            "other.jsonl",
            '{"title": "x"}',
            r"other.jsonl, line 1 has neither a 'text' nor a 'context', found \{'title'",
        ),
        ("number.jsonl", '{"text": 7}', "line 1 has neither a 'text' nor a 'context'"),
        ("broken.jsonl", "{", "broken.jsonl, line 1, is not JSON"),
    ],
)
def test_what_holds_no_text_is_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(iter_texts(write(tmp_path / name, content)))


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone.txt does not exist"):
        iter_texts(tmp_path / "gone.txt")
    with pytest.raises(ConfigurationError, match="limit 0 is not a positive integer; leave it out to read every text"):
        iter_texts(["a"], limit=0)
