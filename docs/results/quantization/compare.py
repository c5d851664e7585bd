"""F1 and milliseconds of one model in float32, bfloat16 and the int8 of each back end, at several budgets.

Usage: python compare.py time|score DATA OUTPUT_JSON KIND=FOLDER ... KIND is torch, torch-bf16, openvino, or any other
name for an int8 model of Intel Neural Compressor, such as inc-static. "time" measures 48 windows of DATA, one at a
time, at their true lengths, everything taking turns in one process; "score" answers all questions of DATA and merges
with what OUTPUT_JSON holds already.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer

from optimum_qala import (
    BucketOptions,
    INCQuaLAMiniLMForQuestionAnswering,
    OVQuaLAMiniLMForQuestionAnswering,
    QuaLAMiniLMForQuestionAnswering,
)
from optimum_qala.question_answering.features import collate
from optimum_qala.question_answering.metrics import score_question
from optimum_qala.question_answering.predictor import predict
from optimum_qala.question_answering.records import load_records
from optimum_qala.question_answering.windows import make_windows
from optimum_qala.reporting.benchmark import describe_machine, sample_windows


BUDGETS = ("full", "1,1,1,0.75,0.45,0.45@5", "1,1,1,0.5,0.35,0.35@5", "1,1,1,0.7,0.7,0.7@4")
NUM_WINDOWS, REPEATS = 48, 3


def load(kind: str, folder: str) -> Any:
    """Load a model of a kind."""
    if kind.startswith("torch"):
        dtype = torch.bfloat16 if kind == "torch-bf16" else torch.float32
        return QuaLAMiniLMForQuestionAnswering.from_pretrained(folder, dtype=dtype).eval()
    if kind == "openvino":
        return OVQuaLAMiniLMForQuestionAnswering.from_pretrained(folder)
    if kind == "openvino-buckets":
        options = BucketOptions(length_multiple=16, max_graphs=300)
        return OVQuaLAMiniLMForQuestionAnswering.from_pretrained(folder, buckets=options)
    return INCQuaLAMiniLMForQuestionAnswering.from_pretrained(folder)


def time_windows(models: dict[str, Any], tokenizer: Any, data: str) -> dict[str, Any]:
    """Return the median of the milliseconds of every model at every budget."""
    windows = sample_windows(make_windows(load_records(data, limit=2000), tokenizer), NUM_WINDOWS)
    random.Random(0).shuffle(windows)
    elapsed: dict[tuple[str, str], list[float]] = {(kind, budget): [] for kind in models for budget in BUDGETS}
    with torch.inference_mode():
        for repeat in range(1 + REPEATS):
            for window in windows:
                batch = collate([window], tokenizer)
                for kind, budget in elapsed:
                    began = time.perf_counter()
                    models[kind](**batch, budget=budget)
                    if repeat:  # the first one compiles
                        elapsed[kind, budget].append(1000.0 * (time.perf_counter() - began))
    return {
        "machine": describe_machine(),
        "mean_tokens": statistics.mean(len(window) for window in windows),
        "milliseconds": {
            kind: {budget: statistics.median(elapsed[kind, budget]) for budget in BUDGETS} for kind in models
        },
    }


def score(model: Any, tokenizer: Any, data: str) -> dict[str, dict[str, float]]:
    """Return F1 and exact match by budget."""
    records = load_records(data, require_answers=True)
    scores = {}
    for budget in BUDGETS:
        rows = [
            score_question(record, answers[0].text)
            for record, answers in predict(model, tokenizer, records, budget=budget)
        ]
        means = {name: 100.0 * float(np.mean([getattr(row, name) for row in rows])) for name in ("f1", "exact_match")}
        scores[budget] = {**means, "num_questions": len(records)}
    return scores


def main() -> None:
    """Measure and write."""
    task, data, output, *pairs = sys.argv[1:]
    folders = dict(pair.split("=", 1) for pair in pairs)
    tokenizer = AutoTokenizer.from_pretrained(next(iter(folders.values())))
    file = Path(output)
    if task == "time":
        models = {kind: load(kind, folder) for kind, folder in folders.items()}
        report = time_windows(models, tokenizer, data)
        file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        return
    for kind, folder in folders.items():
        scores = score(load(kind, folder), tokenizer, data)
        report = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        file.write_text(json.dumps(report | {kind: scores}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
