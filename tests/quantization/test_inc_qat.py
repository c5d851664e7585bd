"""From a quantization-aware training to int8: the graph rounds where the trained model rounded."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import load_file

from optimum_qala import INCQuaLAConfig, INCQuaLAMiniLMForQuestionAnswering, INCQuaLAQuantizer
from optimum_qala._compat import is_available
from optimum_qala.errors import CheckpointError
from optimum_qala.quantization import inc
from optimum_qala.quantization.fake_quantization import FakeQuantization
from optimum_qala.quantization.inc_export import export_graph, graph_inputs
from optimum_qala.quantization.inc_qat import Learned
from optimum_qala.quantization.qat_record import QATRecord
from tests.conftest import tiny_config
from tests.models.batches import make_batch
from tests.quantization.conftest import WINDOWS, model_with_biases


pytestmark = [
    pytest.mark.skipif(not is_available("neural-compressor"), reason="needs the extra neural-compressor"),
    pytest.mark.timeout(600),
]

NEURONS = {1: [3, 40]}


def trained(tiny_tokenizer, scoring, bits):
    """A model with the record of a training, whose ranges are those of a batch."""
    torch.manual_seed(0)
    model = model_with_biases(tiny_config(num_hidden_layers=2, vocab_size=len(tiny_tokenizer), token_scoring=scoring))
    quantization = FakeQuantization(model, weight_bits=bits, outlier_neurons=NEURONS)
    batch = make_batch([60, 33, 41], vocab_size=len(tiny_tokenizer))
    with torch.no_grad(), quantization.active(observe=True):
        model(**batch, budget="full")
    quantization.update()
    model.config.quantization_aware = quantization.record.to_dict()
    return model, quantization, batch


def distance(actual, expected, batch):
    is_real = batch["attention_mask"] > 0
    return float((actual.start_logits - expected.start_logits)[is_real].abs().mean())


@pytest.mark.parametrize(("scoring", "bits"), [("attention", 8), ("answer", 2)])
@torch.no_grad()
def test_int8_model_computes_what_the_rounded_model_computes(scoring, bits, tiny_tokenizer, records, tmp_path):
    """Far nearer to it than int8 without training is to float."""
    model, quantization, batch = trained(tiny_tokenizer, scoring, bits)
    int8 = INCQuaLAQuantizer(model, tiny_tokenizer).quantize(
        records,
        tmp_path / "int8",
        config=INCQuaLAConfig(approach="qat", num_samples=6),
        validation_records=records[:2] if bits == 2 else None,
        window_options=WINDOWS,
    )
    assert isinstance(int8, INCQuaLAMiniLMForQuestionAnswering)
    with quantization.active():
        rounded = {budget: model(**batch, budget=budget) for budget in ("full", "0.8,0.4")}
    lost = distance(rounded["full"], model(**batch, budget="full"), batch)
    for budget, expected in rounded.items():
        assert distance(int8(**batch, budget=budget), expected, batch) < 0.2 * lost, budget
    record = INCQuaLAConfig.from_pretrained(tmp_path / "int8")
    assert record.approach == "qat"
    assert record.applied["weight_bits"] == bits
    assert record.applied["outlier_neurons"] == {"1": [3, 40]}
    assert "num_samples" not in record.applied  # nothing was calibrated
    assert json.loads((tmp_path / "int8" / "config.json").read_text()).get("quantization_aware") is None
    tensors = load_file(tmp_path / "int8" / "inc_weights.safetensors")
    shapes = {(32, 32), (64, 32), (32, 64)}  # of the layers, neither of heads nor of tables
    matrices = [values for values in tensors.values() if tuple(values.shape) in shapes]
    assert len(matrices) == 12
    assert {values.dtype for values in matrices} == {torch.int8}
    most = max(int(values.int().abs().max()) for values in matrices)
    assert most == 1 if bits == 2 else most >= 127


@pytest.fixture(scope="module")
def prepared(tiny_tokenizer):
    model, quantization, batch = trained(tiny_tokenizer, "question", 8)
    layers = inc._linear_layers(model)
    learned = Learned.round_weights(model, layers, quantization.record)
    graph = export_graph(model, model.config)
    sizes = [6, 60, 60]
    inputs = graph_inputs({**batch, "retention": [1.0, 1.0], "sizes": sizes}, model.config)
    return graph, learned, inputs


def logits_of(prepared, learned, ignored=()):
    graph, _, inputs = prepared
    config = INCQuaLAConfig(approach="qat")
    converted = inc._convert(inc._prepare(copy.deepcopy(graph), config, list(ignored)), [inputs], learned)
    with torch.no_grad():
        return converted(inputs)[0]


def test_learned_ranges_decide_and_not_the_windows(prepared):
    _, learned, _ = prepared
    narrow = {site: (low / 4, high / 4) for site, (low, high) in learned.record.activation_ranges.items()}
    record = QATRecord(8, {}, narrow)
    assert not torch.equal(logits_of(prepared, learned), logits_of(prepared, Learned(record, learned.steps)))


def test_layers_may_stay_in_float(prepared):
    _, learned, _ = prepared
    ignored = ["quala.encoder.layer.0.attention.self.key", "quala.encoder.layer.0.attention.self.value"]
    logits = logits_of(prepared, learned, ignored)
    assert torch.isfinite(logits).all()
    assert not torch.equal(logits, logits_of(prepared, learned))


def test_model_that_was_not_trained_so_is_refused(torch_model, tiny_tokenizer, records, tmp_path):
    message = "QuaLAMiniLMForQuestionAnswering was not trained with quantization_aware=True, .* approach 'qat' .* use "
    with pytest.raises(CheckpointError, match=message + "approach 'static', or train it so first"):
        INCQuaLAQuantizer(torch_model, tiny_tokenizer).quantize(
            records, tmp_path / "int8", config=INCQuaLAConfig(approach="qat")
        )
