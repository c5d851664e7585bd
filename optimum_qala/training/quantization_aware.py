"""Quantization-aware training: a Trainer whose model computes with rounded weights and activations.

Every pass of a training step does, sub-models included, and so does evaluation. What is optimized and saved are the
weights before rounding; what else was learned, the ranges of activations, goes into the model's configuration.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput

from optimum_qala.errors import CheckpointError, ConfigurationError
from optimum_qala.models.configuration_quala_minilm import FULL_BUDGET, QuaLAMiniLMConfig
from optimum_qala.quantization.fake_quantization import FakeQuantization
from optimum_qala.quantization.outliers import find_outlier_neurons
from optimum_qala.quantization.qat_record import QATRecord
from optimum_qala.training.arguments import QuaLATrainingArguments


__all__ = ["QuantizationAwareTrainer"]

# Windows of the training data in which outlier neurons and the first ranges are found.
FIRST_WINDOWS = 32


class QuantizationAwareTrainer(Trainer):
    """Trainer that rounds weights and activations where `args.quantization_aware` says so.

    Outlier neurons are found before the first step and stay what they are. Ranges are the same in every process, and
    change only between two optimisation steps.

    Raises:
        CheckpointError: If a training goes on from a checkpoint of one that was not quantization-aware, or had
            weights of other bits.
        ConfigurationError: If there is nothing to find ranges with: neither training data nor a model that was
            trained so.
    """

    args: QuaLATrainingArguments
    fake_quantization: FakeQuantization | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_callback(_LearnRanges(self))

    def compute_loss_context_manager(self) -> contextlib.ExitStack:
        """Make the context in which the model computes a loss, in training and evaluation.

        Returns:
            The Trainer's, and that of the rounding.
        """
        stack: contextlib.ExitStack = super().compute_loss_context_manager()
        if self.args.quantization_aware:
            stack.enter_context(self._quantization().active(observe=self.model.training))
        return stack

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate as the Trainer does; weights are rounded once.

        Args:
            args: Passed on.
            kwargs: Passed on.

        Returns:
            The output.
        """
        if not self.args.quantization_aware:
            return super().evaluation_loop(*args, **kwargs)
        with torch.no_grad(), self._quantization().active():
            return super().evaluation_loop(*args, **kwargs)

    def _quantization(self) -> FakeQuantization:
        """Return what rounds; of a model that was trained so, or found with the training data, if there is none."""
        if self.fake_quantization is None and self.model.config.quantization_aware is not None:
            self._take(QATRecord.of(self.model.config, "the model"))
        elif self.fake_quantization is None:
            self._start()
        assert self.fake_quantization is not None
        return self.fake_quantization

    def _take(self, record: QATRecord) -> None:
        self.fake_quantization = FakeQuantization.from_record(self.model, record, averaging=self.args.range_averaging)

    def _start(self) -> None:
        """Find outlier neurons and the first ranges, in the same windows in every process."""
        windows, model = list(self._first_windows()), self.model
        was_training = model.training
        neurons = {}
        if self.args.outlier_factor > 0.0:
            neurons = find_outlier_neurons(model, windows, self.args.outlier_factor)
        quantization = FakeQuantization(
            model,
            weight_bits=self.args.weight_bits,
            outlier_neurons=neurons,
            averaging=self.args.range_averaging,
        )
        try:
            model.eval()
            with torch.no_grad(), quantization.active(observe=True):
                for window in windows:
                    names = ("input_ids", "attention_mask", "token_type_ids")
                    model(**{name: window[name] for name in names if name in window}, budget=FULL_BUDGET)
        finally:
            model.train(was_training)
        quantization.update()
        self.fake_quantization = quantization

    def _first_windows(self) -> Iterator[dict[str, Any]]:
        dataset: Any = self.train_dataset
        if dataset is None:
            raise ConfigurationError(
                "quantization_aware=True needs windows to find the ranges of activations in: give a train_dataset, "
                "or a model that was trained so"
            )
        if isinstance(dataset, IterableDataset):
            rows = list(islice(dataset, FIRST_WINDOWS))
        else:
            rng = random.Random(self.args.seed)  # noqa: S311  # not for cryptography
            chosen = sorted(rng.sample(range(len(dataset)), min(FIRST_WINDOWS, len(dataset))))
            rows = [dataset[index] for index in chosen]
        collate = self._get_collator_with_removed_columns(self.data_collator)
        # One by one, so without padding, and without a DataLoader, which draws a random number.
        return (self._prepare_inputs(collate([row])) for row in rows)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        self.write_record()
        super()._save(output_dir, state_dict)

    def write_record(self) -> None:
        """Write what was learned into the model's configuration."""
        if self.fake_quantization is not None:
            self.model.config.quantization_aware = self.fake_quantization.record.to_dict()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self.args.quantization_aware:
            self._take(self._stored_record(checkpoint))
        super()._load_optimizer_and_scheduler(checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.args.quantization_aware:
            self._take(self._stored_record(str(self.state.best_model_checkpoint)))

    def _stored_record(self, checkpoint: str) -> QATRecord:
        config = QuaLAMiniLMConfig.from_pretrained(checkpoint)
        if config.quantization_aware is None:
            raise CheckpointError(
                f"{Path(checkpoint).name} comes from a training without quantization_aware=True, so a training with "
                "it cannot go on from there"
            )
        record = QATRecord.of(config, Path(checkpoint).name)
        if record.weight_bits != self.args.weight_bits:
            raise CheckpointError(
                f"{Path(checkpoint).name} comes from a training with weight_bits {record.weight_bits}, so one with "
                f"weight_bits {self.args.weight_bits} cannot go on from there"
            )
        return record

    def begin_training(self, is_resumed: bool) -> None:
        """Find ranges anew, unless the training goes on from a checkpoint.

        Args:
            is_resumed: Steps were done before.
        """
        if not self.args.quantization_aware:
            self.model.config.quantization_aware = None  # of an earlier training, whose weights these will not be
        elif not is_resumed:
            self._start()

    def learn_ranges(self) -> None:
        """Let the ranges follow what this optimisation step saw, in all processes."""
        if self.fake_quantization is not None:
            self.fake_quantization.update(lambda sums: self.accelerator.reduce(sums, reduction="sum"))


class _LearnRanges(TrainerCallback):
    """Tells the Trainer where a training begins and ends, and where a step does."""

    def __init__(self, trainer: QuantizationAwareTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.begin_training(is_resumed=state.global_step > 0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.learn_ranges()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.write_record()
