"""A tiny exported model, made once."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForQuestionAnswering

from optimum_qala import QuaLAMiniLMForQuestionAnswering
from optimum_qala._compat import is_available
from tests.conftest import tiny_config


BUDGETS = {"fast": {"retention": [1.0, 0.6, 0.6, 0.3]}, "faster": {"retention": [0.5, 0.4, 0.3, 0.2]}}


@pytest.fixture(scope="session", autouse=True)
def _openvino():
    if not is_available("openvino"):
        pytest.skip("needs the extra openvino")


@pytest.fixture(scope="session")
def torch_model() -> QuaLAMiniLMForQuestionAnswering:
    torch.manual_seed(0)
    return QuaLAMiniLMForQuestionAnswering(tiny_config(budgets=BUDGETS)).eval()


@pytest.fixture(scope="session")
def torch_folder(torch_model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("torch")
    torch_model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def exported(torch_model, tmp_path_factory) -> Path:
    """Folder of the exported model; read only."""
    from optimum_qala.quantization.export import export_model

    folder = tmp_path_factory.mktemp("exported")
    export_model(torch_model, folder)
    return folder


@pytest.fixture(scope="session")
def answer_model() -> QuaLAMiniLMForQuestionAnswering:
    """A model with early span heads."""
    torch.manual_seed(0)
    budgets = {
        "late": {"retention": [1.0, 0.7, 0.7, 0.3]},
        "shallow": {"retention": [1.0, 0.7, 0.7, 0.7], "exit_layer": 2},
    }
    return QuaLAMiniLMForQuestionAnswering(tiny_config(token_scoring="answer", budgets=budgets)).eval()


@pytest.fixture(scope="session")
def answer_exported(answer_model, tmp_path_factory) -> Path:
    """Folder of that model, exported; read only."""
    from optimum_qala.quantization.export import export_model

    folder = tmp_path_factory.mktemp("answer")
    export_model(answer_model, folder)
    return folder


@pytest.fixture
def model(exported):
    from optimum_qala import OVQuaLAMiniLMForQuestionAnswering

    return OVQuaLAMiniLMForQuestionAnswering.from_pretrained(exported)


@pytest.fixture(scope="session")
def plain_torch() -> BertForQuestionAnswering:
    """A seeded random BERT without token dropping."""
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(vocab_size=200, max_position_embeddings=128, initializer_range=0.3, **sizes)
    return BertForQuestionAnswering(config).eval()


@pytest.fixture(scope="session")
def plain_exported(plain_torch, tmp_path_factory) -> Path:
    """Folder of that BERT as optimum-intel exports it; read only."""
    from optimum.exporters.openvino import export_from_model

    folder = tmp_path_factory.mktemp("plain")
    export_from_model(copy.deepcopy(plain_torch), folder, task="question-answering", stateful=False)
    plain_torch.config.save_pretrained(folder)
    return folder
