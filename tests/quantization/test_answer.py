"""A model with early span heads in int8: one graph, calibrated through all of its exits."""

from __future__ import annotations

import pytest
import torch

from optimum_qala import (
    OVQuaLAConfig,
    OVQuaLAMiniLMForQuestionAnswering,
    OVQuaLAQuantizer,
)
from optimum_qala.inference.graph import cut_graph
from optimum_qala.quantization.selection import selection_operations
from tests.conftest import tiny_config
from tests.inference.batches import random_batch
from tests.quantization.conftest import WINDOWS, model_with_biases


BUDGETS = {"late": {"retention": [1.0, 0.5, 0.5]}, "shallow": {"retention": [1.0, 0.5, 0.5], "exit_layer": 2}}

RATIOS = "1,0.7,0.7"  # a budget without a name


@pytest.fixture(scope="module")
def answer_model(tiny_tokenizer):
    torch.manual_seed(0)
    config = tiny_config(
        num_hidden_layers=3, vocab_size=len(tiny_tokenizer), token_scoring="answer", budgets=BUDGETS, drop_layers=[1]
    )
    return model_with_biases(config)


@pytest.fixture(scope="module")
def int8(answer_model, tiny_tokenizer, records, tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantized") / "int8"
    OVQuaLAQuantizer(answer_model, tiny_tokenizer).quantize(
        records,
        folder,
        config=OVQuaLAConfig(num_samples=6, budgets=("full", "late", "shallow", RATIOS)),
        validation_records=records,
        window_options=WINDOWS,
    )
    return OVQuaLAMiniLMForQuestionAnswering.from_pretrained(folder, export=False)


def test_budgets_keep_their_exits_and_are_scored(int8):
    assert {name: budget.get("exit_layer") for name, budget in int8.config.budgets.items()} == {
        "late": None,
        "shallow": 2,
    }
    assert set(int8.quantization.accuracy) == {"full", "late", "shallow", RATIOS}
    assert int8.quantization.applied["budgets"]["shallow"] == "1,0.5,0.5@2"


@pytest.mark.parametrize("budget", ["full", "late", "shallow", "1,1,1@1"])
def test_int8_is_near_float_at_every_exit(int8, answer_model, budget):
    batch = random_batch(1, 4, 40, vocab_size=100)
    with torch.no_grad():
        expected = answer_model(**batch, budget=budget).start_logits
    actual = int8(**batch, budget=budget).start_logits
    assert not torch.equal(actual, expected)
    real = batch["attention_mask"] > 0
    correlation = torch.corrcoef(torch.stack([actual[real], expected[real]]))[0, 1]
    assert correlation > 0.9


@pytest.mark.parametrize("exit_layer", [None, 1, 2])
def test_every_layer_of_a_cut_graph_is_int8(int8, exit_layer):
    kinds = [operation.get_type_name() for operation in cut_graph(int8.model, exit_layer).get_ops()]
    # Six linear layers in each layer, and nothing of the layers that do not run.
    assert 6 * (exit_layer or 3) <= kinds.count("FakeQuantize") <= 15 * (exit_layer or 3)


def test_choice_of_tokens_stays_in_float(int8):
    selection = set(selection_operations(int8.model))
    kinds = [one.get_type_name() for one in int8.model.get_ops() if one.get_friendly_name() in selection]
    assert kinds.count("TopK") == 2
    assert "FakeQuantize" not in kinds
