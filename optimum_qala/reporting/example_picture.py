"""An example as a picture and as a page: its text in colours that say how far each token went."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from transformers.utils import logging

from optimum_qala.reporting.drawing import (
    CARD_WIDTH,
    INK,
    LONGEST_WORD,
    MUTED,
    SMALL_SIZE,
    TEXT_SIZE,
    ink_on,
    missing_letters,
    new_figure,
    ramp,
    save_figure,
    text_width,
    wrap_text,
)
from optimum_qala.reporting.example import Example, Piece


__all__ = ["example_html", "plot_example"]

logger = logging.get_logger(__name__)

MARGIN = 0.12  # inches
ROOM = CARD_WIDTH - 2 * MARGIN
LINE, SMALL_LINE, SWATCH = 0.23, 0.155, 0.13  # inches: height of a line of the text, of small type, of a colour
UNSEEN = "#ffffff"  # behind white space between tokens that went differently far
ANSWER, UNDERLINE = "#c8102e", 0.035  # colour, and inches

_PAGE = """\
<!doctype html>
<html>
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark }}
body {{ font: 1rem/1.75 system-ui, sans-serif; max-width: 42rem; margin: 0 auto; padding: 1rem;
  overflow-wrap: anywhere }}
h1 {{ font-size: 1.15rem; line-height: 1.4 }}
ul {{ list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .25rem .5rem; font-size: .875rem }}
li, .text span {{ border-radius: .2rem; padding: .1rem .15rem; box-decoration-break: clone;
  -webkit-box-decoration-break: clone }}
li {{ padding: .1rem .5rem }}
.text {{ white-space: pre-wrap }}
.answer {{ font-weight: 700; text-decoration: underline; text-decoration-thickness: 2px }}
.note {{ font-size: .875rem; line-height: 1.5 }}
{colors}
</style>
</head>
<body>
<h1>{question}</h1>
<ul>
{legend}
</ul>
<p class="text" dir="auto">{text}</p>
{notes}
</body>
</html>
"""


def example_html(example: Example) -> str:
    """Make a page of an example that needs nothing else: no script, no other file.

    Args:
        example: The example.

    Returns:
        HTML. Letters and colours of the same place contrast by 4.5 to 1 at least.
    """
    colors = _colors(example)
    return _PAGE.format(
        title=html.escape(f"What {example.budget} drops"),
        question=html.escape(example.question),
        colors="\n".join(
            f".d{depth} {{ background: {color}; color: {ink_on(color)} }}" for depth, color in colors.items()
        ),
        legend="\n".join(f'<li class="d{depth}">{html.escape(example.describe(depth))}</li>' for depth in colors),
        text="".join(_span(example, piece) for piece in example.pieces),
        notes="\n".join(f'<p class="note">{html.escape(line)}</p>' for line in example.summary),
    )


def _span(example: Example, piece: Piece) -> str:
    text = html.escape(piece.text)
    if piece.depth is None and not piece.is_answer:
        return text
    names = [] if piece.depth is None else [f"d{piece.depth}"]
    names += ["answer"] if piece.is_answer else []
    title = "" if piece.depth is None else f' title="{html.escape(example.describe(piece.depth))}"'
    return f'<span class="{" ".join(names)}"{title}>{text}</span>'


def plot_example(example: Example, file: Path) -> None:
    """Draw an example: the question, what the colours mean, the text, and the answers.

    Letters that no font of matplotlib has become boxes, which is logged once.

    Args:
        example: The example.
        file: The picture to write.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    with missing_letters() as letters:
        _plot(example, file)
    if letters:
        logger.warning(
            f"{file.name} has boxes for {len(letters)} letters, such as {min(letters)}, which no font here has; the "
            "HTML page of the example has them"
        )


def _plot(example: Example, file: Path) -> None:
    figure = new_figure(file.name)
    question = wrap_text(figure, example.question, TEXT_SIZE, ROOM, "bold")
    notes = [line for note in example.summary for line in wrap_text(figure, note, SMALL_SIZE, ROOM)]
    lines, colors = _lay_out(figure, example.pieces), _colors(example)
    num_small = len(colors) + bool(example.answer) + len(notes)
    parts = [(len(question) + len(lines)) * LINE, num_small * SMALL_LINE, 0.2]
    height = sum(parts) + 2 * MARGIN
    figure.set_size_inches(CARD_WIDTH, height)
    axes = figure.add_axes((0, 0, 1, 1))  # in inches from the top left corner
    axes.set(xlim=(0, CARD_WIDTH), ylim=(height, 0))
    axes.set_axis_off()
    top = MARGIN
    for text in question:
        _write(axes, MARGIN, top + LINE / 2, text, TEXT_SIZE, INK, weight="bold")
        top += LINE
    top += 0.04
    for depth, color in colors.items():
        _fill(axes, MARGIN, top + (SMALL_LINE - SWATCH) / 2, SWATCH * 1.6, SWATCH, color)
        _write(axes, MARGIN + SWATCH * 2, top + SMALL_LINE / 2, example.describe(depth), SMALL_SIZE, INK)
        top += SMALL_LINE
    if example.answer:
        _fill(axes, MARGIN, top + SMALL_LINE / 2, SWATCH * 1.6, UNDERLINE, ANSWER)
        _write(axes, MARGIN + SWATCH * 2, top + SMALL_LINE / 2, "the answer", SMALL_SIZE, INK)
        top += SMALL_LINE
    top += 0.06
    for line in lines:
        left = MARGIN
        for piece, width in line:
            color = UNSEEN if piece.depth is None else colors[piece.depth]
            _fill(axes, left, top, width, LINE - 0.05, color)
            _write(axes, left, top + LINE / 2 - 0.025, piece.text, TEXT_SIZE, ink_on(color))
            if piece.is_answer:
                _fill(axes, left, top + LINE - 0.045, width, UNDERLINE, ANSWER)
            left += width
        top += LINE
    top += 0.1
    for text in notes:
        _write(axes, MARGIN, top + SMALL_LINE / 2, text, SMALL_SIZE, MUTED)
        top += SMALL_LINE
    save_figure(figure, file)


def _colors(example: Example) -> dict[int, str]:
    """Give each depth its colour, the lightest to the tokens that left first."""
    depths = example.depths
    return dict(zip(depths, ramp(len(depths)), strict=True))


def _lay_out(figure: Any, pieces: tuple[Piece, ...]) -> list[list[tuple[Piece, float]]]:
    """Break the text into lines of pieces with their widths in inches; words stay whole if they are not too wide."""
    lines: list[list[tuple[Piece, float]]] = [[]]
    left = 0.0
    for word in _words(pieces):
        widths = [text_width(figure, part.text, TEXT_SIZE) for part in word]
        if left and left + sum(widths) > ROOM:
            lines.append([])
            left = 0.0
        for part, width in zip(word, widths, strict=True):
            if not left and not part.text.strip():
                continue  # no line begins with white space
            if left and left + width > ROOM:
                lines.append([])
                left = 0.0
            lines[-1].append((part, width))
            left += width
    for line in lines:
        while line and not line[-1][0].text.strip():
            line.pop()
    return [line for line in lines if line]


def _words(pieces: tuple[Piece, ...]) -> list[list[Piece]]:
    """Cut pieces at white space: each word, or stretch of white space, with the pieces that it is made of."""
    words: list[list[Piece]] = []
    for piece in pieces:
        for text in re.findall(rf"\s+|\S{{1,{LONGEST_WORD}}}", piece.text):
            part = Piece(" " if text.isspace() else text, piece.depth, piece.is_answer)
            goes_on = words and not text.isspace() and not words[-1][-1].text.isspace()
            if goes_on and sum(len(one.text) for one in words[-1]) + len(text) <= LONGEST_WORD:
                words[-1].append(part)
            else:
                words.append([part])
    return words


def _fill(axes: Any, left: float, top: float, width: float, height: float, color: str) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((left, top), width, height, facecolor=color, linewidth=0))


def _write(axes: Any, left: float, middle: float, text: str, size: float, color: str, **style: Any) -> None:
    axes.text(left, middle, text, fontsize=size, color=color, va="center_baseline", parse_math=False, **style)
