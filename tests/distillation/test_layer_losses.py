"""The losses on states, attention and relations. Oracle: their formulas written out in loops over plain numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from optimum_qala.distillation.attention import attention_map_kl, attention_score_mse, attention_scores
from optimum_qala.distillation.auxiliary import AUXILIARY_LOSSES, HeadCounts, LossOptions
from optimum_qala.distillation.relations import mean_relation_kl, relation_kl
from optimum_qala.distillation.states import state_mse
from optimum_qala.distillation.traces import LayerTrace, Places
from optimum_qala.errors import ConfigurationError


WIDTH, HEADS = 4, 2
MINILM_PARTS = (slice(2 * WIDTH), slice(2 * WIDTH, None))  # queries with keys, values
Rows = list[list[float]]


def softmax(values: list[float]) -> list[float]:
    total = sum(math.exp(value) for value in values)
    return [math.exp(value) / total for value in values]


def head_scores(queries: Rows, keys: Rows, head: int) -> Rows:
    size = WIDTH // HEADS
    columns = range(head * size, (head + 1) * size)
    return [[sum(q[c] * k[c] for c in columns) / math.sqrt(size) for k in keys] for q in queries]


def plain_state_mse(teacher: Rows, student: Rows) -> float:
    """One sample without padding, as all that follow."""
    squares = [
        (t - s) ** 2 for one, other in zip(teacher, student, strict=True) for t, s in zip(one, other, strict=True)
    ]
    return sum(squares) / len(squares)


def plain_score_mse(teacher: Rows, student: Rows) -> float:
    total, half, n = 0.0, WIDTH, len(teacher)
    for head in range(HEADS):
        taught, learned = (
            head_scores([row[:half] for row in rows], [row[half:] for row in rows], head)
            for rows in (teacher, student)
        )
        total += sum((taught[i][j] - learned[i][j]) ** 2 for i in range(n) for j in range(n)) / n**2
    return total / HEADS


def plain_kl(teacher: tuple[Rows, Rows], student: tuple[Rows, Rows]) -> float:
    total = 0.0
    for head in range(HEADS):
        for taught, learned in zip(head_scores(*teacher, head), head_scores(*student, head), strict=True):
            pairs = zip(softmax(taught), softmax(learned), strict=True)
            total += sum(p * math.log(p / q) for p, q in pairs)
    return total / (HEADS * len(teacher[0]))


def plain_map_kl(teacher: Rows, student: Rows) -> float:
    taught, learned = (([row[:WIDTH] for row in rows], [row[WIDTH:] for row in rows]) for rows in (teacher, student))
    return plain_kl(taught, learned)


def plain_relation_kl(teacher: Rows, student: Rows) -> float:
    return plain_kl((teacher, teacher), (student, student))


def plain_mean_relation_kl(teacher: Rows, student: Rows) -> float:
    starts = (0, WIDTH, 2 * WIDTH)
    parts = [tuple([row[start : start + WIDTH] for row in rows] for rows in (teacher, student)) for start in starts]
    return sum(plain_relation_kl(*part) for part in parts) / 3


def plain_minilm(teacher: Rows, student: Rows) -> float:
    scored, values = ([[row[part] for row in rows] for rows in (teacher, student)] for part in MINILM_PARTS)
    return plain_map_kl(*scored) + plain_relation_kl(*values)


def registered_minilm(teacher: Tensor, student: Tensor, mask: Tensor) -> Tensor:
    """With one relation head: it splits values into attention heads."""
    traces = []
    for states in (teacher, student):
        parts = dict(zip(("queries", "keys", "values"), states.chunk(3, dim=-1), strict=True))
        traces.append(LayerTrace(parts, Places(mask), Places(mask)))
    return AUXILIARY_LOSSES["minilm"].compute(*traces, LossOptions(HeadCounts(HEADS, 1)))


def on_scores(loss: Callable[..., Tensor]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def compute(teacher: Tensor, student: Tensor, mask: Tensor) -> Tensor:
        scores = (attention_scores(*states.chunk(2, dim=-1), mask, mask, HEADS) for states in (teacher, student))
        return loss(*scores, mask, mask)

    return compute


@dataclass(frozen=True)
class Case:
    """A loss of states, `(batch_size, num_tokens, width)`, that hold all the vectors it needs side by side."""

    loss: Callable[[Tensor, Tensor, Tensor], Tensor]
    plain: Callable[[Rows, Rows], float]
    width: int = WIDTH


CASES = {
    "state_mse": Case(state_mse, plain_state_mse),
    "attention_score_mse": Case(on_scores(attention_score_mse), plain_score_mse, 2 * WIDTH),
    "attention_map_kl": Case(on_scores(attention_map_kl), plain_map_kl, 2 * WIDTH),
    "relation_kl": Case(lambda *tensors: relation_kl(*tensors, HEADS), plain_relation_kl),
    "mean_relation_kl": Case(
        lambda teacher, student, mask: mean_relation_kl(
            teacher.chunk(3, -1), student.chunk(3, -1), (mask, mask, mask), HEADS
        ),
        plain_mean_relation_kl,
        3 * WIDTH,
    ),
    "minilm": Case(registered_minilm, plain_minilm, 3 * WIDTH),
}
LENGTHS = (5, 3)
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def draw(case: Case, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    teacher, student = torch.randn(2, 2, 5, case.width, generator=generator, dtype=dtype)
    return teacher, student


def test_loss_equals_the_formula_in_loops(case: Case) -> None:
    teacher, student = draw(case)
    plain = [
        case.plain(teacher[row, :length].tolist(), student[row, :length].tolist())
        for row, length in enumerate(LENGTHS)
    ]
    assert case.loss(teacher, student, MASK).item() == pytest.approx(sum(plain) / 2, rel=1e-5)
    assert min(plain) > 0.01


def test_gradient_equals_finite_differences(case: Case) -> None:
    teacher, student = draw(case, torch.float64)
    assert torch.autograd.gradcheck(lambda values: case.loss(teacher, values, MASK), student.requires_grad_())


@pytest.mark.parametrize("padding", [50.0, float("nan"), float("inf")])
def test_padding_changes_neither_loss_nor_gradient(case: Case, padding: float) -> None:
    teacher, student = draw(case)
    short = student[1:, :3].clone().requires_grad_()
    expected = case.loss(teacher[1:, :3], short, MASK[1:, :3])
    expected.backward()
    long = student[1:].clone()
    long[:, 3:] = padding
    long.requires_grad_()
    padded_teacher = teacher[1:].clone()
    padded_teacher[:, 3:] = -padding
    loss = case.loss(padded_teacher, long, MASK[1:])
    loss.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(long.grad[:, :3], short.grad)
    assert not long.grad[:, 3:].any()


def test_row_without_tokens_adds_nothing_and_gets_no_gradient(case: Case) -> None:
    teacher, student = draw(case)
    student.requires_grad_()
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 0, 0]])
    loss = case.loss(teacher, student, mask)
    loss.backward()
    torch.testing.assert_close(loss, case.loss(teacher[:1], student[:1], mask[:1]) / 2)
    assert not student.grad[1].any()


def test_nothing_but_padding_gives_neither_loss_nor_gradient(case: Case) -> None:
    teacher, student = draw(case)
    loss = case.loss(teacher, student.requires_grad_(), torch.zeros_like(MASK))
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(student.grad, torch.zeros_like(student))  # NaN is not equal


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(case: Case, dtype: torch.dtype) -> None:
    teacher, student = (tensor.to(dtype) for tensor in draw(case))
    expected = case.loss(teacher.float(), student.float(), MASK)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = case.loss(teacher, student, MASK)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)


def test_loss_is_zero_for_the_same_states_and_teaches_the_student_alone(case: Case) -> None:
    teacher, student = (tensor.requires_grad_() for tensor in draw(case))
    assert case.loss(student, student, MASK).item() == pytest.approx(0.0, abs=1e-6)
    case.loss(teacher, student, MASK).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


def test_two_halves_average_to_the_whole_batch(case: Case) -> None:
    teacher, student = draw(case)
    halves = [case.loss(teacher[row : row + 1], student[row : row + 1], MASK[row : row + 1]) for row in (0, 1)]
    torch.testing.assert_close(case.loss(teacher, student, MASK), (halves[0] + halves[1]) / 2)


def test_state_mse_of_literal_states_is_a_literal_number() -> None:
    teacher, student = (
        torch.tensor([[[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]]]),
        torch.tensor([[[1.0, 0.0], [0.0, 4.0], [0.0, 0.0]]]),
    )
    assert state_mse(teacher, student, torch.tensor([[1, 1, 0]])).item() == pytest.approx((4 + 9) / 4)


def test_attention_scores_of_literal_vectors_are_literal_numbers() -> None:
    queries, keys = torch.tensor([[[2.0, 4.0]]]), torch.tensor([[[1.0, 0.5], [3.0, 1.0]]])
    one, both = torch.ones(1, 1), torch.ones(1, 2)
    torch.testing.assert_close(
        attention_scores(queries, keys, one, both, 2), torch.tensor([[[[2.0, 6.0]], [[2.0, 4.0]]]])
    )
    expected = torch.tensor([[[[4.0, 10.0]]]]) / math.sqrt(2)
    torch.testing.assert_close(attention_scores(queries, keys, one, both, 1), expected)


def test_attention_losses_of_literal_scores_are_literal_numbers() -> None:
    teacher, student = torch.tensor([[[[math.log(3.0), 0.0, 7.0]]]]), torch.tensor([[[[0.0, 0.0, -7.0]]]])
    masks = (torch.ones(1, 1), torch.tensor([[1, 1, 0]]))
    divergence = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert attention_map_kl(teacher, student, *masks).item() == pytest.approx(divergence, abs=1e-6)
    assert attention_score_mse(teacher, student, *masks).item() == pytest.approx(math.log(3.0) ** 2 / 2, abs=1e-6)


def test_relation_kl_of_literal_vectors_is_a_literal_number() -> None:
    """The second token is orthogonal to both: relations (3/4, 1/4) and (1/2, 1/2), the student's (1/2, 1/2) twice."""
    teacher = torch.tensor([[[math.sqrt(math.log(3.0))], [0.0]]])
    divergence = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    loss = relation_kl(teacher, torch.zeros(1, 2, 1), torch.ones(1, 2), num_relation_heads=1)
    assert loss.item() == pytest.approx(divergence / 2, abs=1e-6)


def test_relations_compare_models_of_different_width() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher, student = torch.randn(2, 5, 6, generator=generator), torch.randn(2, 5, 4, generator=generator)
    losses = {heads: relation_kl(teacher, student, MASK, heads).item() for heads in (1, 2)}
    assert 0.0 < losses[1] != losses[2] > 0.0


def test_fewer_rows_than_columns_are_compared() -> None:
    """As in a layer that drops tokens: rows leave it, columns entered it."""
    generator = torch.Generator().manual_seed(0)
    teacher, student = torch.randn(2, 1, 2, 5, 5, generator=generator)
    rows = torch.tensor([0, 3])
    all_rows = torch.tensor([[1, 0, 0, 1, 0]])
    columns = torch.ones(1, 5)
    for loss in (attention_map_kl, attention_score_mse):
        narrow = loss(teacher[:, :, rows], student[:, :, rows], torch.ones(1, 2), columns)
        torch.testing.assert_close(narrow, loss(teacher, student, all_rows, columns))


@pytest.mark.parametrize("num_heads", [0, 3])
def test_heads_that_do_not_divide_the_width_are_refused(num_heads: int) -> None:
    states, mask = torch.zeros(1, 2, 4), torch.ones(1, 2)
    with pytest.raises(ConfigurationError, match=f"{num_heads} heads do not divide the width 4"):
        relation_kl(states, states, mask, num_heads)


@pytest.mark.parametrize("loss", [attention_map_kl, attention_score_mse])
def test_other_numbers_of_heads_are_refused(loss: Callable[..., Tensor]) -> None:
    mask = torch.ones(1, 3)
    with pytest.raises(
        ConfigurationError, match=r"attention scores have shape \(1, 4, 3, 3\), the student's \(1, 2, 3, 3\)"
    ):
        loss(torch.zeros(1, 4, 3, 3), torch.zeros(1, 2, 3, 3), mask, mask)


def test_states_of_another_width_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"states have shape \(1, 3, 4\), the student's \(1, 3, 1\)"):
        state_mse(torch.zeros(1, 3, 4), torch.zeros(1, 3, 1), torch.ones(1, 3))
