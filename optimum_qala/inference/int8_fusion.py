"""What stands around the int8 kernels of a quantized graph, done by the kernels themselves or in fewer passes.

The operators that quantization writes are many for one thing: rounding to 8 bits makes five tensors, choosing its
steps takes a dozen more operators, and a linear layer is followed by its activation function and by the rounding for
the next layer. A compiler would merge these. The kernels do it, too, when they are asked to.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor, fx


__all__ = ["fuse_kernels", "round_by_range", "round_to_bytes"]

_ONEDNN, _QUANTIZED = torch.ops.onednn, torch.ops.quantized_decomposed
_BYTES = (0, 255, torch.uint8)  # what the kernels take
# Positions in the arguments of the kernels, static and dynamic.
_OUTPUT_SCALE, _OUTPUT_ZERO_POINT, _OUTPUT_DTYPE, _POST_OP, _POST_OP_ALGORITHM = 7, 8, 9, 10, 12


def fuse_kernels(graph: fx.GraphModule) -> None:
    """Let int8 kernels do what follows them, and round in fewer passes what they do not produce. In place.

    Results differ from those of the graph as it was only where a value lies halfway between two numbers of 8 bits, or
    within float32's precision of that.

    Args:
        graph: A graph with the kernels of `use_int8_kernels`.
    """
    for node in list(graph.graph.nodes):
        if _is_kernel(node):
            _absorb_gelu(node)
            _absorb_rounding(node)
    for node in list(graph.graph.nodes):
        _round_in_fewer_passes(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def round_to_bytes(values: Tensor, inverse_scale: float, zero_point: int) -> Tensor:
    """Round to 8 bits without a sign.

    Args:
        values: Values of any shape.
        inverse_scale: Steps per unit.
        zero_point: What 0 becomes, from 0 to 255.

    Returns:
        `values` in uint8.
    """
    return torch.mul(values, inverse_scale).round_().add_(zero_point).clamp_(0, 255).to(torch.uint8)


def round_by_range(values: Tensor, smallest_scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Round to 8 bits without a sign, in steps that reach from the smallest value to the largest and meet 0.

    Args:
        values: Values of any shape.
        smallest_scale: Least width of a step.

    Returns:
        `values` in uint8, the width of a step and what 0 became, as the kernels take them.
    """
    # What `affine_parameters` computes, in numbers instead of tensors: every layer of every call needs it.
    low, high = (float(value) for value in torch.aminmax(values))
    low, high = min(low, 0.0), max(high, 0.0)
    scale, zero_point = 1.0, 0  # what quantization takes for values that have no range, such as nan
    if math.isfinite(high - low):
        scale = max((high - low) / 255, smallest_scale)
        zero_point = min(max(-round(low / scale), 0), 255)
    rounded = round_to_bytes(values, 1 / scale, zero_point)
    return rounded, torch.tensor(scale), torch.tensor(zero_point)


def _is_kernel(node: fx.Node) -> bool:
    return node.target in (_ONEDNN.qlinear_pointwise.default, _ONEDNN.qlinear_pointwise.tensor)


def _only_user(node: fx.Node, target: Any) -> fx.Node | None:
    (user, *others) = node.users
    return user if not others and user.target is target else None


def _absorb_gelu(kernel: fx.Node) -> None:
    gelu = _only_user(kernel, torch.ops.aten.gelu.default)
    if gelu is None:
        return
    kernel.update_arg(_POST_OP, "gelu")
    kernel.update_arg(_POST_OP_ALGORITHM, gelu.kwargs.get("approximate", "none"))
    gelu.replace_all_uses_with(kernel)
    gelu.graph.erase_node(gelu)


def _absorb_rounding(kernel: fx.Node) -> None:
    rounding = _only_user(kernel, _QUANTIZED.quantize_per_tensor.default)
    if rounding is None or rounding.args[3:6] != _BYTES:
        return
    kernel.update_arg(_OUTPUT_SCALE, rounding.args[1])
    kernel.update_arg(_OUTPUT_ZERO_POINT, rounding.args[2])
    kernel.update_arg(_OUTPUT_DTYPE, torch.uint8)
    rounding.replace_all_uses_with(kernel)
    rounding.graph.erase_node(rounding)


def _round_in_fewer_passes(node: fx.Node) -> None:
    """Replace a rounding to 8 bits, and for a dynamic one the choice of its steps."""
    if node.target is _QUANTIZED.quantize_per_tensor.default and node.args[3:6] == _BYTES:
        values, scale, zero_point = node.args[:3]
        with node.graph.inserting_before(node):
            rounded = node.graph.call_function(round_to_bytes, (values, 1 / scale, zero_point))  # type: ignore[operator]
        node.replace_all_uses_with(rounded)
        node.graph.erase_node(node)
    elif node.target is _QUANTIZED.choose_qparams.tensor and (*node.args[1:3], node.args[4]) == _BYTES:
        steps = {user.args[1]: user for user in node.users if user.target is operator.getitem}
        rounding = next((user for user in steps[0].users if _rounds(user, node.args[0], steps)), None)
        if rounding is None:
            return
        with node.graph.inserting_before(node):
            whole = node.graph.call_function(round_by_range, (node.args[0], node.args[3]))
            parts = [node.graph.call_function(operator.getitem, (whole, index)) for index in range(3)]
        for old, new in zip((rounding, steps[0], steps[1]), parts, strict=True):
            old.replace_all_uses_with(new)
            node.graph.erase_node(old)
        node.graph.erase_node(node)


def _rounds(node: fx.Node, values: Any, steps: dict[Any, fx.Node]) -> bool:
    target, arguments = _QUANTIZED.quantize_per_tensor.tensor, (values, steps[0], steps[1], *_BYTES)
    return node.target is target and node.args == arguments
