"""Rounding of weights, table rows and activations: literal numbers, and gradients inside and outside the range."""

from __future__ import annotations

import pytest
import torch

from optimum_qala.quantization.rounding import (
    affine_parameters,
    round_activation,
    round_rows,
    round_weight,
    row_steps,
    weight_steps,
)


def gradient_of(function, values):
    values = values.clone().requires_grad_()
    function(values).backward(torch.full_like(values, 2.0))
    return values.grad


def test_int8_weight_has_a_step_for_each_row():
    weight = torch.tensor([[-127.5, 0.4, 0.6, 100.0], [-12.75, 0.04, 0.06, 10.0]])
    torch.testing.assert_close(weight_steps(weight, 8), torch.tensor([1.0, 0.1]))
    expected = torch.tensor([[-128.0, 0.0, 1.0, 100.0], [-12.8, 0.0, 0.1, 10.0]])
    torch.testing.assert_close(round_weight(weight, 8), expected)


def test_four_bit_weight_has_seven_steps_to_each_side():
    weight = torch.tensor([[-7.0, 3.4, 3.6, 7.0], [0.7, -0.34, 0.36, -0.1]])
    torch.testing.assert_close(weight_steps(weight, 4), torch.tensor([1.0, 0.1]))
    expected = torch.tensor([[-7.0, 3.0, 4.0, 7.0], [0.7, -0.3, 0.4, -0.1]])
    torch.testing.assert_close(round_weight(weight, 4), expected)


def test_ternary_weight_is_that_of_twn():
    """mean|W| is 0.5, so delta is 0.35, and alpha the mean of 0.9, 0.5, 0.4 and 0.6."""
    weight = torch.tensor([[0.9, -0.5, 0.3], [-0.3, 0.4, 0.6]])
    alpha = (0.9 + 0.5 + 0.4 + 0.6) / 4
    expected = torch.tensor([[alpha, -alpha, 0.0], [0.0, alpha, alpha]])
    torch.testing.assert_close(round_weight(weight, 2), expected)
    torch.testing.assert_close(weight_steps(weight, 2), torch.tensor([alpha, alpha]))


def test_ternary_weight_is_clipped_before():
    weight = torch.tensor([[2.0, -9.0]])
    torch.testing.assert_close(round_weight(weight, 2), torch.tensor([[2.25, -2.25]]))


def test_ternary_weight_of_zeros_is_zero():
    assert torch.equal(round_weight(torch.zeros(2, 3), 2), torch.zeros(2, 3))
    assert (weight_steps(torch.zeros(2, 3), 2) > 0).all()


@pytest.mark.parametrize("bits", [8, 4])
def test_gradient_of_a_weight_goes_straight_through(bits):
    weight = torch.tensor([[-7.0, 3.4, 3.6, 6.9]])
    assert torch.equal(gradient_of(lambda values: round_weight(values, bits), weight), torch.full((1, 4), 2.0))


def test_gradient_of_a_ternary_weight_stops_at_the_clip():
    weight = torch.tensor([[2.0, -9.0, 0.1, 2.6]])
    assert gradient_of(lambda values: round_weight(values, 2), weight).tolist() == [[2.0, 0.0, 2.0, 0.0]]


def test_rows_of_a_table_are_rounded_one_by_one():
    rows = torch.tensor([[[127.0, -0.6, 63.4], [1.27, 0.0, -0.636]], [[0.0, 0.0, 0.0], [2.54, 2.54, 0.011]]])
    expected = torch.tensor([[[127.0, -1.0, 63.0], [1.27, 0.0, -0.64]], [[0.0, 0.0, 0.0], [2.54, 2.54, 0.02]]])
    torch.testing.assert_close(round_rows(rows), expected)
    torch.testing.assert_close(row_steps(rows[0]), torch.tensor([1.0, 0.01]))
    assert torch.equal(gradient_of(round_rows, rows), torch.full_like(rows, 2.0))


def test_activations_have_a_zero_point():
    scales, zero_points = affine_parameters(torch.tensor([[-1.0, 1.55], [0.5, 2.55], [-2.55, -1.0]]))
    torch.testing.assert_close(scales, torch.full((3,), 0.01))
    assert zero_points.tolist() == [100, 0, 255]  # zero itself is always among the values
    values = torch.tensor([-5.0, -1.0, -0.004, 0.006, 1.55, 7.0])
    rounded = round_activation(values, scales[0], zero_points[0])
    torch.testing.assert_close(rounded, torch.tensor([-1.0, -1.0, 0.0, 0.01, 1.55, 1.55]))
    gradient = gradient_of(lambda given: round_activation(given, scales[0], zero_points[0]), values)
    assert gradient.tolist() == [0.0, 2.0, 2.0, 2.0, 2.0, 0.0]


def test_arithmetic_is_float32_whatever_is_rounded():
    weight = torch.tensor([[-1.0, 0.3333, 0.1]])
    scale, zero_point = torch.tensor(0.01), torch.tensor(100, dtype=torch.int32)
    for function in (
        lambda values: round_weight(values, 8),
        lambda values: round_weight(values, 2),
        round_rows,
        lambda values: round_activation(values, scale, zero_point),
    ):
        half = weight.bfloat16()
        assert torch.equal(function(half), function(half.float()))
        assert function(half).dtype is torch.float32


@pytest.mark.parametrize("symmetric", [False, True])
def test_scales_are_those_of_the_observers_of_torch(symmetric):
    """The oracle is the observer that Intel Neural Compressor calibrates with."""
    pt2e = pytest.importorskip("torchao.quantization.pt2e.observer")
    torch.manual_seed(0)
    values = torch.randn(8, 16) * 3 + 1
    if symmetric:
        observer = pt2e.PerChannelMinMaxObserver(
            dtype=torch.int8, qscheme=torch.per_channel_symmetric, quant_min=-128, quant_max=127, ch_axis=0
        )
        observer(values)
        torch.testing.assert_close(weight_steps(values, 8), observer.calculate_qparams()[0], rtol=0, atol=0)
    else:
        observer = pt2e.MovingAverageMinMaxObserver(dtype=torch.uint8, quant_min=0, quant_max=255)
        observer(values)
        scales, zero_points = affine_parameters(torch.stack([values.min(), values.max()]).unsqueeze(0))
        expected_scale, expected_zero_point = observer.calculate_qparams()
        assert scales.tolist() == expected_scale.tolist()
        assert zero_points.tolist() == expected_zero_point.tolist()
