"""A torch model is saved with its code on request, and keeps it. tests/hub loads it without the package."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModel, AutoModelForQuestionAnswering
from transformers.dynamic_module_utils import get_relative_imports

import optimum_qala.models
from optimum_qala import QuaLAMiniLMForQuestionAnswering, QuaLAMiniLMModel
from optimum_qala.models.remote_code import AUTO_MAP
from optimum_qala.quantization.calibration import narrow_config


SOURCES = {path.name for path in Path(optimum_qala.models.__file__).parent.glob("*.py")} - {"__init__.py"}


def saved(folder):
    """Names of the code files in a folder, and the `auto_map` of its configuration."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return {path.name for path in folder.glob("*.py")}, config.get("auto_map")


def test_code_is_saved_on_request_only(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path / "plain")
    assert saved(tmp_path / "plain") == (set(), None)
    tiny_model.save_pretrained(tmp_path / "code", remote_code=True)
    assert saved(tmp_path / "code") == (SOURCES, AUTO_MAP)


def test_files_that_are_named_import_all_others_themselves():
    """transformers copies no more than these when it loads the code of a local folder."""
    folder = Path(optimum_qala.models.__file__).parent
    named = {f"{place.partition('.')[0]}.py" for place in AUTO_MAP.values()}
    imported = {f"{name}.py" for file in named for name in get_relative_imports(folder / file)}
    assert named | imported == SOURCES


def test_names_of_the_auto_map_exist():
    for place in AUTO_MAP.values():
        module, name = place.split(".")
        assert hasattr(getattr(__import__("optimum_qala.models", fromlist=[module]), module), name)


@pytest.mark.parametrize(
    ("auto", "model_class"),
    [(AutoModel, QuaLAMiniLMModel), (AutoModelForQuestionAnswering, QuaLAMiniLMForQuestionAnswering)],
)
def test_registered_class_wins_over_the_code_and_keeps_it(auto, model_class, tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path / "code", remote_code=True)
    model = auto.from_pretrained(tmp_path / "code", trust_remote_code=True)
    assert type(model) is model_class
    model.save_pretrained(tmp_path / "again")
    assert saved(tmp_path / "again") == (SOURCES, AUTO_MAP)


def test_code_of_a_repository_becomes_that_of_the_folder(tiny_model, tmp_path):
    tiny_model.config.auto_map = {name: f"org/quala--{place}" for name, place in AUTO_MAP.items()}
    tiny_model.save_pretrained(tmp_path)
    assert saved(tmp_path) == (SOURCES, AUTO_MAP)


def test_transformers_own_registration_saves_the_configuration_too(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(QuaLAMiniLMForQuestionAnswering, "_auto_class", None)  # undone after the test
    QuaLAMiniLMForQuestionAnswering.register_for_auto_class("AutoModelForQuestionAnswering")
    tiny_model.save_pretrained(tmp_path)
    assert saved(tmp_path) == (SOURCES, AUTO_MAP)


def test_exported_model_does_not_name_the_code(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path / "code", remote_code=True)
    config = narrow_config(tiny_model.config, None)
    config.save_pretrained(tmp_path / "graph")
    assert saved(tmp_path / "graph") == (set(), None)
