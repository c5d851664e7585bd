"""A model that computes in float what it will in int8: weights and activations are rounded where they are read.

Rounded are what Intel Neural Compressor rounds: weights and inputs of all linear layers, and the embedding tables. The
model and its parameters stay as they are; linear layers and embeddings compute something else while a context lasts.
Outlier neurons are computed in float beside the layers, as in the int8 model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from optimum_qala.models.configuration_quala_minilm import FULL_BUDGET
from optimum_qala.models.modeling_quala_minilm import QuaLAMiniLMForQuestionAnswering
from optimum_qala.quantization.qat_record import FINAL_SITE, QATRecord, bits_of, site_names, site_of
from optimum_qala.quantization.rounding import affine_parameters, round_activation, round_rows, round_weight


__all__ = ["FakeQuantization"]


class FakeQuantization:
    """Rounds weights and activations of a model, and keeps the ranges of its activations.

    Ranges are learned from full-length passes: a range is the mean, over windows, of the smallest and the largest
    value in a window, padding apart, as in static calibration with the algorithm "minmax"; `update` lets it follow.

    Args:
        model: The model, which stays as it is.
        weight_bits: Bits of the weights of the layers, see `round_weight`; heads and tables have 8.
        outlier_neurons: Layer -> neurons that are computed in float, as `find_outlier_neurons` gives them.
        averaging: Weight of what was observed last in a range.
    """

    def __init__(
        self,
        model: QuaLAMiniLMForQuestionAnswering,
        *,
        weight_bits: int = 8,
        outlier_neurons: Mapping[int, list[int]] | None = None,
        averaging: float = 0.1,
    ) -> None:
        self.model, self.weight_bits, self.averaging = model, weight_bits, averaging
        self.outlier_neurons = dict(outlier_neurons or {})
        self._sites = {site: index for index, site in enumerate(site_names(model.config.num_hidden_layers))}
        self.ranges: Tensor | None = None  # of the sites, (num_sites, 2); activations stay in float without
        self._observed = torch.zeros(len(self._sites), 3)  # sums of both ends, and how many windows
        self._is_active = self._observes = False
        self._parameters: tuple[list[Tensor], list[Tensor]] | None = None
        self._has_gradients = False
        self._mask: Tensor | None = None
        self._readout_site = ""
        self._weights: dict[tuple[str, torch.dtype], Tensor] = {}
        self._inputs: dict[str, tuple[Tensor, bool, torch.dtype, Tensor]] = {}

    @classmethod
    def from_record(
        cls, model: QuaLAMiniLMForQuestionAnswering, record: QATRecord, *, averaging: float = 0.1
    ) -> FakeQuantization:
        """Go on from what a training learned.

        Args:
            model: The model.
            record: Its record.
            averaging: As in the constructor.

        Returns:
            The fake quantization.
        """
        made = cls(model, weight_bits=record.weight_bits, outlier_neurons=record.outlier_neurons, averaging=averaging)
        made.ranges = torch.tensor([record.activation_ranges[site] for site in made._sites], device=model.device)
        return made

    @property
    def record(self) -> QATRecord:
        """What was decided and learned so far; there are no ranges before the first `update`."""
        ranges: dict[str, tuple[float, float]] = {}
        if self.ranges is not None:
            ranges = {site: (low, high) for site, (low, high) in zip(self._sites, self.ranges.tolist(), strict=True)}
        return QATRecord(self.weight_bits, self.outlier_neurons, ranges)

    def update(self, share: Callable[[Tensor], Tensor] | None = None) -> None:
        """Let the ranges follow what was observed since the last update.

        Args:
            share: Sums a tensor over the processes of a distributed training.
        """
        observed = self._observed if share is None else share(self._observed)
        means, counts = observed[:, :2] / observed[:, 2:].clamp(min=1.0), observed[:, 2:]
        if self.ranges is None:
            self.ranges = means
        else:
            self.ranges = torch.where(counts > 0, torch.lerp(self.ranges, means, self.averaging), self.ranges)
        self._observed = torch.zeros_like(observed)

    @contextlib.contextmanager
    def active(self, observe: bool = False) -> Iterator[None]:
        """Let the model compute with rounded weights and, once there are ranges, activations.

        The weights must not change while the context lasts; each is rounded once. Entering it twice changes nothing.

        Args:
            observe: Take note of the activations of passes with `budget="full"`.
        """
        if self._is_active:
            yield
            return
        self._observed = self._observed.to(self.model.device)
        self._is_active, self._observes = True, observe
        self._has_gradients = torch.is_grad_enabled()
        if self.ranges is not None:
            scales, zero_points = affine_parameters(self.ranges.to(self.model.device))
            self._parameters = (list(scales.unbind()), list(zero_points.unbind()))
        hook = self.model.register_forward_pre_hook(self._begin_pass, with_kwargs=True)
        replaced = list(self._replacements())
        try:
            for module, name, function in replaced:
                setattr(module, name, function)
            yield
        finally:
            for module, name, _ in replaced:
                module.__dict__.pop(name, None)
            hook.remove()
            self._weights.clear()
            self._inputs.clear()
            self._parameters = self._mask = None
            self._is_active = False

    def _replacements(self) -> Iterator[tuple[Any, str, Callable[..., Any]]]:
        """Give what computes something else: an object, the name of its method, and the method."""
        encoder: Any = self.model.quala.encoder
        yield encoder, "read", partial(self._read, encoder)
        kept = {layer: self._kept_neurons(layer) for layer in self.outlier_neurons}
        for name, module in self.model.named_modules():
            if isinstance(module, nn.Embedding):
                yield module, "forward", partial(_embed, module)
            elif isinstance(module, nn.Linear):
                yield module, "forward", partial(self._linear, name, module, self._neurons_of(name, kept))
        for layer in self.outlier_neurons:
            yield encoder.layer[layer].output, "forward", partial(self._output, layer)

    def _kept_neurons(self, layer: int) -> Tensor:
        encoder: Any = self.model.quala.encoder
        kept = torch.ones_like(encoder.layer[layer].intermediate.dense.bias, requires_grad=False)
        kept[self.outlier_neurons[layer]] = 0.0
        return kept

    def _neurons_of(self, name: str, kept: Mapping[int, Tensor]) -> tuple[Tensor | None, Tensor | None]:
        """Give the rows and the columns of a linear layer that stay in it: 1, or 0 for outlier neurons."""
        for layer, neurons in kept.items():
            if name == f"quala.encoder.layer.{layer}.intermediate.dense":
                return neurons, None
            if name == f"quala.encoder.layer.{layer}.output.dense":
                return None, neurons
        return None, None

    def _begin_pass(self, model: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        is_full = isinstance(kwargs.get("budget"), str) and kwargs["budget"] == FULL_BUDGET
        self._mask = None
        if self._observes and is_full:
            mask = kwargs.get("attention_mask")
            self._mask = torch.ones_like(kwargs.get("input_ids", *args[:1])) if mask is None else mask

    def _read(self, encoder: Any, index: int, *args: Any) -> Any:
        """Read tokens after `index` layers; the head of the whole model then reads what that layer reads."""
        layer_input = site_of(f"quala.encoder.span_heads.{index}")
        self._readout_site = layer_input if layer_input in self._sites else ""
        return type(encoder).read(encoder, index, *args)

    def _linear(
        self, name: str, module: nn.Linear, neurons: tuple[Tensor | None, Tensor | None], values: Tensor
    ) -> Tensor:
        site = site_of(name)
        if site == FINAL_SITE:
            site = self._readout_site or site
        dtype = _compute_dtype(values)
        rows = neurons[0]
        bias = module.bias if rows is None else module.bias * rows
        weight = self._rounded_weight(name, module.weight, neurons, dtype)
        return functional.linear(self._rounded_input(site, values, dtype), weight, bias)

    def _rounded_weight(
        self, name: str, weight: Tensor, neurons: tuple[Tensor | None, Tensor | None], dtype: torch.dtype
    ) -> Tensor:
        key = (name, dtype)
        if key not in self._weights:
            rows, columns = neurons
            # The first pass that reads it may be one for scores, without gradients.
            with torch.set_grad_enabled(self._has_gradients):
                kept: Tensor = weight if rows is None else weight * rows.unsqueeze(1)
                kept = kept if columns is None else kept * columns
                self._weights[key] = round_weight(kept, bits_of(name, self.weight_bits)).to(dtype)
        return self._weights[key]

    def _rounded_input(self, site: str, values: Tensor, dtype: torch.dtype) -> Tensor:
        """Round activations; several linear layers in a row read the same."""
        last = self._inputs.get(site)
        has_gradients = torch.is_grad_enabled()
        if last is not None and last[0] is values and last[1:3] == (has_gradients, dtype):
            return last[3]
        self._observe(self._sites[site], values)
        if self._parameters is None:
            return values
        scales, zero_points = self._parameters
        index = self._sites[site]
        rounded = round_activation(values, scales[index], zero_points[index]).to(dtype)
        self._inputs[site] = (values, has_gradients, dtype, rounded)
        return rounded

    @torch.no_grad()
    def _observe(self, index: int, values: Tensor) -> None:
        if self._mask is None:
            return
        padding = self._mask == 0
        low = values.amin(dim=-1).float().masked_fill(padding, torch.inf).amin(dim=1)
        high = values.amax(dim=-1).float().masked_fill(padding, -torch.inf).amax(dim=1)
        self._observed[index] += torch.stack([low, high, torch.ones_like(low)]).sum(dim=1)

    def _output(self, index: int, values: Tensor, residual: Tensor) -> Tensor:
        """End the feed-forward layer, with its outlier neurons in float beside it."""
        layer: Any = self.model.quala.encoder.layer[index]
        up, down, neurons = layer.intermediate.dense, layer.output.dense, self.outlier_neurons[index]
        hidden = layer.intermediate.activation(functional.linear(residual, up.weight[neurons], up.bias[neurons]))
        summed = layer.output.dense(values) + functional.linear(hidden, down.weight[:, neurons])
        return layer.output.LayerNorm(layer.output.dropout(summed) + residual)  # type: ignore[no-any-return]


def _embed(module: nn.Embedding, ids: Tensor) -> Tensor:
    """Look up rounded rows: only those that are looked up are rounded, unless the table is smaller."""
    if module.num_embeddings <= ids.numel():
        return functional.embedding(ids, round_rows(module.weight), module.padding_idx)
    return round_rows(functional.embedding(ids, module.weight, module.padding_idx))


def _compute_dtype(values: Tensor) -> torch.dtype:
    """Return the type that a linear layer multiplies in."""
    kind = values.device.type
    if torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return values.dtype
