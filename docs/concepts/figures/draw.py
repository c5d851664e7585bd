"""Draws the figures of the concept pages from the package and from raw results.

Run `python docs/concepts/figures/draw.py` after a change; a test fails while a figure is out of date.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

from optimum_qala.models.length_config import LengthConfig


FOLDER = Path(__file__).resolve().parent
SEARCH = FOLDER.parents[1] / "results" / "latency" / "raw" / "longer" / "search.json"

BLUE, LIGHT, RED, GREY, INK = "#1f5fbf", "#9dbfe8", "#b3182a", "#8a8f98", "#1b1f24"

# Scores stand for themselves here: the nearer to the answer, the higher.
TOKENS = "[CLS] where was anna born ? [SEP] anna was born in paris . the tower is old . [SEP]".split()
ANSWER = TOKENS.index("paris")
BUDGET = LengthConfig((1.0, 1.0, 0.8, 0.8, 0.5, 0.5))


def picture(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    """Wrap shapes into an SVG on white, which dark pages show too."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'font-family="Helvetica, Arial, sans-serif" font-size="13">\n<title>{escape(title)}</title>\n'
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def box(x: float, y: float, width: float, height: float, fill: str) -> str:
    """Draw a rectangle."""
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="3" fill="{fill}"/>'


def text(x: float, y: float, content: str, fill: str = INK, anchor: str = "middle", size: int = 13) -> str:
    """Write text, centred or not."""
    attributes = f'x="{x:g}" y="{y:g}" fill="{fill}" text-anchor="{anchor}" font-size="{size}"'
    return f"<text {attributes}>{escape(content)}</text>"


def line(points: Sequence[tuple[float, float]], stroke: str, style: str = "") -> str:
    """Draw a line through points."""
    listed = " ".join(f"{x:g},{y:g}" for x, y in points)
    return f'<polyline points="{listed}" fill="none" stroke="{stroke}" {style}/>'


def protected() -> set[int]:
    """Name the tokens that always stay: [CLS], the question and the separators."""
    return {*range(TOKENS.index("[SEP]") + 1), len(TOKENS) - 1}


def survivors() -> list[set[int]]:
    """Choose the tokens that leave each layer."""
    kept, layers = set(range(len(TOKENS))), []
    for count in BUDGET.num_tokens(len(TOKENS)):
        rank = sorted(kept, key=lambda token: (token not in protected(), abs(token - ANSWER)))
        kept = set(rank[:count])
        layers.append(kept)
    return layers


def tokens() -> str:
    """Draw which tokens leave which layer, and whose state the logits of each are read from."""
    left, top, wide, high = 142, 40, 47, 34
    layers = survivors()
    bottom = top + len(layers) * high
    parts = [text(left + (index + 0.5) * wide, top - 14, token) for index, token in enumerate(TOKENS)]
    for layer, kept in enumerate(layers):
        middle = top + layer * high + 19
        parts.append(text(left - 10, middle, f"layer {layer}: {len(kept)} tokens", anchor="end"))
        for token in sorted(kept):
            fill = GREY if token in protected() else BLUE
            parts.append(box(left + token * wide + 3, top + layer * high + 3, wide - 6, high - 8, fill))
    parts.append(text(left - 10, bottom + 29, "start, end logits", anchor="end"))
    for token in range(len(TOKENS)):
        last = max(layer for layer, kept in enumerate(layers) if token in kept)
        middle = left + (token + 0.5) * wide
        if last < len(layers) - 1:
            ends = ((middle, top + (last + 1) * high - 4), (middle, bottom + 8))
            parts.append(line(ends, RED, 'stroke-width="1.5" stroke-dasharray="4 3"'))
        parts.append(box(left + token * wide + 3, bottom + 10, wide - 6, high - 6, LIGHT))
        parts.append(text(middle, bottom + 29, f"of {last}", size=12))
    legend = top + (len(layers) + 1) * high + 34
    for x, fill, label in (
        (left, GREY, "always stays"),
        (left + 150, BLUE, "stays by its score"),
        (left + 330, LIGHT, "two numbers, read from the output of the layer that is named"),
    ):
        parts += [box(x, legend - 12, 16, 16, fill), text(x + 24, legend + 1, label, anchor="start")]
    return picture(left + len(TOKENS) * wide + 12, legend + 18, "Tokens that leave each layer", parts)


def search() -> str:
    """Draw the front of a search and the budgets that were named from it."""
    found = json.loads(SEARCH.read_text(encoding="utf-8"))
    front = [(config["cost"], config["f1"]) for config in found["front"]]
    budgets = {name: (one["latency_ms"][0]["median"], one["f1"]) for name, one in found["budgets"].items()}
    left, top, wide, high = 56, 36, 640, 330
    low_x, high_x, low_y, high_y = 6.0, 12.5, 72.0, 82.0

    def place(point: tuple[float, float]) -> tuple[float, float]:
        x, y = (point[0] - low_x) / (high_x - low_x), (point[1] - low_y) / (high_y - low_y)
        return round(left + x * wide, 1), round(top + (1.0 - y) * high, 1)

    parts = []
    for value in range(72, 83, 2):
        y = place((low_x, value))[1]
        parts += [line(((left, y), (left + wide, y)), "#d9dce1"), text(left - 10, y + 4, str(value), anchor="end")]
    for value in range(6, 13):
        x = place((value, low_y))[0]
        parts += [line(((x, top), (x, top + high)), "#eceef1"), text(x, top + high + 20, str(value))]
    parts.append(line([place(point) for point in front], BLUE, 'stroke-width="2" stroke-opacity="0.5"'))
    parts += ['<circle cx="{:g}" cy="{:g}" r="4" fill="{}"/>'.format(*place(point), BLUE) for point in front]
    for name, point in budgets.items():
        x, y = place(point)
        parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="7" fill="none" stroke="{RED}" stroke-width="2"/>')
        parts.append(text(x + 11, y + 18, name, fill=RED, anchor="start"))
    parts.append(text(left + wide / 2, top + high + 44, "milliseconds a window"))
    parts.append(text(left, top - 16, "F1, %"))
    return picture(left + wide + 30, top + high + 62, "Front of a search and its named budgets", parts)


FIGURES = {"tokens.svg": tokens, "search.svg": search}


if __name__ == "__main__":
    for name, draw in FIGURES.items():
        (FOLDER / name).write_text(draw(), encoding="utf-8")
