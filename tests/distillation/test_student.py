from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import BertModel, RobertaModel

from optimum_qala.distillation.student import StudentOptions, make_student
from optimum_qala.errors import ConfigurationError
from tests.training.distilling import STUDENT, make_bert, make_roberta


@pytest.mark.parametrize(("make_teacher", "kind"), [(make_bert, BertModel), (make_roberta, RobertaModel)])
def test_student_is_of_the_kind_of_its_teacher(make_teacher: Any, kind: type) -> None:
    teacher = make_teacher(hidden_dropout_prob=0.3)
    student = make_student(teacher, STUDENT, attention_probs_dropout_prob=0.2)
    assert type(student) is kind
    config = student.config
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (2, 24, 2)
    assert (config.intermediate_size, config.vocab_size, config.max_position_embeddings) == (96, 200, 130)
    assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob) == (0.3, 0.2)
    assert student.pooler is None
    assert teacher.config.num_hidden_layers == 4
    state = torch.get_rng_state()
    same, other = make_student(teacher, STUDENT), make_student(teacher, STUDENT, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    weights = [model.encoder.layer[1].attention.self.query.weight for model in (student, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_default_is_the_published_shape() -> None:
    student = make_student(make_bert(max_position_embeddings=16))
    config = student.config
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (6, 384, 12)
    assert config.intermediate_size == 1536


def test_student_starts_from_layers_of_the_teacher() -> None:
    teacher = make_bert()
    student = make_student(teacher, StudentOptions.of_layers(teacher.config, (3, 0)))
    expected = {
        **{f"embeddings.{name}": value for name, value in teacher.embeddings.state_dict().items()},
        **{f"encoder.layer.0.{name}": value for name, value in teacher.encoder.layer[3].state_dict().items()},
        **{f"encoder.layer.1.{name}": value for name, value in teacher.encoder.layer[0].state_dict().items()},
    }
    state = student.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)
    with torch.no_grad():
        student.encoder.layer[0].output.dense.weight.zero_()
    assert teacher.encoder.layer[3].output.dense.weight.any()  # nothing is shared


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_attention_heads": 7}, "7 attention heads do not divide the hidden size 384 of the student"),
        ({"num_hidden_layers": 0}, "num_hidden_layers 0 of the student is not a positive integer"),
        ({"intermediate_size": -4}, "intermediate_size -4 of the student is not a positive integer"),
        ({"init_layers": (1, 2)}, r"init_layers \[1, 2\] has 2 entries, but the student has 6 layers"),
    ],
)
def test_illegal_shape_is_refused(sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        StudentOptions(**sizes)


def test_layers_that_cannot_be_copied_are_refused() -> None:
    teacher = make_bert()
    with pytest.raises(ConfigurationError, match="init_layers names layer 4, but the teacher has layers 0 to 3"):
        make_student(teacher, StudentOptions.of_layers(teacher.config, (0, 4)))
    narrow = StudentOptions(2, 24, 2, init_layers=(0, 1))
    with pytest.raises(ConfigurationError, match="whose hidden_size is 48, so the student cannot have 24"):
        make_student(teacher, narrow)
