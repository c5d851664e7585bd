"""From a quantization-aware training to int8 by Intel Neural Compressor: the ranges and steps that were learned.

Intel Neural Compressor inserts observers as for static quantization. What they would have found with calibration
windows is replaced by what the training learned, so that the int8 model rounds where the trained model rounded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from optimum_qala.models.modeling_quala_minilm import QuaLAMiniLMForQuestionAnswering
from optimum_qala.quantization.qat_record import FINAL_SITE, QATRecord, bits_of, site_of
from optimum_qala.quantization.rounding import INT8_LARGEST_STEPS, round_weight, weight_steps


__all__ = ["Learned"]

_MODEL = "model."  # the name of the model in the program that was exported


@dataclass(frozen=True)
class Learned:
    """What a training decides about the int8 model.

    Args:
        record: What the training learned besides weights.
        steps: Layer -> the step between two values of each row of its weight. *Shape:* `(num_rows,)` each
    """

    record: QATRecord
    steps: Mapping[str, Tensor]

    @classmethod
    @torch.no_grad()
    def round_weights(cls, model: QuaLAMiniLMForQuestionAnswering, names: Iterable[str], record: QATRecord) -> Learned:
        """Round the weights of linear layers as the training did, in place.

        Args:
            model: A model that is about to be exported.
            names: Its linear layers, without branches of outlier neurons.
            record: What the training learned.

        Returns:
            What was learned, with the steps of the weights.
        """
        steps = {}
        for name in names:
            layer: Any = model.get_submodule(name)
            bits = bits_of(name, record.weight_bits)
            steps[name] = weight_steps(layer.weight, bits)
            layer.weight.copy_(round_weight(layer.weight, bits))
        return cls(record, steps)

    def apply(self, prepared: fx.GraphModule) -> None:
        """Give the observers of a graph what the training learned, instead of what they observed.

        Args:
            prepared: The graph with observers, of the model with rounded weights.
        """
        sites: dict[str, str] = {}
        for node in prepared.graph.nodes:
            if node.target is not torch.ops.aten.linear.default or node.args[1].op != "call_module":
                continue  # no linear layer, or one in float
            values, weight = node.args[:2]
            name = str(weight.args[0].target).removeprefix(_MODEL).removesuffix(".weight")
            observer: Any = prepared.get_submodule(str(weight.target))
            largest = INT8_LARGEST_STEPS * self.steps[name]
            observer.min_val, observer.max_val = -largest, largest
            # The head of the whole model also reads what layers that drop tokens read, whose ranges those are.
            if site_of(name) != FINAL_SITE or str(values.target) not in sites:
                sites[str(values.target)] = site_of(name)
        for target, site in sites.items():
            observer = prepared.get_submodule(target)
            low, high = self.record.activation_ranges[site]
            observer.min_val, observer.max_val = torch.tensor(low), torch.tensor(high)
