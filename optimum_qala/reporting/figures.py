"""The pictures of a model card, made of what is known of a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from optimum_qala.errors import MissingExtraError
from optimum_qala.reporting.card_sections import FIGURES, describe_conditions, name_variant
from optimum_qala.reporting.facts import ModelFacts
from optimum_qala.reporting.plot import plot_front
from optimum_qala.reporting.tables import comparable_rows
from optimum_qala.reporting.token_plot import plot_tokens


__all__ = ["draw_figures"]


def draw_figures(facts: ModelFacts, folder: Path) -> dict[str, str]:
    """Draw what there are numbers for.

    Args:
        facts: What is known of the model.
        folder: Where the pictures go.

    Returns:
        Why a picture was left out, by its name; empty if none was.
    """
    plots: dict[str, tuple[Callable[[ModelFacts, Path], bool], str]] = {
        "latency": (_plot_latency, "nothing was measured in both F1 and milliseconds"),
        "budgets": (_plot_tokens, "the model has no budgets"),
    }
    left_out = {}
    for kind, (plot, nothing) in plots.items():
        name, _ = FIGURES[kind]
        try:
            if not plot(facts, folder / name):
                left_out[name] = nothing
        except MissingExtraError as error:
            left_out[name] = str(error)
    return left_out


def _plot_tokens(facts: ModelFacts, file: Path) -> bool:
    variant = next((one for one in facts.variants if one.budgets), facts.variants[0])
    return plot_tokens(variant.budgets, variant.num_layers, file)


def _plot_latency(facts: ModelFacts, file: Path) -> bool:
    rows, conditions = _benchmark_rows(facts) if facts.benchmark is not None else _budget_rows(facts)
    return plot_front(rows, conditions, file)


def _benchmark_rows(facts: ModelFacts) -> tuple[list[dict[str, Any]], str]:
    report = facts.benchmark or {}
    settings = comparable_rows(dict(report))
    title, rows = settings[0] if settings else ("", [])
    threads = sorted({row["threads"] for row in rows})
    parts = [title, f"{report['machine']['cpu']}, {'/'.join(map(str, threads))} threads"]
    return rows, "; ".join([*parts, f"{report['num_questions']:,} questions of {Path(report['data']).name}"])


def _budget_rows(facts: ModelFacts) -> tuple[list[dict[str, Any]], str]:
    """Choose the conditions under which most budgets of a model were measured; the first ones of these."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for variant in facts.variants:
        for name, budget in variant.budgets.items():
            for row in budget.get("latency_ms") or ():
                point = {"name": name, "kind": "budget", "median_ms": row["median"], "f1": budget.get("f1")}
                conditions = describe_conditions(row, bool(variant.quantization))
                found.setdefault((name_variant(variant), conditions), []).append(point)
    best = max(found, key=lambda key: len(found[key]), default=("", ""))
    return found.get(best, []), best[1]
