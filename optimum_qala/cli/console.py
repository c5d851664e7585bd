"""Where a command writes: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

from tqdm.auto import tqdm


class Console:
    """The two streams of one command.

    Standard output carries results only, so that it can be piped: with `--json` one JSON object, for `predict` one
    JSON object a line. Libraries that print on their own are sent to standard error while a command runs.

    Args:
        stdout: Stream for results.
        stderr: Stream for progress and messages.
        json_mode: True if the result is wanted as JSON.
    """

    def __init__(self, stdout: TextIO, stderr: TextIO, json_mode: bool = False) -> None:
        self.stdout = stdout
        self.stderr = stderr
        self.json_mode = json_mode

    @property
    def is_interactive(self) -> bool:
        """True if somebody watches standard error, so that progress bars make sense."""
        return self.stderr.isatty()

    def info(self, message: str) -> None:
        """Write a message line to standard error."""
        self.stderr.write(f"{message}\n")
        self.stderr.flush()

    def line(self, text: str = "") -> None:
        """Write a line of text to standard output."""
        self.stdout.write(f"{text}\n")

    def json_line(self, value: Any) -> None:
        """Write a value as one line of JSON to standard output, flushed so that a reader gets it at once."""
        self.stdout.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")
        self.stdout.flush()

    def result(self, value: Mapping[str, Any], text: str) -> None:
        """Write the result of a command.

        Args:
            value: What `--json` prints.
            text: What a person reads otherwise.
        """
        if self.json_mode:
            self.json_line(value)
        else:
            self.line(text)

    def progress(self, total: int | None, description: str, unit: str = "it") -> tqdm[Any]:
        """Start a progress bar on standard error; silent unless that is a terminal.

        Args:
            total: Number of steps, if known.
            description: What is going on.
            unit: What is counted.

        Returns:
            The bar; call `update(steps)` and use it as a context manager.
        """
        return tqdm(
            total=total, desc=description, unit=unit, file=self.stderr, disable=not self.is_interactive, leave=False
        )


def silence_broken_pipe() -> None:
    """Point standard output at the null device, so that the flush at exit does not complain about a closed reader."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(devnull, sys.stdout.fileno())
    except (OSError, ValueError):  # standard output is not a file (a test's buffer)
        os.close(devnull)


def format_table(rows: Iterable[Sequence[Any]], header: Sequence[str]) -> str:
    """Lay out a table for a terminal: first column left, the others right; None as "-".

    Args:
        rows: Cells of each row; floats are written with two decimals.
        header: Column titles.

    Returns:
        The lines of the table, joined.
    """
    table = [list(header), *([_format_cell(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def _format_cell(cell: Any) -> str:
    if cell is None:
        return "-"
    return f"{cell:.2f}" if isinstance(cell, float) else str(cell)
