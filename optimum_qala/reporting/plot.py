"""F1 against milliseconds as a picture: what each row of a benchmark buys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimum_qala._compat import require
from optimum_qala.reporting.tables import settings_of


__all__ = ["pareto_names", "plot_report"]

PANEL_WIDTH, PANEL_HEIGHT = 7.5, 5.5
COLUMNS = 2
LABEL_SIZE = 7.5
BELOW = "\N{DOWNWARDS ARROW}"  # stands before an F1 that lies below its panel
# Where a label may stand, in points from its marker, nearest first.
OFFSETS = [
    (x * distance, y * distance) for distance in (7, 13, 20, 28, 38) for x, y in ((1, 0), (0, 1), (0, -1), (-1, 0))
]
OFFSETS += [(x * d, y * d) for d in (9, 16, 24, 34, 46) for x, y in ((1, 1), (1, -1), (-1, 1), (-1, -1))]
OFFSETS.sort(key=lambda offset: offset[0] ** 2 + offset[1] ** 2)


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
        return EXIT if row["speedup"] is not None else CUT  # only a model with budgets has a full length of its own
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
    require("plots", f"{file.name}")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [(title, [row for row in rows if row["f1"] is not None]) for title, rows in settings_of(report)]
    panels = [(title, rows) for title, rows in panels if rows]
    if not panels:
        return False
    columns = min(COLUMNS, len(panels))
    lines = -(-len(panels) // columns)
    # No pyplot: it would choose a back end and keep the figure for the whole process.
    figure = Figure(figsize=(PANEL_WIDTH * columns, PANEL_HEIGHT * lines + 0.8), dpi=130)
    FigureCanvasAgg(figure)
    grid = figure.subplots(lines, columns, squeeze=False)
    figure.subplots_adjust(left=0.07, right=0.98, top=1 - 1.1 / figure.get_figheight(), bottom=0.09)
    figure.subplots_adjust(wspace=0.14, hspace=0.26)
    for index, axes in enumerate(grid.flat):
        if index < len(panels):
            _draw_panel(axes, *panels[index])
        else:
            axes.set_visible(False)
    is_cut = any(row["f1"] < _floor(rows) for _, rows in panels for row in rows)
    _draw_legend(figure, [row for _, rows in panels for row in rows], is_cut)
    figure.savefig(file)
    return True


def _draw_panel(axes: Any, title: str, rows: Sequence[dict[str, Any]]) -> None:
    floor = _floor(rows)
    for row in rows:
        style = style_of(row)
        axes.plot(
            row["median_ms"],
            max(row["f1"], floor),
            marker=style.marker,
            color=style.color,
            markerfacecolor=style.color if _in_buckets(row) else "white",
            markersize=11 if style.marker == "*" else 7,
            linestyle="none",
            zorder=3,
        )
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
    axes.set_title(title)
    _set_scale(axes, rows)
    axes.set_xlabel("median milliseconds per window")
    axes.set_ylabel("F1, %")
    axes.grid(alpha=0.25)
    axes.margins(0.12, 0.14)
    _draw_labels(axes, rows, floor)


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


def _in_buckets(row: dict[str, Any]) -> bool:
    return str(row["name"]).endswith(" in buckets")


def _draw_labels(axes: Any, rows: Sequence[dict[str, Any]], floor: float) -> None:
    """Write each row's name beside its marker, where it covers neither another name nor a marker if there is room."""
    renderer = axes.figure.canvas.get_renderer()
    axes.figure.canvas.draw()
    places = [(row["median_ms"], max(row["f1"], floor)) for row in rows]
    markers = [axes.transData.transform(place) for place in places]
    per_point = axes.figure.dpi / 72.0
    taken: list[tuple[float, float, float, float]] = [(x - 8, y - 8, x + 8, y + 8) for x, y in markers]
    frame = axes.get_window_extent(renderer)
    for row, place, (x, y) in zip(rows, places, markers, strict=True):
        name = str(row["name"]).removesuffix(" in buckets")
        text = axes.annotate(
            name if row["f1"] >= floor else f"{name} {BELOW} {row['f1']:.1f}",
            place,
            fontsize=LABEL_SIZE,
            color=style_of(row).color,
            xytext=(0, 0),
            textcoords="offset points",
            annotation_clip=False,
        )
        extent = text.get_window_extent(renderer)
        width, height = extent.width, extent.height
        best, best_cost, best_box = OFFSETS[0], float("inf"), (0.0, 0.0, 0.0, 0.0)
        for dx, dy in OFFSETS:
            left = x + dx * per_point - (0 if dx > 0 else width if dx < 0 else width / 2)
            low = y + dy * per_point - height / 2
            box = (left, low, left + width, low + height)
            outside = left < frame.x0 or box[2] > frame.x1 or low < frame.y0 or box[3] > frame.y1
            cost = sum(_overlap(box, other) for other in taken) + (1e6 if outside else 0.0)
            if cost < best_cost:
                best, best_cost, best_box = (dx, dy), cost, box
        taken.append(best_box)
        dx, dy = best
        text.set_horizontalalignment("left" if dx > 0 else "right" if dx < 0 else "center")
        text.set_verticalalignment("center")
        text.set_position(best)
        if dx * dx + dy * dy > 200:  # so far away that a line has to say whose name it is
            axes.annotate(
                "",
                place,
                xytext=best,
                textcoords="offset points",
                arrowprops={"arrowstyle": "-", "color": style_of(row).color, "linewidth": 0.6, "alpha": 0.6},
            )


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> float:
    """Area that two boxes share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0.0) * max(height, 0.0)


def _draw_legend(figure: Any, rows: Sequence[dict[str, Any]], is_cut: bool) -> None:
    from matplotlib.lines import Line2D

    used = {style_of(row) for row in rows}
    entries = [
        Line2D([], [], color=style.color, marker=style.marker, linestyle="none", markersize=8, label=style.title)
        for style in STYLES
        if style in used
    ]
    if BUDGET in used:
        entries.append(Line2D([], [], color=BUDGET.color, linewidth=2.5, alpha=0.35, label="best budgets"))
    if any(_in_buckets(row) for row in rows):
        for face, label in (("white", "one graph of any shape"), ("#777777", "in buckets")):
            entries.append(
                Line2D([], [], color="#777777", marker="s", markerfacecolor=face, linestyle="none", label=label)
            )
    if is_cut:
        entries.append(
            Line2D([], [], color="#777777", marker=f"${BELOW}$", linestyle="none", label="F1, below its panel")
        )
    figure.legend(handles=entries, loc="upper center", ncols=4, frameon=False, fontsize=9)
