"""Markdown of which a reader sees what was meant, whatever a name holds."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from typing import Any


__all__ = ["escape_markdown", "key_value_table", "table"]

# What starts emphasis, code, links, cells, headings, strikethrough or mathematics within a line.
_SPECIAL = re.compile(r"([\\`*_\[\]|~$#])")


def escape_markdown(text: object) -> str:
    """Write a text so that Markdown and HTML show it as it is, on one line.

    Args:
        text: Any text.

    Returns:
        Markdown for a paragraph, a heading or a cell of a table.
    """
    return _SPECIAL.sub(r"\\\1", html.escape(" ".join(str(text).split()), quote=False))


def table(rows: Iterable[dict[str, Any]], texts: Sequence[str] = ()) -> list[str]:
    """Lay out rows. A column that no row has a value for is left out, and so is a table without columns.

    Args:
        rows: Values by title of the column, in the order of the columns; None is an empty cell. Floats are written
            with two decimals; texts are Markdown already.
        texts: Titles of columns that hold text, which goes to the left; numbers go to the right.

    Returns:
        The lines.
    """
    rows = list(rows)
    titles = [title for title in dict.fromkeys(title for row in rows for title in row)]
    titles = [title for title in titles if any(row.get(title) is not None for row in rows)]
    if not titles:
        return []
    rules = [":---" if title in texts else "---:" for title in titles]
    lines = [titles, rules, *([_cell(row.get(title)) for title in titles] for row in rows)]
    return ["| " + " | ".join(line) + " |" for line in lines]


def key_value_table(pairs: Iterable[tuple[str, Any]]) -> list[str]:
    """Lay out facts, one a line; those whose value is None are left out.

    Args:
        pairs: Name and value of each.

    Returns:
        The lines.
    """
    lines = [f"| {name} | {_cell(value)} |" for name, value in pairs if value is not None]
    return ["| | |", "|:---|:---|", *lines] if lines else []


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
