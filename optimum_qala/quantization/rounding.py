"""How a quantized model rounds weights, rows of embedding tables and activations, as functions with gradients.

Gradients go straight through the rounding: they are those of the values that were rounded, and 0 where a value was
clipped. The operators are torch's own; only ternary weights, which it lacks, are made here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


__all__ = [
    "INT8_LARGEST_STEPS",
    "WEIGHT_BITS",
    "affine_parameters",
    "round_activation",
    "round_rows",
    "round_weight",
    "row_steps",
    "weight_steps",
]

TERNARY = 2
WEIGHT_BITS = (8, 4, TERNARY)

# Smallest and largest integer of a weight, and what its largest value is divided by for the step between two: of 8
# bits as Intel Neural Compressor has it, of 4 so that both signs reach equally far.
INT8_LARGEST_STEPS = 127.5
_WEIGHT_GRIDS = {8: (-128, 127, INT8_LARGEST_STEPS), 4: (-7, 7, 7.0)}
_LARGEST_IN_ROW = 127
_ACTIVATION_LEVELS = 255
_LEAST_STEP = torch.finfo(torch.float32).eps  # as in torch's observers
# Ternary weight networks (arXiv 1605.04711), in the setting of Kim et al. (arXiv 2211.11014).
_TERNARY_THRESHOLD = 0.7
_TERNARY_CLIP = 2.5


class _Ternary(torch.autograd.Function):
    """Maps a weight to -alpha, 0 and alpha; the gradient passes where the weight was not clipped."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight.abs() <= _TERNARY_CLIP)
        clipped = weight.clamp(-_TERNARY_CLIP, _TERNARY_CLIP)
        sizes = clipped.abs()
        counts = sizes > _TERNARY_THRESHOLD * sizes.mean()
        alpha = (sizes * counts).sum() / counts.sum().clamp(min=1)
        return clipped.sign() * counts * alpha

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (inside,) = ctx.saved_tensors
        return gradient * inside  # type: ignore[no-any-return]


def round_weight(weight: Tensor, bits: int) -> Tensor:
    """Round the weight of a linear layer, symmetrically.

    8 bits as Intel Neural Compressor rounds them and 4 bits have a step for each row. 2 stands for ternary weights:
    delta = 0.7 mean|W|, alpha = mean of |W| where |W| > delta, W -> alpha sign(W) where |W| > delta, 0 elsewhere, for
    the whole matrix, clipped to +-2.5 before.

    Args:
        weight: *Shape:* `(num_rows, num_columns)`
        bits: One of `WEIGHT_BITS`.

    Returns:
        The rounded weight, in float32. *Shape:* `(num_rows, num_columns)`
    """
    weight = weight.float()
    if bits == TERNARY:
        return _Ternary.apply(weight)  # type: ignore[no-any-return, no-untyped-call]
    low, high, _ = _WEIGHT_GRIDS[bits]
    return _round_rows(weight, weight_steps(weight, bits), low, high)


@torch.no_grad()
def weight_steps(weight: Tensor, bits: int) -> Tensor:
    """Return the step between two values of a rounded weight, for each row.

    Args:
        weight: The weight before it is rounded. *Shape:* `(num_rows, num_columns)`
        bits: One of `WEIGHT_BITS`.

    Returns:
        *Shape:* `(num_rows,)`
    """
    if bits == TERNARY:
        alpha = round_weight(weight, bits).abs().amax()
        return alpha.clamp(min=_LEAST_STEP).expand(weight.shape[0])
    return (weight.float().abs().amax(dim=1) / _WEIGHT_GRIDS[bits][2]).clamp(min=_LEAST_STEP)


def round_rows(rows: Tensor) -> Tensor:
    """Round rows of an embedding table to 8 bits, symmetrically, with a step for each row.

    Args:
        rows: *Shape:* `(..., width)`

    Returns:
        The rounded rows, in float32. *Shape:* `(..., width)`
    """
    flat = rows.float().reshape(-1, rows.shape[-1])
    return _round_rows(flat, row_steps(flat), -_LARGEST_IN_ROW, _LARGEST_IN_ROW).reshape(rows.shape)


@torch.no_grad()
def row_steps(rows: Tensor) -> Tensor:
    """Return the step between two values of a rounded row of an embedding table.

    Args:
        rows: *Shape:* `(num_rows, width)`

    Returns:
        *Shape:* `(num_rows,)`
    """
    return (rows.float().abs().amax(dim=1) / _LARGEST_IN_ROW).clamp(min=_LEAST_STEP)


def _round_rows(values: Tensor, steps: Tensor, low: int, high: int) -> Tensor:
    zeros = torch.zeros_like(steps, dtype=torch.int32)  # an all-zero row, as that of padding, stays zero
    return torch.fake_quantize_per_channel_affine(values, steps, zeros, 0, low, high)


def affine_parameters(ranges: Tensor) -> tuple[Tensor, Tensor]:
    """Turn ranges into scales and zero points of unsigned 8 bits, as torch's observers do.

    Args:
        ranges: Smallest and largest value of each. *Shape:* `(num_ranges, 2)`

    Returns:
        Scales and zero points. *Shape:* `(num_ranges,)` each
    """
    low, high = ranges[:, 0].clamp(max=0.0), ranges[:, 1].clamp(min=0.0)
    scales = ((high - low) / _ACTIVATION_LEVELS).clamp(min=_LEAST_STEP)
    zero_points = (-torch.round(low / scales)).clamp(0, _ACTIVATION_LEVELS)
    return scales, zero_points.to(torch.int32)


def round_activation(values: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Round activations to unsigned 8 bits; what is out of range is clipped.

    Args:
        values: Of any shape.
        scale: Scalar.
        zero_point: Scalar.

    Returns:
        The rounded values, in float32, of the same shape.
    """
    return torch.fake_quantize_per_tensor_affine(values.float(), scale, zero_point, 0, _ACTIVATION_LEVELS)
