"""F1 and exact match of models at budgets, on the questions of every n-th paragraph.

Usage: python scores.py DATA OUTPUT_JSON EVERY "BUDGET BUDGET ..." NAME=KIND:FOLDER ... Kinds as in ../milliseconds.py.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from transformers import AutoTokenizer

from optimum_qala.question_answering.predictor import evaluate
from optimum_qala.question_answering.records import load_records
from optimum_qala.reporting.machine import describe_machine


sys.path.insert(0, str(Path(__file__).parent.parent))
from milliseconds import load


def main() -> None:
    """Score and write."""
    data, output, every, given, *pairs = sys.argv[1:]
    budgets = given.split()
    records = load_records(data)
    contexts = set(list(dict.fromkeys(record.context for record in records))[:: int(every)])
    records = [record for record in records if record.context in contexts]
    scores: dict[str, dict[str, dict[str, float]]] = {}
    for name, source in (pair.split("=", 1) for pair in pairs):
        kind, folder = source.split(":", 1)
        model, tokenizer = load(kind, folder, budgets), AutoTokenizer.from_pretrained(folder)
        for budget in budgets:
            found = evaluate(model, tokenizer, records, budget=budget)
            scores.setdefault(name, {})[budget] = {"f1": found["f1"], "exact_match": found["exact_match"]}
    report = {"machine": describe_machine(), "num_questions": len(records), "scores": scores}
    Path(output).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
