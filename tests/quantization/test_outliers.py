from __future__ import annotations

import copy

import pytest
import torch

from optimum_qala import OVQuaLAConfig, OVQuaLAMiniLMForQuestionAnswering, OVQuaLAQuantizer
from optimum_qala.errors import DataError
from optimum_qala.quantization.outliers import find_outlier_neurons, split_outlier_neurons
from tests.inference.batches import random_batch
from tests.quantization.conftest import WINDOWS


PLANTED = {0: [7], 1: [3]}


@pytest.fixture
def model(torch_model):
    """The tiny model, with a neuron in each layer that [CLS] drives far above all others, as in trained models."""
    model = copy.deepcopy(torch_model)
    batch = random_batch(11, 1, 40, vocab_size=100)
    for index, (neuron,) in PLANTED.items():
        layer, seen = model.quala.encoder.layer[index], []
        hook = layer.intermediate.register_forward_hook(lambda module, args, output, seen=seen: seen.append(args[0]))
        with torch.no_grad():
            model(**batch)
            hook.remove()
            first = seen[0][0, 0]
            layer.intermediate.dense.weight[neuron] = 100.0 * first / first.pow(2).sum()
            layer.output.dense.weight[:, neuron] *= 0.3
    return model


def samples(count=4, seed=0):
    return [{**random_batch(seed + number, 1, 40, vocab_size=100), "retention": None} for number in range(count)]


def test_neurons_far_above_the_usual_are_found(model, torch_model):
    assert find_outlier_neurons(model, samples(), 3.0) == PLANTED
    assert find_outlier_neurons(torch_model, samples(), 3.0) == {}


def test_factor_decides_what_is_an_outlier(model):
    assert find_outlier_neurons(model, samples(), 1000.0) == {}


def test_only_the_largest_are_split_off(model):
    """A float branch of many neurons would cost what int8 saves: 1/128 of them at most, here one of 64."""
    with torch.no_grad():
        weight = model.quala.encoder.layer[0].intermediate.dense.weight
        weight[20] = 1.5 * weight[7]
    assert find_outlier_neurons(model, samples(), 1.01)[0] == [20]


def test_search_leaves_the_model_as_it_was(model):
    model.train()
    find_outlier_neurons(model, samples(), 3.0)
    assert model.training
    assert not any(layer.intermediate._forward_hooks for layer in model.quala.encoder.layer)


def test_search_needs_samples(model):
    with pytest.raises(DataError, match="no samples to find outlier neurons with"):
        find_outlier_neurons(model, [], 2.0)


@pytest.mark.parametrize("budget", ["full", "fast"])
def test_split_model_computes_the_same(model, budget):
    batch = random_batch(5, 3, 60, vocab_size=100)
    expected = model(**batch, budget=budget)
    split = split_outlier_neurons(copy.deepcopy(model), PLANTED)(**batch, budget=budget)
    torch.testing.assert_close(split.start_logits, expected.start_logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(split.end_logits, expected.end_logits, rtol=1e-4, atol=1e-5)


def test_split_neurons_are_gone_from_the_layers(model):
    layer = split_outlier_neurons(model, PLANTED).quala.encoder.layer[1]
    _, values = layer.intermediate.dense(torch.randn(5, 32)), layer.intermediate(torch.randn(5, 32))
    assert (values[:, 3] == 0).all()
    assert (layer.output.dense.weight[:, 3] == 0).all()
    assert layer.output.outlier_neurons.up.weight.abs().max() > 0


def quantized(model, tokenizer, records, folder, **options):
    config = OVQuaLAConfig(num_samples=8, **options)
    return OVQuaLAQuantizer(model, tokenizer).quantize(records, folder, config=config, window_options=WINDOWS)


def activation_range(model, name):
    """Width of what the quantized input of a linear layer can hold."""
    (linear,) = (
        operation
        for operation in model.model.get_ops()
        if operation.get_type_name() == "MatMul" and name in operation.get_friendly_name()
    )
    quantizer = linear.input_value(0).get_node()
    assert quantizer.get_type_name() == "FakeQuantize"
    low, high = (quantizer.input_value(index).get_node().get_data().item() for index in (1, 2))
    return high - low


def test_ranges_of_activations_shrink(model, tiny_tokenizer, records, tmp_path):
    """SmoothQuant would shrink them too, at the expense of the weights, so it is off here."""
    options = {"smooth_quant_alpha": None}
    whole = quantized(model, tiny_tokenizer, records, tmp_path / "whole", outlier_factor=None, **options)
    split = quantized(model, tiny_tokenizer, records, tmp_path / "split", outlier_factor=2.0, **options)
    assert whole.quantization.applied["outlier_neurons"] == {}
    assert split.quantization.applied["outlier_neurons"] == {str(layer): found for layer, found in PLANTED.items()}
    for layer in PLANTED:
        name = f"layer.{layer}.output.dense"
        assert activation_range(split, name) < 0.5 * activation_range(whole, name)


def test_branch_stays_float(model, tiny_tokenizer, records, tmp_path):
    graph = quantized(model, tiny_tokenizer, records, tmp_path / "int8", outlier_factor=3.0).model
    linear = [
        operation
        for operation in graph.get_ops()
        if operation.get_type_name() == "MatMul" and "outlier_neurons" in operation.get_friendly_name()
    ]
    assert len(linear) == 2 * len(PLANTED)
    for operation in linear:
        kinds = {operation.input_value(index).get_node().get_type_name() for index in (0, 1)}
        assert "FakeQuantize" not in kinds


def test_trained_model_is_not_touched(model, tiny_tokenizer, records, tmp_path):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    quantized(model, tiny_tokenizer, records, tmp_path / "int8", outlier_factor=3.0)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    loaded = OVQuaLAMiniLMForQuestionAnswering.from_pretrained(tmp_path / "int8")
    assert loaded.quantization.outlier_factor == 3.0
