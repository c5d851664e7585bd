"""Losses that compare one vector a token: embeddings, hidden states and attention outputs."""

from __future__ import annotations

from torch import Tensor

from .masking import check_same_shape, masked_mean, masked_values


def state_mse(teacher: Tensor, student: Tensor, mask: Tensor) -> Tensor:
    """Mean squared difference of the vectors of tokens.

    With X the real tokens of a sample and d the width: 1/(|X| d) * sum over t in X of ||T_t - S_t||^2, averaged over
    samples. On hidden states this is L_hidn = MSE(H^S W_h, H^T) of TinyBERT (arXiv 1909.10351, section 3.1) and on
    embeddings L_embd = MSE(E^S W_e, E^T), with the student projected by the caller; on the output of the attention
    block, residual and LayerNorm included, it is L_output of Kim et al. (arXiv 2211.11014).

    Args:
        teacher: Detached here. *Shape:* `(batch_size, num_tokens, width)`
        student: *Shape:* `(batch_size, num_tokens, width)`
        mask: 1 for tokens that count. A sample without any contributes 0. *Shape:* `(batch_size, num_tokens)`

    Returns:
        A scalar.

    Raises:
        ConfigurationError: If the shapes differ.
    """
    check_same_shape("states", teacher, student)
    difference = masked_values(teacher.detach(), mask) - masked_values(student, mask)
    return masked_mean(difference.square().mean(dim=-1), mask)


__all__ = ["state_mse"]
