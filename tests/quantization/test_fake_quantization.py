"""A model that computes as its int8 model will: against a copy that was rounded by other means."""

from __future__ import annotations

import copy
import json
from functools import partial

import pytest
import torch

from optimum_qala import QuaLAMiniLMForQuestionAnswering
from optimum_qala.quantization.fake_quantization import FakeQuantization
from optimum_qala.quantization.inc_export import quantize_embeddings
from optimum_qala.quantization.outliers import split_outlier_neurons
from optimum_qala.quantization.qat_record import QATRecord, bits_of, site_names, site_of
from optimum_qala.quantization.rounding import affine_parameters, round_activation, round_weight
from tests.conftest import tiny_config
from tests.models.batches import make_batch
from tests.quantization.conftest import model_with_biases


NEURONS = {1: [3, 40], 2: [7]}


@pytest.fixture(scope="module", params=["question", "answer", "attention"])
def model(request):
    torch.manual_seed(0)
    return model_with_biases(tiny_config(token_scoring=request.param))


@pytest.fixture
def batch():
    return make_batch([60, 33, 41], vocab_size=200)


def observed(model, batch, **options):
    """A fake quantization whose ranges are those of a batch."""
    quantization = FakeQuantization(model, **options)
    with torch.no_grad(), quantization.active(observe=True):
        model(**batch, budget="full")
    quantization.update()
    return quantization


def rounded_copy(model, quantization):
    """The same model with rounded weights and tables, whose linear layers get rounded inputs by hooks."""
    rounded = copy.deepcopy(model)
    split_outlier_neurons(rounded, quantization.outlier_neurons)
    scales, zero_points = affine_parameters(quantization.ranges)
    index = {site: number for number, site in enumerate(site_names(model.config.num_hidden_layers))}

    def round_input(site, module, args):
        return (round_activation(args[0], scales[index[site]], zero_points[index[site]]),)

    for name, module in rounded.named_modules():
        if isinstance(module, torch.nn.Linear) and ".outlier_neurons." not in name:
            module.weight.data = round_weight(module.weight.data, bits_of(name, quantization.weight_bits))
            module.register_forward_pre_hook(partial(round_input, site_of(name)))
    return quantize_embeddings(rounded)


@pytest.mark.parametrize("bits", [8, 4, 2])
@torch.no_grad()
def test_model_computes_what_a_rounded_copy_computes(model, batch, bits):
    quantization = observed(model, batch, weight_bits=bits, outlier_neurons=NEURONS)
    expected = rounded_copy(model, quantization)(**batch, budget="full")
    in_float = model(**batch, budget="full")
    with quantization.active():
        actual = model(**batch, budget="full")
    torch.testing.assert_close(actual.start_logits, expected.start_logits, rtol=1e-4, atol=1e-4)
    assert (actual.start_logits - in_float.start_logits).abs().max() > 1e-2


@torch.no_grad()
def test_budgets_compute_with_rounded_values_too(model, batch):
    """A head that reads before a layer that drops has the range of what that layer reads."""
    quantization = observed(model, batch)
    exact = model(**batch, budget="1,0.7,0.7,0.4").start_logits
    with quantization.active():
        rounded = model(**batch, budget="1,0.7,0.7,0.4").start_logits
    assert 0 < (rounded - exact).abs().median() < 0.1 * exact.std()
    quantization.ranges[list(quantization._sites).index("layer.1.input")] *= 1e3
    with quantization.active():
        left_early = model(**batch, budget="1,0.7,0.7,0.7").start_logits
    assert left_early[:, 50:].unique().numel() < 0.5 * rounded[:, 50:].unique().numel()


@torch.no_grad()
def test_outlier_neurons_stay_in_float(model, batch):
    """Rounded, a neuron with a huge activation would leave nothing of the others."""
    outlier = copy.deepcopy(model)
    dense = outlier.quala.encoder.layer[1].intermediate.dense
    dense.bias[3] = 3000.0
    outlier.quala.encoder.layer[1].output.dense.weight[:, 3] *= 1e-3
    in_float = outlier(**batch, budget="full").start_logits

    def error(**options):
        quantization = observed(outlier, batch, **options)
        with quantization.active():
            return (outlier(**batch, budget="full").start_logits - in_float).abs().mean()

    assert error(outlier_neurons={1: [3]}) < 0.5 * error()


@torch.no_grad()
def test_ranges_are_means_over_windows_without_padding(model, batch):
    ranges = observed(model, batch).ranges
    alone = []
    for row in range(3):
        length = int(batch["attention_mask"][row].sum())
        one = {name: values[row : row + 1, :length] for name, values in batch.items() if values.dim() == 2}
        alone.append(observed(model, one).ranges)
    torch.testing.assert_close(ranges, torch.stack(alone).mean(dim=0), rtol=1e-4, atol=1e-5)
    assert (ranges[:, 0] < ranges[:, 1]).all()


@torch.no_grad()
def test_a_pass_without_a_mask_has_no_padding(model, batch):
    alone = {"input_ids": batch["input_ids"][:1]}
    assert FakeQuantization(model).record.activation_ranges == {}
    masked = observed(model, alone | {"attention_mask": torch.ones_like(alone["input_ids"])})
    without_mask = observed(model, alone)
    assert without_mask.ranges.abs().sum() > 0
    assert torch.equal(without_mask.ranges, masked.ranges)


def test_ranges_follow_what_full_passes_observe(model, batch):
    quantization = observed(model, batch, averaging=0.25)
    before = quantization.ranges
    other = make_batch([20, 20], vocab_size=200, seed=1)
    means = observed(model, other).ranges
    with quantization.active(observe=True):
        model(**other, budget="1,1,1,0.5")
    quantization.update()
    assert torch.equal(quantization.ranges, before), "sub-models and what was not observed change nothing"
    with quantization.active():
        model(**other, budget="full")
    quantization.update()
    assert torch.equal(quantization.ranges, before)
    quantization._parameters = None
    with quantization.active(observe=True):
        model(**other, budget="full")
    quantization.update(lambda sums: sums * 2)
    first = list(quantization._sites).index("layer.0.input")  # the only one that no rounding precedes but its own
    torch.testing.assert_close(
        quantization.ranges[first], torch.lerp(before, means, 0.25)[first], rtol=1e-2, atol=1e-2
    )
    assert not torch.equal(quantization.ranges, before)


def test_context_leaves_the_model_as_it_was(model, batch):
    state = copy.deepcopy(model.state_dict())
    quantization = observed(model, batch, outlier_neurons=NEURONS)
    with torch.no_grad():
        expected = model(**batch, budget="full").start_logits
        with pytest.raises(KeyboardInterrupt), quantization.active(), quantization.active():
            assert not torch.equal(model(**batch, budget="full").start_logits, expected)
            raise KeyboardInterrupt
        assert torch.equal(model(**batch, budget="full").start_logits, expected)
    assert not any("forward" in vars(module) or "read" in vars(module) for module in model.modules())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not model._forward_pre_hooks


def test_every_parameter_gets_its_gradient(model, batch):
    """Also a query whose weight is read first where scores are computed, without gradients."""
    quantization = observed(model, batch, weight_bits=2, outlier_neurons=NEURONS)
    labels = {"start_positions": torch.tensor([2, 3, 4]), "end_positions": torch.tensor([3, 4, 5])}
    model.zero_grad()
    with quantization.active():
        model(**batch, **labels, budget="1,0.7,0.7,0.4").loss.backward()
    without = [name for name, values in model.named_parameters() if values.grad is None and "span_heads" not in name]
    assert without == []
    for layer, neurons in NEURONS.items():
        assert (model.quala.encoder.layer[layer].intermediate.dense.weight.grad[neurons] != 0).any()


def test_autocast_computes_in_half_precision(model, batch):
    quantization = observed(model, batch)
    with torch.no_grad(), quantization.active():
        exact = model(**batch, budget="full").start_logits
        with torch.autocast("cpu", torch.bfloat16):
            assert model.quala.encoder.layer[0].intermediate.dense(torch.ones(1, 2, 32)).dtype is torch.bfloat16
            rough = model(**batch, budget="full").start_logits
    assert 0 < (rough - exact).abs().mean() < 0.2 * exact.abs().mean()


def test_record_brings_the_ranges_back_exactly(model, batch):
    quantization = observed(model, batch, weight_bits=4, outlier_neurons=NEURONS)
    config = copy.deepcopy(model.config)
    config.quantization_aware = json.loads(json.dumps(quantization.record.to_dict()))
    again = FakeQuantization.from_record(model, QATRecord.of(config, "it"))
    assert torch.equal(again.ranges, quantization.ranges)
    assert (again.weight_bits, again.outlier_neurons) == (4, NEURONS)


def test_small_tables_are_rounded_whole_and_large_ones_by_row():
    torch.manual_seed(0)
    model = QuaLAMiniLMForQuestionAnswering(tiny_config()).eval()
    expected = quantize_embeddings(copy.deepcopy(model)).quala.embeddings
    ids = torch.arange(5, 25).view(2, 10)
    with FakeQuantization(model).active():
        embeddings = model.quala.embeddings
        for name, rows in (("word_embeddings", ids), ("token_type_embeddings", ids % 2)):
            torch.testing.assert_close(getattr(embeddings, name)(rows), getattr(expected, name)(rows))
