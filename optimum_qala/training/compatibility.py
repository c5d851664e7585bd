"""Checks that several trainers make before they start."""

from __future__ import annotations

import random
from collections.abc import Mapping
from inspect import signature
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from optimum_qala._checks import check_unchanged
from optimum_qala.errors import ConfigurationError
from optimum_qala.question_answering.predictor import position_capacity
from optimum_qala.training.arguments import QuaLATrainingArguments
from optimum_qala.training.sampling import sample_exit_layer


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


def check_early_exits(config: Any, args: QuaLATrainingArguments) -> None:
    """Refuse sub-models that stop early where they cannot.

    Args:
        config: The model's configuration.
        args: The arguments.

    Raises:
        ConfigurationError: If the model has no span heads, no sub-model is random, or `min_exit_layer` leaves none.
    """
    if args.early_exit_prob == 0.0:
        return
    if not config.has_span_heads:
        raise ConfigurationError(
            f"early_exit_prob is {args.early_exit_prob:g}, but the model has no span heads to stop at; load it "
            "with token_scoring='answer' or span_heads=True"
        )
    if args.num_random_sub_models == 0:
        raise ConfigurationError(
            f"early_exit_prob is {args.early_exit_prob:g}, but only random sub-models stop early, and "
            "num_random_sub_models is 0"
        )
    rng = random.Random(0)  # noqa: S311  # drawn for the checks
    sample_exit_layer(rng, config.num_hidden_layers, args.early_exit_prob, args.min_exit_layer)


def check_same_vocabulary(teacher: Any, model: Any, tokenizer: Any = None) -> None:
    """Refuse a teacher that reads other tokens.

    Args:
        teacher: The teacher, or None.
        model: The student.
        tokenizer: That of both, if it is known. What it gives must be embedded by both; either may have embeddings
            beyond it, as where their number was rounded up.

    Raises:
        ConfigurationError: If a model does not embed all tokens or, without a tokenizer, the models embed different
            numbers of them.
    """
    if teacher is None:
        return
    sizes = {"teacher": teacher.config.vocab_size, "model": model.config.vocab_size}
    if isinstance(tokenizer, PreTrainedTokenizerBase):
        for role, size in sizes.items():
            if size < len(tokenizer):
                raise ConfigurationError(
                    f"the {role} embeds {size} tokens, but the tokenizer has {len(tokenizer)}; both models must read "
                    "its tokens"
                )
    elif sizes["teacher"] != sizes["model"]:
        raise ConfigurationError(
            f"the teacher has a vocabulary of {sizes['teacher']} tokens, the model one of {sizes['model']}; both must "
            "read the same tokens. If only their embeddings were padded, pass processing_class=tokenizer"
        )


def check_own_parameters(teacher: Any, model: Any) -> None:
    """Refuse a teacher that would be trained with its student, or rather freeze it.

    Args:
        teacher: The teacher, or None.
        model: The student.

    Raises:
        ConfigurationError: If they are the same or share parameters.
    """
    own = {id(parameter) for parameter in model.parameters()}
    for name, parameter in () if teacher is None else teacher.named_parameters():
        if id(parameter) in own:
            raise ConfigurationError(
                f"the teacher shares parameters with the model, such as {name}, and a teacher does not learn; give "
                "copy.deepcopy(model) as the teacher"
            )


def check_answers_questions(model: Any, role: str) -> None:
    """Refuse a model without logits for the start and the end of an answer.

    Args:
        model: Any model; those that are none of transformers' are trusted.
        role: What to call it in the message.

    Raises:
        ConfigurationError: If it takes no positions of answers.
    """
    if isinstance(model, PreTrainedModel) and "start_positions" not in signature(model.forward).parameters:
        raise ConfigurationError(
            f"the {role} is a {type(model).__name__}, which answers no questions; load it with "
            "AutoModelForQuestionAnswering"
        )


def check_takes_budgets(model: Any) -> None:
    """Refuse to train a model for budgets that it does not have.

    Args:
        model: Any model.

    Raises:
        ConfigurationError: If it is no QuaLA-MiniLM for question answering.
    """
    if not hasattr(getattr(model, "config", None), "resolve_budget"):
        raise ConfigurationError(
            f"the model is a {type(model).__name__}, which drops no tokens; load it with "
            "QuaLAMiniLMForQuestionAnswering.from_pretrained"
        )
    check_answers_questions(model, "model")


def longest_row(dataset: Any) -> int:
    """Return how many tokens the longest row of a data set has; 0 if it does not say."""
    return int(getattr(dataset, "longest", 0) or max(getattr(dataset, "lengths", ()), default=0))


def check_positions(num_tokens: int, models: Mapping[str, Any]) -> None:
    """Refuse rows that are longer than a model has positions.

    Args:
        num_tokens: Tokens of the longest row.
        models: Models by what to call them in the message; those that are None are left out.

    Raises:
        ConfigurationError: If one has fewer.
    """
    for role, model in models.items():
        capacity = None if model is None else position_capacity(model)
        if capacity is not None and 0 < capacity < num_tokens:
            raise ConfigurationError(
                f"a row has {num_tokens} tokens, but the {role} takes at most {capacity}; choose a smaller max_length"
            )


def check_no_loss_function(settings: Mapping[str, Any]) -> None:
    """Refuse a loss function of transformers' Trainer where the trainer has a loss of its own.

    Args:
        settings: Arguments of the Trainer.

    Raises:
        ConfigurationError: If there is one.
    """
    if settings.get("compute_loss_func") is not None:
        raise ConfigurationError(
            "compute_loss_func has no effect on this trainer, which has losses of its own; leave it out"
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


__all__ = [
    "check_answers_questions",
    "check_early_exits",
    "check_full_length",
    "check_no_loss_function",
    "check_one_gpu",
    "check_own_parameters",
    "check_positions",
    "check_same_vocabulary",
    "check_takes_budgets",
    "check_teacher_weight",
    "longest_row",
]
