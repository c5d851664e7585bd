"""The loss of one pass, the parts that are added to it, and their means for the log."""

from __future__ import annotations

from collections.abc import Callable
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
    """Sums the losses of passes until they are logged."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def note(self, name: str, pass_loss: PassLoss) -> None:
        """Remember the losses of a pass.

        Args:
            name: Kind of pass.
            pass_loss: Its losses.
        """
        parts = {f"{name}_{part}": extra.loss for part, extra in pass_loss.extras.items()}
        for key, loss in ({name: pass_loss.loss} | parts).items():
            value = loss.detach().float()
            self._sums[key] = self._sums[key] + value if key in self._sums else value
            self._counts[key] = self._counts.get(key, 0) + 1

    def take(self, total: Callable[[Tensor], Tensor] | None = None) -> dict[str, float]:
        """Return the mean of each loss since the last call, over all processes.

        Args:
            total: Adds up a tensor over the processes, where there are several. All of them have noted the same
                losses as often, since they draw the same sub-models.

        Returns:
            The means, under `loss_<pass>` and `loss_<pass>_<part>`.
        """
        if not self._sums:
            return {}
        sums = torch.stack(list(self._sums.values()))
        counts = torch.tensor([float(count) for count in self._counts.values()], device=sums.device)
        sums, counts = (total or torch.clone)(torch.stack([sums, counts]))
        means = {
            f"loss_{name}": round(mean, 4) for name, mean in zip(self._sums, (sums / counts).tolist(), strict=True)
        }
        self._sums, self._counts = {}, {}
        return means


__all__ = ["LossLog", "PassLoss", "WeightedLoss"]
