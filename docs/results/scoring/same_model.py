"""Score one trained model with several token scores, whichever it was trained with.

Usage: python same_model.py MODEL DATA OUTPUT_JSON. MODEL is a torch folder with early span heads.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from transformers import AutoTokenizer

from optimum_qala import QuaLAMiniLMForQuestionAnswering
from optimum_qala.question_answering.predictor import evaluate
from optimum_qala.question_answering.records import load_records


SCORES = (("answer", 8), ("question", 8), ("question", 1))  # and the neighbours that they are pooled over
BUDGETS = ("1,1,1,0.5,0.5,0.5@5", "1,1,1,0.75,0.45,0.45@5", "1,1,0.7,0.5,0.5,0.5@5")


def main() -> None:
    """Measure and write."""
    path, data, output = sys.argv[1:]
    records = load_records(data, require_answers=True)
    tokenizer = AutoTokenizer.from_pretrained(path)
    rows = []
    for token_scoring, pooling in SCORES:
        options = {"token_scoring": token_scoring, "score_pooling": pooling, "span_heads": True}
        model = QuaLAMiniLMForQuestionAnswering.from_pretrained(path, drop_layers=[2, 3, 4, 5], **options).eval()
        for budget in BUDGETS:
            f1 = evaluate(model, tokenizer, records, budget=budget)["f1"]
            rows.append({"token_scoring": token_scoring, "score_pooling": pooling, "budget": budget, "f1": f1})
    report = {"num_questions": len(records), "rows": rows}
    Path(output).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
