"""Score every exit of a trained model, and count the gold answers that survive each layer.

Usage: python exits.py MODEL DATA OUTPUT_JSON [LIMIT]. MODEL is a torch folder with early span heads. One pass at full
length gives the logits of every exit; all that follows is computed from them:

- F1 and exact match of every exit at full length;
- the share of gold answers whose tokens all survive where a share of the tokens survives, chosen by the span head at
  the input of each layer, for several widths of pooling;
- the same where each window keeps as many tokens as lie within a margin of its best one, instead of a fixed share;
- F1 and mean depth where a window stops at an early exit that is confident, and goes on otherwise.
"""

from __future__ import annotations

import json
import random
import sys
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer

from optimum_qala import QuaLAMiniLMForQuestionAnswering
from optimum_qala.models.token_selection import TIE_BREAK, span_margins
from optimum_qala.question_answering.answers import decode
from optimum_qala.question_answering.features import collate, make_windows
from optimum_qala.question_answering.metrics import score_question
from optimum_qala.question_answering.records import QARecord, load_records
from optimum_qala.question_answering.windows import Window, WindowOptions


RATIOS = (0.7, 0.5, 0.4, 0.3, 0.2)
POOLINGS = (0, 2, 4, 8)
MARGINS = (2.0, 3.0, 4.0, 6.0)
CONFIDENCES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
BATCH_SIZE = 32

Logits = list[NDArray[np.float32]]  # per window, (num_exits, num_tokens, 2)
Scores = list[list[dict[str, float]]]  # of every exit, of every question


def run_model(model: Any, tokenizer: Any, windows: list[Window]) -> Logits:
    """Return the logits of every exit, the whole model last."""
    order = sorted(range(len(windows)), key=lambda index: -len(windows[index]))
    logits: Logits = [np.empty(0, np.float32)] * len(windows)
    with torch.inference_mode():
        for first in range(0, len(order), BATCH_SIZE):
            chosen = order[first : first + BATCH_SIZE]
            batch = collate([windows[index] for index in chosen], tokenizer)
            output = model(**batch, budget="full", output_exit_logits=True)
            final = torch.stack([output.start_logits, output.end_logits], dim=-1)
            exits = torch.stack([*output.exit_logits, final], dim=1).float().numpy()
            for row, index in enumerate(chosen):
                logits[index] = exits[row, :, : len(windows[index])]
    return logits


def score_exits(records: list[QARecord], windows: list[Window], logits: Logits) -> Scores:
    """Return the scores of every question at every exit."""
    of_record = defaultdict(list)
    for index, window in enumerate(windows):
        of_record[window.record_index].append(index)
    scores = []
    for exit_layer in range(len(logits[0])):
        answered = []
        for number, record in enumerate(records):
            chosen = of_record[number]
            start, end = ([logits[index][exit_layer, :, side] for index in chosen] for side in (0, 1))
            best = decode(record, [windows[index] for index in chosen], start, end)[0]
            answered.append(asdict(score_question(record, best.text)))
        scores.append(answered)
    return scores


def gold_tokens(record: QARecord, window: Window) -> NDArray[np.int64] | None:
    """Find the tokens of the first gold answer that the window holds whole; None if it holds none."""
    spans = window.char_spans
    for answer, start in zip(record.answers, record.answer_starts, strict=True):
        if len(spans) and spans[0, 0] <= start and start + len(answer) <= spans[-1, 1]:
            found = np.flatnonzero((spans[:, 0] < start + len(answer)) & (spans[:, 1] > start))
            return found + window.context_position
    return None


def priorities(span_logits: NDArray[np.float32], window: Window, pooling: int) -> NDArray[np.float32]:
    """Say in which order tokens survive, as `select_survivors` does; what always survives comes first."""
    scores = span_margins(torch.tensor(span_logits)[None], torch.ones(1, len(window)))
    pooled = torch.nn.functional.max_pool1d(scores[:, None], 2 * pooling + 1, 1, pooling)[:, 0] if pooling else scores
    ranked = (pooled + TIE_BREAK * scores)[0].numpy()
    ranked[: window.context_position] = ranked[-1] = np.inf
    return ranked


def survival(records: list[QARecord], windows: list[Window], logits: Logits) -> list[dict[str, Any]]:
    """Return the share of gold answers that survive, by layer, pooling and number of tokens."""
    gold = [gold_tokens(records[window.record_index], window) for window in windows]
    rows = []
    for layer in range(1, len(logits[0]) - 1):
        for pooling in POOLINGS:
            kept: dict[str, list[bool]] = defaultdict(list)
            shares: dict[str, list[float]] = defaultdict(list)
            for window, tokens, one in zip(windows, gold, logits, strict=True):
                if tokens is None:
                    continue
                ranked = priorities(one[layer], window, pooling)
                order, always = np.argsort(-ranked, kind="stable"), window.context_position + 1
                counts = {f"ratio {ratio:g}": int(np.ceil(ratio * len(window))) for ratio in RATIOS}
                counts |= {f"margin {margin:g}": int((ranked > -margin).sum()) for margin in MARGINS}
                for name, count in counts.items():
                    survivors = order[: max(count, always)]
                    kept[name].append(bool(np.isin(tokens, survivors).all()))
                    shares[name].append(len(survivors) / len(window))
            rows += [
                {
                    "layer": layer,
                    "pooling": pooling,
                    "rule": name,
                    "tokens_kept": float(np.mean(shares[name])),
                    "answers_kept": 100.0 * float(np.mean(kept[name])),
                }
                for name in kept
            ]
    return rows


def confidence(span_logits: NDArray[np.float32]) -> float:
    """Probability of the best start times that of the best end."""
    exponentials = np.exp(span_logits - span_logits.max(axis=0))
    return float(np.prod(exponentials.max(axis=0) / exponentials.sum(axis=0)))


def confident_exits(
    windows: list[Window], logits: Logits, scores: list[list[dict[str, float]]]
) -> list[dict[str, Any]]:
    """Return F1 and mean depth where windows stop early if the exit is confident."""
    last, rows = len(logits[0]) - 1, []
    for exit_layer in range(2, last):
        least = defaultdict(lambda: 1.0)
        for window, one in zip(windows, logits, strict=True):
            least[window.record_index] = min(least[window.record_index], confidence(one[exit_layer]))
        for threshold in CONFIDENCES:
            stops = np.array([least[number] > threshold for number in range(len(scores[0]))])
            exits = np.where(stops, exit_layer, last)
            f1 = [100.0 * scores[layer][number]["f1"] for number, layer in enumerate(exits.tolist())]
            rows.append(
                {
                    "exit_layer": exit_layer,
                    "threshold": threshold,
                    "stopped": float(stops.mean()),
                    "mean_depth": float(exits.mean()),
                    "f1": float(np.mean(f1)),
                }
            )
    return rows


def mean_scores(exit_layer: int, scores: list[dict[str, float]]) -> dict[str, float]:
    """Average the scores of an exit, in percent."""
    means = {name: 100.0 * float(np.mean([one[name] for one in scores])) for name in ("f1", "exact_match")}
    return {"exit_layer": exit_layer, **means}


def main() -> None:
    """Measure and write."""
    source, data, output = sys.argv[1:4]
    records = load_records(data, require_answers=True)
    if len(sys.argv) > 4:
        records = random.Random(0).sample(records, int(sys.argv[4]))  # noqa: S311  # not for cryptography
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = QuaLAMiniLMForQuestionAnswering.from_pretrained(source).eval()
    windows = make_windows(records, tokenizer, WindowOptions())
    logits = run_model(model, tokenizer, windows)
    scores = score_exits(records, windows, logits)
    report = {
        "num_questions": len(records),
        "num_windows": len(windows),
        "exits": [mean_scores(layer, row) for layer, row in enumerate(scores)],
        "survival": survival(records, windows, logits),
        "confident_exits": confident_exits(windows, logits, scores),
    }
    Path(output).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
