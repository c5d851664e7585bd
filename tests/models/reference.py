"""The Length-Adaptive Transformer written down literally: one example at a time, token by token, in float64.

Every token of a layer attends in full; the score of token j is the sum over heads and rows t of A[head, t, j]; the
tokens of the highest scores are gathered after the attention output; the feed-forward layer runs on them; their hidden
states are scattered into a sequence that starts as the embeddings; the span head reads that sequence. With the score
"answer" tokens are dropped before the layer instead, by the logits that the layer's own span head gives them. Where
the model has such heads, each token is read by the head of the layer that it did not enter any more. Nothing here is
shared with the package, not even the rounding of token counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np


@dataclass
class ReferenceOutput:
    start_logits: np.ndarray
    end_logits: np.ndarray
    restored: np.ndarray
    survival: list[int]


def run_reference(model, input_ids, token_type_ids, retention, skip_layers=(), exit_layer=None) -> ReferenceOutput:
    """Run one unpadded example; `retention` are ratios, one per layer, None for layers that may not drop."""
    config = model.config
    weights = {name: value.detach().double().numpy() for name, value in model.state_dict().items()}
    ids, types = (np.asarray(values).reshape(-1) for values in (input_ids, token_type_ids))
    restored = _embed(weights, config, ids, types)
    places = list(range(len(ids)))
    survival = [0] * len(ids)
    hidden = restored.copy()
    for layer in range(config.num_hidden_layers if exit_layer is None else exit_layer):
        if layer in skip_layers:
            for place in places:
                survival[place] = layer + 1
            continue
        if retention[layer] is not None and config.token_scoring == "answer":
            scores = _span_scores(_linear(weights, f"quala.encoder.span_heads.{layer}", hidden))
            keep = _choose(config, ids, places, scores, retention[layer])
            hidden, places = hidden[keep], [places[index] for index in keep]
        probabilities, attended = _attend(weights, config, f"quala.encoder.layer.{layer}.", hidden)
        keep = list(range(len(places)))
        if retention[layer] is not None and config.token_scoring != "answer":
            scores = _attention_scores(config, ids, places, probabilities)
            keep = _choose(config, ids, places, scores, retention[layer])
        hidden = _feed_forward(weights, config, f"quala.encoder.layer.{layer}.", attended[keep])
        places = [places[index] for index in keep]
        for row, place in enumerate(places):
            restored[place] = hidden[row]
            survival[place] = layer + 1
    heads = [
        f"quala.encoder.span_heads.{depth}"
        if config.has_span_heads and depth < config.num_hidden_layers
        else "qa_outputs"
        for depth in survival
    ]
    logits = np.array([_linear(weights, head, row) for head, row in zip(heads, restored, strict=True)])
    return ReferenceOutput(logits[:, 0], logits[:, 1], restored, survival)


def _embed(weights, config, ids, types):
    if config.position_scheme == "roberta":
        positions = config.pad_token_id + 1 + np.arange(len(ids))
    else:
        positions = np.arange(len(ids))
    prefix = "quala.embeddings."
    total = (
        weights[f"{prefix}word_embeddings.weight"][ids]
        + weights[f"{prefix}position_embeddings.weight"][positions]
        + weights[f"{prefix}token_type_embeddings.weight"][types]
    )
    return _layer_norm(weights, config, f"{prefix}LayerNorm", total)


def _layer_norm(weights, config, name, values):
    centred = values - values.mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + config.layer_norm_eps)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def _linear(weights, name, values):
    return values @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def _attend(weights, config, prefix, hidden):
    query, key, value = (
        _linear(weights, f"{prefix}attention.self.{name}", hidden) for name in ("query", "key", "value")
    )
    size = config.hidden_size // config.num_attention_heads
    probabilities = np.zeros((config.num_attention_heads, len(hidden), len(hidden)))
    context = np.zeros_like(hidden)
    for head in range(config.num_attention_heads):
        part = slice(head * size, (head + 1) * size)
        for row in range(len(hidden)):
            scores = np.array(
                [query[row, part] @ key[column, part] / math.sqrt(size) for column in range(len(hidden))]
            )
            exponentials = np.exp(scores - scores.max())
            probabilities[head, row] = exponentials / exponentials.sum()
            context[row, part] = probabilities[head, row] @ value[:, part]
    dense = _linear(weights, f"{prefix}attention.output.dense", context)
    return probabilities, _layer_norm(weights, config, f"{prefix}attention.output.LayerNorm", dense + hidden)


def _feed_forward(weights, config, prefix, attended):
    inner = _linear(weights, f"{prefix}intermediate.dense", attended)
    inner = np.array([[0.5 * x * (1 + math.erf(x / math.sqrt(2))) for x in row] for row in inner])
    outer = _linear(weights, f"{prefix}output.dense", inner)
    return _layer_norm(weights, config, f"{prefix}output.LayerNorm", outer + attended)


def _question_rows(config, ids, places) -> list[int]:
    first_separator = list(ids).index(config.sep_token_id)
    return [row for row, place in enumerate(places) if place <= first_separator]


def _attention_scores(config, ids, places, probabilities) -> list[float]:
    rows = _question_rows(config, ids, places) if config.token_scoring == "question" else range(len(places))
    return [
        sum(probabilities[head, row, column] for head in range(len(probabilities)) for row in rows)
        for column in range(len(places))
    ]


def _span_scores(logits) -> list[float]:
    best_start, best_end = max(start for start, _ in logits), max(end for _, end in logits)
    margins = [(start - best_start, end - best_end) for start, end in logits]
    return [max(margin) + min(margin) / 1000 for margin in margins]


def _choose(config, ids, places, scores, ratio) -> list[int]:
    """Indices into `places` of the tokens that stay, ascending."""
    question_rows = _question_rows(config, ids, places)
    if config.score_pooling:
        reach = config.score_pooling
        highest = [max(scores[max(0, index - reach) : index + reach + 1]) for index in range(len(scores))]
        scores = [high + score / 1000 for high, score in zip(highest, scores, strict=True)]
    protected = {
        row
        for row, place in enumerate(places)
        if (config.protected_tokens == "question" and (row in question_rows or ids[place] == config.sep_token_id))
        or (config.protected_tokens == "cls" and place == 0)
    }
    num_tokens = math.ceil(Fraction(str(ratio)) * len(ids))
    num_tokens = min(len(places), max(num_tokens, config.min_tokens, len(protected)))
    by_score = sorted(range(len(places)), key=lambda row: (row not in protected, -scores[row]))
    return sorted(by_score[:num_tokens])
