"""Count the gold answers that survive where small probes choose tokens by shared words, by hidden states, or by both.

Usage: python question_match_probe.py MODEL TRAINING_DATA NUM_QUESTIONS TEST_DATA OUTPUT_JSON. A probe is trained on
the windows of that many questions to give start and end logits of each context token. It reads the features of shared
words, the hidden state of the token after some layers of the model, which stays as it is, or both. Then tokens survive
by it as they do by a span head of the model: with margins to the best one, pooled over 8 neighbours.
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoTokenizer

from optimum_qala import QuaLAMiniLMForQuestionAnswering
from optimum_qala.question_answering.features import collate, make_windows
from optimum_qala.question_answering.records import load_records
from optimum_qala.question_answering.windows import Window, WindowOptions


REACHES = (2, 5, 10, 20, 45)
RATIOS = (0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
LAYERS = (0, 1, 2, 3)
POOLING, EPOCHS, BATCH_SIZE = 8, 3, 16


def read_windows(path: str, tokenizer: Any, limit: int | None) -> list[Window]:
    """Return the windows that hold an answer."""
    records = load_records(path, require_answers=True)
    random.Random(0).shuffle(records)
    windows = make_windows(records[:limit], tokenizer, WindowOptions(), with_positions=True)
    return [window for window in windows if window.start_position != window.cls_index]


def shared_words(window: Window, rarity: NDArray[np.float32], directions: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the features of the context tokens, which fall linearly with the distance to the nearest match."""
    ids, first = np.array(window.input_ids), window.context_position
    question, context = np.unique(ids[1 : first - 1]), ids[first:]
    distances = np.abs(np.arange(len(context))[:, None] - np.arange(len(context))[None, :])
    same = (context[:, None] == question[None, :]).astype(np.float32)
    similar = np.clip((directions[context] @ directions[question].T - 0.35) / 0.4, 0, 1)
    columns = []
    for match in (same, similar):
        for reach in REACHES:
            near = np.maximum(0.0, 1.0 - distances / reach).astype(np.float32)
            found = np.stack([(near * match[:, word]).max(1) for word in range(len(question))], axis=1)
            columns.append(found @ rarity[question])
        columns.append((match * rarity[question]).max(1))
    return np.log1p(np.stack(columns, axis=1)).astype(np.float32)


def hidden_states(model: Any, tokenizer: Any, windows: list[Window]) -> list[dict[int, Tensor]]:
    """Return the hidden states of the context tokens of every window, by layers run."""
    states: list[dict[int, Tensor]] = [{} for _ in windows]
    order = sorted(range(len(windows)), key=lambda index: -len(windows[index]))
    with torch.no_grad():
        for start in range(0, len(order), 32):
            chosen = order[start : start + 32]
            batch = collate([windows[index] for index in chosen], tokenizer)
            inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
            found = model(**inputs, budget="full", output_hidden_states=True).hidden_states
            for row, index in enumerate(chosen):
                context = slice(windows[index].context_position, len(windows[index]))
                states[index] = {layer: found[layer][row, context].clone() for layer in LAYERS}
    return states


class Probe(nn.Module):
    """A linear and a small non-linear function of what it reads."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        size = sum(sizes)
        self.linear = nn.Linear(size, 2)
        self.network = nn.Sequential(nn.Linear(size, 96), nn.GELU(), nn.Linear(96, 2))

    def forward(self, inputs: list[Tensor]) -> Tensor:
        """Return logits, `(num_tokens, 2)`."""
        joined = torch.cat(inputs, dim=-1)
        logits: Tensor = self.linear(joined) + self.network(joined)
        return logits


def train(windows: list[Window], inputs: list[list[Tensor]]) -> Probe:
    """Train a probe on the cross-entropy of start and end."""
    torch.manual_seed(0)
    probe = Probe([values.shape[1] for values in inputs[0]])
    optimizer = torch.optim.Adam(probe.parameters(), 2e-3)
    for _ in range(EPOCHS):
        order = torch.randperm(len(windows)).tolist()
        for start in range(0, len(order), BATCH_SIZE):
            losses = []
            for index in order[start : start + BATCH_SIZE]:
                window, scores = windows[index], probe(inputs[index]).log_softmax(dim=0)
                places = torch.tensor([window.start_position, window.end_position]) - window.context_position
                losses.append(-scores[places, torch.arange(2)].sum())
            optimizer.zero_grad()
            torch.stack(losses).mean().backward()
            optimizer.step()
    return probe


def answers_kept(probe: Probe, windows: list[Window], inputs: list[list[Tensor]]) -> dict[str, float]:
    """Return the share of answers that survive, in percent, by the share of tokens that does."""
    kept = dict.fromkeys(RATIOS, 0)
    for window, values in zip(windows, inputs, strict=True):
        with torch.no_grad():
            logits = probe(values)
        margins = logits - logits.amax(dim=0)
        scores = margins.amax(dim=1) + 1e-3 * margins.amin(dim=1)
        pooled = torch.nn.functional.max_pool1d(scores[None, None], 2 * POOLING + 1, 1, POOLING)[0, 0] + 1e-3 * scores
        order, first = torch.argsort(-pooled).tolist(), window.context_position
        gold = set(range(window.start_position - first, window.end_position - first + 1))
        for ratio in RATIOS:
            room = max(0, math.ceil(ratio * len(window)) - first - 1)
            kept[ratio] += gold <= set(order[:room])
    return {str(ratio): 100.0 * count / len(windows) for ratio, count in kept.items()}


def main() -> None:
    """Measure and write."""
    path, training_data, limit, test_data, output = sys.argv[1:]
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = QuaLAMiniLMForQuestionAnswering.from_pretrained(path).eval()
    sets = [read_windows(training_data, tokenizer, int(limit)), read_windows(test_data, tokenizer, None)]
    counts: Counter[int] = Counter()
    for window in sets[0]:
        counts.update(set(window.input_ids[window.context_position :]))
    numbers = range(model.config.vocab_size)
    rarity = np.array([math.log(1 + len(sets[0]) / (1 + counts[token])) for token in numbers], np.float32)
    table = model.get_input_embeddings().weight.detach()
    directions = torch.nn.functional.normalize(table, dim=-1).numpy()
    words = [[torch.tensor(shared_words(window, rarity, directions)) for window in windows] for windows in sets]
    flat = torch.cat(words[0])
    words = [[(one - flat.mean(0)) / (flat.std(0) + 1e-3) for one in ones] for ones in words]
    states = [hidden_states(model, tokenizer, windows) for windows in sets]
    kept: dict[str, dict[str, float]] = {}
    readings: dict[str, Any] = {"words": lambda number, index: [words[number][index]]}
    for layer in LAYERS:
        readings[f"layer {layer}"] = lambda number, index, layer=layer: [states[number][index][layer]]
        readings[f"words and layer {layer}"] = lambda number, index, layer=layer: [
            words[number][index],
            states[number][index][layer],
        ]
    for name, read in readings.items():
        inputs = [[read(number, index) for index in range(len(windows))] for number, windows in enumerate(sets)]
        kept[name] = answers_kept(train(sets[0], inputs[0]), sets[1], inputs[1])
    report = {"num_training_windows": len(sets[0]), "num_test_windows": len(sets[1]), "answers_kept": kept}
    Path(output).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
