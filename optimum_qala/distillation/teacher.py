"""One layer of a teacher: what enters it, its queries, keys and values, and no layer after it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from optimum_qala.errors import ConfigurationError

from .traces import LINEAR_PARTS, LayerTrace, Places


# Layers, from 0, that MiniLMv2 takes of models with 24 layers (arXiv 2012.15828, section 4.1): the 21st of BERT-large,
# the 19th of RoBERTa-large and XLM-R-large.
_LAYERS_OF_24 = {"bert": 20}
_LAYER_OF_24 = 18
# 48 relation heads for the width 768 and 64 for 1024.
_RELATION_HEAD_SIZE = 16
# Of a configuration, what may differ between two teachers that compute the same.
_NOT_COMPUTING = ("_name_or_path", "architectures", "budgets")


def default_teacher_layer(config: PreTrainedConfig, method: str = "minilmv2") -> int:
    """Choose the layer of a teacher to learn from as the papers do.

    Args:
        config: Configuration of the teacher.
        method: "minilm" takes the last layer of any teacher, "minilmv2" an upper middle one where there are 24.

    Returns:
        The layer, from 0.
    """
    if method == "minilmv2" and config.num_hidden_layers == 24:
        return _LAYERS_OF_24.get(config.model_type, _LAYER_OF_24)
    return int(config.num_hidden_layers) - 1


def default_relation_heads(teacher_width: int, student_width: int) -> int:
    """Choose the number of relation heads.

    Args:
        teacher_width: Hidden size of the teacher.
        student_width: Hidden size of the student.

    Returns:
        The most relation heads that divide both widths, but no more than teacher_width / 16: 48 for base and 64 for
        large teachers, as in MiniLMv2 (arXiv 2012.15828, section 4.1), wherever the student's width allows it.
    """
    common = math.gcd(teacher_width, student_width)
    most = max(1, teacher_width // _RELATION_HEAD_SIZE)
    return max(heads for heads in range(1, most + 1) if common % heads == 0)


class _Reached(Exception):  # noqa: N818  # not an error: it carries the states out of the layers that are left
    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states


class TeacherLayer:
    """A layer of a teacher to learn from. Neither the rest of this layer nor any later one runs.

    Args:
        teacher: A model with the layers of BERT or RoBERTa, or a QuaLA-MiniLM at full length.
        index: The layer, from 0.

    Raises:
        ConfigurationError: If the teacher does not have that layer.
    """

    def __init__(self, teacher: Any, index: int) -> None:
        layers = teacher.base_model.encoder.layer
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(layers):
            raise ConfigurationError(f"teacher_layer {index!r} is none of the teacher's layers 0 to {len(layers) - 1}")
        self.teacher = teacher
        self.index = index

    @torch.no_grad()
    def entering_states(self, inputs: dict[str, Tensor]) -> Tensor:
        """Run the layers before this one.

        Args:
            inputs: `input_ids`, `attention_mask` and what else the teacher takes.
                *Shape:* `(batch_size, sequence_length)` each

        Returns:
            The hidden states that enter the layer. *Shape:* `(batch_size, sequence_length, hidden_size)`
        """

        def stop(_module: nn.Module, entering: tuple[Any, ...]) -> None:
            raise _Reached(entering[0])

        base = self.teacher.base_model
        handle = base.encoder.layer[self.index].register_forward_pre_hook(stop)
        try:
            base(**inputs)
        except _Reached as reached:
            return reached.states
        finally:
            handle.remove()
        raise ConfigurationError(f"the teacher did not run its layer {self.index}; it must run at full length")

    @torch.no_grad()
    def trace(self, states: Tensor, attention_mask: Tensor, parts: Iterable[str]) -> LayerTrace:
        """Compute queries, keys and values of the layer.

        Args:
            states: What enters it. *Shape:* `(batch_size, sequence_length, hidden_size)`
            attention_mask: *Shape:* `(batch_size, sequence_length)`
            parts: Which of "queries", "keys" and "values".

        Returns:
            Their trace.
        """
        attention = self.teacher.base_model.encoder.layer[self.index].attention.self
        places = Places(attention_mask)
        return LayerTrace({part: getattr(attention, LINEAR_PARTS[part])(states) for part in parts}, places, places)

    def fingerprint(self) -> str:
        """Hash all that decides `entering_states`: configuration, and weights up to the layer.

        Returns:
            A hexadecimal SHA-256.
        """
        base = self.teacher.base_model
        config = {name: value for name, value in base.config.to_diff_dict().items() if name not in _NOT_COMPUTING}
        digest = hashlib.sha256(json.dumps([type(base).__name__, self.index, config], default=str).encode())
        for module in (base.embeddings, *base.encoder.layer[: self.index]):
            for name, tensor in module.state_dict().items():
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


__all__ = ["TeacherLayer", "default_relation_heads", "default_teacher_layer"]
