"""The sizes that a batch takes in the graph, counted outside of it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from optimum_qala.models.configuration_quala_minilm import QuaLAMiniLMConfig
from optimum_qala.models.length_config import CEIL_TOLERANCE, LengthConfig


__all__ = ["find_idle_selections", "plan_sizes", "round_sizes"]

# Sizes that a budget alone does not bound are rounded up to a multiple of this, and smaller ones up to this: narrower
# tensors would hardly be faster.
ROUNDED_TO = 32


def plan_sizes(
    input_ids: NDArray[np.int64],
    attention_mask: NDArray[np.int64],
    config: QuaLAMiniLMConfig,
    length_config: LengthConfig | None,
) -> NDArray[np.int64]:
    """Count what an exported graph takes as `sizes`, exactly as the model counts it.

    They say how wide the tensors of the graph are and choose nothing: the graph still counts the tokens of each
    sample and masks surplus entries, so larger numbers, up to the sequence length and not rising from layer to layer,
    give the same logits. With `retention` and `sizes` made constants, all shapes of the graph are static.

    Args:
        input_ids: *Shape:* `(batch_size, sequence_length)`
        attention_mask: 1 for real tokens. *Shape:* `(batch_size, sequence_length)`
        config: Configuration of the graph.
        length_config: The budget, or None for full length.

    Returns:
        Leading tokens that hold every question, 1 where the token score does not read their rows; then the tokens of
        the widest sample that leave each layer of `config.dropping_layers`. *Shape:* `(1 + num_dropping_layers,)`
    """
    valid = np.asarray(attention_mask) != 0
    is_separator = (np.asarray(input_ids) == config.sep_token_id) & valid
    question = (np.cumsum(is_separator, axis=1) - is_separator == 0) & valid
    protected = {
        "question": (question | is_separator).sum(axis=1),
        "cls": valid[:, 0].astype(np.int64),
        "none": np.zeros(len(valid), dtype=np.int64),
    }[config.protected_tokens]
    num_rows = max(1, int(question.sum(axis=1).max())) if config.score_source == "question" else 1
    num_real_tokens = valid.sum(axis=1)
    num_tokens, sizes = num_real_tokens, [num_rows]
    for layer in config.dropping_layers:
        # In float32, as in the graph.
        ratio = np.float32(1.0 if length_config is None else length_config.retention[layer])
        wanted = np.ceil(num_real_tokens.astype(np.float32) * ratio - np.float32(CEIL_TOLERANCE)).astype(np.int64)
        wanted = np.maximum(np.maximum(wanted, config.min_tokens), protected)
        # A sample without a single token keeps one entry.
        num_kept = np.minimum(wanted, np.maximum(num_tokens, 1))
        sizes.append(int(num_kept.max()))
        num_tokens = np.minimum(num_kept, num_tokens)
    return np.array(sizes, dtype=np.int64)


def round_sizes(
    sizes: NDArray[np.int64],
    sequence_length: int,
    config: QuaLAMiniLMConfig,
    length_config: LengthConfig | None,
) -> NDArray[np.int64]:
    """Round sizes up, so that nearly all batches of one padded length have the same ones.

    A sample of at most `sequence_length` tokens keeps at most its share of them, whatever its length, unless it keeps
    more because of a long question. Only then do the sizes depend on the batch.

    Args:
        sizes: What `plan_sizes` counted. *Shape:* `(1 + num_dropping_layers,)`
        sequence_length: Padded length of the batch.
        config: Configuration of the graph.
        length_config: The budget, or None for full length.

    Returns:
        Sizes at least as large, which give the same logits. *Shape:* `(1 + num_dropping_layers,)`
    """
    num_rows = _round_up(int(sizes[0]), sequence_length) if config.score_source == "question" else int(sizes[0])
    rounded, widest = [num_rows], sequence_length
    for layer, size in zip(config.dropping_layers, sizes[1:].tolist(), strict=True):
        ratio = 1.0 if length_config is None else length_config.retention[layer]
        # The share of a full row, as `plan_sizes` counts it; what exceeds it does so for the sake of the question.
        share = math.ceil(np.float32(sequence_length) * np.float32(ratio) - np.float32(CEIL_TOLERANCE))
        share = max(share, config.min_tokens, min(ROUNDED_TO, sequence_length))  # a usual question fits
        widest = min(widest, share if size <= share else _round_up(size, sequence_length))
        rounded.append(widest)
    return np.array(rounded, dtype=np.int64)


def find_idle_selections(
    retention: NDArray[np.float32], sizes: NDArray[np.int64], sequence_length: int
) -> tuple[int, ...]:
    """Find the layers that may drop tokens, but keep all of them at a budget.

    Args:
        retention: Ratio of each layer that may drop. *Shape:* `(num_dropping_layers,)`
        sizes: What `plan_sizes` counted or `round_sizes` made of it. *Shape:* `(1 + num_dropping_layers,)`
        sequence_length: Padded length of the batch.

    Returns:
        Positions in `config.dropping_layers` of those that keep what the one before kept, as do their tensors.
    """
    # The count of survivors depends on nothing else that differs between two layers.
    ratios, widths = [1.0, *retention.tolist()], [sequence_length, *sizes[1:].tolist()]
    return tuple(
        index
        for index in range(len(retention))
        if ratios[index + 1] == ratios[index] and widths[index + 1] == widths[index]
    )


def _round_up(size: int, limit: int) -> int:
    return min(limit, -(-size // ROUNDED_TO) * ROUNDED_TO)
