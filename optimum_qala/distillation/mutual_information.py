"""MI-alpha: a lower bound on what the student's states tell about those of the teacher, token by token."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch
from torch import Tensor

from optimum_qala.errors import ConfigurationError

from .masking import check_same_shape
from .processes import rows_of_all_processes


@dataclass(frozen=True)
class ContrastOptions:
    """How tokens are told from each other.

    Args:
        alpha: From 0, the bound of NWJ, whose variance is high, to 1, InfoNCE, which never exceeds log(tokens).
        max_tokens: Tokens of a batch, of all processes together, that are compared with each other, drawn at random
            where there are more.
        seed: Decides the draw, with the number of tokens.

    Raises:
        ConfigurationError: If `alpha` is not in [0, 1], or `max_tokens` leaves no token to compare one with.
    """

    alpha: float = 0.5
    max_tokens: int = 512
    seed: str = ""

    def __post_init__(self) -> None:
        if not 0.0 <= self.alpha <= 1.0:
            raise ConfigurationError(f"alpha {self.alpha} of the mutual information is not in [0, 1]")
        if self.max_tokens < 2:
            raise ConfigurationError(
                f"{self.max_tokens} tokens are too few for the mutual information, which tells one from others"
            )


def interpolated_bound(scores: Tensor, alpha: float) -> Tensor:
    """The interpolated lower bound of the mutual information of x and y, in nats.

    With K pairs (x_j, y_j), a critic f and the baseline b = e,

        I_alpha = 1 + mean over j of log(e^f(x_j, y_j) / (alpha m(y_j) + (1 - alpha) b))
                    - mean over i != j of e^f(x_i, y_j) / (alpha m'(y_j) + (1 - alpha) b)

    where m(y_j) is the mean of e^f(x_i, y_j) over all i, and m' that over i != j, because y_j must not depend on the x
    of the last term (the nonlinearly interpolated bound of Poole et al., arXiv 1905.06922; MI-alpha of Distiller,
    arXiv 2109.11105). alpha = 1 is InfoNCE, log K - cross-entropy of finding x_j among all x; alpha = 0 is NWJ, TUBA
    with a constant baseline. Between the two, m(y_j) holds x_j itself, as in InfoNCE, and is not independent of it:
    for few tokens the estimate may lie a little above the bound.

    The constant loses nothing: a critic that is affine in y, as that of `AuxiliaryLosses`, adds some g(y) to f, which
    is the same as a learned baseline e^(1 - g(y)).

    Args:
        scores: f(x_i, y_j) in row i and column j. *Shape:* `(num_tokens, num_tokens)`
        alpha: In [0, 1]. The last term is at most 1 / alpha; at 0 it overflows where scores are beyond 88.

    Returns:
        A scalar; 0 for fewer than two tokens, which tell nothing.
    """
    num_tokens = len(scores)
    if num_tokens < 2:
        return scores.sum() * 0.0
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    matching = torch.eye(num_tokens, dtype=torch.bool, device=scores.device)
    log_mean = scores.logsumexp(dim=0) - math.log(num_tokens)
    log_mean_of_others = scores.masked_fill(matching, -math.inf).logsumexp(dim=0) - math.log(num_tokens - 1)
    joint = (scores.diagonal() - _log_mixture(log_mean, alpha)).mean()
    product = (log_mean_of_others - _log_mixture(log_mean_of_others, alpha)).exp().mean()
    return 1.0 + joint - product


def _log_mixture(log_mean: Tensor, alpha: float) -> Tensor:
    """log(alpha m + (1 - alpha) e)."""
    log_alpha, log_rest = (math.log(share) if share > 0.0 else -math.inf for share in (alpha, 1.0 - alpha))
    return torch.logaddexp(log_mean + log_alpha, torch.full_like(log_mean, log_rest + 1.0))


def mutual_information_loss(teacher: Tensor, student: Tensor, mask: Tensor, options: ContrastOptions) -> Tensor:
    """-I_alpha of the tokens of a batch, for the critic f(x, y) = x y / sqrt(width) of projected states.

    Tokens are told from those of all samples, also of those that other processes have, so that several processes give
    the loss of one with all samples; the gradient is as `rows_of_all_processes` says. Two halves of a batch that
    follow each other, as accumulated gradients have them, do not average to the whole.

    Args:
        teacher: States of the teacher, projected. *Shape:* `(batch_size, num_tokens, width)`
        student: States of the student, projected. *Shape:* `(batch_size, num_tokens, width)`
        mask: 1 for tokens that count. *Shape:* `(batch_size, num_tokens)`
        options: The kind of bound, and how many tokens.

    Returns:
        A scalar, negative where the student tells something; 0 for fewer than two tokens.

    Raises:
        ConfigurationError: If the shapes differ.
    """
    check_same_shape("projected states", teacher, student)
    tokens = (mask != 0).flatten().nonzero().flatten()
    kind = torch.promote_types(student.dtype, torch.float32)
    pairs = rows_of_all_processes(
        torch.cat([states.flatten(0, 1)[tokens].to(kind) for states in (teacher, student)], dim=-1)
    )
    if len(pairs) > options.max_tokens:
        # Not for cryptography. The same on every device, in every process and in a resumed training.
        chosen = random.Random(options.seed).sample(range(len(pairs)), options.max_tokens)  # noqa: S311
        pairs = pairs[torch.tensor(sorted(chosen), device=pairs.device)]
    taught, learned = pairs.chunk(2, dim=-1)
    with torch.autocast(student.device.type, enabled=False):  # it would multiply in half precision
        scores = taught @ learned.T / math.sqrt(student.shape[-1])
    return -interpolated_bound(scores, options.alpha)


__all__ = ["ContrastOptions", "interpolated_bound", "mutual_information_loss"]
