"""What a training leaves for the model card: how it was done, and on what."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

import torch

from optimum_qala.models.budget_choice import cpu_name
from optimum_qala.training.arguments import QuaLATrainingArguments
from optimum_qala.training.recipe import added_fields


__all__ = ["training_record"]

# Arguments of transformers' Trainer that decide what is learnt: these always, whatever their values are ...
ALWAYS = ("num_train_epochs", "per_device_train_batch_size", "learning_rate", "seed")
# ... and these, as those of `QuaLATrainingArguments`, where they are not the default.
WHERE_CHANGED = ("max_steps", "gradient_accumulation_steps", "weight_decay", "warmup_steps", "bf16", "fp16")


def training_record(arguments: QuaLATrainingArguments) -> dict[str, Any]:
    """Describe how a model is trained here.

    Args:
        arguments: The arguments of the training.

    Returns:
        `arguments` by name, without those that say where files lie or what is logged, and `hardware`.
    """
    described = added_fields(QuaLATrainingArguments) | {*WHERE_CHANGED}
    chosen = {name: getattr(arguments, name) for name in ALWAYS}
    for field in fields(QuaLATrainingArguments):
        if field.name not in described or field.name == "eval_budgets":
            continue
        default = field.default if field.default_factory is MISSING else field.default_factory()
        value = getattr(arguments, field.name)
        if value != default and value not in (None, {}):
            chosen[field.name] = value
    return {"arguments": chosen, "hardware": _hardware()}


def _hardware() -> str:
    if not torch.cuda.is_available():
        return f"{cpu_name()}, {torch.get_num_threads()} threads"
    return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
