"""The int8 kernels of oneDNN in place of the linear layers of a quantized graph.

A graph that comes out of quantization computes in float: it rounds, scales back, and calls a float linear layer, for a
compiler to recognise. torch ships the kernels that the compiler would choose, so where nothing else is to be compiled
the layers can call them directly: no C++ compiler, no waiting, any shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx


__all__ = ["has_kernels", "use_int8_kernels"]


@dataclass(frozen=True)
class _Quantized:
    """A value in 8 bits: the node that holds it, its scale and its zero point."""

    node: fx.Node
    scale: Any
    zero_point: Any


def has_kernels() -> bool:
    """Tell whether this build of torch has them."""
    return bool(torch._C._has_mkldnn) and torch._C._dispatch_has_kernel("onednn::qlinear_pointwise")


def use_int8_kernels(graph: fx.GraphModule) -> int:
    """Replace linear layers of 8-bit inputs and weights, in place. The rest of the graph stays.

    Args:
        graph: A graph of `torch.ops.aten` and `torch.ops.quantized_decomposed`; its tensors are module attributes
            without dots.

    Returns:
        How many layers were replaced: none if torch has no such kernels.
    """
    if not has_kernels():
        return 0
    ops, count = torch.ops, 0
    packed: dict[str, tuple[str, str, str]] = {}
    for node in list(graph.graph.nodes):
        if node.target is not ops.aten.linear.default:
            continue
        values, weight = _find_input(node.args[0]), _find_weight(graph, node.args[1])
        if values is None or weight is None:
            continue
        name = str(node.args[1].args[0].target)
        if name not in packed:
            packed[name] = _pack(graph, name, *weight)
        bias = node.args[2] if len(node.args) > 2 else None
        is_dynamic = isinstance(values.scale, fx.Node)
        kernel = ops.onednn.qlinear_pointwise.tensor if is_dynamic else ops.onednn.qlinear_pointwise.default
        with graph.graph.inserting_before(node):
            tensors = tuple(graph.graph.get_attr(attribute) for attribute in packed[name])
            scales = (values.scale, values.zero_point)
            result = graph.graph.call_function(
                kernel, (values.node, *scales, *tensors, bias, 1.0, 0, torch.float32, "none", [], "")
            )
        node.replace_all_uses_with(result)
        graph.graph.erase_node(node)
        count += 1
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    for name in packed:
        if not any(node.op == "get_attr" and node.target == name for node in graph.graph.nodes):
            delattr(graph, name)
    graph.recompile()
    return count


def _find_input(node: Any) -> _Quantized | None:
    ops = torch.ops.quantized_decomposed
    if node.target not in (ops.dequantize_per_tensor.default, ops.dequantize_per_tensor.tensor):
        return None
    values, scale, zero_point = node.args[:3]
    # The kernel takes inputs of 8 bits without a sign.
    return _Quantized(values, scale, zero_point) if node.args[5] is torch.uint8 else None


def _find_weight(graph: fx.GraphModule, node: Any) -> tuple[Tensor, Tensor, Tensor] | None:
    ops = torch.ops.quantized_decomposed
    if node.target is ops.dequantize_per_channel.default:
        weight, scale, zero_point, axis = node.args[:4]
        if weight.op != "get_attr" or axis != 0:
            return None
        scales, zero_points = getattr(graph, scale.target), getattr(graph, zero_point.target)
    elif node.target is ops.dequantize_per_tensor.default:
        weight, scale, zero_point = node.args[:3]
        if weight.op != "get_attr":
            return None
        scales, zero_points = torch.tensor([scale]), torch.tensor([zero_point])
    else:
        return None
    table = getattr(graph, weight.target)
    if table.dtype is not torch.int8 or bool(zero_points.any()):
        return None
    return table, scales.to(torch.float32), zero_points.to(torch.int64)


def _pack(
    graph: fx.GraphModule, name: str, weight: Tensor, scales: Tensor, zero_points: Tensor
) -> tuple[str, str, str]:
    names = (f"{name}_packed", f"{name}_scales", f"{name}_zero_points")
    packed = torch.ops.onednn.qlinear_prepack(weight, None)
    for attribute, tensor in zip(names, (packed, scales, zero_points), strict=True):
        graph.register_buffer(attribute, tensor)
    return names
