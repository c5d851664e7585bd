"""Scores of a model: at which budgets, and that they are those of each budget."""

from __future__ import annotations

from optimum_qala.quantization.accuracy import score_budgets
from optimum_qala.question_answering.predictor import evaluate
from tests.quantization.conftest import BUDGETS, WINDOWS


def test_budgets_without_a_name_are_scored_too(torch_model, tiny_tokenizer, records):
    lines = []
    arguments = ({"float32": torch_model}, tiny_tokenizer, records, WINDOWS, lines.append)
    assert list(score_budgets(*arguments)) == ["full", *BUDGETS]
    accuracy = score_budgets(*arguments, ["full", "fast", "0.3,0.3"])
    assert list(accuracy) == ["full", *BUDGETS, "0.3,0.3"]
    expected = evaluate(torch_model, tiny_tokenizer, records, budget="0.3,0.3", window_options=WINDOWS)
    assert accuracy["0.3,0.3"] == {"float32": {"f1": expected["f1"], "em": expected["exact_match"]}}
    assert lines[-1] == f"0.3,0.3 float32: F1 {expected['f1']:.2f}, EM {expected['exact_match']:.2f}"
