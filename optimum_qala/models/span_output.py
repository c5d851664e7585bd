"""What a span head gives: logits of start and end, and their loss."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from transformers.modeling_outputs import QuestionAnsweringModelOutput


@dataclass
class QuaLAQuestionAnsweringOutput(QuestionAnsweringModelOutput):
    """Start and end logits, how far each token got, and the logits of earlier exits.

    Args:
        survival: Number of layers that each token went through, if asked for.
            *Shape:* `(batch_size, sequence_length)`
        exit_logits: For every number of layers from 0 on, start and end logits of a pass that stops there, if asked
            for. *Shape:* `(batch_size, sequence_length, 2)` each
    """

    survival: Tensor | None = None
    exit_logits: tuple[Tensor, ...] | None = None


def span_loss(logits: tuple[Tensor, Tensor], positions: tuple[Tensor, Tensor]) -> Tensor:
    """Mean of the cross-entropies of the start and of the end.

    Args:
        logits: Start and end logits. *Shape:* `(batch_size, sequence_length)` each
        positions: Index of the answer's first and last token; one outside the sequence is ignored.
            *Shape:* `(batch_size,)` each

    Returns:
        A scalar.
    """
    ignored = logits[0].shape[1]
    start, end = (
        nn.functional.cross_entropy(values, index.reshape(-1).clamp(0, ignored), ignore_index=ignored)
        for values, index in zip(logits, positions, strict=True)
    )
    return (start + end) / 2


__all__ = ["QuaLAQuestionAnsweringOutput", "span_loss"]
