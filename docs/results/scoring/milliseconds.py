"""Milliseconds of int8 models that differ in their token score, one window at a time, in shape buckets.

Usage: python milliseconds.py DATA OUTPUT_JSON NAME=INT8 ... Models and budgets take turns at every window.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from pathlib import Path

from transformers import AutoTokenizer

from optimum_qala import BucketOptions, OVQuaLAMiniLMForQuestionAnswering
from optimum_qala.question_answering.features import collate
from optimum_qala.question_answering.records import load_records
from optimum_qala.question_answering.windows import make_windows
from optimum_qala.reporting.benchmark import describe_machine, sample_windows


BUDGETS = (
    "full",
    "1,1,1,1,1,1@5",
    "1,1,1,1,0.3,0.3",
    "1,1,1,0.7,0.35,0.35",
    "1,1,1,0.5,0.5,0.5",
    "1,1,1,0.5,0.5,0.5@5",
    "1,1,0.7,0.7,0.7,0.7",
    "1,1,0.5,0.5,0.5,0.5",
)
NUM_WINDOWS, REPEATS = 24, 3


def main() -> None:
    """Measure and write."""
    data, output, *pairs = sys.argv[1:]
    folders = dict(pair.split("=", 1) for pair in pairs)
    tokenizer = AutoTokenizer.from_pretrained(next(iter(folders.values())))
    options = BucketOptions(length_multiple=32, max_graphs=600)
    models = {
        name: OVQuaLAMiniLMForQuestionAnswering.from_pretrained(folder, buckets=options)
        for name, folder in folders.items()
    }
    windows = sample_windows(make_windows(load_records(data, limit=2000), tokenizer), NUM_WINDOWS)
    random.Random(0).shuffle(windows)
    elapsed: dict[tuple[str, str], list[float]] = {(name, budget): [] for name in models for budget in BUDGETS}
    for repeat in range(1 + REPEATS):
        for window in windows:
            batch = collate([window], tokenizer)
            for name, budget in elapsed:
                began = time.perf_counter()
                models[name](**batch, budget=budget)
                if repeat:  # the first one compiles
                    elapsed[name, budget].append(1000.0 * (time.perf_counter() - began))
    report = {
        "machine": describe_machine(),
        "mean_tokens": statistics.mean(len(window) for window in windows),
        "milliseconds": {
            name: {budget: statistics.median(elapsed[name, budget]) for budget in BUDGETS} for name in models
        },
    }
    Path(output).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
