"""MI-alpha. Oracle: the formula written out in loops over plain numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from optimum_qala.distillation.mutual_information import ContrastOptions, interpolated_bound, mutual_information_loss
from optimum_qala.errors import ConfigurationError


ALPHAS = (0.0, 0.3, 1.0)
MASK = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]])


def draw(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    teacher, student = torch.randn(2, 2, 5, 3, generator=generator, dtype=dtype)
    return teacher, student


def plain_bound(scores: list[list[float]], alpha: float) -> float:
    tokens = range(len(scores))
    joint = product = 0.0
    for j in tokens:
        mean = sum(math.exp(scores[i][j]) for i in tokens) / len(tokens)
        joint += math.log(math.exp(scores[j][j]) / (alpha * mean + (1 - alpha) * math.e)) / len(tokens)
        others = [math.exp(scores[i][j]) for i in tokens if i != j]
        mean = sum(others) / len(others)
        product += sum(one / (alpha * mean + (1 - alpha) * math.e) for one in others) / (len(others) * len(tokens))
    return 1 + joint - product


def plain_loss(teacher: Tensor, student: Tensor, alpha: float) -> float:
    xs, ys = (states[MASK.bool()].tolist() for states in (teacher, student))
    scores = [[sum(a * b for a, b in zip(x, y, strict=True)) / math.sqrt(3) for y in ys] for x in xs]
    return -plain_bound(scores, alpha)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_loss_equals_the_formula_in_loops(alpha: float) -> None:
    loss = mutual_information_loss(*draw(), MASK, ContrastOptions(alpha))
    expected = plain_loss(*draw(), alpha)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert abs(expected) > 0.01


@pytest.mark.parametrize("alpha", ALPHAS)
def test_gradient_equals_finite_differences(alpha: float) -> None:
    states = [tensor.requires_grad_() for tensor in draw(torch.float64)]
    options = ContrastOptions(alpha)
    assert torch.autograd.gradcheck(lambda *both: mutual_information_loss(*both, MASK, options), states)


def test_bound_of_literal_scores_is_a_literal_number() -> None:
    """Two tokens: e^f is 4 where they match and 1 elsewhere, so m is 2.5, and 1 among the others."""
    scores = torch.tensor([[4.0, 1.0], [1.0, 4.0]]).log()
    assert interpolated_bound(scores, 1.0).item() == pytest.approx(math.log(4 / 2.5))
    assert interpolated_bound(scores, 0.0).item() == pytest.approx(math.log(4) - 1 / math.e)
    half = 1 + math.log(4 / (1.25 + math.e / 2)) - 1 / (0.5 + math.e / 2)
    assert interpolated_bound(scores, 0.5).item() == pytest.approx(half)


def test_rows_are_teachers_and_columns_students() -> None:
    """Literal: the first student is found among the teachers; for the second, both teachers score the same."""
    scores = torch.tensor([[3.0, 1.0], [1.0, 1.0]]).log()
    assert interpolated_bound(scores, 1.0).item() == pytest.approx(math.log(3 / 2) / 2)


def test_alpha_of_one_is_infonce() -> None:
    scores = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    expected = math.log(6) - cross_entropy(scores.T, torch.arange(6))
    torch.testing.assert_close(interpolated_bound(scores, 1.0), expected)


def test_alpha_of_zero_is_nwj() -> None:
    scores = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    others = scores[~torch.eye(6, dtype=torch.bool)]
    torch.testing.assert_close(interpolated_bound(scores, 0.0), scores.diagonal().mean() - (others - 1).exp().mean())


def test_critic_that_adds_a_function_of_the_student_is_a_baseline() -> None:
    """Why the baseline needs not be learned: g(y) in the critic does what b(y) = e^(1 - g(y)) would do."""
    generator = torch.Generator().manual_seed(0)
    scores, added = torch.randn(4, 4, generator=generator), torch.randn(4, generator=generator)
    mean, baseline = scores.exp().mean(dim=0), (1 - added).exp()
    others = scores.exp().masked_fill(torch.eye(4, dtype=torch.bool), 0.0).sum(dim=0) / 3
    joint = (scores.diagonal().exp() / (0.3 * mean + 0.7 * baseline)).log().mean()
    expected = 1 + joint - (others / (0.3 * others + 0.7 * baseline)).mean()
    torch.testing.assert_close(interpolated_bound(scores + added, 0.3), expected)


def test_bound_stays_below_the_information_that_tokens_carry() -> None:
    """Correlated normal numbers, with the best critic there is: I = -log(1 - r^2) / 2 = 0.83 nats."""
    generator, correlation = torch.Generator().manual_seed(0), 0.9
    x, noise = torch.randn(2, 1500, generator=generator)
    y = correlation * x + math.sqrt(1 - correlation**2) * noise
    variance = 1 - correlation**2
    information = -math.log(variance) / 2
    log_ratio = information - (y[None] - correlation * x[:, None]).square() / (2 * variance) + y[None].square() / 2
    for alpha in ALPHAS:
        assert interpolated_bound(log_ratio + 1.0, alpha).item() == pytest.approx(information, abs=0.06)
        assert interpolated_bound(log_ratio - 1.0, alpha).item() < information + 0.06


@pytest.mark.parametrize("alpha", [0.01, 1.0])
def test_large_scores_stay_finite(alpha: float) -> None:
    scores = (1000.0 * torch.eye(4) - 500.0).requires_grad_()
    loss = -interpolated_bound(scores, alpha)
    (-interpolated_bound(-scores, alpha) + loss).backward()
    assert loss.item() == pytest.approx(-math.log(4 / alpha) - (0.0 if alpha == 1.0 else 1.0), abs=1e-3)
    assert torch.isfinite(scores.grad).all()


@pytest.mark.parametrize("num_tokens", [0, 1])
def test_too_few_tokens_tell_nothing(num_tokens: int) -> None:
    teacher, student = (tensor.requires_grad_() for tensor in draw())
    mask = torch.zeros_like(MASK)
    mask[0, :num_tokens] = 1
    loss = mutual_information_loss(teacher, student, mask, ContrastOptions())
    loss.backward()
    assert loss.item() == 0.0
    assert not teacher.grad.any()
    assert not student.grad.any()


@pytest.mark.parametrize("padding", [50.0, float("nan"), float("inf")])
def test_padding_changes_neither_loss_nor_gradient(padding: float) -> None:
    gradients, losses = [], []
    for fill in (0.0, padding):
        teacher, student = draw()
        states = [tensor.masked_fill(MASK[..., None] == 0, fill).requires_grad_() for tensor in (teacher, student)]
        losses.append(mutual_information_loss(*states, MASK, ContrastOptions()))
        losses[-1].backward()
        gradients.append([tensor.grad for tensor in states])
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(gradients[1], gradients[0])
    assert not any(gradient[MASK == 0].any() for gradient in gradients[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    teacher, student = (tensor.to(dtype) for tensor in draw())
    expected = mutual_information_loss(teacher.float(), student.float(), MASK, ContrastOptions())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = mutual_information_loss(teacher, student, MASK, ContrastOptions())
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)


def test_tokens_beyond_the_limit_are_drawn_from_the_seed() -> None:
    first, again, other = (
        mutual_information_loss(*draw(), MASK, ContrastOptions(max_tokens=3, seed=seed))
        for seed in ("0/0", "0/0", "0/1")
    )
    assert first == again != other
    gradients = []
    for max_tokens in (3, 6, 100):
        _, student = draw()
        mutual_information_loss(
            draw()[0], student.requires_grad_(), MASK, ContrastOptions(max_tokens=max_tokens)
        ).backward()
        gradients.append(student.grad)
    assert [int(gradient.any(dim=-1).sum()) for gradient in gradients] == [3, 6, 6]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 1.5}, r"alpha 1\.5 of the mutual information is not in \[0, 1\]"),
        ({"alpha": float("nan")}, r"alpha nan of the mutual information is not in \[0, 1\]"),
        ({"max_tokens": 1}, "1 tokens are too few for the mutual information"),
    ],
)
def test_illegal_options_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ContrastOptions(**settings)


def test_states_of_another_width_are_refused() -> None:
    with pytest.raises(
        ConfigurationError, match=r"projected states have shape \(1, 3, 4\), the student's \(1, 3, 1\)"
    ):
        mutual_information_loss(torch.zeros(1, 3, 4), torch.zeros(1, 3, 1), torch.ones(1, 3), ContrastOptions())
