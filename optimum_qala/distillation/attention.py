"""Losses that compare how tokens attend to each other: raw scores, and the distributions made of them.

Scores are recomputed from queries and keys, so they are those before dropout and do not depend on how the model
computes its attention, fused or not.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from optimum_qala.errors import ConfigurationError

from .masking import check_same_shape, masked_mean, masked_values


# Stands for -inf at masked tokens: exp of it is 0 in every precision, and its products with 0 are 0, not NaN.
_MASKED_SCORE = -1e4


def attention_scores(queries: Tensor, keys: Tensor, row_mask: Tensor, column_mask: Tensor, num_heads: int) -> Tensor:
    """Score every pair of tokens: Q K^T / sqrt(head_size) in each head, before softmax.

    Args:
        queries: Concatenated heads. *Shape:* `(batch_size, num_rows, width)`
        keys: Concatenated heads. *Shape:* `(batch_size, num_columns, width)`
        row_mask: 1 for rows that count; scores of the others are 0. *Shape:* `(batch_size, num_rows)`
        column_mask: 1 for columns that count; scores of the others are 0. *Shape:* `(batch_size, num_columns)`
        num_heads: Into how many heads the width is split.

    Returns:
        *Shape:* `(batch_size, num_heads, num_rows, num_columns)`

    Raises:
        ConfigurationError: If the number of heads does not divide the width.
    """
    width = queries.shape[-1]
    if num_heads < 1 or width % num_heads:
        raise ConfigurationError(f"{num_heads} heads do not divide the width {width}")
    head_size = width // num_heads
    with torch.autocast(queries.device.type, enabled=False):  # it would multiply in half precision
        rows, columns = (
            masked_values(values, mask).view(*values.shape[:2], num_heads, head_size).transpose(1, 2)
            for values, mask in ((queries, row_mask), (keys, column_mask))
        )
        return torch.matmul(rows, columns.transpose(2, 3)) / math.sqrt(head_size)


def attention_score_mse(teacher: Tensor, student: Tensor, row_mask: Tensor, column_mask: Tensor) -> Tensor:
    """Mean squared difference of raw attention scores: L_attn of TinyBERT (arXiv 1909.10351, section 3.1).

    1/h * sum over the heads a of MSE(A_a^S, A_a^T), each over the pairs of real tokens, averaged over samples.

    Args:
        teacher: Detached here. *Shape:* `(batch_size, num_heads, num_rows, num_columns)`
        student: *Shape:* `(batch_size, num_heads, num_rows, num_columns)`
        row_mask: 1 for rows that count. *Shape:* `(batch_size, num_rows)`
        column_mask: 1 for columns that count. *Shape:* `(batch_size, num_columns)`

    Returns:
        A scalar.

    Raises:
        ConfigurationError: If the shapes differ.
    """
    check_same_shape("attention scores", teacher, student)
    pairs = (row_mask != 0).unsqueeze(2) & (column_mask != 0).unsqueeze(1)
    difference = _filled(teacher.detach(), pairs, 0.0) - _filled(student, pairs, 0.0)
    return masked_mean(difference.square().mean(dim=1), pairs)


def attention_map_kl(teacher: Tensor, student: Tensor, row_mask: Tensor, column_mask: Tensor) -> Tensor:
    """KL(teacher || student) of the attention distributions, from their raw scores.

    1/(h |X|) * sum over the heads a and the rows t in X of KL(A_{a,t}^T || A_{a,t}^S), averaged over samples: L_map of
    Kim et al. for quantization-aware training (arXiv 2211.11014), L_AT of MiniLM (arXiv 2002.10957, section 3.1).

    Args:
        teacher: Raw scores, detached here. *Shape:* `(batch_size, num_heads, num_rows, num_columns)`
        student: Raw scores. *Shape:* `(batch_size, num_heads, num_rows, num_columns)`
        row_mask: 1 for rows that count; a sample without any contributes 0. *Shape:* `(batch_size, num_rows)`
        column_mask: 1 for columns that may be attended to. *Shape:* `(batch_size, num_columns)`

    Returns:
        A scalar.

    Raises:
        ConfigurationError: If the shapes differ.
    """
    check_same_shape("attention scores", teacher, student)
    columns = (column_mask != 0)[:, None, None, :]
    taught, learned = (
        torch.log_softmax(_filled(scores, columns, _MASKED_SCORE), dim=-1) for scores in (teacher.detach(), student)
    )
    divergences = (taught.exp() * (taught - learned)).masked_fill(~columns, 0.0).sum(dim=-1)
    return masked_mean(divergences.mean(dim=1), row_mask)


def _filled(scores: Tensor, counts: Tensor, value: float) -> Tensor:
    counts = counts if counts.dim() == scores.dim() else counts.unsqueeze(1)
    return scores.to(torch.promote_types(scores.dtype, torch.float32)).masked_fill(~counts, value)


__all__ = ["attention_map_kl", "attention_score_mse", "attention_scores"]
