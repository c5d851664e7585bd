"""Say where the time of a static int8 graph goes: by length, and by kind of node.

Usage: python nodes.py PLAIN_INT8 QUALA_INT8 OUTPUT_JSON. Both are OpenVINO folders. Graphs of different lengths take
turns.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from optimum_qala import OVQuaLAMiniLMForQuestionAnswering
from optimum_qala.inference.bucket_options import BucketOptions
from optimum_qala.inference.plain import OVBucketedModelForQuestionAnswering


LENGTHS = (96, 128, 136, 160, 184, 192, 224, 256, 320, 384)
PROFILED_LENGTH = 192
QUESTION_TOKENS = 14
REPEATS = 25
BUDGETS = ("full", "1,1,1,1,1,1@4", "1,1,1,0.4,0.4,0.4@4", "1,1,1,1,0.1,0.1@5")


def inputs_of(model: Any, length: int) -> dict[str, np.ndarray]:
    """Make a window of words that do not matter, with a question in front."""
    ids = np.full((1, length), 2000, dtype=np.int64)
    ids[0, [QUESTION_TOKENS, -1]] = getattr(model.config, "sep_token_id", None) or 102
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def time_lengths(model: Any) -> list[dict[str, float]]:
    """Return milliseconds by length."""
    batches = {length: inputs_of(model, length) for length in LENGTHS}
    times: dict[int, list[float]] = defaultdict(list)
    for number in range(REPEATS + 2):
        for length, batch in batches.items():
            model(**batch)  # the caches hold another graph's weights
            began = time.perf_counter()
            model(**batch)
            if number >= 2:
                times[length].append(1000.0 * (time.perf_counter() - began))
    medians = {length: statistics.median(values) for length, values in times.items()}
    return [
        {"tokens": length, "median_ms": median, "us_per_token": 1000.0 * median / length}
        for length, median in medians.items()
    ]


def profile(model: Any, budget: str | None) -> dict[str, Any]:
    """Return milliseconds and numbers of nodes by kind, with what it takes to measure them."""
    batch, options = inputs_of(model, PROFILED_LENGTH), {} if budget is None else {"budget": budget}
    for _ in range(REPEATS):
        model(**batch, **options)
    request = model.runner._latest._idle[-1]  # no public call gives what a node took
    kinds: dict[str, list[float]] = defaultdict(list)
    for node in request.get_profiling_info():
        if (seconds := node.real_time.total_seconds()) > 0:
            kinds[f"{node.node_type} {node.exec_type}"].append(1000.0 * seconds)
    ordered = sorted(kinds.items(), key=lambda item: -sum(item[1]))
    return {
        "budget": budget,
        "total_ms": sum(sum(values) for values in kinds.values()),
        "kinds": {kind: {"nodes": len(values), "ms": round(sum(values), 4)} for kind, values in ordered},
    }


def main() -> None:
    """Measure and write."""
    plain_folder, quala_folder, output = sys.argv[1:]
    exact, counted = BucketOptions(length_multiple=1, longest_bucket=max(LENGTHS)), {"PERF_COUNT": True}
    plain = OVBucketedModelForQuestionAnswering.from_pretrained(plain_folder, buckets=exact)
    report: dict[str, Any] = {"lengths": time_lengths(plain), "profiled_length": PROFILED_LENGTH}
    plain = OVBucketedModelForQuestionAnswering.from_pretrained(plain_folder, buckets=exact, ov_config=counted)
    report["plain"] = profile(plain, None)
    quala = OVQuaLAMiniLMForQuestionAnswering.from_pretrained(quala_folder, buckets=exact, ov_config=counted)
    report["quala"] = [profile(quala, budget) for budget in BUDGETS]
    Path(output).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
