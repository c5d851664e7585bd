"""A Trainer that also trains a module beside the model: in the optimizer and in checkpoints, never in the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Trainer

from optimum_qala.errors import CheckpointError


SIDE_MODULE_FILE = "auxiliary.safetensors"


class SideModuleTrainer(Trainer):
    """Trainer with `side_module`, whose parameters it optimizes as those of the model.

    They are no part of the gradient norm that `max_grad_norm` limits, for only the model's parameters are.

    Raises:
        CheckpointError: If a training goes on from a checkpoint without the parameters of the side module.
    """

    side_module: nn.Module

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Make the optimizer, and give it the parameters of the side module too.

        Args:
            model: Passed on.

        Returns:
            The optimizer.
        """
        optimizer = super().create_optimizer(model)
        known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        new = [parameter for parameter in self.side_module.parameters() if id(parameter) not in known]
        if new:
            optimizer.add_param_group({"params": new, "weight_decay": self.args.weight_decay})
        return optimizer  # type: ignore[no-any-return]

    def clear_side_gradients(self) -> None:
        """Forget the gradients of the last optimisation step; the Trainer does so for the model alone."""
        self.side_module.zero_grad()

    def share_side_gradients(self) -> None:
        """Average the gradients over the processes, as the wrapper of the model does for its own."""
        if self.accelerator.num_processes == 1 or not self.accelerator.sync_gradients:
            return
        for parameter in self.side_module.parameters():
            if parameter.grad is not None:
                parameter.grad = self.accelerator.reduce(parameter.grad, reduction="mean")

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        state = self.side_module.state_dict()
        if state and self.args.should_save:
            save_file(state, Path(output_dir) / SIDE_MODULE_FILE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self.side_module.state_dict():
            path = Path(checkpoint) / SIDE_MODULE_FILE
            if not path.is_file():
                raise CheckpointError(
                    f"{checkpoint} holds no {SIDE_MODULE_FILE}: it comes from a training without the projections of "
                    "these auxiliary losses, so a training with them cannot go on from it"
                )
            self.side_module.load_state_dict(load_file(path))
        super()._load_optimizer_and_scheduler(checkpoint)


__all__ = ["SIDE_MODULE_FILE", "SideModuleTrainer"]
