from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModel, AutoModelForQuestionAnswering, AutoTokenizer, BertForQuestionAnswering, BertModel


@pytest.fixture
def shrink(qala, tiny_folder, tmp_path):
    def run(*flags, model=tiny_folder):
        return qala("shrink", "--model", model, "--output", tmp_path / "student", *flags), tmp_path / "student"

    return run


def test_student_is_written_and_trains(shrink, qala, tiny_data, tmp_path):
    outcome, folder = shrink("--layers", 2, "--json")
    assert outcome.json["kept_layers"] == [0, 3]
    assert outcome.json["budgets"] == ["accurate", "fast"]
    assert outcome.json["parameters"] < outcome.json["parameters_before"]
    student = AutoModelForQuestionAnswering.from_pretrained(folder)
    assert student.config.num_hidden_layers == 2
    assert student.num_parameters() == outcome.json["parameters"]
    assert student.config.budgets["fast"] == {"retention": [0.5, 0.25]}
    trained = tmp_path / "trained"
    training = qala("train", "--model", folder, "--data", tiny_data, "--output", trained, "--max-steps", 1)
    assert training.code == 0
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_plain_student_has_the_teacher_s_kind_and_head(shrink, plain):
    outcome, folder = shrink("--keep-layers", 1, model=plain)
    assert outcome.code == 0, outcome.err
    assert "student of the layers 1 written to" in outcome.out
    teacher, student = (AutoModelForQuestionAnswering.from_pretrained(path) for path in (plain, folder))
    assert type(student) is BertForQuestionAnswering
    assert torch.equal(student.qa_outputs.weight, teacher.qa_outputs.weight)
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == AutoTokenizer.from_pretrained(plain).get_vocab()


def test_encoder_without_a_head_stays_one(shrink, plain, tmp_path):
    BertModel.from_pretrained(plain).half().save_pretrained(tmp_path / "encoder")
    AutoTokenizer.from_pretrained(plain).save_pretrained(tmp_path / "encoder")
    outcome, folder = shrink("--layers", 1, model=tmp_path / "encoder")
    assert outcome.code == 0, outcome.err
    assert "MISSING" not in outcome.err
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["BertModel"]
    assert AutoModel.from_pretrained(folder).dtype == torch.float16


def test_budgets_that_do_not_fit_are_named(shrink, tiny_folder):
    config = json.loads((tiny_folder / "config.json").read_text())
    assert config["budgets"]["accurate"]["retention"][0] == 1.0
    outcome, folder = shrink("--keep-layers", 0)
    assert "budget 'accurate' is left out: the layers that were kept drop nothing at it" in outcome.err.splitlines()
    assert sorted(json.loads((folder / "config.json").read_text())["budgets"]) == ["fast"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--layers", 9), "a model of 4 layers shrinks to 1 to 3 of them, not 9"),
        (("--keep-layers", 3, 1), "layers to keep [3, 1] must be ascending numbers from 0 to 3"),
    ],
)
def test_bad_layers_leave_no_output(shrink, flags, message):
    outcome, folder = shrink(*flags)
    assert outcome.code == 1
    assert message in outcome.error
    assert not folder.exists()


@pytest.mark.parametrize("flags", [(), ("--layers", 1, "--keep-layers", 1)], ids=["neither", "both"])
def test_one_choice_of_layers_is_needed(shrink, flags):
    assert shrink(*flags)[0].code == 2
