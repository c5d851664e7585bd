"""Fused kernels compute what the graph around them computed."""

from __future__ import annotations

import copy
import operator

import pytest
import torch
from torch import fx

from optimum_qala.inference.int8_fusion import fuse_kernels, round_by_range, round_to_bytes
from optimum_qala.inference.int8_kernels import use_int8_kernels


def feed_forward(*, dynamic=False, approximate="none", spy=False, levels=(0, 255)):
    """Two quantized linear layers, 24 to 32 to 16, with gelu between them, as convert_pt2e leaves them."""
    import torch.ao.quantization.fx._decomposed

    generator = torch.Generator().manual_seed(0)
    root, graph = torch.nn.Module(), fx.Graph()
    ops, aten = torch.ops.quantized_decomposed, torch.ops.aten

    def linear(values, name, inputs, outputs, steps):
        root.register_buffer(f"{name}_weight", torch.randint(-127, 128, (outputs, inputs), generator=generator).char())
        root.register_buffer(f"{name}_scales", torch.rand(outputs, generator=generator) / 200 + 0.001)
        root.register_buffer(f"{name}_zeros", torch.zeros(outputs, dtype=torch.int64))
        root.register_buffer(f"{name}_bias", torch.randn(outputs, generator=generator))
        quantize, dequantize = ops.quantize_per_tensor.default, ops.dequantize_per_tensor.default
        if dynamic:
            chosen = graph.call_function(ops.choose_qparams.tensor, (values, 0, 255, 1e-5, torch.uint8))
            steps = tuple(graph.call_function(operator.getitem, (chosen, index)) for index in (0, 1))
            quantize, dequantize = ops.quantize_per_tensor.tensor, ops.dequantize_per_tensor.tensor
        rounded = graph.call_function(quantize, (values, *steps, *levels, torch.uint8))
        restored = graph.call_function(dequantize, (rounded, *steps, *levels, torch.uint8))
        tensors = [graph.get_attr(f"{name}_{part}") for part in ("weight", "scales", "zeros")]
        weight = graph.call_function(ops.dequantize_per_channel.default, (*tensors, 0, -128, 127, torch.int8))
        return graph.call_function(aten.linear.default, (restored, weight, graph.get_attr(f"{name}_bias")))

    hidden = linear(graph.placeholder("values"), "up", 24, 32, (0.03, 121))
    options = {} if approximate == "none" else {"approximate": approximate}
    active = graph.call_function(aten.gelu.default, (hidden,), options)
    result = linear(active, "down", 32, 16, (0.02, 9))
    graph.output((result, hidden) if spy else (result,))
    return fx.GraphModule(root, graph)


def fused(graph):
    lowered = copy.deepcopy(graph)
    assert use_int8_kernels(lowered) == 2
    fuse_kernels(lowered)
    return lowered


VALUES = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_fused_kernels_equal_the_float_computation(dynamic, approximate):
    graph = feed_forward(dynamic=dynamic, approximate=approximate)
    lowered = fused(graph)
    assert "gelu.default" not in lowered.code
    assert "quantized_decomposed" not in lowered.code
    # One value that is rounded to the other side moves a result by 0.02 times a weight of at most 0.76.
    torch.testing.assert_close(lowered(VALUES)[0], graph(VALUES)[0], rtol=1e-3, atol=0.02)


def test_the_approximation_of_gelu_is_kept():
    exact, tanh = (fused(feed_forward(approximate=name)) for name in ("none", "tanh"))
    kernels = [node for node in tanh.graph.nodes if "qlinear" in str(node.target)]
    assert [node.args[10:13:2] for node in kernels] == [("gelu", "tanh"), ("none", "")]
    assert [node.args[10:13:2] for node in exact.graph.nodes if "qlinear" in str(node.target)][0] == ("gelu", "none")


def test_a_static_kernel_rounds_its_own_result():
    lowered = fused(feed_forward())
    first = next(node for node in lowered.graph.nodes if "qlinear" in str(node.target))
    assert first.args[7:10] == (0.02, 9, torch.uint8)
    assert lowered.code.count("round_to_bytes(") == 1


def test_what_others_read_too_is_not_absorbed():
    graph = feed_forward(spy=True)
    lowered = fused(graph)
    assert "gelu.default" in lowered.code
    for found, expected in zip(lowered(VALUES), graph(VALUES), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=0.02)


@pytest.mark.parametrize("dynamic", [False, True])
def test_rounding_to_fewer_levels_stays_as_it_is(dynamic):
    graph = feed_forward(dynamic=dynamic, levels=(0, 127))
    lowered = fused(graph)
    assert "round_" not in lowered.code.replace("aten.round", "")
    torch.testing.assert_close(lowered(VALUES)[0], graph(VALUES)[0], rtol=1e-3, atol=0.02)


@pytest.mark.parametrize("zero_point", [0, 1, 120, 255])
def test_rounding_equals_that_of_quantization(zero_point):
    import torch.ao.quantization.fx._decomposed

    values = torch.cat([torch.arange(-300, 300) * 0.25, VALUES.flatten() * 40])  # half of the first lie halfway
    expected = torch.ops.quantized_decomposed.quantize_per_tensor(values, 0.5, zero_point, 0, 255, torch.uint8)
    assert torch.equal(round_to_bytes(values, 2.0, zero_point), expected)


@pytest.mark.parametrize(
    "values", [VALUES, VALUES.abs() + 3, -VALUES.abs(), torch.zeros(4), VALUES * 1e-6], ids=range(5)
)
def test_chosen_steps_equal_those_of_quantization(values):
    import torch.ao.quantization.fx._decomposed

    ops = torch.ops.quantized_decomposed
    scale, zero_point = ops.choose_qparams.tensor(values, 0, 255, 1e-5, torch.uint8)
    rounded, found_scale, found_zero_point = round_by_range(values, 1e-5)
    torch.testing.assert_close(found_scale.item(), scale.item(), rtol=1e-6, atol=0)
    assert found_zero_point.item() == zero_point.item()
    expected = ops.quantize_per_tensor.tensor(values, scale, zero_point, 0, 255, torch.uint8)
    assert (rounded.int() - expected.int()).abs().max() <= 1
    assert (rounded == expected).float().mean() > 0.98


def test_values_without_a_range_do_not_stop_a_call():
    rounded, scale, zero_point = round_by_range(torch.tensor([1.0, float("nan"), float("inf")]), 1e-5)
    assert rounded.dtype is torch.uint8
    assert (scale.item(), zero_point.item()) == (1.0, 0)
