"""`optimum-cli qala distill`: make a student of a teacher, on plain text."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from optimum_qala._folders import write_json
from optimum_qala.cli.console import Console
from optimum_qala.cli.loading import load_plain_encoder, load_tokenizer
from optimum_qala.cli.options import given
from optimum_qala.cli.outputs import resumable_folder, run_settings
from optimum_qala.cli.train import CHECKPOINT_SHARE, LOGGING_SHARE, check_reporting, keep_events, last_checkpoint
from optimum_qala.distillation.blocks import BlockOptions, TextBlocks, tokenize_texts
from optimum_qala.distillation.student import StudentOptions, make_student
from optimum_qala.distillation.texts import iter_texts
from optimum_qala.errors import CheckpointError, ConfigurationError
from optimum_qala.question_answering.predictor import position_capacity
from optimum_qala.training.minilm_arguments import MiniLMDistillationArguments
from optimum_qala.training.minilm_trainer import MiniLMDistillationTrainer


REPORT_FILE = "distillation.json"


def run(args: Namespace, console: Console) -> None:
    """Distil a student.

    Args:
        args: The parsed command line.
        console: Where to write.
    """
    check_reporting(args)
    # Where the teacher's states are kept does not change the student.
    settings = run_settings(args, inputs=("teacher", "student", "data", "validation_data"), without=["teacher_cache"])
    with resumable_folder(args.output, settings) as work:
        revision = getattr(args, "revision", None)
        teacher = load_plain_encoder(args.teacher, revision)
        tokenizer = load_tokenizer(args.teacher, teacher.config, revision)
        student = _student(args, teacher, tokenizer)
        options = _block_options(args, teacher, student)
        texts = iter_texts(args.data, limit=getattr(args, "limit", None))
        blocks = tokenize_texts(texts, tokenizer, options, work.state / "tokens.bin")
        validation = None
        if "validation_data" in args:
            validation = tokenize_texts(iter_texts(args.validation_data), tokenizer, options)
        console.info(f"{len(blocks)} rows of at most {options.max_length} tokens, {blocks.num_tokens} tokens in all")
        summary = distill(
            student,
            teacher,
            tokenizer,
            blocks,
            validation,
            state=work.state,
            result=work.result,
            console=console,
            **given(args, MiniLMDistillationArguments),
        )
    summary = {"output": args.output, **summary}
    text = f"student of {student.config.num_hidden_layers} layers written to {args.output}"
    console.result(summary, f"{text} (loss {summary['train_loss']:.4f})")


def distill(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    tokenizer: Any,
    blocks: TextBlocks,
    validation: TextBlocks | None,
    *,
    state: Path,
    result: Path,
    console: Console,
    **arguments: Any,
) -> dict[str, Any]:
    """Distil, from the last checkpoint if there is one, and save student and tokenizer.

    Args:
        student: The student, trained in place.
        teacher: The teacher.
        tokenizer: Their tokenizer.
        blocks: What to distil on.
        validation: What to evaluate on after each epoch, if given.
        state: Folder for checkpoints.
        result: Folder for the student.
        console: Where progress goes.
        arguments: Fields of `MiniLMDistillationArguments`.

    Returns:
        Method, layer, heads, sizes, loss, steps and seconds.
    """
    checkpoint = last_checkpoint(state)
    if checkpoint is not None:
        console.info(f"going on from {checkpoint.name}")
    policy: dict[str, Any] = {"save_steps": CHECKPOINT_SHARE, "logging_steps": LOGGING_SHARE, "report_to": "none"}
    trainer = MiniLMDistillationTrainer(
        student,
        MiniLMDistillationArguments(
            output_dir=str(state),
            save_strategy="steps",
            save_total_limit=1,
            eval_strategy="no" if validation is None else "epoch",
            use_cpu=not torch.accelerator.is_available(),
            disable_tqdm=not console.is_interactive,
            **(policy | arguments),
        ),
        teacher,
        train_dataset=blocks,
        eval_dataset=validation,
        processing_class=tokenizer,
    )
    output = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    student.save_pretrained(result)
    tokenizer.save_pretrained(result)
    keep_events(state, result)
    log = trainer.state.log_history
    evaluated = [entry["eval_loss"] for entry in log if "eval_loss" in entry]
    summary = {
        "method": trainer.args.method,
        "teacher_layer": trainer.teacher_layer.index,
        "relation_heads": trainer.heads.relation if trainer.args.method == "minilmv2" else None,
        "num_rows": len(blocks),
        "num_tokens": blocks.num_tokens,
        "num_parameters": student.num_parameters(),
        "steps": output.global_step,
        "train_loss": output.training_loss,
        "validation_loss": evaluated[-1] if evaluated else None,
        "seconds": output.metrics["train_runtime"],
    }
    write_json(result / REPORT_FILE, summary | {"log": log})
    return summary


def _student(args: Namespace, teacher: PreTrainedModel, tokenizer: Any) -> PreTrainedModel:
    """Load the student that was given, or make a new one."""
    shape = given(args, StudentOptions)
    overrides = {}
    if "dropout" in args:
        overrides = {"hidden_dropout_prob": args.dropout, "attention_probs_dropout_prob": args.dropout}
    if "student" in args:
        if shape:
            raise ConfigurationError(
                f"--student {args.student} has its own shape; leave the flags out that set {', '.join(sorted(shape))}"
            )
        student = load_plain_encoder(args.student, **overrides)
        if load_tokenizer(args.student, student.config).get_vocab() != tokenizer.get_vocab():
            raise CheckpointError(
                f"student {args.student} has another vocabulary than the teacher {args.teacher}; both must read the "
                "same tokens"
            )
        return student
    if "init_layers" in shape:
        shape["init_layers"] = tuple(shape["init_layers"])
        options = replace(StudentOptions.of_layers(teacher.config, shape["init_layers"]), **shape)
    else:
        options = StudentOptions(**shape)
    return make_student(teacher, options, **{name: args.seed for name in ("seed",) if name in args}, **overrides)


def _block_options(args: Namespace, teacher: PreTrainedModel, student: PreTrainedModel) -> BlockOptions:
    """Make rows no longer by default than teacher and student take."""
    capacities = filter(None, (position_capacity(model) for model in (teacher, student)))
    longest = min(BlockOptions.max_length, *capacities)
    return BlockOptions(**{"max_length": longest, **given(args, BlockOptions)})


__all__ = ["REPORT_FILE", "distill", "run"]
