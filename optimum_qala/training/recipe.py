"""Recipes: how a model was trained, or is to be trained, as a YAML file.

A recipe holds what decides the result besides model and data: the fields that `QuaLATrainingArguments` adds to those
of transformers, and steps, batches, learning rate and seed.
"""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from transformers import TrainingArguments

from optimum_qala.distillation.auxiliary import parse_loss_weights
from optimum_qala.errors import ConfigurationError


RECIPE_FILE = "recipe.yaml"

# Fields of transformers' arguments that belong to a recipe.
_GENERAL = {
    "bf16",
    "gradient_accumulation_steps",
    "learning_rate",
    "max_steps",
    "num_train_epochs",
    "per_device_train_batch_size",
    "seed",
    "warmup_steps",
    "weight_decay",
}
_NOT_OF_TRAINING = {"eval_budgets"}


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key) for key, _ in node.value]
        for key, (entry, _) in zip(keys, node.value, strict=True):
            if keys.count(key) > 1:
                raise ConfigurationError(f"recipe {entry.start_mark.name} sets {key!r} twice")
        return super().construct_mapping(node, deep)


def load_recipe(path: str | Path, arguments_class: type) -> dict[str, Any]:
    """Read a recipe.

    Args:
        path: YAML file that maps fields to values, such as `auxiliary_losses: {hidden_states: 1, relations: 0.5}`.
        arguments_class: `QuaLATrainingArguments`.

    Returns:
        Values by field; those that are null in the file are left out.

    Raises:
        ConfigurationError: If the file cannot be read, names a field or a loss that does not exist, or gives a value
            of the wrong kind. The message lists the legal names.
    """
    try:
        with Path(path).open(encoding="utf-8-sig") as file:
            recipe = yaml.load(file, _Loader)  # noqa: S506  # a SafeLoader
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"recipe {path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigurationError(f"recipe {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(recipe, dict):
        raise ConfigurationError(f"recipe {path} must map settings to values, found {recipe!r}")
    kinds = _kinds(arguments_class)
    if unknown := [name for name in recipe if name not in kinds]:
        raise ConfigurationError(f"recipe {path} sets {unknown[0]!r}, which is none of {sorted(kinds)}")
    return {name: _read(path, name, value, kinds[name]) for name, value in recipe.items() if value is not None}


def override(recipe: Mapping[str, Any], explicit: Mapping[str, Any]) -> dict[str, Any]:
    """Let settings that were given win over those of a recipe.

    Args:
        recipe: Values by field.
        explicit: Values by field. Epochs without steps win over the steps of the recipe, which would hide them.

    Returns:
        Values by field.
    """
    hidden = {"max_steps"} if "num_train_epochs" in explicit else set()
    return {name: value for name, value in recipe.items() if name not in hidden} | dict(explicit)


def save_recipe(arguments: Any, path: str | Path) -> None:
    """Write the recipe of a training.

    Args:
        arguments: `QuaLATrainingArguments`.
        path: The YAML file; it is overwritten.
    """
    values = {name: getattr(arguments, name) for name in _kinds(type(arguments))}
    recipe = {name: value for name, value in values.items() if value is not None}
    Path(path).write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")


def added_fields(arguments_class: type) -> set[str]:
    """Name the fields that a class of arguments adds to those of transformers.

    Args:
        arguments_class: A subclass of `TrainingArguments`, itself a dataclass.

    Returns:
        The names.
    """
    return {field.name for field in fields(arguments_class)} - {field.name for field in fields(TrainingArguments)}


def _kinds(arguments_class: type) -> dict[str, str]:
    """Map the fields of a recipe to the kinds of their values, as their annotations name them."""
    legal = (added_fields(arguments_class) - _NOT_OF_TRAINING) | _GENERAL
    # Not those of the fields themselves, which HfArgumentParser overwrites.
    annotations = {
        name: kind for base in arguments_class.__mro__[::-1] for name, kind in inspect.get_annotations(base).items()
    }
    return {
        name: (kind if isinstance(kind, str) else kind.__name__).removesuffix(" | None")
        for name, kind in ((field.name, annotations[field.name]) for field in fields(arguments_class))
        if name in legal
    }


def _read(path: str | Path, name: str, value: Any, kind: str) -> Any:
    """Check a value, so that a mistake in a recipe is not found in the middle of a training."""
    if "dict" in kind and isinstance(value, dict | str):
        return parse_loss_weights(f"recipe {path}: {name}", value)
    if kind == "float" and isinstance(value, str):  # YAML takes 1e-5, without a point, for text
        try:
            value = float(value)
        except ValueError:
            pass
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    is_legal = {
        "bool": isinstance(value, bool),
        "float": is_integer or isinstance(value, float),
        "int": is_integer,
        "list[int]": isinstance(value, list) and all(type(one) is int for one in value),
        "str": isinstance(value, str),
    }
    if not is_legal.get(kind, False):
        raise ConfigurationError(f"recipe {path} sets {name} to {value!r}, which is no {kind}")
    return value


__all__ = ["RECIPE_FILE", "added_fields", "load_recipe", "override", "save_recipe"]
