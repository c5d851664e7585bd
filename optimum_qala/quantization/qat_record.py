"""What a quantization-aware training learned besides weights: the field `quantization_aware` of config.json."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers.utils import logging

from optimum_qala.errors import CheckpointError
from optimum_qala.models.configuration_quala_minilm import QuaLAMiniLMConfig
from optimum_qala.quantization.rounding import WEIGHT_BITS


__all__ = ["FINAL_SITE", "QATRecord", "bits_of", "site_names", "site_of", "warn_of_unrounded_weights"]

logger = logging.get_logger(__name__)

HEAD_BITS = 8
FINAL_SITE = "final"
# Linear layers of a layer -> what they read.
_SITES = {
    "attention.self.query": "input",
    "attention.self.key": "input",
    "attention.self.value": "input",
    "attention.output.dense": "context",
    "intermediate.dense": "attention_output",
    "output.dense": "intermediate",
}
_LAYER = re.compile(r"quala\.encoder\.layer\.(\d+)\.(.+)")
_SPAN_HEAD = re.compile(r"quala\.encoder\.span_heads\.(\d+)")


def site_names(num_layers: int) -> list[str]:
    """Name the activations that linear layers read; those that several read have one range."""
    parts = list(dict.fromkeys(_SITES.values()))
    return [*(f"layer.{layer}.{part}" for layer in range(num_layers) for part in parts), FINAL_SITE]


def site_of(name: str) -> str:
    """Name the activations that a linear layer reads.

    Args:
        name: As in `named_modules()` of a `QuaLAMiniLMForQuestionAnswering`.

    Returns:
        One of `site_names`. The head of the whole model, which may read before a layer that drops tokens too, has
        that of the last layer's output.
    """
    if match := _LAYER.fullmatch(name):
        return f"layer.{match[1]}.{_SITES[match[2]]}"
    if match := _SPAN_HEAD.fullmatch(name):
        return f"layer.{match[1]}.{_SITES['attention.self.key']}"
    return FINAL_SITE


def bits_of(name: str, weight_bits: int) -> int:
    """Return the bits of a linear layer's weight: heads, which hardly count for size or time, keep 8."""
    return weight_bits if _LAYER.fullmatch(name) else HEAD_BITS


def warn_of_unrounded_weights(config: Any, name: str) -> None:
    """Warn that a model trained with fewer bits than 8 is about to compute with weights that were never rounded.

    Args:
        config: Its configuration, of any kind of model.
        name: What to call it in the message.
    """
    bits = (getattr(config, "quantization_aware", None) or {}).get("weight_bits", HEAD_BITS)
    if bits != HEAD_BITS:
        logger.warning(
            f"{name} was trained for weights of {bits} bits, which only a quantization with approach 'qat' makes of "
            "it: here it computes with the float weights behind them, and its answers are others"
        )


@dataclass(frozen=True)
class QATRecord:
    """What a quantization-aware training decided and learned, besides the weights.

    Args:
        weight_bits: Bits of the weights of the layers.
        outlier_neurons: Layer -> neurons of its feed-forward layer that stayed in float.
        activation_ranges: Smallest and largest value of the activations of each of `site_names`.
    """

    weight_bits: int
    outlier_neurons: Mapping[int, list[int]]
    activation_ranges: Mapping[str, tuple[float, float]]

    def to_dict(self) -> dict[str, Any]:
        """Write it as config.json has it."""
        return {
            "weight_bits": self.weight_bits,
            "outlier_neurons": {str(layer): list(neurons) for layer, neurons in self.outlier_neurons.items()},
            "activation_ranges": {site: list(ends) for site, ends in self.activation_ranges.items()},
        }

    @classmethod
    def of(cls, config: QuaLAMiniLMConfig, name: str) -> QATRecord:
        """Read the record of a model.

        Args:
            config: Its configuration.
            name: What to call it in the message.

        Returns:
            The record.

        Raises:
            CheckpointError: If the model was not trained so, or the record is damaged or another model's.
        """
        stored = config.quantization_aware
        if stored is None:
            raise CheckpointError(
                f"{name} was not trained with quantization_aware=True, which approach 'qat' builds on; use approach "
                "'static', or train it so first: optimum-cli qala train --quantization-aware"
            )
        try:
            record = cls(
                stored["weight_bits"],
                {int(layer): [int(neuron) for neuron in found] for layer, found in stored["outlier_neurons"].items()},
                {site: (float(low), float(high)) for site, (low, high) in stored["activation_ranges"].items()},
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise _damaged(name, repr(error)) from error
        problem = record._problem(config)
        if problem is not None:
            raise _damaged(name, problem)
        return record

    def _problem(self, config: QuaLAMiniLMConfig) -> str | None:
        """Say what does not fit the model."""
        if self.weight_bits not in WEIGHT_BITS:
            return f"weight_bits {self.weight_bits!r}"
        sites = site_names(config.num_hidden_layers)
        if sorted(self.activation_ranges) != sorted(sites):
            return f"{len(self.activation_ranges)} ranges, not {len(sites)}"
        for site, (low, high) in self.activation_ranges.items():
            if not (math.isfinite(low) and math.isfinite(high) and low <= high):
                return f"the range {(low, high)} of {site}"
        for layer, neurons in self.outlier_neurons.items():
            is_known = 0 <= layer < config.num_hidden_layers
            if not is_known or not all(0 <= neuron < config.intermediate_size for neuron in neurons):
                return f"outlier neurons {neurons} of layer {layer}"
        return None


def _damaged(name: str, reason: str) -> CheckpointError:
    return CheckpointError(
        f"quantization_aware in the config.json of {name} is damaged or another model's ({reason}); remove it to use "
        "the model in float, or train again"
    )
