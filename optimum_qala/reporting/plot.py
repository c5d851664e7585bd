"""F1 against milliseconds as a picture: what each row of a benchmark buys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from optimum_qala.reporting.drawing import (
    CARD_WIDTH,
    FAINT,
    INK,
    MUTED,
    SMALL_SIZE,
    TEXT_SIZE,
    Label,
    new_figure,
    path_boxes,
    place_labels,
    save_figure,
    wrap_text,
)
from optimum_qala.reporting.tables import in_buckets, is_cut, settings_of


__all__ = ["pareto_names", "plot_front", "plot_report"]

PANEL_WIDTH, PANEL_HEIGHT = 7.5, 5.5
COLUMNS = 2
LABEL_SIZE, DPI = 7.5, 130
BELOW = "\N{DOWNWARDS ARROW}"  # stands before an F1 that lies below its panel


@dataclass(frozen=True)
class Style:
    """How rows of one kind look.

    Args:
        title: Their entry in the legend.
        marker: Their marker.
        color: Its colour.
    """

    title: str
    marker: str
    color: str


BUDGET = Style("QuaLA-MiniLM at its budgets", "o", "#1f5fbf")
EXIT = Style("QuaLA-MiniLM, first layers only", "^", "#2a9d8f")
CUT = Style("plain model cut to its first layers", "v", "#d1730f")
PLAIN_INT8 = Style("plain model, int8", "*", "#b3182a")
PLAIN_FLOAT = Style("plain model, float", "P", "#7a1f6b")
PEER = Style("other models", "D", "#555555")
STYLES = (BUDGET, EXIT, CUT, PLAIN_INT8, PLAIN_FLOAT, PEER)


def style_of(row: dict[str, Any]) -> Style:
    """Choose the style of a row."""
    if row["kind"] == "depth":
        return CUT if is_cut(row) else EXIT
    if row["kind"] == "plain":
        return PLAIN_INT8 if row["arithmetic"] == "int8" else PLAIN_FLOAT
    return BUDGET if row["kind"] == "budget" else PEER


def pareto_names(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Name the budgets that no other budget beats in both time and F1.

    Args:
        rows: Rows of one setting.

    Returns:
        Names of rows, fastest first: each next one is slower and has a higher F1.
    """
    scored = [row for row in rows if row["kind"] == "budget" and row["f1"] is not None]
    front: list[dict[str, Any]] = []
    for row in sorted(scored, key=lambda row: (row["median_ms"], -row["f1"])):
        if not front or row["f1"] > front[-1]["f1"]:
            front.append(row)
    return [row["name"] for row in front]


def plot_report(report: dict[str, Any], file: Path) -> bool:
    """Draw F1 against milliseconds, one panel for each setting.

    Args:
        report: The report of a benchmark.
        file: The picture to write.

    Returns:
        False if no row has an F1, so that there is nothing to draw.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    panels = [(title, [row for row in rows if row["f1"] is not None]) for title, rows in settings_of(report)]
    panels = [(title, rows) for title, rows in panels if rows]
    if not panels:
        return False
    columns = min(COLUMNS, len(panels))
    lines = -(-len(panels) // columns)
    figure = new_figure(file.name, PANEL_WIDTH * columns, PANEL_HEIGHT * lines + 0.8, DPI)
    grid = figure.subplots(lines, columns, squeeze=False)
    figure.subplots_adjust(left=0.07, right=0.98, top=1 - 1.1 / figure.get_figheight(), bottom=0.09)
    figure.subplots_adjust(wspace=0.14, hspace=0.26)
    for index, axes in enumerate(grid.flat):
        if index < len(panels):
            _draw_panel(axes, *panels[index])
        else:
            axes.set_visible(False)
    is_below = any(row["f1"] < _floor(rows) for _, rows in panels for row in rows)
    _draw_legend(figure, [row for _, rows in panels for row in rows], is_below)
    save_figure(figure, file)
    return True


def _draw_panel(axes: Any, title: str, rows: Sequence[dict[str, Any]]) -> None:
    floor = _floor(rows)
    _draw_markers(axes, rows, floor)
    _draw_front(axes, rows)
    axes.set_title(title)
    _set_scale(axes, rows)
    axes.set_xlabel("median milliseconds per window")
    axes.set_ylabel("F1, %")
    axes.grid(alpha=0.25)
    axes.margins(0.12, 0.14)
    _draw_labels(axes, rows, floor)


def _draw_markers(axes: Any, rows: Sequence[dict[str, Any]], floor: float, filled: bool | None = None) -> None:
    """Draw the markers; those of rows in buckets are filled unless `filled` says what all are."""
    for row in rows:
        style = style_of(row)
        is_filled = in_buckets(row) if filled is None else filled
        axes.plot(
            row["median_ms"],
            max(row["f1"], floor),
            marker=style.marker,
            color=style.color,
            markerfacecolor=style.color if is_filled else "white",
            markersize=11 if style.marker == "*" else 7,
            linestyle="none",
            zorder=3,
        )


def _draw_front(axes: Any, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Draw the line through the best budgets and return their rows, fastest first."""
    names = pareto_names(rows)
    front = sorted((row for row in rows if row["name"] in names), key=lambda row: float(row["median_ms"]))
    axes.plot(
        [row["median_ms"] for row in front],
        [row["f1"] for row in front],
        color=BUDGET.color,
        linewidth=2.5,
        alpha=0.35,
        zorder=1,
    )
    return front


def plot_front(rows: Sequence[dict[str, Any]], conditions: str, file: Path) -> bool:
    """Draw F1 against milliseconds at the size of a model card: one setting, legible on a phone.

    Args:
        rows: Rows with `name`, `kind`, `median_ms` and `f1`, and what `style_of` reads.
        conditions: What the times were measured under.
        file: The picture to write.

    Returns:
        False if no row has an F1, so that there is nothing to draw.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    rows = [row for row in rows if row["f1"] is not None]
    if not rows:
        return False
    figure = new_figure(file.name)
    note = wrap_text(figure, conditions, SMALL_SIZE, CARD_WIDTH - 0.24)
    used = [style for style in STYLES if style in {style_of(row) for row in rows}]
    legend = 0.145 * (len(used) + 1) + 0.1
    height = 2.75 + legend + 0.15 * len(note)
    figure.set_size_inches(CARD_WIDTH, height)
    top = 1 - legend / height
    bottom = (0.52 + 0.15 * len(note)) / height
    axes = figure.add_axes((0.12, bottom, 0.85, top - bottom))
    floor = _floor(rows)
    _draw_markers(axes, rows, floor, filled=True)
    front = _draw_front(axes, rows)
    _set_scale(axes, rows)
    axes.set_xlabel("median milliseconds per window", fontsize=TEXT_SIZE, color=INK)
    axes.set_ylabel("F1, %", fontsize=TEXT_SIZE, color=INK)
    axes.tick_params(labelsize=SMALL_SIZE, labelcolor=INK, color=FAINT, which="both")
    axes.grid(color=FAINT, linewidth=0.5)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(MUTED)
    axes.margins(0.14, 0.16)
    figure.canvas.draw()
    line = [axes.transData.transform((row["median_ms"], row["f1"])) for row in front]
    labels = [
        replace(label, text=label.text.replace(" in buckets", ",\nin buckets")) for label in _labels(rows, floor)
    ]
    place_labels(axes, labels, SMALL_SIZE, path_boxes(line, 5.0))
    entries = [_entry(style, filled=True) for style in used]
    if len(front) > 1:
        entries.append(_front_entry())
    figure.legend(
        handles=entries,
        loc="upper left",
        bbox_to_anchor=(0.1, 1.0),
        frameon=False,
        fontsize=SMALL_SIZE,
        labelspacing=0.2,
        borderaxespad=0.2,
        handletextpad=0.5,
    )
    figure.text(0.03, 0.05 / height, "\n".join(note), fontsize=SMALL_SIZE, color=MUTED, va="bottom", parse_math=False)
    save_figure(figure, file)
    return True


def _floor(rows: Sequence[dict[str, Any]]) -> float:
    """Choose the lowest F1 that is drawn where it belongs: rows far below the budgets would flatten all others."""
    budgets = [row["f1"] for row in rows if row["kind"] == "budget"]
    if not budgets:
        return 0.0
    return float(min(budgets) - max(3.0, 0.4 * (max(budgets) - min(budgets))))


def _set_scale(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    """Give factors equal room: a float model may take several times as long as the rest."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    times = [row["median_ms"] for row in rows]
    steps = (1, 2, 5) if max(times) > 20 * min(times) else (1, 1.5, 2, 3, 4, 5, 6, 7, 8)
    axes.xaxis.set_major_locator(LogLocator(subs=steps))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _draw_labels(axes: Any, rows: Sequence[dict[str, Any]], floor: float) -> None:
    """Write each row's name beside its marker, which says by itself whether it is in buckets."""
    labels = [replace(label, text=label.text.replace(" in buckets", "")) for label in _labels(rows, floor)]
    place_labels(axes, labels, LABEL_SIZE)


def _labels(rows: Sequence[dict[str, Any]], floor: float) -> list[Label]:
    return [
        Label(
            text=str(row["name"]) if row["f1"] >= floor else f"{row['name']} {BELOW} {row['f1']:.1f}",
            place=(row["median_ms"], max(row["f1"], floor)),
            color=style_of(row).color,
        )
        for row in rows
    ]


def _entry(style: Style, filled: bool) -> Any:
    from matplotlib.lines import Line2D

    face = style.color if filled else "white"
    return Line2D(
        [],
        [],
        color=style.color,
        marker=style.marker,
        markerfacecolor=face,
        linestyle="none",
        markersize=7,
        label=style.title,
    )


def _front_entry() -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=BUDGET.color, linewidth=2.5, alpha=0.35, label="best budgets")


def _draw_legend(figure: Any, rows: Sequence[dict[str, Any]], is_below: bool) -> None:
    from matplotlib.lines import Line2D

    used = {style_of(row) for row in rows}
    entries = [_entry(style, filled=True) for style in STYLES if style in used]
    if BUDGET in used:
        entries.append(_front_entry())
    if any(in_buckets(row) for row in rows):
        for face, label in (("white", "one graph of any shape"), ("#777777", "in buckets")):
            entries.append(
                Line2D([], [], color="#777777", marker="s", markerfacecolor=face, linestyle="none", label=label)
            )
    if is_below:
        entries.append(
            Line2D([], [], color="#777777", marker=f"${BELOW}$", linestyle="none", label="F1, below its panel")
        )
    figure.legend(handles=entries, loc="upper center", ncols=4, frameon=False, fontsize=9)
