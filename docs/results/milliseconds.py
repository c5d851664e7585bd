"""Milliseconds of models at budgets, one window at a time at its true length, everything taking turns in one process.

Usage: python milliseconds.py DATA OUTPUT_JSON NUM_WINDOWS "BUDGET BUDGET ..." NAME=KIND:FOLDER ... KIND is torch,
torch-bf16, openvino, inc, inc-compiled, or buckets-16 for OpenVINO in buckets of 16 tokens, or of as many as it says.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from optimum_qala import (
    BucketOptions,
    INCQuaLAMiniLMForQuestionAnswering,
    OVQuaLAMiniLMForQuestionAnswering,
    QuaLAMiniLMForQuestionAnswering,
)
from optimum_qala.question_answering.features import collate
from optimum_qala.question_answering.records import load_records
from optimum_qala.question_answering.windows import make_windows
from optimum_qala.reporting.benchmark import sample_windows
from optimum_qala.reporting.machine import describe_machine


REPEATS = 3


def load(kind: str, folder: str, budgets: list[str]) -> Any:
    """Load a model of a kind."""
    if kind.startswith("torch"):
        dtype = torch.bfloat16 if kind == "torch-bf16" else torch.float32
        return QuaLAMiniLMForQuestionAnswering.from_pretrained(folder, dtype=dtype).eval()
    if kind.startswith("buckets-"):
        options = BucketOptions(length_multiple=int(kind.removeprefix("buckets-")), max_graphs=600)
        return OVQuaLAMiniLMForQuestionAnswering.from_pretrained(folder, buckets=options)
    if kind == "inc-compiled":
        model = INCQuaLAMiniLMForQuestionAnswering.from_pretrained(folder)
        model.compile(budgets)
        return model
    classes = {"openvino": OVQuaLAMiniLMForQuestionAnswering, "inc": INCQuaLAMiniLMForQuestionAnswering}
    return classes[kind].from_pretrained(folder)


def main() -> None:
    """Measure and write."""
    data, output, num_windows, budgets, *pairs = sys.argv[1:]
    sources = {name: source.split(":", 1) for name, _, source in (pair.partition("=") for pair in pairs)}
    tokenizer = AutoTokenizer.from_pretrained(next(iter(sources.values()))[1])
    models = {name: load(kind, folder, budgets.split()) for name, (kind, folder) in sources.items()}
    windows = sample_windows(make_windows(load_records(data, limit=2000), tokenizer), int(num_windows))
    random.Random(0).shuffle(windows)
    elapsed: dict[tuple[str, str], list[float]] = {(name, budget): [] for name in models for budget in budgets.split()}
    with torch.inference_mode():
        for repeat in range(1 + REPEATS):
            for window in windows:
                batch = collate([window], tokenizer)
                for name, budget in elapsed:
                    began = time.perf_counter()
                    models[name](**batch, budget=budget)
                    if repeat:  # the first one compiles
                        elapsed[name, budget].append(1000.0 * (time.perf_counter() - began))
    milliseconds: dict[str, dict[str, float]] = {name: {} for name in models}
    for (name, budget), times in elapsed.items():
        milliseconds[name][budget] = statistics.median(times)
    mean_tokens = statistics.mean(len(window) for window in windows)
    report = {"machine": describe_machine(), "mean_tokens": mean_tokens, "milliseconds": milliseconds}
    Path(output).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
