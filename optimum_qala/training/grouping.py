"""Batches of similar length, in an order that a resumed training repeats."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from transformers import Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler


__all__ = ["EpochLengthGroupedSampler", "LengthGroupingTrainer"]


class EpochLengthGroupedSampler(LengthGroupedSampler):
    """Groups samples of similar length in an order that follows from a seed and the epoch alone.

    The sampler of transformers draws from the global random state, which a resumed training restores only after it
    has skipped the batches of the epoch that were done, so that it would skip others.

    Args:
        seed: The seed.
        args: Arguments of `LengthGroupedSampler`.
        kwargs: Likewise.
    """

    def __init__(self, *args: Any, seed: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; accelerate's data loaders call it."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator = torch.Generator()
        self.generator.manual_seed((self.seed << 20) + self.epoch)
        return super().__iter__()  # type: ignore[no-any-return]


class LengthGroupingTrainer(Trainer):
    """Trainer whose batches of similar length come in an order that a resumed training repeats."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        sampler = super()._get_train_sampler(train_dataset)
        if type(sampler) is LengthGroupedSampler:
            return EpochLengthGroupedSampler(sampler.batch_size, lengths=sampler.lengths, seed=self.args.seed)
        return sampler
