"""How many tokens each layer keeps at each budget, as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optimum_qala.reporting.drawing import (
    CARD_WIDTH,
    FAINT,
    INK,
    MUTED,
    SMALL_SIZE,
    TEXT_SIZE,
    ink_on,
    new_figure,
    save_figure,
)
from optimum_qala.reporting.plot import BUDGET


__all__ = ["plot_tokens"]

ROW, HEADING, FOOT = 0.36, 0.24, 0.42  # inches: bars of a budget, the line above them, the numbers of the layers
MARGIN, GAP = 0.1, 0.08  # inches at the sides; share of a layer between two bars
MANY_LAYERS = 12  # from here on numbers stand only where they change
LONGEST_NAME = 34


def plot_tokens(budgets: Mapping[str, Mapping[str, Any]], num_layers: int, file: Path) -> bool:
    """Draw a row of bars for each budget, one bar a layer: its height is the share of tokens that the layer keeps.

    Args:
        budgets: Entries of config.json by name, in the order of the rows.
        num_layers: Layers of the model.
        file: The picture to write.

    Returns:
        False if there are no budgets, so that there is nothing to draw.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    if not budgets:
        return False
    height = 0.3 + len(budgets) * (HEADING + ROW) + FOOT
    figure = new_figure(file.name, height=height)
    title = "Tokens that each layer keeps, % of those in the window"
    figure.text(MARGIN / CARD_WIDTH, 1 - 0.08 / height, title, fontsize=TEXT_SIZE, color=INK, va="top")
    for index, (name, budget) in enumerate(budgets.items()):
        top = height - 0.3 - index * (HEADING + ROW)
        _write_heading(figure, name, budget, num_layers, (top - HEADING + 0.045) / height)
        bottom = (top - HEADING - ROW) / height
        axes = figure.add_axes((MARGIN / CARD_WIDTH, bottom, 1 - 2 * MARGIN / CARD_WIDTH, ROW / height))
        _draw_bars(axes, budget, num_layers)
    axes.set_xlabel("layer", fontsize=SMALL_SIZE, color=INK, labelpad=1)
    axes.set_xticks([number + 0.5 for number in range(num_layers)], [str(n) for n in range(1, num_layers + 1)])
    axes.tick_params(labelsize=SMALL_SIZE, labelcolor=INK, length=0, pad=2)
    save_figure(figure, file)
    return True


def _write_heading(figure: Any, name: str, budget: Mapping[str, Any], num_layers: int, place: float) -> None:
    short = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}\N{HORIZONTAL ELLIPSIS}"
    text = {"fontsize": SMALL_SIZE, "va": "baseline", "parse_math": False}
    figure.text(MARGIN / CARD_WIDTH, place, short, color=BUDGET.color, fontweight="bold", **text)
    facts = []
    if budget.get("f1") is not None:
        facts.append(f"F1 {budget['f1']:.1f} %")
    if budget.get("macs") is not None:
        facts.append(f"{budget['macs'] / 1e6:,.0f} million MACs")
    figure.text(1 - MARGIN / CARD_WIDTH, place, ", ".join(facts), color=MUTED, ha="right", **text)


def _draw_bars(axes: Any, budget: Mapping[str, Any], num_layers: int) -> None:
    from matplotlib.patches import Rectangle

    layers = budget.get("exit_layer") or num_layers
    axes.set(xlim=(0, num_layers), ylim=(0, 1), xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)
    previous = None
    for layer, ratio in enumerate(budget["retention"][:layers]):
        left, width = layer + GAP / 2, 1 - GAP
        axes.add_patch(Rectangle((left, 0), width, 1, color=FAINT, alpha=0.45, linewidth=0))
        axes.add_patch(Rectangle((left, 0), width, ratio, color=BUDGET.color, linewidth=0))
        if num_layers < MANY_LAYERS or ratio != previous:
            is_inside = ratio >= 0.5
            axes.text(
                layer + 0.5,
                ratio / 2 if is_inside else ratio + (1 - ratio) / 2,
                f"{100 * ratio:.3g}",
                fontsize=SMALL_SIZE,
                color=ink_on(BUDGET.color) if is_inside else INK,
                ha="center",
                va="center_baseline",
            )
        previous = ratio
    if layers < num_layers:
        left = layers + GAP / 2
        axes.add_patch(
            Rectangle(
                (left, 0.02),
                num_layers - left - GAP / 2,
                0.96,
                facecolor="none",
                edgecolor=MUTED,
                linewidth=0.7,
                linestyle=(0, (2, 2)),
            )
        )
        axes.text(
            (left + num_layers) / 2,
            0.5,
            "not run",
            fontsize=SMALL_SIZE,
            color=MUTED,
            ha="center",
            va="center_baseline",
        )
