"""The record of a quantization-aware training: what it names, and what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import BertConfig

from optimum_qala import QuaLAMiniLMForQuestionAnswering
from optimum_qala.errors import CheckpointError
from optimum_qala.quantization.calibration import narrow_config
from optimum_qala.quantization.qat_record import (
    QATRecord,
    bits_of,
    site_names,
    site_of,
    warn_of_unrounded_weights,
)
from optimum_qala.students.shrinking import shrink_model
from tests.conftest import tiny_config


@pytest.fixture
def config():
    ranges = {site: [-1.0, 1.5] for site in site_names(4)}
    return tiny_config(
        quantization_aware={"weight_bits": 2, "outlier_neurons": {"1": [3]}, "activation_ranges": ranges}
    )


def test_every_linear_layer_reads_a_site():
    model = QuaLAMiniLMForQuestionAnswering(tiny_config(token_scoring="answer"))
    names = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    assert {site_of(name) for name in names} == set(site_names(4))
    assert site_of("quala.encoder.span_heads.2") == site_of("quala.encoder.layer.2.attention.self.query")
    heads = [name for name in names if bits_of(name, 2) == 8]
    assert heads == [*(f"quala.encoder.span_heads.{layer}" for layer in range(4)), "qa_outputs"]


def test_record_is_read(config):
    record = QATRecord.of(config, "it")
    assert (record.weight_bits, record.outlier_neurons) == (2, {1: [3]})
    assert record.activation_ranges["final"] == (-1.0, 1.5)
    assert record.to_dict() == config.quantization_aware


def test_weights_that_were_never_rounded_are_warned_of(config, monkeypatch):
    messages = []
    monkeypatch.setattr("optimum_qala.quantization.qat_record.logger.warning", messages.append)
    warn_of_unrounded_weights(tiny_config(), "plain")
    warn_of_unrounded_weights(BertConfig(), "foreign")
    warn_of_unrounded_weights(config, "ternary")
    assert [message.partition(", which")[0] for message in messages] == ["ternary was trained for weights of 2 bits"]
    config.quantization_aware["weight_bits"] = 8
    warn_of_unrounded_weights(config, "int8")
    assert len(messages) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight_bits": 3}, "weight_bits 3"),
        ({"activation_ranges": {"final": [0.0, 1.0]}}, "1 ranges, not 17"),
        ({"outlier_neurons": {"1": [64]}}, r"outlier neurons \[64\] of layer 1"),
        ({"outlier_neurons": {"4": [0]}}, r"outlier neurons \[0\] of layer 4"),
        ({"outlier_neurons": [3]}, "AttributeError"),
    ],
    ids=str,
)
def test_damaged_record_is_refused(config, changes, message):
    config.quantization_aware |= changes
    with pytest.raises(CheckpointError, match=f"quantization_aware in the config.json of it is damaged .*{message}"):
        QATRecord.of(config, "it")


@pytest.mark.parametrize("ends", [[1.0, -1.0], [float("nan"), 1.0], [0.0, float("inf")]], ids=str)
def test_range_that_is_none_is_refused(config, ends):
    config.quantization_aware["activation_ranges"]["final"] = ends
    with pytest.raises(CheckpointError, match="the range .* of final"):
        QATRecord.of(config, "it")


def test_models_with_other_layers_lose_it(config):
    model = QuaLAMiniLMForQuestionAnswering(copy.deepcopy(config))
    assert shrink_model(model, 2).model.config.quantization_aware is None
    assert model.config.quantization_aware is not None
    assert narrow_config(config, [1]).quantization_aware is None
