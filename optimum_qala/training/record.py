"""What a training leaves for the model card: how it was done, and on what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_utils import TrainOutput

from optimum_qala._folders import source_name, write_json
from optimum_qala.models.budget_choice import cpu_name
from optimum_qala.training.arguments import QuaLATrainingArguments
from optimum_qala.training.hub import RECORD_NAME
from optimum_qala.training.recipe import RECIPE_FILE, added_fields
from optimum_qala.training.trainer import QuaLATrainer


__all__ = ["RECORD_NAME", "SOURCES", "training_record", "write_training_record"]

# What a model is trained from, and on: flags of `train`, and keys of training.json.
SOURCES = ("model", "data", "validation_data", "teacher")

# Arguments of transformers' Trainer that decide what is learnt: these always, whatever their values are ...
ALWAYS = ("num_train_epochs", "per_device_train_batch_size", "learning_rate", "seed")
# ... and these, as those of `QuaLATrainingArguments`, where they are not the default.
WHERE_CHANGED = ("max_steps", "gradient_accumulation_steps", "weight_decay", "warmup_steps", "bf16", "fp16")


def write_training_record(
    folder: str | Path,
    trainer: QuaLATrainer,
    output: TrainOutput,
    *,
    num_questions: int,
    sources: Mapping[str, str | None] | None = None,
) -> dict[str, Any]:
    """Write training.json and recipe.yaml, after the last evaluation.

    Args:
        folder: Folder of the trained model.
        trainer: What trained it.
        output: What its `train` returned.
        num_questions: Questions that it was trained on.
        sources: Model, data, validation data and teacher, by the names in `SOURCES`: paths, of which the last part is
            kept, or ids on the Hub; None for what there was not.

    Returns:
        What training.json says of the result: loss, steps, seconds and the scores of the last evaluation.
    """
    evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    scores = {name.removeprefix("eval_"): value for name, value in evaluations[-1].items()} if evaluations else {}
    summary = {
        "num_questions": num_questions,
        "num_sub_models": trainer.args.num_sub_models,
        "steps": output.global_step,
        "train_loss": output.training_loss,
        "seconds": output.metrics["train_runtime"],
        "validation": {name: value for name, value in scores.items() if name.endswith(("f1", "exact_match"))},
    }
    given = {name: (sources or {}).get(name) for name in SOURCES}
    names = {name: None if source is None else source_name(source) for name, source in given.items()}
    record = summary | names | training_record(trainer.args) | {"log": trainer.state.log_history}
    write_json(Path(folder) / RECORD_NAME, record)
    trainer.args.save_recipe(Path(folder) / RECIPE_FILE)
    return summary


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
