"""Oracle: the divergences written out with plain probabilities, and torch's own kl_div."""

from __future__ import annotations

import math

import pytest
import torch

from optimum_qala.distillation.divergences import DIVERGENCES, logit_divergence, span_divergence
from optimum_qala.errors import ConfigurationError


@pytest.fixture
def logits() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 7, generator=generator) * 3, torch.randn(3, 7, generator=generator) * 3


def plain(kind: str, teacher: torch.Tensor, student: torch.Tensor, skew: float) -> torch.Tensor:
    p, q = torch.softmax(teacher, -1), torch.softmax(student, -1)
    if kind == "reverse":
        p, q = q, p
    if kind == "skew":
        q = skew * p + (1 - skew) * q
    return (p * (p / q).log()).sum(-1).mean()


@pytest.mark.parametrize("kind", sorted(DIVERGENCES))
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_logit_divergence_equals_the_plain_formula(
    logits: tuple[torch.Tensor, torch.Tensor], kind: str, temperature: float
) -> None:
    teacher, student = logits
    expected = plain(kind, teacher / temperature, student / temperature, 0.3) * temperature**2
    result = logit_divergence(teacher, student, torch.ones(3, 7), kind, temperature, skew=0.3)
    torch.testing.assert_close(result, expected)


def test_forward_kl_equals_torch(logits: tuple[torch.Tensor, torch.Tensor]) -> None:
    teacher, student = logits
    expected = torch.nn.functional.kl_div(
        student.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="batchmean"
    )
    torch.testing.assert_close(logit_divergence(teacher, student, torch.ones(3, 7)), expected)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("forward", 0.75 * math.log(1.5) + 0.25 * math.log(0.5)),
        ("reverse", 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)),
        ("skew", 0.75 * math.log(0.75 / 0.55) + 0.25 * math.log(0.25 / 0.45)),  # the mixture is 0.55 and 0.45
    ],
)
def test_logit_divergence_of_literal_logits_is_a_literal_number(kind: str, expected: float) -> None:
    """The teacher says 3/4 and 1/4, the student 1/2 twice."""
    teacher, student = torch.tensor([[math.log(3.0), 0.0]]), torch.tensor([[0.0, 0.0]])
    divergence = logit_divergence(teacher, student, torch.ones(1, 2), kind, skew=0.2)
    assert divergence.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", sorted(DIVERGENCES))
def test_masked_positions_change_nothing(logits: tuple[torch.Tensor, torch.Tensor], kind: str) -> None:
    teacher, student = logits
    mask = torch.tensor([[1.0, 1, 1, 1, 0, 0, 0]]).expand(3, 7)
    changed = student.clone()
    changed[:, 4:] = 50.0
    expected = logit_divergence(teacher[:, :4], student[:, :4], mask[:, :4], kind)
    torch.testing.assert_close(logit_divergence(teacher, changed, mask, kind), expected)


@pytest.mark.parametrize("kind", sorted(DIVERGENCES))
def test_everything_masked_is_zero_and_finite(logits: tuple[torch.Tensor, torch.Tensor], kind: str) -> None:
    teacher, student = logits[0], logits[1].requires_grad_()
    loss = logit_divergence(teacher, student, torch.zeros(3, 7), kind)
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert not student.grad.any()  # NaN would be true


@pytest.mark.parametrize("kind", sorted(DIVERGENCES))
def test_underflowed_probabilities_keep_gradients_finite(kind: str) -> None:
    """The reference code's gradient is NaN here."""
    teacher = torch.tensor([[1e4, 0.0, -1e4]])
    student = torch.tensor([[-1e4, 0.0, 1e4]], requires_grad=True)
    loss = logit_divergence(teacher, student, torch.ones(1, 3), kind)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("kind", sorted(DIVERGENCES))
def test_gradient_equals_finite_differences(logits: tuple[torch.Tensor, torch.Tensor], kind: str) -> None:
    teacher, student = (tensor[:2, :4].double() for tensor in logits)
    mask = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]])
    assert torch.autograd.gradcheck(
        lambda values: logit_divergence(teacher, values, mask, kind, temperature=1.5), student.requires_grad_()
    )


@pytest.mark.parametrize("kind", sorted(DIVERGENCES))
@pytest.mark.parametrize("shift", [-50.0, 50.0])
def test_what_is_added_to_all_logits_changes_nothing(
    logits: tuple[torch.Tensor, torch.Tensor], kind: str, shift: float
) -> None:
    """At a low temperature, logits below 0 would be lower than what stands for masked ones, and the loss 0."""
    teacher, student = (tensor.double() for tensor in logits)
    mask = torch.tensor([[1, 1, 1, 1, 1, 0, 0]]).expand(3, 7)
    expected = logit_divergence(teacher, student, mask, kind, temperature=1e-3)
    shifted = logit_divergence(teacher + shift, student + shift, mask, kind, temperature=1e-3)
    torch.testing.assert_close(shifted, expected)
    assert expected.item() > 1e-7


@pytest.mark.parametrize(("dtype", "expected"), [("float16", "float32"), ("float32", "float32"), ("float64",) * 2])
def test_precision_is_at_least_float32(logits: tuple[torch.Tensor, torch.Tensor], dtype: str, expected: str) -> None:
    teacher, student = (tensor.to(getattr(torch, dtype)) for tensor in logits)
    assert logit_divergence(teacher, student, torch.ones(3, 7)).dtype == getattr(torch, expected)


def test_the_kinds_differ(logits: tuple[torch.Tensor, torch.Tensor]) -> None:
    values = [logit_divergence(*logits, torch.ones(3, 7), kind).item() for kind in sorted(DIVERGENCES)]
    assert len({round(value, 4) for value in values}) == len(DIVERGENCES)


def test_the_teacher_gets_no_gradient(logits: tuple[torch.Tensor, torch.Tensor]) -> None:
    teacher, student = logits[0].requires_grad_(), logits[1].requires_grad_()
    logit_divergence(teacher, student, torch.ones(3, 7)).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


def test_span_divergence_weighs_start_and_end_alike(logits: tuple[torch.Tensor, torch.Tensor]) -> None:
    first, second = logits
    mask = torch.ones(3, 7)
    expected = (logit_divergence(first, second, mask) + logit_divergence(second, first, mask)) / 2
    torch.testing.assert_close(span_divergence((first, second), (second, first), mask), expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "sideways"}, r"divergence 'sideways' is not one of \['forward', 'reverse', 'skew'\]"),
        ({"temperature": 0.0}, "temperature 0.0 is not from 0.001 to 1000.0; beyond, losses"),
        ({"temperature": 1e-40}, "temperature 1e-40 is not from 0.001 to 1000.0; beyond, losses"),
        ({"temperature": 1e20}, r"temperature 1e\+20 is not from 0.001 to 1000.0; beyond, losses"),
        ({"temperature": float("nan")}, "temperature nan is not from 0.001 to 1000.0; beyond, losses"),
        ({"temperature": "2"}, "temperature '2' is not a number"),
        ({"skew": None}, "skew None is not a number"),
        ({"skew": 1.0}, "skew 1.0 is not between 0 and 1"),
    ],
)
def test_illegal_settings_are_refused(
    logits: tuple[torch.Tensor, torch.Tensor], settings: dict[str, float], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        logit_divergence(*logits, torch.ones(3, 7), **settings)


def test_different_shapes_are_refused(logits: tuple[torch.Tensor, torch.Tensor]) -> None:
    with pytest.raises(ConfigurationError, match=r"teacher's logits have shape \(3, 7\), the student's \(3, 6\)"):
        logit_divergence(logits[0], logits[1][:, :6], torch.ones(3, 7))
