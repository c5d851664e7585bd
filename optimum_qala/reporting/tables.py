"""The report of a benchmark as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from optimum_qala.reporting.machine import REPORTED_PACKAGES


__all__ = ["back_end", "comparable_rows", "in_buckets", "is_cut", "markdown", "settings_of"]

Row = dict[str, Any]


def back_end(row: Row) -> str:
    """Name what ran a row: "inc", or "inc, compiled"; an older report does not know of the latter."""
    return f"{row['backend']}, compiled" if row.get("compiled") else str(row["backend"])


_NAMES: dict[str, Callable[[Row], Any]] = {
    "row": lambda row: row["name"],
    "back end": back_end,
    "arithmetic": lambda row: (
        row["arithmetic"] if row["arithmetic"] == row["precision"] else f"{row['arithmetic']}, else {row['precision']}"
    ),
    "threads": lambda row: row["threads"],
}
_SPEED: dict[str, Callable[[Row], Any]] = {
    "times plain int8": lambda row: row["ratio"],
    "times own full length": lambda row: row["speedup"],
    "F1, %": lambda row: row["f1"],
    "EM, %": lambda row: row["exact_match"],
    "MMAC per window": lambda row: row["mmacs"],
    "GMAC/s": lambda row: row["gmacs_per_s"],
    "of int8 peak, %": lambda row: None if row["peak_share"] is None else 100.0 * row["peak_share"],
    "size on disk, MB": lambda row: row["size_mb"],
}
_LATENCY: dict[str, Callable[[Row], Any]] = {
    **_NAMES,
    "runs at length": lambda row: row["padding"],
    "timed windows": lambda row: row["num_windows"],
    "median, ms": lambda row: row["median_ms"],
    "p90, ms": lambda row: row["p90_ms"],
    **_SPEED,
}
_BULK: dict[str, Callable[[Row], Any]] = {
    **_NAMES,
    "batches": lambda row: row["batching"],
    "ms per window": lambda row: row["median_ms"],
    **_SPEED,
}


def settings_of(report: Row) -> list[tuple[str, list[Row]]]:
    """Group the rows of a report by what makes them comparable.

    Args:
        report: The report.

    Returns:
        Title and rows of each setting: a batch size at true lengths or padded, and bulk.
    """
    groups: dict[str, list[Row]] = {}
    for row in report["rows"]:
        lengths = "true lengths" if row["pad_to"] is None else f"padded to {row['pad_to']}"
        groups.setdefault(f"Batch size {row['batch_size']}, {lengths}", []).append(row)
    if report["bulk_rows"]:
        groups[f"Bulk, {report['bulk_rows'][0]['num_windows']} windows"] = report["bulk_rows"]
    return list(groups.items())


def in_buckets(row: Row) -> bool:
    """Tell whether a row was measured in shape buckets."""
    return str(row["name"]).endswith(" in buckets")


def comparable_rows(report: Row) -> list[tuple[str, list[Row]]]:
    """Leave out of a report what only explains it: padded and bulk settings, cut models, the slower way to run.

    Args:
        report: The report.

    Returns:
        Title and rows of each batch size at true lengths. Where the model was measured in buckets and without, its
        rows in buckets stay, without saying so in their names; plain models stay both ways. Plain models cut to their
        first layers and models of random weights are left out.
    """
    chosen = []
    for title, rows in settings_of(report):
        if rows is report["bulk_rows"] or rows[0]["pad_to"] is not None:
            continue
        own = {row["name"] for row in rows if row["kind"] in ("budget", "depth")}
        bucketed = {f"{name} in buckets" for name in own} & own
        kept = [
            {**row, "name": row["name"].removesuffix(" in buckets")} if row["name"] in own else row
            for row in rows
            if f"{row['name']} in buckets" not in bucketed and row["kind"] != "bert-base" and not is_cut(row)
        ]
        chosen.append((title, kept))
    return chosen


def is_cut(row: Row) -> bool:
    """Tell whether a row is of a plain model that was cut to its first layers: it answers badly."""
    return row["kind"] == "depth" and row["speedup"] is None  # only a model with budgets has a full length of its own


def markdown(report: Row) -> str:
    """Lay out a report.

    Args:
        report: The report.

    Returns:
        The text: one table for each setting.
    """
    machine, peak = report["machine"], report["int8_peak"]
    lines = [
        f"# Benchmark of {Path(report['model']).name}",
        "",
        f"{report['num_questions']} questions of {Path(report['data']).name}, {report['num_windows']} windows of "
        f"{report['mean_tokens']:.1f} tokens on average, {report['num_timed_windows']} of them timed in "
        f"{report['repeats']} passes, in which all rows take turns at every batch. Milliseconds are per window.",
        "",
        f"{machine['cpu']}, {' '.join(machine['flags'])}. {report['date']}. "
        + ", ".join(f"{name} {version}" for name, version in _versions(machine))
        + ".",
        "",
    ]
    if peak is not None:
        lines += [
            f"Fastest product of 8-bit matrices here: {peak['gmacs_per_s']:.0f} GMAC/s ({_shape(peak['shape'])}, run "
            f"in {peak['arithmetic']}, {peak['threads']} threads). MACs are those of real tokens, so padding counts "
            "as lost time.",
            "",
        ]
    if report["reference"] is not None:
        lines += [f"Ratios are times as fast as `{report['reference']}` on the same batches.", ""]
    for title, rows in settings_of(report):
        columns = _BULK if rows is report["bulk_rows"] else _LATENCY
        lines += [f"## {title}", "", *_table(columns, rows), "", *_compiled(rows)]
    return "\n".join(lines)


def _versions(machine: Row) -> Iterable[tuple[str, str]]:
    for name in ("python", *REPORTED_PACKAGES):
        if machine.get(name) is not None:  # an older report names fewer packages
            yield name, machine[name]


def _shape(shape: Sequence[int]) -> str:
    rows, inner, outer = shape
    return f"{rows} x {inner} by {inner} x {outer}"


def _table(columns: dict[str, Callable[[Row], Any]], rows: Sequence[Row]) -> list[str]:
    """Write a table without the columns that no row has anything for."""
    cells = {title: [value(row) for row in rows] for title, value in columns.items()}
    cells = {title: values for title, values in cells.items() if any(value is not None for value in values)}
    lines = [list(cells), ["---"] * len(cells), *(list(map(_cell, row)) for row in zip(*cells.values(), strict=True))]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _compiled(rows: Sequence[Row]) -> list[str]:
    """Say which rows of a table hold times of compiling graphs."""
    names = [f"`{row['name']}` ({row['num_compiled']} graphs)" for row in rows if row.get("num_compiled")]
    if not names:
        return []
    return [
        f"Times include compiling graphs, because there was no room to keep them or nothing warmed them up: "
        f"{', '.join(names)}. Raise `--max-graphs`, or `--warmup` if it was 0.",
        "",
    ]


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value).replace("|", "\\|")
