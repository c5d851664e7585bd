"""Self-attention relations: how the vectors of tokens relate to each other, whatever their width.

A relation is a distribution over tokens, so teacher and student may differ in width and in heads, and no projection is
needed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .attention import attention_map_kl, attention_scores


def relation_kl(teacher: Tensor, student: Tensor, mask: Tensor, num_relation_heads: int) -> Tensor:
    """KL(teacher || student) of the relations among queries, among keys or among values.

    The concatenated heads X are split again into A_r relation heads of size d_r = width / A_r, and
    R_a = softmax(X_a X_a^T / sqrt(d_r)). The loss is 1/(A_r |X|) * sum over a and t of KL(R_{a,t}^T || R_{a,t}^S),
    averaged over samples (MiniLMv2, arXiv 2012.15828, section 3.1).

    Args:
        teacher: Concatenated heads, detached here. *Shape:* `(batch_size, num_tokens, teacher_width)`
        student: Concatenated heads. *Shape:* `(batch_size, num_tokens, student_width)`
        mask: 1 for tokens that count. A sample without any contributes 0. *Shape:* `(batch_size, num_tokens)`
        num_relation_heads: A_r, which divides both widths.

    Returns:
        A scalar.

    Raises:
        ConfigurationError: If the number of relation heads does not divide a width, or the tokens differ.
    """
    taught, learned = (
        attention_scores(values, values, mask, mask, num_relation_heads) for values in (teacher.detach(), student)
    )
    return attention_map_kl(taught, learned, mask, mask)


def mean_relation_kl(
    teacher: tuple[Tensor, ...], student: tuple[Tensor, ...], masks: tuple[Tensor, ...], num_relation_heads: int
) -> Tensor:
    """Mean of several relation losses: with queries, keys and values the loss of MiniLMv2, alpha_i = 1/3.

    Args:
        teacher: Concatenated heads. *Shape:* `(batch_size, num_tokens, teacher_width)` each
        student: Concatenated heads. *Shape:* `(batch_size, num_tokens, student_width)` each
        masks: 1 for tokens that count. *Shape:* `(batch_size, num_tokens)` each
        num_relation_heads: Divides both widths.

    Returns:
        A scalar.

    Raises:
        ConfigurationError: As `relation_kl`.
    """
    losses = [relation_kl(*compared, num_relation_heads) for compared in zip(teacher, student, masks, strict=True)]
    return torch.stack(losses).mean()


__all__ = ["mean_relation_kl", "relation_kl"]
