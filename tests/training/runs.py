"""Trainings of a tiny model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from optimum_qala import QuaLATrainer, QuaLATrainingArguments
from optimum_qala.question_answering.features import WindowOptions, collate, tokenize_for_training
from optimum_qala.question_answering.records import QARecord


_TRAINER_SETTINGS = ("eval_dataset", "teacher", "callbacks", "decode_options")
# A training of four steps that leaves nothing behind.
TINY_RUN: dict[str, Any] = {
    "use_cpu": True,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "max_steps": 4,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}
WINDOWS = WindowOptions(max_length=48, doc_stride=8, max_question_length=16)


def make_trainer(tmp_path: Path, model: Any, tokenizer: Any, records: list[QARecord], **settings: Any) -> QuaLATrainer:
    trainer_settings = {name: settings.pop(name) for name in _TRAINER_SETTINGS if name in settings}
    defaults = TINY_RUN | {"output_dir": str(tmp_path / "out"), "drop_ratio_bound": 0.4}
    return QuaLATrainer(
        model,
        QuaLATrainingArguments(**(defaults | settings)),
        train_dataset=records,
        window_options=WINDOWS,
        processing_class=tokenizer,
        **trainer_settings,
    )


def gradients_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


def make_batch(records: list[QARecord], tokenizer: Any) -> dict[str, torch.Tensor]:
    features = tokenize_for_training(records, tokenizer, WINDOWS)
    return collate([features[index] for index in range(len(features))], tokenizer)


class StopAfter(TrainerCallback):
    """Interrupts a training."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def assert_resumes_identically(
    stop_after: int, tmp_path: Path, model: Any, tokenizer: Any, records: list[QARecord], **settings: Any
) -> None:
    """A training that was interrupted and resumed ends with the weights of one that was not."""
    start = copy.deepcopy(model)
    whole = make_trainer(tmp_path / "whole", model, tokenizer, records, **settings)
    whole.train()
    killed = make_trainer(
        tmp_path / "killed", copy.deepcopy(start), tokenizer, records, callbacks=[StopAfter(stop_after)], **settings
    )
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    resumed = make_trainer(tmp_path / "killed", copy.deepcopy(start), tokenizer, records, **settings)
    resumed.train(resume_from_checkpoint=True)
    for (name, expected), value in zip(
        whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True
    ):
        assert torch.equal(expected, value), name
