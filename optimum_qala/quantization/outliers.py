"""Neurons whose activations dwarf all others, split off from the feed-forward layers before quantization.

In BERT-shaped models a few neurons answer to one token, mostly [CLS], with a value many times that of any other
neuron ("massive activations", arXiv 2402.17762). One of them stretches the range of a layer's activations, and its
weights the range of a row, so that little of the 8 bits is left for everything else. The values matter: clipping them
ruins the model. So these neurons, a handful in the whole model, leave the int8 layers and are computed beside them in
float, as the outlier features in LLM.int8() (arXiv 2208.07339) are. The function that the model computes stays the
same, up to float rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from optimum_qala.errors import DataError
from optimum_qala.models.modeling_quala_minilm import QuaLAMiniLMForQuestionAnswering
from optimum_qala.quantization.calibration import sample_tensors


__all__ = ["BRANCH_NAME", "find_outlier_neurons", "split_outlier_neurons"]

# Part of the name of every operation of the float branch, by which quantization finds them.
BRANCH_NAME = "outlier_neurons"
# At most this share of a layer's neurons is split off: the branch must stay negligible.
MAX_SHARE = 1 / 128
# What counts as usual is the largest activation of the neuron at this rank from the top, as a share of all neurons.
USUAL_SHARE = 1 / 64


class OutlierNeurons(nn.Module):
    """A few neurons of a feed-forward layer, both their halves."""

    def __init__(self, up: nn.Linear, down: nn.Linear, activation: Any) -> None:
        super().__init__()
        self.up, self.down, self.activation = up, down, activation

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map `(batch_size, num_tokens, hidden_size)` to the same shape: what these neurons add."""
        return self.down(self.activation(self.up(hidden_states)))  # type: ignore[no-any-return]


class SplitResidual(nn.Module):
    """The second half of a feed-forward layer, with a float branch for the neurons that the first half lacks."""

    def __init__(self, stock: Any, outlier_neurons: OutlierNeurons) -> None:
        super().__init__()
        self.dense, self.LayerNorm, self.dropout = stock.dense, stock.LayerNorm, stock.dropout
        self.outlier_neurons = outlier_neurons  # the attribute is BRANCH_NAME

    def forward(self, values: Tensor, residual: Tensor) -> Tensor:
        """Map `(batch_size, num_tokens, intermediate_size)` to `(batch_size, num_tokens, hidden_size)`."""
        summed = self.dense(values) + self.outlier_neurons(residual)
        return self.LayerNorm(self.dropout(summed) + residual)  # type: ignore[no-any-return]


def find_outlier_neurons(
    model: QuaLAMiniLMForQuestionAnswering, samples: Iterable[Mapping[str, Any]], factor: float
) -> dict[int, list[int]]:
    """Find the neurons whose largest activation exceeds what is usual in their layer by a factor.

    Args:
        model: The trained model.
        samples: Inputs of the model, calibration samples for example; other keys are ignored.
        factor: How far the largest activation of a neuron must exceed the usual one, that of the neuron at 1/64 from
            the top.

    Returns:
        Layer -> neurons, ascending; layers without any are left out.

    Raises:
        DataError: If there are no samples.
    """
    layers: Any = model.quala.encoder.layer
    largest: dict[int, Tensor] = {}

    def record(index: int) -> Any:
        def hook(module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
            values = output.abs().flatten(0, -2).amax(dim=0)
            largest[index] = torch.maximum(largest[index], values) if index in largest else values

        return hook

    hooks = [layer.intermediate.register_forward_hook(record(index)) for index, layer in enumerate(layers)]
    was_training = model.training
    try:
        model.eval()
        with torch.inference_mode():
            for sample in samples:
                model(**sample_tensors(sample, model.device), budget="full")
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    if not largest:
        raise DataError("there are no samples to find outlier neurons with; give some questions of the training set")
    found = {index: _above(values, factor) for index, values in largest.items()}
    return {index: neurons for index, neurons in found.items() if neurons}


def _above(values: Tensor, factor: float) -> list[int]:
    ranked = torch.sort(values, descending=True)
    usual = ranked.values[int(len(values) * USUAL_SHARE)]
    most = max(1, int(len(values) * MAX_SHARE))
    neurons = [
        int(neuron) for neuron, value in zip(ranked.indices, ranked.values, strict=True) if value > factor * usual
    ]
    return sorted(neurons[:most])


@torch.no_grad()
def split_outlier_neurons(
    model: QuaLAMiniLMForQuestionAnswering, neurons: Mapping[int, Sequence[int]]
) -> QuaLAMiniLMForQuestionAnswering:
    """Move neurons into a float branch, in place. The model computes what it computed before.

    Args:
        model: A model that is about to be exported; it can no longer be saved as a checkpoint.
        neurons: Layer -> neurons, as `find_outlier_neurons` gives them.

    Returns:
        The same model.
    """
    for index, chosen in neurons.items():
        layer: Any = model.quala.encoder.layer[index]
        up, down = layer.intermediate.dense, layer.output.dense
        rows = torch.as_tensor(list(chosen))
        branch_up = nn.Linear(up.in_features, len(rows), bias=True)
        branch_down = nn.Linear(len(rows), down.out_features, bias=False)
        branch_up.weight.copy_(up.weight[rows])
        branch_up.bias.copy_(up.bias[rows])
        branch_down.weight.copy_(down.weight[:, rows])
        # Their places in the int8 layer stay, so that its shape does: no input, no output.
        up.weight[rows], up.bias[rows] = 0.0, 0.0
        down.weight[:, rows] = 0.0
        branch = OutlierNeurons(branch_up, branch_down, layer.intermediate.activation)
        layer.output = SplitResidual(layer.output, branch)
    return model
