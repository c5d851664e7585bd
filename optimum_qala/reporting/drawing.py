"""How all pictures look: size, type, colours, and names that do not cover one another."""

from __future__ import annotations

import re
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimum_qala._compat import require


__all__ = [
    "Label",
    "ink_on",
    "missing_letters",
    "new_figure",
    "path_boxes",
    "place_labels",
    "ramp",
    "save_figure",
    "text_width",
    "wrap_text",
]

# A card is read on phones too: at 360 pixels, letters of a figure four inches wide are a hundredth of its width and
# more. The resolution is for screens with two dots a pixel.
CARD_WIDTH, CARD_DPI = 4.0, 220
TEXT_SIZE, SMALL_SIZE = 8.5, 7.5
INK, MUTED, FAINT = "#1b1f24", "#59636e", "#d1d9e0"
BACKGROUND = "#ffffff"  # also on dark pages, where black letters on nothing could not be read
LONGEST_WORD = 30  # characters; longer ones are broken
_MISSING = re.compile(r"Glyph (\d+) .*missing from")  # what matplotlib warns of, for each letter and each drawing
Box = tuple[float, float, float, float]
Boxes = NDArray[np.float64]  # (number, 4)

# Where a label may stand, in points from its marker, nearest first.
OFFSETS: list[tuple[float, float]] = [
    (x * distance, y * distance) for distance in (7, 13, 20, 28, 38) for x, y in ((1, 0), (0, 1), (0, -1), (-1, 0))
]
OFFSETS += [(x * d, y * d) for d in (9, 16, 24, 34, 46) for x, y in ((1, 1), (1, -1), (-1, 1), (-1, -1))]
OFFSETS += [(x * d, y * d / 2) for d in (18, 28, 40, 54) for x, y in ((1, 1), (1, -1), (-1, 1), (-1, -1))]
OFFSETS.sort(key=lambda offset: offset[0] ** 2 + offset[1] ** 2)
ROUNDS = 4  # in which names find their places


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


@contextmanager
def missing_letters() -> Iterator[set[str]]:
    """Collect the letters that no font has and that a box stands for, instead of a warning for each.

    Yields:
        The letters, complete when the block has ended.
    """
    letters: set[str] = set()
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", _MISSING.pattern)
        yield letters
    for one in caught:
        if found := _MISSING.match(str(one.message)):
            letters.add(chr(int(found[1])))
        else:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)


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
        Black or white, whichever is easier to read: of the two one always contrasts by 4.5 to 1 (WCAG 2, 1.4.3).
    """
    parts = [int(color[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000000" if (luminance + 0.05) / 0.05 >= 1.05 / (luminance + 0.05) else "#ffffff"


def text_width(figure: Any, text: str, size: float, weight: str = "normal") -> float:
    """Measure a text, white space at its ends included.

    Args:
        figure: Where it would be written.
        text: The text.
        size: Of the letters, in points.
        weight: "normal" or "bold".

    Returns:
        Inches.
    """
    from matplotlib.font_manager import FontProperties

    renderer, font = figure.canvas.get_renderer(), FontProperties(size=size, weight=weight)
    if text != text.strip():  # at an end white space has no width of its own for the renderer
        return text_width(figure, f"|{text}|", size, weight) - text_width(figure, "||", size, weight)
    pixels, _, _ = renderer.get_text_width_height_descent(text, font, ismath=False)
    return float(pixels) / float(figure.dpi)


def wrap_text(figure: Any, text: str, size: float, width: float, weight: str = "normal") -> list[str]:
    """Break a text into lines.

    Args:
        figure: Where it will be written.
        text: The text.
        size: Of the letters, in points.
        width: Of a line, in inches.
        weight: "normal" or "bold".

    Returns:
        The lines; at least one.
    """
    lines = [""]
    for word in (part for whole in text.split() for part in textwrap.wrap(whole, LONGEST_WORD)):
        wider = f"{lines[-1]} {word}".strip()
        if lines[-1] and text_width(figure, wider, size, weight) > width:
            lines.append(word)
        else:
            lines[-1] = wider
    return lines


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
    texts = [
        axes.annotate(
            label.text,
            label.place,
            fontsize=size,
            color=label.color,
            xytext=(0, 0),
            textcoords="offset points",
            annotation_clip=False,
            parse_math=False,
        )
        for label in labels
    ]
    extents = [text.get_window_extent(renderer) for text in texts]
    sizes = [(extent.width, extent.height) for extent in extents]
    half = 4.5 * per_point
    fixed = np.array([*((x - half, y - half, x + half, y + half) for x, y in markers), *lines])
    frame = axes.get_window_extent(renderer)
    room = (frame.x0, frame.y0, frame.x1, frame.y1)
    offsets = _choose_offsets(markers, sizes, fixed, room, per_point)
    for label, text, (dx, dy) in zip(labels, texts, offsets, strict=True):
        text.set_horizontalalignment("left" if dx > 0 else "right" if dx < 0 else "center")
        text.set_verticalalignment("center")
        text.set_position((dx, dy))
        if _needs_leader(dx, dy):
            axes.annotate(
                "",
                label.place,
                xytext=(dx, dy),
                textcoords="offset points",
                arrowprops={"arrowstyle": "-", "color": label.color, "linewidth": 0.6, "alpha": 0.6},
            )


def _choose_offsets(
    markers: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    fixed: Boxes,
    room: Box,
    per_point: float,
) -> list[tuple[float, float]]:
    """Choose where each name stands; then, as names that came later may be in the way, choose again."""
    choices = [
        [np.array(_label_boxes(marker, size, offset, per_point)) for offset in OFFSETS]
        for marker, size in zip(markers, sizes, strict=True)
    ]
    basic = [[_shared_area(boxes, fixed) + _outside(boxes[0], room) for boxes in places] for places in choices]
    chosen: dict[int, int] = {}
    for _ in range(ROUNDS):
        for index, places in enumerate(choices):
            others = [choices[other][number] for other, number in chosen.items() if other != index]
            costs = basic[index]
            if others:
                taken = np.concatenate(others)
                costs = [cost + _shared_area(boxes, taken) for cost, boxes in zip(costs, places, strict=True)]
            chosen[index] = min(range(len(costs)), key=costs.__getitem__)  # of equals the nearest
    return [OFFSETS[chosen[index]] for index in range(len(choices))]


def _outside(box: NDArray[np.float64], room: Box) -> float:
    left, low, right, high = box
    return 1e6 if left < room[0] or right > room[2] or low < room[1] or high > room[3] else 0.0


def _shared_area(boxes: Boxes, others: Boxes) -> float:
    """Area that boxes share with others."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    return float(np.prod(np.clip(high - low, 0.0, None), axis=2).sum())


def _label_boxes(
    marker: tuple[float, float], size: tuple[float, float], offset: tuple[float, float], per_point: float
) -> list[Box]:
    """Cover a name, and the line to it if it needs one, with boxes in pixels; the name comes first."""
    (x, y), (width, height), (dx, dy) = marker, size, offset
    left = x + dx * per_point - (0 if dx > 0 else width if dx < 0 else width / 2)
    low = y + dy * per_point - height / 2
    name = (left, low, left + width, low + height)
    if not _needs_leader(dx, dy):
        return [name]
    hidden = 6.5 / (dx * dx + dy * dy) ** 0.5  # by the marker
    ends = [(x + share * dx * per_point, y + share * dy * per_point) for share in (hidden, 1.0)]
    return [name, *path_boxes(ends, per_point)]


def _needs_leader(dx: float, dy: float) -> bool:
    """Tell whether a name is so far away that a line has to say whose it is."""
    return dx * dx + dy * dy > 200


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
