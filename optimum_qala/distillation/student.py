"""New students for a teacher: its kind of encoder with its vocabulary, at another depth and width."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from optimum_qala.errors import ConfigurationError

from .traces import check_only_layers


# Fields of a configuration that speak of single layers, which the student does not have.
_LAYER_FIELDS: dict[str, Any] = {"budgets": {}, "drop_layers": None, "quantization_aware": None}


@dataclass(frozen=True)
class StudentOptions:
    """Shape of a student; the defaults are those of MiniLM-L6-H384.

    Args:
        num_hidden_layers: Layers.
        hidden_size: Width.
        num_attention_heads: Heads, which divide the width.
        intermediate_size: Width of the feed-forward layers; four times the hidden size by default.
        init_layers: Layers of the teacher, from 0, to start from, one for each layer of the student and with the
            embeddings; needs the teacher's widths and heads. By default every weight starts at random.

    Raises:
        ConfigurationError: If a size is less than 1, the heads do not divide the width, or there are more or fewer
            `init_layers` than layers.
    """

    num_hidden_layers: int = 6
    hidden_size: int = 384
    num_attention_heads: int = 12
    intermediate_size: int | None = None
    init_layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size"):
            size = getattr(self, name)
            if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
                raise ConfigurationError(f"{name} {size!r} of the student is not a positive integer")
        if self.hidden_size % self.num_attention_heads:
            raise ConfigurationError(
                f"{self.num_attention_heads} attention heads do not divide the hidden size {self.hidden_size} of the "
                "student"
            )
        if self.init_layers is not None and len(self.init_layers) != self.num_hidden_layers:
            raise ConfigurationError(
                f"init_layers {list(self.init_layers)} has {len(self.init_layers)} entries, but the student has "
                f"{self.num_hidden_layers} layers: name one layer of the teacher for each"
            )

    @classmethod
    def of_layers(cls, teacher: PreTrainedConfig, init_layers: tuple[int, ...]) -> StudentOptions:
        """Describe a student that starts from layers of a teacher.

        Args:
            teacher: Configuration of the teacher.
            init_layers: Layers of the teacher, from 0.

        Returns:
            The options, with the teacher's widths and heads.

        Raises:
            ConfigurationError: If there are no layers.
        """
        return cls(
            len(init_layers), teacher.hidden_size, teacher.num_attention_heads, teacher.intermediate_size, init_layers
        )


def make_student(
    teacher: PreTrainedModel, options: StudentOptions | None = None, seed: int = 42, **overrides: Any
) -> PreTrainedModel:
    """Make an encoder of the teacher's kind, vocabulary and positions, without heads and without a pooler.

    Args:
        teacher: A BERT- or RoBERTa-shaped model.
        options: Shape of the student; `StudentOptions()` by default.
        seed: Seed of its random weights.
        overrides: Further fields of its configuration, for example `hidden_dropout_prob`.

    Returns:
        The student.

    Raises:
        ConfigurationError: If `init_layers` names a layer that the teacher does not have, or sizes differ from it, or
            the teacher computes something else before its layers.
    """
    options = options or StudentOptions()
    config = student_config(teacher.config, options, **overrides)
    has_pooler = hasattr(teacher.base_model, "pooler")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = AutoModel.from_config(config, **({"add_pooling_layer": False} if has_pooler else {}))
    if options.init_layers is not None:
        _check_same_sizes(teacher.config, config, options.init_layers)
        check_only_layers(teacher, "teacher")
        student.embeddings.load_state_dict(teacher.base_model.embeddings.state_dict())
        copy_layers(teacher.base_model.encoder.layer, options.init_layers, student.encoder.layer)
    return student  # type: ignore[no-any-return]


def copy_layers(teacher: nn.ModuleList, kept: Sequence[int], student: nn.ModuleList) -> None:
    """Copy the weights of layers.

    Args:
        teacher: Layers of the teacher.
        kept: Numbers of those to copy, from 0, one for each layer of the student.
        student: Layers of the student.
    """
    for layer, source in zip(student, kept, strict=True):
        layer.load_state_dict(teacher[source].state_dict())


def student_config(teacher: PreTrainedConfig, options: StudentOptions, **overrides: Any) -> PreTrainedConfig:
    """Describe a student by its teacher's configuration.

    Args:
        teacher: Configuration of the teacher.
        options: Shape of the student.
        overrides: Further fields.

    Returns:
        The configuration of an encoder of the teacher's kind.
    """
    sizes = {
        "num_hidden_layers": options.num_hidden_layers,
        "hidden_size": options.hidden_size,
        "num_attention_heads": options.num_attention_heads,
        "intermediate_size": options.intermediate_size or 4 * options.hidden_size,
        "architectures": None,
        "dtype": None,
    }
    config = copy.deepcopy(teacher)
    for name, value in (sizes | {n: v for n, v in _LAYER_FIELDS.items() if hasattr(config, n)} | overrides).items():
        setattr(config, name, value)
    return config


def _check_same_sizes(teacher: PreTrainedConfig, student: PreTrainedConfig, init_layers: tuple[int, ...]) -> None:
    for name in ("hidden_size", "num_attention_heads", "intermediate_size"):
        if getattr(teacher, name) != getattr(student, name):
            raise ConfigurationError(
                f"init_layers copies layers of the teacher, whose {name} is {getattr(teacher, name)}, so the student "
                f"cannot have {getattr(student, name)}; leave init_layers out to start at random"
            )
    if illegal := [layer for layer in init_layers if not 0 <= layer < teacher.num_hidden_layers]:
        raise ConfigurationError(
            f"init_layers names layer {illegal[0]}, but the teacher has layers 0 to {teacher.num_hidden_layers - 1}"
        )


__all__ = ["StudentOptions", "copy_layers", "make_student", "student_config"]
