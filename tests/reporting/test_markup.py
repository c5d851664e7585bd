from __future__ import annotations

import pytest
from markdown_it import MarkdownIt

from optimum_qala.reporting.markup import escape_markdown, key_value_table, table


HOSTILE = [
    "<script>alert(1)</script>",
    "a | b",
    "`code` *x* _y_",
    "[text](http://x)",
    "![i](x)",
    "a\n# b",
    "&lt;",
    "~~x~~",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_names_are_shown_as_they_are(text):
    """Rendered by another program and read back."""
    (row,) = table([{"name": escape_markdown(text), "n": 1}], texts=("name",))[2:]
    lines = "\n".join(table([{"name": escape_markdown(text), "n": 1}], texts=("name",)))
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(lines)
    cells = [token.children for token in tokens if token.type == "inline"]
    assert [len(cells), {child.type for child in cells[2]}] == [4, {"text"}]
    assert "".join(child.content for child in cells[2]) == " ".join(text.split())
    assert row.endswith(" | 1 |")


def test_columns_without_values_are_left_out():
    rows = [{"a": "x", "b": None, "c": 1.005}, {"a": "y", "b": None, "c": None, "d": 12345}]
    assert table(rows, texts=("a",)) == [
        "| a | c | d |",
        "| :--- | ---: | ---: |",
        "| x | 1.00 |  |",
        "| y |  | 12,345 |",
    ]
    assert table([{"a": None}]) == []


def test_unknown_facts_are_left_out():
    assert key_value_table([("a", 1), ("b", None)]) == ["| | |", "|:---|:---|", "| a | 1 |"]
    assert key_value_table([("b", None)]) == []
