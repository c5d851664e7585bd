"""Importing the package makes the Auto classes and the pipeline know the model, and changes nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForQuestionAnswering,
    BertConfig,
    BertForQuestionAnswering,
    BertModel,
    PreTrainedConfig,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_QUESTION_ANSWERING_MAPPING, MODEL_MAPPING
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.utils import find_labels

from optimum_qala import (
    QuaLAMiniLMConfig,
    QuaLAMiniLMForQuestionAnswering,
    QuaLAMiniLMModel,
    QuestionAnsweringPipeline,
)
from optimum_qala.registration import register_auto_classes, register_pipeline
from tests.conftest import tiny_config
from tests.models.batches import assert_equal_tensors, make_batch


ROOT = Path(__file__).resolve().parents[1]
LOAD_SAVED_MODEL = """
import json, sys
import optimum_qala
modules = sorted(sys.modules)
import torch
from transformers import AutoConfig, AutoModel, AutoModelForQuestionAnswering, pipeline

folder = sys.argv[1]
config = AutoConfig.from_pretrained(folder)
base = AutoModel.from_pretrained(folder)
model = AutoModelForQuestionAnswering.from_pretrained(folder)
ids = torch.tensor(json.loads(sys.argv[2]))
with torch.no_grad():
    logits = model(ids, budget="fast").start_logits
answer = pipeline("question-answering", model=folder)(question="who wrote ?", context="anna wrote the book .")
print(json.dumps({
    "classes": [type(one).__name__ for one in (config, base, model)],
    "budgets": config.budgets,
    "start_logits": logits.tolist(),
    "answer": sorted(answer),
    "modules": modules,
}))
"""


BUDGETS = {"fast": {"retention": [0.9, 0.6, 0.4, 0.2], "f1": 61.5}}
IDS = make_batch([30], vocab_size=140)["input_ids"]


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory, tiny_tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    QuaLAMiniLMForQuestionAnswering(tiny_config(budgets=BUDGETS)).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def fresh_process(saved_model) -> dict[str, Any]:
    """What a process sees that only imports the package and loads the saved model."""
    command = [sys.executable, "-W", "ignore", "-c", LOAD_SAVED_MODEL, str(saved_model), json.dumps(IDS.tolist())]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout.splitlines()[-1])


def test_saved_model_loads_through_the_auto_classes_in_a_fresh_process(fresh_process, saved_model):
    model = QuaLAMiniLMForQuestionAnswering.from_pretrained(saved_model)
    with torch.no_grad():
        expected = model(IDS, budget="fast").start_logits
    assert fresh_process["classes"] == ["QuaLAMiniLMConfig", "QuaLAMiniLMModel", "QuaLAMiniLMForQuestionAnswering"]
    assert fresh_process["budgets"] == BUDGETS
    # Another process may run on another number of threads, which changes the order of sums.
    assert_equal_tensors(torch.tensor(fresh_process["start_logits"]), expected, tolerance=1e-5)
    assert fresh_process["answer"] == ["answer", "end", "score", "start"]


def test_import_loads_no_back_end(fresh_process):
    assert "transformers" in fresh_process["modules"]
    unwanted = ("openvino", "nncf", "neural_compressor", "optimum.intel", "datasets", "matplotlib")
    assert not [name for name in fresh_process["modules"] if name.startswith(unwanted)]


def test_entries_of_bert_stay_as_they_are(tmp_path):
    assert CONFIG_MAPPING["bert"] is BertConfig
    assert MODEL_MAPPING[BertConfig] is BertModel
    assert MODEL_FOR_QUESTION_ANSWERING_MAPPING[BertConfig] is BertForQuestionAnswering
    config = BertConfig(vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    BertForQuestionAnswering(config).save_pretrained(tmp_path)
    assert type(AutoModelForQuestionAnswering.from_pretrained(tmp_path)) is BertForQuestionAnswering


def test_registration_again_changes_nothing():
    before = PIPELINE_REGISTRY.supported_tasks["question-answering"]
    register_auto_classes()
    register_pipeline()
    assert CONFIG_MAPPING["quala_minilm"] is QuaLAMiniLMConfig
    assert MODEL_MAPPING[QuaLAMiniLMConfig] is QuaLAMiniLMModel
    assert MODEL_FOR_QUESTION_ANSWERING_MAPPING[QuaLAMiniLMConfig] is QuaLAMiniLMForQuestionAnswering
    assert PIPELINE_REGISTRY.supported_tasks["question-answering"] is before


def test_registration_leaves_another_pipeline_of_the_task_alone(monkeypatch):
    other = {"impl": object()}
    monkeypatch.setitem(PIPELINE_REGISTRY.supported_tasks, "question-answering", other)
    register_pipeline()
    assert PIPELINE_REGISTRY.supported_tasks["question-answering"] is other
    monkeypatch.delitem(PIPELINE_REGISTRY.supported_tasks, "question-answering")
    register_pipeline()
    assert PIPELINE_REGISTRY.supported_tasks["question-answering"]["impl"] is QuestionAnsweringPipeline


def test_auto_classes_make_models_of_a_config():
    config = tiny_config()
    assert type(AutoConfig.for_model("quala_minilm")) is QuaLAMiniLMConfig
    assert type(AutoModel.from_config(config)) is QuaLAMiniLMModel
    assert type(AutoModelForQuestionAnswering.from_config(config)) is QuaLAMiniLMForQuestionAnswering


def test_trainer_finds_the_labels():
    """By the class's name and forward's signature; without them the Trainer evaluates without a loss."""
    assert find_labels(QuaLAMiniLMForQuestionAnswering) == ["start_positions", "end_positions"]


@pytest.mark.parametrize("name", ["attn_implementation", "dtype"])
def test_auto_model_passes_loading_options(tmp_path, name):
    QuaLAMiniLMForQuestionAnswering(tiny_config()).save_pretrained(tmp_path)
    options = {"attn_implementation": "eager", "dtype": torch.bfloat16}
    model = AutoModelForQuestionAnswering.from_pretrained(tmp_path, **{name: options[name]})
    if name == "dtype":
        assert model.dtype == torch.bfloat16
    else:
        assert model.config._attn_implementation == "eager"


def test_config_is_a_transformers_config():
    assert issubclass(QuaLAMiniLMConfig, PreTrainedConfig)


def test_push_to_a_repository_without_a_card_says_what_was_measured(tiny_model, tmp_path):
    """The seam between the models and the report; tests/hub pushes for real."""
    from optimum_qala.models import hub
    from optimum_qala.models.hub_card import Repository

    tiny_model.config.budgets = {"fast": {"retention": [1.0, 0.7, 0.5, 0.3], "f1": 71.5, "em": 60.0}}
    tiny_model.save_pretrained(tmp_path)
    card = hub._choose_card(tmp_path, None, "", Repository("org/quala", {}, Path))
    assert "71.5" in card
    assert "org/quala" in card
