"""Recipes say what they set, and refuse what they cannot mean."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import HfArgumentParser, TrainingArguments

from optimum_qala import QuaLATrainingArguments
from optimum_qala.errors import ConfigurationError
from optimum_qala.training.recipe import load_recipe, override


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def make(tmp_path: Path, text: str, **arguments: Any) -> QuaLATrainingArguments:
    settings = {"output_dir": str(tmp_path), "use_cpu": True} | arguments
    return QuaLATrainingArguments.from_recipe(write(tmp_path, text), **settings)


def test_every_kind_of_value_is_read(tmp_path: Path) -> None:
    text = """
        learning_rate: 3e-5  # text for YAML
        weight_decay: 1
        max_steps: 7
        smallest_sub_model: false
        divergence: reverse
        auxiliary_losses: {hidden_states: 1, relations: 5e-1}
        sub_model_auxiliary_losses: attention_maps=2
        teacher_layers: [1, 3]
        relation_heads: null
    """
    arguments = make(tmp_path, text)
    assert (arguments.learning_rate, arguments.weight_decay, arguments.max_steps) == (3e-5, 1, 7)
    assert (arguments.smallest_sub_model, arguments.divergence) == (False, "reverse")
    assert arguments.auxiliary_losses == {"hidden_states": 1.0, "relations": 0.5}
    assert arguments.sub_model_auxiliary_losses == {"attention_maps": 2.0}
    assert (arguments.teacher_layers, arguments.relation_heads) == ([1, 3], None)


def test_argument_parser_does_not_change_what_a_recipe_may_hold(tmp_path: Path) -> None:
    """It overwrites the types of the fields that it reads."""
    HfArgumentParser(QuaLATrainingArguments)
    arguments = make(tmp_path, "auxiliary_losses: {minilm: 2}\nteacher_layers: [1]\nlearning_rate: 1e-4\n")
    assert (arguments.auxiliary_losses, arguments.teacher_layers) == ({"minilm": 2.0}, [1])


def test_given_arguments_win(tmp_path: Path) -> None:
    recipe = "temperature: 2.0\ndivergence: skew\nskew: 0.3\nmax_steps: 9\n"
    arguments = make(tmp_path, recipe, temperature=4.0, num_train_epochs=2.0)
    assert (arguments.temperature, arguments.skew) == (4.0, 0.3)
    assert (arguments.num_train_epochs, arguments.max_steps) == (2.0, -1)
    assert override({"max_steps": 9}, {"max_steps": 3, "num_train_epochs": 2.0})["max_steps"] == 3


def test_saved_recipe_is_read_back(tmp_path: Path) -> None:
    first = make(tmp_path, "auxiliary_losses: {minilm: 2}\nteacher_layers: [0]\nearly_exit_prob: 0.5\nseed: 3\n")
    first.save_recipe(tmp_path / "saved.yaml")
    second = QuaLATrainingArguments.from_recipe(tmp_path / "saved.yaml", output_dir=str(tmp_path), use_cpu=True)
    stored = yaml.safe_load((tmp_path / "saved.yaml").read_text(encoding="utf-8"))
    own = {field.name for field in fields(QuaLATrainingArguments)} - {
        field.name for field in fields(TrainingArguments)
    }
    assert own - set(stored) == {"eval_budgets", "relation_heads"}  # not of the training; None
    assert {"learning_rate", "max_steps", "num_train_epochs", "seed"} <= set(stored)
    for name in stored:
        assert getattr(first, name) == getattr(second, name), name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("temprature: 2", r"sets 'temprature', which is none of \['auxiliary_losses', 'bf16', 'deep_supervision_w"),
        ("output_dir: here", "sets 'output_dir', which is none of"),
        ("1: 2", "sets 1, which is none of"),
        ("auxiliary_losses: {hidden: 1}", r"recipe\.yaml: auxiliary_losses names 'hidden', which is none of \['atten"),
        ("auxiliary_losses: {minilm: -1}", "gives 'minilm' the weight -1, which is not a positive number"),
        ("sub_model_auxiliary_losses: [minilm]", r"sets sub_model_auxiliary_losses to \['minilm'\], which is no dict"),
        ("temperature: hot", r"recipe\.yaml sets temperature to 'hot', which is no float"),
        ("temperature: true", "sets temperature to True, which is no float"),
        ("relation_heads: 2.5", "sets relation_heads to 2.5, which is no int"),
        ("seed: true", "sets seed to True, which is no int"),
        ("smallest_sub_model: 1", "sets smallest_sub_model to 1, which is no bool"),
        ("divergence: 3", "sets divergence to 3, which is no str"),
        ("teacher_layers: 1,3", r"sets teacher_layers to '1,3', which is no list\[int\]"),
        ("teacher_layers: [1, x]", r"sets teacher_layers to \[1, 'x'\], which is no list\[int\]"),
        ("temperature: .nan", "temperature nan is not from 0.001 to 1000.0"),
        ("temperature: 1e-30", "temperature 1e-30 is not from 0.001 to 1000.0"),
        ("seed: 1\nseed: 2", r"recipe .*recipe\.yaml sets 'seed' twice"),
        ("{minilm: 1", "is not YAML: while parsing a flow mapping"),
        ("- minilm", r"must map settings to values, found \['minilm'\]"),
        ("", "must map settings to values, found None"),
    ],
)
def test_bad_recipe_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make(tmp_path, text)


def test_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"recipe .*absent\.yaml cannot be read: "):
        load_recipe(tmp_path / "absent.yaml", QuaLATrainingArguments)
    (tmp_path / "latin.yaml").write_bytes(b"seed: \xff")
    with pytest.raises(ConfigurationError, match=r"recipe .*latin\.yaml cannot be read: "):
        load_recipe(tmp_path / "latin.yaml", QuaLATrainingArguments)
