"""Students that are layers of their teacher, to be fine-tuned: "shrink and fine-tune".

Source: Shleifer & Rush, Pre-trained Summarization Distillation (arXiv 2010.13002), which copies maximally spaced
layers of the teacher and trains them as any model.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from optimum_qala.distillation.student import copy_layers
from optimum_qala.errors import CheckpointError, ConfigurationError
from optimum_qala.models.configuration_quala_minilm import FULL_BUDGET
from optimum_qala.models.length_config import LengthConfig


@dataclass(frozen=True)
class ShrunkModel:
    """A student and what became of the teacher's parts.

    Args:
        model: The student.
        kept_layers: The teacher's layer, from 0, that each layer of the student is a copy of.
        dropped_budgets: Names of the teacher's budgets that the student does not carry -> why.
    """

    model: PreTrainedModel
    kept_layers: tuple[int, ...]
    dropped_budgets: dict[str, str]


def spaced_layers(num_layers: int, num_kept: int) -> tuple[int, ...]:
    """Choose maximally spaced layers: the first, the last, and those between at equal distances.

    Args:
        num_layers: N, layers of the teacher.
        num_kept: M, layers of the student.

    Returns:
        M layers from 0, ascending: i (N - 1) / (M - 1), rounded, halves up; 0 alone if M is 1. Of 12 layers, 3 are
        0, 6, 11 and 6 are 0, 2, 4, 7, 9, 11.

    Raises:
        ConfigurationError: If M is not between 1 and N - 1.
    """
    _check_count(num_kept, num_layers)
    gaps = num_kept - 1
    return tuple((2 * index * (num_layers - 1) + gaps) // (2 * gaps) if gaps else 0 for index in range(num_kept))


def shrink_model(model: PreTrainedModel, layers: int | Sequence[int]) -> ShrunkModel:
    """Copy some layers of a model, its embeddings and its heads.

    A layer of the student stands for the layer that it is a copy of and for those left out before it, the last one
    also for those left out behind it. In a QuaLA-MiniLM it may drop tokens if one of these may, it takes along the
    early span head of its layer, and a budget keeps the ratio that tokens have after that layer, without what was
    measured.

    Args:
        model: A QuaLA-MiniLM, or a model built as BERT: an encoder, with or without a head.
        layers: How many maximally spaced layers to keep, or the layers themselves, from 0, ascending.

    Returns:
        The student, which shares nothing with the model. It loses much accuracy until it is trained.

    Raises:
        ConfigurationError: If the layers are not ascending, not the model's, or all of them.
        CheckpointError: If the layers of the model are not built as those of BERT.
    """
    encoder = getattr(model.base_model, "encoder", None)
    if not isinstance(getattr(encoder, "layer", None), nn.ModuleList):
        raise CheckpointError(
            f"a {type(model).__name__} cannot be shrunk: its layers are not built as those of BERT, RoBERTa or "
            "QuaLA-MiniLM"
        )
    num_layers = model.config.num_hidden_layers
    if isinstance(layers, int):
        kept = spaced_layers(num_layers, layers)
    else:
        kept = _check_layers(layers, num_layers)
    student = copy.deepcopy(model)
    inner: Any = student.base_model.encoder
    for name in ("layer", "span_heads"):
        taught = getattr(encoder, name, None)
        if taught is not None:
            setattr(inner, name, getattr(inner, name)[: len(kept)])
            copy_layers(taught, kept, getattr(inner, name))
    return ShrunkModel(student, kept, _shrink_config(student.config, kept, num_layers))


def _check_count(num_kept: int, num_layers: int) -> None:
    if not 1 <= num_kept < num_layers:
        raise ConfigurationError(
            f"a model of {num_layers} layers shrinks to 1 to {num_layers - 1} of them, not {num_kept}"
        )


def _check_layers(layers: Sequence[int], num_layers: int) -> tuple[int, ...]:
    kept = list(layers)
    if kept != sorted(set(kept)) or not all(0 <= layer < num_layers for layer in kept):
        raise ConfigurationError(f"layers to keep {kept} must be ascending numbers from 0 to {num_layers - 1}")
    _check_count(len(kept), num_layers)
    return tuple(kept)


def _shrink_config(config: Any, kept: tuple[int, ...], num_layers: int) -> dict[str, str]:
    """Describe the student, and say which budgets it lost."""
    budgets = getattr(config, "budgets", None) or {}
    if budgets:
        config.budgets = {}
    config.num_hidden_layers = len(kept)
    if getattr(config, "quantization_aware", None) is not None:
        config.quantization_aware = None  # its ranges are those of other layers
    if getattr(config, "drop_layers", None) is not None:
        groups = enumerate(_groups(kept, num_layers))
        config.drop_layers = [index for index, group in groups if set(group) & set(config.drop_layers)]
    dropped = {}
    for name, budget in budgets.items():
        retention, exit_layer = budget["retention"], budget.get("exit_layer") or num_layers
        depth = sum(layer < exit_layer for layer in kept)
        shrunk = LengthConfig(tuple(retention[layer] for layer in kept), depth) if depth else None
        if shrunk is None:
            dropped[name] = f"it stops after {exit_layer} layers, none of which was kept"
        elif shrunk.is_full and name != FULL_BUDGET:
            dropped[name] = "the layers that were kept drop nothing at it"
        else:
            config.budgets[name] = shrunk.to_budget()
    return dropped


def _groups(kept: tuple[int, ...], num_layers: int) -> Iterator[range]:
    """Give the layers that each kept one stands for."""
    for previous, layer in zip((-1, *kept), kept, strict=False):
        yield range(previous + 1, num_layers if layer == kept[-1] else layer + 1)


__all__ = ["ShrunkModel", "shrink_model", "spaced_layers"]
