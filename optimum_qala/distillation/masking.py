"""What every loss on tokens does first and last: leave padding out, compute in float32, average."""

from __future__ import annotations

import torch
from torch import Tensor

from optimum_qala.errors import ConfigurationError


def masked_values(values: Tensor, mask: Tensor) -> Tensor:
    """Make values at least float32 and set those of masked tokens to 0.

    Nothing that stands at a masked token, not even NaN, reaches the result or a gradient.

    Args:
        values: *Shape:* `(batch_size, num_tokens, width)`
        mask: 1 for tokens that count. *Shape:* `(batch_size, num_tokens)`

    Returns:
        *Shape:* `(batch_size, num_tokens, width)`
    """
    return values.to(torch.promote_types(values.dtype, torch.float32)).masked_fill(mask.unsqueeze(-1) == 0, 0.0)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the entries of each sample that count, then over the samples.

    The mean over samples makes two halves of a batch average to the whole, as accumulated gradients and several
    processes need.

    Args:
        values: Finite, also where masked. *Shape:* `(batch_size, ...)`
        mask: 1 for entries that count. A sample without any contributes 0. *Shape:* that of `values`

    Returns:
        A scalar.
    """
    mask = mask.to(values.dtype)
    sums, counts = ((part.flatten(1).sum(dim=1)) for part in (values * mask, mask))
    return (sums / counts.clamp(min=1.0)).mean()


def check_same_shape(what: str, teacher: Tensor, student: Tensor) -> None:
    """Refuse to compare what cannot be compared number by number.

    Args:
        what: Name for the message.
        teacher: What the teacher gives.
        student: What the student gives.

    Raises:
        ConfigurationError: If the shapes differ; broadcasting would compare other tokens than meant.
    """
    if teacher.shape != student.shape:
        raise ConfigurationError(
            f"the teacher's {what} have shape {tuple(teacher.shape)}, the student's {tuple(student.shape)}; "
            "both must see the same tokens, at the same width or with the same number of heads"
        )


__all__ = ["check_same_shape", "masked_mean", "masked_values"]
