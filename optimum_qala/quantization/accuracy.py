"""What int8 costs in accuracy, budget by budget, and what the budgets of an int8 model say of themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from optimum_qala.models.configuration_quala_minilm import FULL_BUDGET, QuaLAMiniLMConfig
from optimum_qala.question_answering.predictor import evaluate
from optimum_qala.question_answering.windows import WindowOptions


__all__ = ["score_budgets", "write_measurements"]


def score_budgets(
    models: Mapping[str, Any],
    tokenizer: Any,
    records: list[Any],
    window_options: WindowOptions | None,
    report: Callable[[str], Any],
    budgets: Iterable[str] = (),
) -> dict[str, dict[str, dict[str, float]]]:
    """Score several models that have the same budgets, at full length and at all of these.

    Args:
        models: Kind, for example "int8", to model.
        tokenizer: Their tokenizer.
        records: Questions with answers.
        window_options: How contexts are cut.
        report: Called with a line of text for each score.
        budgets: More budgets to score at: ratios, for example, which have no name.

    Returns:
        Budget, as it was given -> kind -> F1 and EM in percent.
    """
    accuracy: dict[str, dict[str, dict[str, float]]] = {}
    named = next(iter(models.values())).config.budgets or {}
    for budget in dict.fromkeys((FULL_BUDGET, *named, *budgets)):
        for kind, model in models.items():
            scores = evaluate(model, tokenizer, records, budget=budget, window_options=window_options)
            kept = {"f1": float(scores["f1"]), "em": float(scores["exact_match"])}
            accuracy.setdefault(budget, {})[kind] = kept
            report(f"{budget} {kind}: F1 {kept['f1']:.2f}, EM {kept['em']:.2f}")
    return accuracy


def write_measurements(
    config: QuaLAMiniLMConfig, accuracy: Mapping[str, Mapping[str, Mapping[str, float]]], dataset: str
) -> None:
    """Make what the budgets say true of the int8 model, in place.

    Latencies were measured on another model. Scores were too, and are replaced where there are new ones: quantization
    changes the ranking of the budgets. Without new ones they stay as a hint.

    Args:
        config: Configuration of the int8 model.
        accuracy: What `score_budgets` returned, with the kind "int8"; empty if nothing was scored.
        dataset: What to call the questions.
    """
    budgets = config.budgets or {}
    for name, budget in budgets.items():
        budget.pop("latency_ms", None)
        if accuracy:
            int8 = accuracy[name]["int8"]
            budget.pop("split", None)
            budgets[name] = budget | {"f1": int8["f1"], "em": int8["em"], "dataset": dataset}
