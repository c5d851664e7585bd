"""Milliseconds of one window at a time: optimum-intel's class, one graph of any shape, and shape buckets.

Usage: python buckets.py PLAIN_INT8 QUALA_INT8 DATA OUTPUT.json

Every candidate runs twice: taking turns with the others at every window, as a fair comparison on a noisy machine
needs, and in a pass of its own, as it would serve, with its weights still in the processor's caches.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from optimum.intel.openvino import OVModelForQuestionAnswering
from transformers import AutoTokenizer

from optimum_qala import BucketOptions, OVBucketedModelForQuestionAnswering, OVQuaLAMiniLMForQuestionAnswering
from optimum_qala.inference.graph import PRECISION_KEY
from optimum_qala.question_answering.features import collate
from optimum_qala.question_answering.records import load_records
from optimum_qala.question_answering.windows import make_windows
from optimum_qala.reporting.benchmark import sample_windows
from optimum_qala.reporting.machine import describe_machine


BUDGETS = ("full", "accurate", "balanced", "fast", "fastest")
REPEATS = 5


def make_candidates(plain: str, quala: str) -> dict[str, Callable[[dict[str, Any]], Any]]:
    """Load the models; name -> call."""
    options = BucketOptions(max_graphs=512)
    upstream = OVModelForQuestionAnswering.from_pretrained(plain, export=False, ov_config={PRECISION_KEY: "f32"})
    bucketed = OVBucketedModelForQuestionAnswering.from_pretrained(plain, buckets=options)
    dynamic = OVQuaLAMiniLMForQuestionAnswering.from_pretrained(quala)
    static = OVQuaLAMiniLMForQuestionAnswering.from_pretrained(quala, buckets=options)
    candidates: dict[str, Callable[[dict[str, Any]], Any]] = {
        "plain int8, optimum-intel": lambda batch: upstream(**batch),
        "plain int8, buckets": lambda batch: bucketed(**batch),
    }
    for kind, model in (("one graph", dynamic), ("buckets", static)):
        for budget in BUDGETS:
            candidates[f"{budget}, {kind}"] = lambda batch, model=model, budget=budget: model(**batch, budget=budget)
    return candidates


def measure(call: Callable[[dict[str, Any]], Any], batch: dict[str, Any]) -> float:
    """Milliseconds of one call."""
    began = time.perf_counter()
    call(batch)
    return 1000.0 * (time.perf_counter() - began)


def main() -> None:
    """Measure and write."""
    plain, quala, data, output = sys.argv[1:]
    tokenizer = AutoTokenizer.from_pretrained(quala)
    windows = sample_windows(make_windows(load_records(data, limit=2000), tokenizer), 64)
    random.Random(0).shuffle(windows)  # lengths change from call to call, as in service
    batches = [collate([window], tokenizer) for window in windows]
    candidates = make_candidates(plain, quala)
    turns: dict[str, list[float]] = {name: [] for name in candidates}
    for repeat in range(1 + REPEATS):
        for batch in batches:
            for name, call in candidates.items():
                elapsed = measure(call, batch)
                if repeat:  # the first one compiles
                    turns[name].append(elapsed)
    alone: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(REPEATS):
        for name, call in candidates.items():
            alone[name] += [measure(call, batch) for batch in batches]
    rows = [
        {"name": name, "turns_ms": statistics.median(turns[name]), "alone_ms": statistics.median(alone[name])}
        for name in candidates
    ]
    base = rows[0]
    for row in rows:
        row |= {f"{kind}_ratio": base[f"{kind}_ms"] / row[f"{kind}_ms"] for kind in ("turns", "alone")}
    tokens = statistics.mean(len(window) for window in windows)
    result = {"machine": describe_machine(), "windows": len(windows), "mean_tokens": tokens, "rows": rows}
    Path(output).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
