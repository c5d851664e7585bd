"""A student computes what its teacher computes without the layers that were left out."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForQuestionAnswering, BertModel, DistilBertConfig, DistilBertModel

from optimum_qala import QuaLAMiniLMForQuestionAnswering, shrink_model
from optimum_qala.errors import CheckpointError, ConfigurationError
from optimum_qala.students.shrinking import spaced_layers
from tests.conftest import tiny_config


INPUT_IDS = torch.tensor([[2, 9, 8, 3, 7, 6, 5, 3], [2, 9, 3, 30, 31, 32, 33, 3]])


@pytest.mark.parametrize(
    ("num_layers", "num_kept", "expected"),
    [
        (12, 6, (0, 2, 4, 7, 9, 11)),
        (12, 3, (0, 6, 11)),
        (12, 11, (0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11)),
        (6, 3, (0, 3, 5)),
        (6, 2, (0, 5)),
        (6, 1, (0,)),
    ],
)
def test_layers_are_spaced(num_layers: int, num_kept: int, expected: tuple[int, ...]) -> None:
    assert spaced_layers(num_layers, num_kept) == expected


def test_student_equals_the_teacher_without_the_other_layers(tiny_model: QuaLAMiniLMForQuestionAnswering) -> None:
    shrunk = shrink_model(tiny_model, [0, 3])
    expected = tiny_model(INPUT_IDS, skip_layers=(1, 2))
    torch.testing.assert_close(shrunk.model(INPUT_IDS).start_logits, expected.start_logits, rtol=0, atol=0)
    assert shrunk.kept_layers == (0, 3)
    assert shrunk.model.config.num_hidden_layers == 2
    assert tiny_model.config.num_hidden_layers == 4
    assert len(tiny_model.quala.encoder.layer) == 4


def test_number_of_layers_means_spaced_ones(tiny_model: QuaLAMiniLMForQuestionAnswering) -> None:
    assert shrink_model(tiny_model, 3).kept_layers == spaced_layers(4, 3) == (0, 2, 3)


@pytest.mark.parametrize("model_class", [BertForQuestionAnswering, BertModel])
def test_plain_models_shrink_too(model_class: Any) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16}
    model = model_class(BertConfig(vocab_size=50, **sizes)).eval()
    student = shrink_model(model, [1]).model
    expected = copy.deepcopy(model)
    expected.base_model.encoder.layer = expected.base_model.encoder.layer[1:2]
    assert torch.equal(student(INPUT_IDS)[0], expected(INPUT_IDS)[0])
    assert type(student) is model_class
    student.base_model.embeddings.word_embeddings.weight.data.zero_()
    assert model.base_model.embeddings.word_embeddings.weight.any()


def test_early_span_heads_go_with_their_layers() -> None:
    torch.manual_seed(0)
    model = QuaLAMiniLMForQuestionAnswering(tiny_config(token_scoring="answer", drop_layers=[1, 2])).eval()
    student = shrink_model(model, [0, 2, 3]).model
    for index, layer in enumerate((0, 2, 3)):
        theirs, ours = model.quala.encoder.span_heads[layer], student.quala.encoder.span_heads[index]
        assert torch.equal(theirs.weight, ours.weight)
    assert student.config.drop_layers == [1]
    student(INPUT_IDS, budget="1,0.5,0.5@2")


@pytest.mark.parametrize(
    ("kept", "drop_layers", "expected"),
    [
        ([0, 3], None, None),
        ([0, 3], [1], [1]),  # the last one stands for the layers left out before it
        ([0, 1], [3], [1]),  # and for those behind it
        ([1, 3], [0], [0]),
        ([0, 1, 3], [0], [0]),
        ([0, 2], [], []),
    ],
)
def test_layers_that_may_drop(kept: list[int], drop_layers: list[int] | None, expected: list[int] | None) -> None:
    model = QuaLAMiniLMForQuestionAnswering(tiny_config(drop_layers=drop_layers))
    assert shrink_model(model, kept).model.config.drop_layers == expected


def test_budgets_keep_their_ratios_or_are_named() -> None:
    budgets = {
        "full": {"retention": [1.0] * 4, "f1": 80.0},
        "fast": {"retention": [1.0, 0.8, 0.5, 0.5], "f1": 70.0, "macs": 5},
        "shallow": {"retention": [1.0, 0.8, 0.8, 0.8], "exit_layer": 2},
        "first": {"retention": [1.0] * 4, "exit_layer": 1},
        "late": {"retention": [1.0, 1.0, 1.0, 0.5]},
    }
    model = QuaLAMiniLMForQuestionAnswering(tiny_config(span_heads=True, budgets=budgets))
    shrunk = shrink_model(model, [1, 2])
    assert shrunk.model.config.budgets == {
        "full": {"retention": [1.0, 1.0]},
        "fast": {"retention": [0.8, 0.5]},
        "shallow": {"retention": [0.8, 0.8], "exit_layer": 1},
    }
    assert shrunk.dropped_budgets == {
        "first": "it stops after 1 layers, none of which was kept",
        "late": "the layers that were kept drop nothing at it",
    }
    shrunk.model.config.check()
    assert model.config.budgets == budgets


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (0, "a model of 4 layers shrinks to 1 to 3 of them, not 0"),
        (4, "a model of 4 layers shrinks to 1 to 3 of them, not 4"),
        ([], "a model of 4 layers shrinks to 1 to 3 of them, not 0"),
        ([0, 1, 2, 3], "a model of 4 layers shrinks to 1 to 3 of them, not 4"),
        ([0, 4], r"layers to keep \[0, 4\] must be ascending numbers from 0 to 3"),
        ([2, 1], r"layers to keep \[2, 1\] must be ascending"),
        ([1, 1], r"layers to keep \[1, 1\] must be ascending"),
        ([-1, 1], r"layers to keep \[-1, 1\] must be ascending"),
    ],
)
def test_illegal_layers_are_refused(
    tiny_model: QuaLAMiniLMForQuestionAnswering, layers: int | list[int], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        shrink_model(tiny_model, layers)


def test_model_of_another_build_is_refused() -> None:
    model = DistilBertModel(DistilBertConfig(vocab_size=50, dim=16, n_layers=2, n_heads=2, hidden_dim=16))
    with pytest.raises(CheckpointError, match="a DistilBertModel cannot be shrunk: its layers are not built as those"):
        shrink_model(model, 1)
