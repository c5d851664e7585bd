"""The int8 kernels compute what the quantized graph computes in float."""

from __future__ import annotations

import copy
import operator

import pytest
import torch
from torch import fx

from optimum_qala.inference import int8_kernels
from optimum_qala.inference.int8_kernels import use_int8_kernels


def linear_graph(*, per_channel=True, dynamic=False, dtype=torch.uint8, bias=True, zero_point=0, seed=0):
    """A quantized linear layer from 24 to 16, as convert_pt2e leaves it."""
    import torch.ao.quantization.fx._decomposed

    generator = torch.Generator().manual_seed(seed)
    root, graph = torch.nn.Module(), fx.Graph()
    root.register_buffer("weight", torch.randint(-127, 128, (16, 24), generator=generator).to(torch.int8))
    root.register_buffer("scales", torch.rand(16, generator=generator) / 100 + 0.001)
    root.register_buffer("zeros", torch.full((16,), zero_point))
    root.register_buffer("bias", torch.randn(16, generator=generator))
    ops = torch.ops.quantized_decomposed
    low, high = (0, 255) if dtype is torch.uint8 else (-128, 127)
    values = graph.placeholder("values")
    if dynamic:
        chosen = graph.call_function(ops.choose_qparams.tensor, (values, low, high, 1e-5, dtype))
        scales = tuple(graph.call_function(operator.getitem, (chosen, index)) for index in (0, 1))
        quantize, dequantize = ops.quantize_per_tensor.tensor, ops.dequantize_per_tensor.tensor
    else:
        scales, quantize, dequantize = (0.03, 120), ops.quantize_per_tensor.default, ops.dequantize_per_tensor.default
    rounded = graph.call_function(quantize, (values, *scales, low, high, dtype))
    restored = graph.call_function(dequantize, (rounded, *scales, low, high, dtype))
    table = graph.get_attr("weight")
    if per_channel:
        tensors = (graph.get_attr("scales"), graph.get_attr("zeros"))
        weight = graph.call_function(ops.dequantize_per_channel.default, (table, *tensors, 0, -128, 127, torch.int8))
    else:
        weight = graph.call_function(
            ops.dequantize_per_tensor.default, (table, 0.004, zero_point, -128, 127, torch.int8)
        )
    arguments = (restored, weight, graph.get_attr("bias")) if bias else (restored, weight)
    graph.output((graph.call_function(torch.ops.aten.linear.default, arguments),))
    return fx.GraphModule(root, graph)


@pytest.mark.parametrize("shape", [(3, 24), (2, 5, 24), (1, 1, 24)], ids=str)
@pytest.mark.parametrize(
    "options",
    [{}, {"per_channel": False}, {"dynamic": True}, {"bias": False}, {"dynamic": True, "per_channel": False}],
    ids=str,
)
def test_kernel_equals_the_float_computation(options, shape):
    graph = linear_graph(**options)
    lowered = copy.deepcopy(graph)
    assert use_int8_kernels(lowered) == 1
    assert "linear" not in lowered.code.replace("qlinear", "")
    values = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(lowered(values)[0], graph(values)[0], rtol=1e-4, atol=1e-4)


def test_unpacked_weights_do_not_stay():
    lowered = linear_graph()
    use_int8_kernels(lowered)
    assert "weight" not in dict(lowered.named_buffers())


@pytest.mark.parametrize("options", [{"dtype": torch.int8}, {"zero_point": 3}], ids=str)
def test_what_has_no_kernel_stays_as_it_is(options):
    graph = linear_graph(**options)
    lowered = copy.deepcopy(graph)
    assert use_int8_kernels(lowered) == 0
    values = torch.randn(2, 24)
    torch.testing.assert_close(lowered(values)[0], graph(values)[0])


def test_without_kernels_nothing_changes(monkeypatch):
    monkeypatch.setattr(int8_kernels, "has_kernels", lambda: False)
    assert use_int8_kernels(linear_graph()) == 0
