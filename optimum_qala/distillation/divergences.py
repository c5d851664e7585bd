"""Divergences between the logits of a teacher and of a student, in log space.

The reference code of the Length-Adaptive Transformer feeds `log_softmax(full)` and `softmax(sub)` to `KLDivLoss`,
which is the reverse divergence with the gradient through its target; an underflowed probability there turns the
gradient into NaN. Here every form works on log-probabilities and on finite masks only.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from optimum_qala._checks import check_number
from optimum_qala.errors import ConfigurationError


# Stands for -inf at masked positions, where the highest logit that counts is 0: exp of it is 0 in every precision, and
# its products with 0 are 0, not NaN.
_MASKED_LOGIT = -1e4

# With 384 positions and float32, the loss errs by 0.1 % at 1e3, by 15 % at 1e4, and is -2e5 instead of 64 at 1e6,
# where all probabilities are alike; at 1e-40 the divided logits overflow.
TEMPERATURES = (1e-3, 1e3)


def _log_probabilities(logits: Tensor, mask: Tensor, temperature: float) -> Tensor:
    hidden, logits = mask == 0, logits.to(torch.promote_types(logits.dtype, torch.float32))
    # Low temperatures would put logits far below 0 also below the masked ones.
    highest = logits.detach().masked_fill(hidden, torch.finfo(logits.dtype).min).amax(dim=-1, keepdim=True)
    return torch.log_softmax(((logits - highest) / temperature).masked_fill(hidden, _MASKED_LOGIT), dim=-1)


def forward_kl(teacher_log_probs: Tensor, student_log_probs: Tensor) -> Tensor:
    """KL(teacher || student), the usual distillation loss (Hinton et al., arXiv 1503.02531).

    Args:
        teacher_log_probs: *Shape:* `(batch_size, sequence_length)`
        student_log_probs: *Shape:* `(batch_size, sequence_length)`

    Returns:
        One divergence a row. *Shape:* `(batch_size,)`
    """
    return (teacher_log_probs.exp() * (teacher_log_probs - student_log_probs)).sum(dim=-1)


def reverse_kl(teacher_log_probs: Tensor, student_log_probs: Tensor) -> Tensor:
    """KL(student || teacher), what the Length-Adaptive Transformer's code computes (arXiv 2010.07003, section 3.2).

    Args:
        teacher_log_probs: *Shape:* `(batch_size, sequence_length)`
        student_log_probs: *Shape:* `(batch_size, sequence_length)`

    Returns:
        One divergence a row. *Shape:* `(batch_size,)`
    """
    return forward_kl(student_log_probs, teacher_log_probs)


def skew_kl(teacher_log_probs: Tensor, student_log_probs: Tensor, skew: float = 0.1) -> Tensor:
    """KL(teacher || skew * teacher + (1 - skew) * student), bounded by -log(skew) (DistiLLM, arXiv 2402.03898).

    Args:
        teacher_log_probs: *Shape:* `(batch_size, sequence_length)`
        student_log_probs: *Shape:* `(batch_size, sequence_length)`
        skew: Share of the teacher in the mixture, 0 < skew < 1.

    Returns:
        One divergence a row. *Shape:* `(batch_size,)`
    """
    mixture = torch.logaddexp(teacher_log_probs + math.log(skew), student_log_probs + math.log1p(-skew))
    return forward_kl(teacher_log_probs, mixture)


DIVERGENCES: dict[str, Callable[..., Tensor]] = {"forward": forward_kl, "reverse": reverse_kl, "skew": skew_kl}


def check_divergence(kind: str, temperature: float, skew: float) -> None:
    """Refuse settings that would train nonsense quietly.

    Args:
        kind: "forward", "reverse" or "skew".
        temperature: Divides both logits.
        skew: Share of the teacher in the mixture of "skew".

    Raises:
        ConfigurationError: If one is not legal.
    """
    if kind not in DIVERGENCES:
        raise ConfigurationError(f"divergence {kind!r} is not one of {sorted(DIVERGENCES)}")
    check_number("temperature", temperature)
    check_number("skew", skew)
    lowest, highest = TEMPERATURES
    if not lowest <= temperature <= highest:  # also catches nan
        raise ConfigurationError(
            f"temperature {temperature} is not from {lowest} to {highest}; beyond, losses turn into noise and NaN"
        )
    if not 0.0 < skew < 1.0:
        raise ConfigurationError(f"skew {skew} is not between 0 and 1, both excluded")


def logit_divergence(
    teacher_logits: Tensor,
    student_logits: Tensor,
    mask: Tensor,
    kind: str = "forward",
    temperature: float = 1.0,
    skew: float = 0.1,
) -> Tensor:
    """Compare the distributions over positions that two models give, for instance for the start of an answer.

    Args:
        teacher_logits: Detached here. *Shape:* `(batch_size, sequence_length)`
        student_logits: *Shape:* `(batch_size, sequence_length)`
        mask: 1 for positions that count; padding does not. A row without any contributes 0.
            *Shape:* `(batch_size, sequence_length)`
        kind: "forward", "reverse" or "skew".
        temperature: Divides both logits; the result is multiplied by its square, which keeps the size of gradients.
        skew: Share of the teacher in the mixture of "skew".

    Returns:
        Mean over rows, a scalar.

    Raises:
        ConfigurationError: If a setting is not legal or the shapes differ.
    """
    check_divergence(kind, temperature, skew)
    if teacher_logits.shape != student_logits.shape:
        raise ConfigurationError(
            f"the teacher's logits have shape {tuple(teacher_logits.shape)}, the student's "
            f"{tuple(student_logits.shape)}; both must see the same tokens"
        )
    teacher = _log_probabilities(teacher_logits.detach(), mask, temperature)
    student = _log_probabilities(student_logits, mask, temperature)
    options = {"skew": skew} if kind == "skew" else {}
    return DIVERGENCES[kind](teacher, student, **options).mean() * temperature**2


def span_divergence(
    teacher: tuple[Tensor, Tensor],
    student: tuple[Tensor, Tensor],
    mask: Tensor,
    kind: str = "forward",
    temperature: float = 1.0,
    skew: float = 0.1,
) -> Tensor:
    """Mean of the divergences of the start and of the end logits (Length-Adaptive Transformer, arXiv 2010.07003).

    Args:
        teacher: Start and end logits. *Shape:* `(batch_size, sequence_length)` each
        student: Start and end logits. *Shape:* `(batch_size, sequence_length)` each
        mask: 1 for positions that count. *Shape:* `(batch_size, sequence_length)`
        kind: "forward", "reverse" or "skew".
        temperature: Divides the logits.
        skew: Share of the teacher in the mixture of "skew".

    Returns:
        A scalar.

    Raises:
        ConfigurationError: If a setting is not legal or the shapes differ.
    """
    start, end = (
        logit_divergence(teacher_logits, student_logits, mask, kind, temperature, skew)
        for teacher_logits, student_logits in zip(teacher, student, strict=True)
    )
    return (start + end) / 2
