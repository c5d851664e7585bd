"""`optimum-cli qala train`: fine-tune a model for every budget."""

from __future__ import annotations

import shutil
from argparse import Namespace
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from optimum_qala._compat import require
from optimum_qala.checkpoints import check_same_tokens
from optimum_qala.cli.console import Console
from optimum_qala.cli.loading import LoadedModel, load_model
from optimum_qala.cli.options import given, window_options
from optimum_qala.cli.outputs import resumable_folder, run_settings
from optimum_qala.errors import BackendError
from optimum_qala.question_answering.features import WindowOptions, collate
from optimum_qala.question_answering.records import QARecord, load_records
from optimum_qala.training.arguments import QuaLATrainingArguments
from optimum_qala.training.recipe import load_recipe, override
from optimum_qala.training.record import SOURCES, write_training_record
from optimum_qala.training.trainer import QuaLATrainer


# Share of the run between two checkpoints, and between two lines of the log: an interruption costs little.
CHECKPOINT_SHARE = 0.05
LOGGING_SHARE = 0.05
# The file that the Trainer writes last into a checkpoint: without it the checkpoint is half-written.
LAST_CHECKPOINT_FILE = "trainer_state.json"
# Where the Trainer writes the events of TensorBoard, in its output folder.
RUNS_FOLDER = "runs"


def run(args: Namespace, console: Console) -> None:
    """Fine-tune a model.

    Args:
        args: The parsed command line.
        console: Where to write.
    """
    if getattr(args, "backend", "torch") != "torch":
        raise BackendError(
            f"--backend {args.backend} does not train; train with torch, then quantize for {args.backend}"
        )
    check_reporting(args)
    limit = getattr(args, "limit", None)
    records = load_records(args.data, require_answers=True, limit=limit)
    validation = load_records(args.validation_data, require_answers=True) if "validation_data" in args else []
    recipe = load_recipe(args.recipe, QuaLATrainingArguments) if "recipe" in args else {}
    arguments = override(recipe, given(args, QuaLATrainingArguments))
    settings = run_settings(args, inputs=(*SOURCES, "recipe"))
    with resumable_folder(args.output, settings) as work:
        set_seed(arguments.get("seed", QuaLATrainingArguments.seed))  # before the model, whose span head may be new
        changes = _config_overrides(args)
        loaded = load_model(
            args.model, "torch", revision=getattr(args, "revision", None), allow_new_head=True, **changes
        )
        teacher = load_teacher(args.teacher, loaded.tokenizer) if "teacher" in args else None
        summary = train(
            loaded,
            records,
            validation,
            state=work.state,
            result=work.result,
            window_options=window_options(args, loaded.capacity),
            teacher=teacher,
            console=console,
            eval_budgets=getattr(args, "budget", []),
            sources={name: getattr(args, name) for name in SOURCES if hasattr(args, name)},
            **arguments,
        )
    summary = {"output": args.output, **summary}
    scores = ", ".join(f"{name} {value:.2f}" for name, value in summary["validation"].items())
    console.result(summary, f"trained model written to {args.output}{f' ({scores})' if scores else ''}")


def train(
    loaded: LoadedModel,
    records: list[QARecord],
    validation: list[QARecord],
    *,
    state: Path,
    result: Path,
    window_options: WindowOptions,
    console: Console,
    teacher: Any = None,
    sources: Mapping[str, str] | None = None,
    **arguments: Any,
) -> dict[str, Any]:
    """Train, from the last checkpoint if there is one, and save model and tokenizer.

    Args:
        loaded: The model to train, in place.
        records: What to train on.
        validation: What to evaluate on after each epoch; nothing if empty.
        state: Folder for checkpoints.
        result: Folder for the trained model.
        window_options: How contexts are cut.
        console: Where progress goes.
        teacher: Model to learn from besides the labels.
        sources: Model, data, validation data and teacher, as `write_training_record` takes them.
        arguments: Fields of `QuaLATrainingArguments`.

    Returns:
        Loss, steps, seconds and the last scores on `validation`.
    """
    checkpoint = last_checkpoint(state)
    if checkpoint is not None:
        console.info(f"going on from {checkpoint.name}")
    policy: dict[str, Any] = {"save_steps": CHECKPOINT_SHARE, "logging_steps": LOGGING_SHARE, "report_to": "none"}
    is_cpu = not torch.accelerator.is_available()
    if is_cpu:
        loaded.model.set_attn_implementation("eager")  # trains faster there than fused attention
    trainer = QuaLATrainer(
        loaded.model,
        QuaLATrainingArguments(
            output_dir=str(state),
            save_strategy="steps",
            save_total_limit=1,
            eval_strategy="epoch" if validation else "no",
            use_cpu=is_cpu,
            disable_tqdm=not console.is_interactive,
            train_sampling_strategy="group_by_length",  # or half of every batch would be padding
            **(policy | arguments),
        ),
        train_dataset=records,
        eval_dataset=validation or None,
        teacher=teacher,
        window_options=window_options,
        processing_class=loaded.tokenizer,
        data_collator=partial(collate, tokenizer=loaded.tokenizer),
    )
    output = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    loaded.model.save_pretrained(result)
    loaded.tokenizer.save_pretrained(result)
    keep_events(state, result)
    return write_training_record(result, trainer, output, num_questions=len(records), sources=sources)


def check_reporting(args: Namespace) -> None:
    """Raise before any work if what `--report-to` names is not installed.

    Args:
        args: The parsed command line.

    Raises:
        MissingExtraError: If so.
    """
    if getattr(args, "report_to", "none") == "tensorboard":
        require("tensorboard", "--report-to tensorboard")


def keep_events(state: Path, result: Path) -> None:
    """Copy the events of TensorBoard, if there are any, beside the trained model.

    Args:
        state: Folder of the Trainer.
        result: Folder of the model.
    """
    if (state / RUNS_FOLDER).is_dir():
        shutil.copytree(state / RUNS_FOLDER, result / RUNS_FOLDER)


def last_checkpoint(state: Path) -> Path | None:
    """Find the newest complete checkpoint and remove half-written ones.

    Args:
        state: Folder of the Trainer.

    Returns:
        The checkpoint, or None if there is none.
    """
    checkpoints = sorted(state.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    complete = [path for path in checkpoints if (path / LAST_CHECKPOINT_FILE).is_file()]
    for path in checkpoints:
        if path not in complete:
            shutil.rmtree(path)
    return complete[-1] if complete else None


def load_teacher(path: str, tokenizer: Any) -> Any:
    """Load a teacher and check that it reads the same tokens as the student.

    Args:
        path: Folder or repository id of a fine-tuned model.
        tokenizer: Tokenizer of the student.

    Returns:
        The teacher.

    Raises:
        CheckpointError: If it cannot be loaded, has no trained span head, or has another vocabulary.
    """
    teacher = load_model(path, "torch")
    check_same_tokens(teacher.tokenizer, tokenizer, path)
    return teacher.model


def _config_overrides(args: Namespace) -> dict[str, Any]:
    names = ("token_scoring", "score_pooling", "span_heads", "protected_tokens", "drop_layers", "min_tokens")
    overrides = {name: getattr(args, name) for name in names if hasattr(args, name)}
    if overrides:
        overrides["budgets"] = {}  # those that a search found for another token selection mean nothing with this one
    if hasattr(args, "dropout"):
        overrides |= {"hidden_dropout_prob": args.dropout, "attention_probs_dropout_prob": args.dropout}
    return overrides
