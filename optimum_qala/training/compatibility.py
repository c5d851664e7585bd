"""Checks that several trainers make before they start."""

from __future__ import annotations

from typing import Any

from transformers import TrainingArguments

from optimum_qala.errors import ConfigurationError
from optimum_qala.quantization.stored_configuration import check_unchanged


def check_one_gpu(args: TrainingArguments) -> None:
    """Refuse to spread batches over the GPUs of one process, which loses what hooks record.

    Args:
        args: The arguments.

    Raises:
        ConfigurationError: If this process uses several GPUs.
    """
    if args.n_gpu > 1:
        raise ConfigurationError(
            f"this process sees {args.n_gpu} GPUs: set CUDA_VISIBLE_DEVICES to one of them, or start one process for "
            "each: torchrun with examples/question_answering/run_qa.py or a script of your own, not optimum-cli"
        )


def check_same_vocabulary(teacher: Any, model: Any) -> None:
    """Refuse a teacher that reads other tokens.

    Args:
        teacher: The teacher, or None.
        model: The student.

    Raises:
        ConfigurationError: If the sizes of their vocabularies differ.
    """
    if teacher is not None and teacher.config.vocab_size != model.config.vocab_size:
        raise ConfigurationError(
            f"the teacher has a vocabulary of {teacher.config.vocab_size} tokens, the model one of "
            f"{model.config.vocab_size}; both must read the same tokens"
        )


def check_teacher_weight(teacher: Any, args: Any) -> None:
    """Refuse a weight of a teacher that is not there.

    Args:
        teacher: The teacher, or None.
        args: `QuaLATrainingArguments`.

    Raises:
        ConfigurationError: If `teacher_weight` was changed, but there is no teacher.
    """
    if teacher is None:
        check_unchanged(args, ["teacher_weight"], "without a teacher; leave it out, or give one")


def check_full_length(model: Any, role: str) -> None:
    """Refuse a model that drops tokens or layers where all of them are compared.

    Args:
        model: Any model.
        role: What to call it in the message.

    Raises:
        ConfigurationError: If it runs at a budget.
    """
    if getattr(model, "budget", None) is not None:
        raise ConfigurationError(
            f"the {role} runs at the budget {model.budget}, but comparing layers needs all of its tokens and layers; "
            "call set_budget(None) on it"
        )


__all__ = ["check_full_length", "check_one_gpu", "check_same_vocabulary", "check_teacher_weight"]
