"""How all pictures look: size, type, colours, and names that do not cover one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimum_qala._compat import require


__all__ = ["Label", "new_figure", "place_labels", "ramp", "save_figure"]

# A card is read on phones too: at 360 pixels, letters of a figure four inches wide are a hundredth of its width and
# more. The resolution is for screens with two dots a pixel.
CARD_WIDTH, CARD_DPI = 4.0, 220
TEXT_SIZE, SMALL_SIZE = 8.5, 7.5
INK, MUTED, FAINT = "#1b1f24", "#59636e", "#d1d9e0"
BACKGROUND = "#ffffff"  # also on dark pages, where black letters on nothing could not be read
Box = tuple[float, float, float, float]

# Where a label may stand, in points from its marker, nearest first.
OFFSETS = [
    (x * distance, y * distance) for distance in (7, 13, 20, 28, 38) for x, y in ((1, 0), (0, 1), (0, -1), (-1, 0))
]
OFFSETS += [(x * d, y * d) for d in (9, 16, 24, 34, 46) for x, y in ((1, 1), (1, -1), (-1, 1), (-1, -1))]
OFFSETS.sort(key=lambda offset: offset[0] ** 2 + offset[1] ** 2)


@dataclass(frozen=True)
class Label:
    """A name beside a marker.

    Args:
        text: The name.
        place: The marker, in data coordinates.
        color: Colour of the name.
    """

    text: str
    place: tuple[float, float]
    color: str


def new_figure(purpose: str, width: float = CARD_WIDTH, height: float = 3.4, dpi: int = CARD_DPI) -> Any:
    """Make an empty figure. Letters are those of a card: give sizes in points where a figure is wider.

    Args:
        purpose: What needs it, for the message that matplotlib is missing.
        width: In inches.
        height: In inches.
        dpi: Dots per inch.

    Returns:
        The figure.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    require("plots", purpose)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # No pyplot: it would choose a back end and keep the figure for the whole process.
    figure = Figure(figsize=(width, height), dpi=dpi, facecolor=BACKGROUND)
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Any, file: Path) -> None:
    """Write a figure, without the version of matplotlib, so that equal pictures are equal files.

    Args:
        figure: The figure.
        file: The PNG.
    """
    figure.savefig(file, format="png", metadata={"Software": None})


def ramp(count: int) -> list[str]:
    """Choose colours for steps from few to many, which differ in lightness too and suit all kinds of sight.

    Args:
        count: How many.

    Returns:
        Colours as #rrggbb: from light yellow over green to dark blue.
    """
    stops = [(253, 231, 120), (122, 201, 126), (38, 150, 139), (49, 96, 141), (52, 40, 110)]
    colors = []
    for index in range(count):
        position = index * (len(stops) - 1) / max(1, count - 1)
        low = min(int(position), len(stops) - 2)
        share = position - low
        mixed = [round(a + (b - a) * share) for a, b in zip(stops[low], stops[low + 1], strict=True)]
        colors.append("#{:02x}{:02x}{:02x}".format(*mixed))
    return colors


def ink_on(color: str) -> str:
    """Choose the colour of letters on a background.

    Args:
        color: The background, #rrggbb.

    Returns:
        Black or white, whichever is easier to read.
    """
    parts = [int(color[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    # The two contrast ratios of WCAG 2, section 1.4.3, compared.
    return INK if (luminance + 0.05) / 0.06 >= 1.05 / (luminance + 0.05) else "#ffffff"


def place_labels(axes: Any, labels: Sequence[Label], size: float, lines: Sequence[Box] = ()) -> None:
    """Write each name beside its marker, where it covers neither another name nor a marker if there is room.

    Args:
        axes: Where the markers are, with limits and scales as they will be.
        labels: The names.
        size: Of the letters, in points.
        lines: Boxes in pixels that names should not cover either.
    """
    axes.figure.canvas.draw()
    renderer = axes.figure.canvas.get_renderer()
    markers = [axes.transData.transform(label.place) for label in labels]
    per_point = axes.figure.dpi / 72.0
    half = 4.5 * per_point
    taken: list[Box] = [(x - half, y - half, x + half, y + half) for x, y in markers]
    taken += lines
    frame = axes.get_window_extent(renderer)
    for label, (x, y) in zip(labels, markers, strict=True):
        text = axes.annotate(
            label.text,
            label.place,
            fontsize=size,
            color=label.color,
            xytext=(0, 0),
            textcoords="offset points",
            annotation_clip=False,
            parse_math=False,
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
            if _needs_leader(dx, dy):
                cost += 4 * sum(
                    _overlap(dot, other) for dot in _leader((x, y), (dx, dy), per_point) for other in taken
                )
            if cost < best_cost:
                best, best_cost, best_box = (dx, dy), cost, box
        taken.append(best_box)
        dx, dy = best
        text.set_horizontalalignment("left" if dx > 0 else "right" if dx < 0 else "center")
        text.set_verticalalignment("center")
        text.set_position(best)
        if _needs_leader(dx, dy):
            taken += _leader((x, y), best, per_point)
            axes.annotate(
                "",
                label.place,
                xytext=best,
                textcoords="offset points",
                arrowprops={"arrowstyle": "-", "color": label.color, "linewidth": 0.6, "alpha": 0.6},
            )


def _needs_leader(dx: float, dy: float) -> bool:
    """Tell whether a name is so far away that a line has to say whose it is."""
    return dx * dx + dy * dy > 200


def _leader(marker: tuple[float, float], offset: tuple[float, float], per_point: float) -> list[Box]:
    """Boxes along the line from a marker to its name, without the part that the marker covers."""
    (x, y), (dx, dy) = marker, offset
    hidden = 6.5 / (dx * dx + dy * dy) ** 0.5
    return path_boxes([(x + share * dx * per_point, y + share * dy * per_point) for share in (hidden, 1.0)], per_point)


def path_boxes(points: Sequence[tuple[float, float]], half: float) -> list[Box]:
    """Cover a line with boxes, so that names can keep off it.

    Args:
        points: Its corners, in pixels.
        half: Half the width of a box, in pixels.

    Returns:
        The boxes.
    """
    boxes = []
    for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False):
        count = max(2, int(max(abs(x1 - x0), abs(y1 - y0)) / (2 * half)))
        for index in range(count + 1):
            x, y = x0 + (x1 - x0) * index / count, y0 + (y1 - y0) * index / count
            boxes.append((x - half, y - half, x + half, y + half))
    return boxes


def _overlap(one: Box, other: Box) -> float:
    """Area that two boxes share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0.0) * max(height, 0.0)
