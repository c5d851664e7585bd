"""Compare token scores: F1 at budgets, and the gold answers whose tokens all survive.

Usage: python compare.py OUTPUT_JSON DATA NAME=MODEL ... The models are torch folders, trained alike but for their
token score. Differences of F1 between models come with the standard error of a paired bootstrap over questions.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer

from optimum_qala import QuaLAMiniLMForQuestionAnswering
from optimum_qala.question_answering.features import collate, make_windows
from optimum_qala.question_answering.metrics import score_question
from optimum_qala.question_answering.predictor import predict
from optimum_qala.question_answering.records import QARecord, load_records
from optimum_qala.question_answering.windows import Window, WindowOptions


# Tokens leave after layer 2 (0-based): before layer 3 where the score is read on its input, and in layer 2 where it is
# read on the layer's attention.
SURVIVAL = {ratio: f"1,1,{ratio},{ratio},{ratio},{ratio}" for ratio in (0.7, 0.5, 0.3)}
SURVIVAL_BEFORE = {ratio: f"1,1,1,{ratio},{ratio},{ratio}" for ratio in (0.7, 0.5, 0.3)}
BUDGETS = (
    "full",
    "1,1,1,1,1,1@5",
    "1,1,1,0.5,0.5,0.5@5",
    "1,1,0.7,0.7,0.7,0.7",
    "1,1,0.5,0.5,0.5,0.5",
    "1,1,1,0.5,0.5,0.5",
    "1,1,1,0.7,0.35,0.35",
    "1,1,1,1,0.3,0.3",
)
BATCH_SIZE = 32
RESAMPLES = 2000
MEAN_TOKENS = 180  # of a window, for the operations of a budget


def scores_of(model: Any, tokenizer: Any, records: list[QARecord], budget: str) -> NDArray[np.float64]:
    """Return F1 and exact match of every question, in percent. *Shape:* `(num_questions, 2)`."""
    rows = []
    for record, answers in predict(model, tokenizer, records, budget=budget):
        score = score_question(record, answers[0].text)
        rows.append((100.0 * score.f1, 100.0 * score.exact_match))
    return np.array(rows)


def answers_kept(model: Any, tokenizer: Any, windows: list[Window], budget: str) -> float:
    """Return the share of windows, in percent, whose answer tokens all went on after the layer that drops."""
    answered = [window for window in windows if window.start_position != window.cls_index]
    answered.sort(key=len, reverse=True)
    kept = 0
    with torch.inference_mode():
        for first in range(0, len(answered), BATCH_SIZE):
            chosen = answered[first : first + BATCH_SIZE]
            survival = model(**collate(chosen, tokenizer), budget=budget, output_survival=True).survival
            for row, window in zip(survival, chosen, strict=True):
                tokens = row[window.start_position : window.end_position + 1]
                kept += bool((tokens == model.config.num_hidden_layers).all())
    return 100.0 * kept / len(answered)


def standard_error(differences: NDArray[np.float64]) -> float:
    """Return the standard error of a mean by resampling questions."""
    chosen = np.random.default_rng(0).integers(len(differences), size=(RESAMPLES, len(differences)))
    return float(differences[chosen].mean(axis=1).std())


def main() -> None:
    """Measure and write."""
    output, data, *named = sys.argv[1:]
    records = load_records(data, require_answers=True)
    report: dict[str, Any] = {"num_questions": len(records), "models": {}}
    scores: dict[str, dict[str, NDArray[np.float64]]] = {}
    for name, path in (one.split("=", 1) for one in named):
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = QuaLAMiniLMForQuestionAnswering.from_pretrained(path).eval()
        windows = make_windows(records, tokenizer, WindowOptions(), with_positions=True)
        budgets = SURVIVAL_BEFORE if model.config.score_source == "answer" else SURVIVAL
        scores[name] = {budget: scores_of(model, tokenizer, records, budget) for budget in BUDGETS}
        report["models"][name] = {
            "answers_kept": {str(r): answers_kept(model, tokenizer, windows, budget) for r, budget in budgets.items()},
            "scores": {
                budget: dict(zip(("f1", "exact_match"), own.mean(axis=0).tolist(), strict=True))
                | {"mmacs": model.config.macs(model.config.resolve_budget(budget), MEAN_TOKENS) / 1e6}
                for budget, own in scores[name].items()
            },
        }
    best, *others = scores
    report["differences"] = {
        f"{best} - {other}": {
            budget: {
                "f1": float((scores[best][budget] - scores[other][budget])[:, 0].mean()),
                "standard_error": standard_error((scores[best][budget] - scores[other][budget])[:, 0]),
            }
            for budget in BUDGETS
        }
        for other in others
    }
    Path(output).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
