"""The loss of one pass, the parts that are added to it, and their means for the log."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class WeightedLoss:
    """A loss that is added to that of a pass.

    Args:
        weight: Its weight.
        loss: A scalar, not weighted.
    """

    weight: float
    loss: Tensor


@dataclass
class PassLoss:
    """What one pass through the model costs.

    Args:
        loss: From the labels and the logits, a scalar.
        extras: What is added to it, by the name that it is logged under.
    """

    loss: Tensor
    extras: dict[str, WeightedLoss] = field(default_factory=dict)

    @property
    def total(self) -> Tensor:
        """The weighted sum, a scalar."""
        total = self.loss
        for extra in self.extras.values():
            total = total + extra.weight * extra.loss
        return total


class LossLog:
    """Remembers the losses of passes until they are logged."""

    def __init__(self) -> None:
        self._losses: dict[str, list[Tensor]] = {}

    def note(self, name: str, pass_loss: PassLoss) -> None:
        """Remember the losses of a pass.

        Args:
            name: Kind of pass.
            pass_loss: Its losses.
        """
        self._losses.setdefault(name, []).append(pass_loss.loss.detach())
        for part, extra in pass_loss.extras.items():
            self._losses.setdefault(f"{name}_{part}", []).append(extra.loss.detach())

    def take(self) -> dict[str, float]:
        """Return the mean of each loss since the last call, under `loss_<pass>` and `loss_<pass>_<part>`."""
        means = {f"loss_{name}": round(torch.stack(losses).mean().item(), 4) for name, losses in self._losses.items()}
        self._losses = {}
        return means


__all__ = ["LossLog", "PassLoss", "WeightedLoss"]
