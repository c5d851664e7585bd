"""From parsed flags to the dataclasses that hold the defaults."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import fields, replace
from typing import Any, TypeVar

from optimum_qala.cli.loading import LoadedModel
from optimum_qala.errors import ConfigurationError, UnknownBudgetError
from optimum_qala.inference.bucket_options import BucketOptions
from optimum_qala.models.budget_choice import Conditions, cheapest_accurate, fastest_enough
from optimum_qala.models.configuration_quala_minilm import FULL_BUDGET
from optimum_qala.models.length_config import LengthConfig
from optimum_qala.question_answering.answers import DecodeOptions
from optimum_qala.question_answering.features import WindowOptions
from optimum_qala.reporting.benchmark import describe_padding


T = TypeVar("T")

# Flags that run a model in buckets, by what they set.
BUCKET_FLAGS = {
    "buckets": "--buckets",
    "length_multiple": "--length-multiple",
    "batch_tokens": "--batch-tokens",
    "max_graphs": "--max-graphs",
    "performance_hint": "--throughput",
    "cache_dir": "--cache-dir",
}


# Flags of every command: how it reports, not what it does. The Trainer has an option `debug` of its own.
_COMMON_FLAGS = {"json", "debug"}


def given(args: Namespace, options_class: Any) -> dict[str, Any]:
    """Pick the flags that belong to a dataclass and were given on the command line.

    Args:
        args: The parsed command line, which holds nothing for a flag that was not given.
        options_class: The dataclass; a flag belongs to it if it has a field of the flag's name.

    Returns:
        Values by field name, without the flags of every command.
    """
    names = {field.name for field in fields(options_class)} - _COMMON_FLAGS
    return {name: value for name, value in vars(args).items() if name in names}


def window_options(args: Namespace, capacity: int | None = None) -> WindowOptions:
    """Make the window options of a command.

    Args:
        args: The parsed command line.
        capacity: Longest sequence that the model takes, if known; a shorter default window follows from it.

    Returns:
        The options. A stride or a question length that was not given shrinks with a short window.
    """
    explicit = given(args, WindowOptions)
    longest = explicit.get("max_length", min(WindowOptions.max_length, capacity or WindowOptions.max_length))
    if longest < WindowOptions.max_length:
        return replace(WindowOptions.for_max_length(longest), **explicit)
    return WindowOptions(**explicit)


def decode_options(args: Namespace) -> DecodeOptions:
    """Make the options that choose answers."""
    return DecodeOptions(**given(args, DecodeOptions))


def bucket_options(args: Namespace) -> BucketOptions | None:
    """Make the options of buckets; any flag of theirs switches them on.

    Args:
        args: The parsed command line.

    Returns:
        The options, or None if no flag of theirs was given.
    """
    if not any(hasattr(args, name) for name in BUCKET_FLAGS):
        return None
    return BucketOptions(**given(args, BucketOptions))


def resolve_budget(config: Any, budget: Any) -> LengthConfig | None:
    """Turn a budget into a LengthConfig, also for a plain model.

    Args:
        config: Configuration of the model.
        budget: The budget.

    Returns:
        The LengthConfig, or None for full length.

    Raises:
        UnknownBudgetError: If the model does not carry it; a plain model carries full length only.
        LengthConfigError: If it is malformed or does not fit the model.
    """
    if hasattr(config, "resolve_budget"):
        resolved: LengthConfig | None = config.resolve_budget(budget)
        return resolved
    if budget not in (None, FULL_BUDGET):
        raise UnknownBudgetError(
            f"a plain {config.model_type!r} model drops no tokens, so it has no budget {budget!r}, only "
            f"{FULL_BUDGET!r}"
        )
    return None


def measured_budget(args: Namespace, loaded: LoadedModel) -> str | None:
    """Choose a budget by `--max-latency-ms` or `--max-f1-loss`.

    Args:
        args: The parsed command line.
        loaded: The model.

    Returns:
        Name of the budget, or None if neither flag was given.

    Raises:
        UnknownBudgetError: If no budget of the model fits what was measured, as of a plain model.
        ConfigurationError: If the limit is out of range.
    """
    budgets = getattr(loaded.model.config, "budgets", None) or {}
    if not {"max_latency_ms", "max_f1_loss"} & vars(args).keys():
        return None
    padding = describe_padding(loaded.buckets)
    conditions = Conditions.here(loaded.backend, loaded.threads, loaded.precision, padding)
    if hasattr(args, "max_latency_ms"):
        return fastest_enough(budgets, args.max_latency_ms, conditions)
    return cheapest_accurate(budgets, args.max_f1_loss, conditions)


def chosen_budgets(args: Namespace, config: Any) -> list[str]:
    """List the budgets that a command works at.

    Args:
        args: The parsed command line, with `budget` as a list if it was given.
        config: Configuration of the model.

    Returns:
        The budgets as they were given, or else full length and every budget that the model carries. All of them are
        legal for the model.

    Raises:
        UnknownBudgetError: If the model does not carry one of them.
        LengthConfigError: If one is malformed or does not fit the model.
        ConfigurationError: If one is given twice.
    """
    carried = getattr(config, "budgets", None) or {}
    named = sorted(set(carried) - {FULL_BUDGET}, key=lambda name: -_work(carried[name]))
    budgets: list[str] = getattr(args, "budget", None) or [FULL_BUDGET, *named]
    for budget in budgets:
        resolve_budget(config, budget)
        if budgets.count(budget) > 1:
            raise ConfigurationError(f"budget {budget!r} is given twice")
    return budgets


def _work(budget: dict[str, Any]) -> float:
    """Sum the ratios of the layers that run, which tells slow budgets from fast ones."""
    return float(sum(budget["retention"][: budget.get("exit_layer")]))
