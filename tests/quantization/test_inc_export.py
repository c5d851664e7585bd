"""The graph for Intel Neural Compressor equals the model at every budget and shape."""

from __future__ import annotations

import copy

import pytest
import torch

from optimum_qala import LengthConfig, QuaLAMiniLMForQuestionAnswering
from optimum_qala.errors import BackendError
from optimum_qala.inference.graph import retention_of
from optimum_qala.inference.sizes import plan_sizes
from optimum_qala.quantization.configuration import RETENTION_INPUT, SIZES_INPUT
from optimum_qala.quantization.inc_export import (
    export_graph,
    graph_inputs,
    graph_outputs,
    input_names,
    quantize_embeddings,
)
from tests.conftest import tiny_config
from tests.models.batches import make_batch


BUDGETS = (None, LengthConfig((0.9, 0.5)), LengthConfig((0.4, 0.3)), LengthConfig((1.0, 0.6)))
# Other sizes than the example's, one row, the longest that fits, and hardly more than a question.
BATCHES = {
    "two rows": make_batch([50, 33]),
    "one row": make_batch([20]),
    "padding": make_batch([30, 12, 9, 18], pad_to=40),
    "all positions": make_batch([128]),
    "short": make_batch([7]),
}


def make_model(scoring, **overrides):
    torch.manual_seed(0)
    return QuaLAMiniLMForQuestionAnswering(tiny_config(num_hidden_layers=2, token_scoring=scoring, **overrides)).eval()


def inputs_of(batch, config, budget):
    sizes = plan_sizes(batch["input_ids"].numpy(), batch["attention_mask"].numpy(), config, budget)
    given = batch | {RETENTION_INPUT: retention_of(budget, config.dropping_layers), SIZES_INPUT: sizes}
    return graph_inputs(given, config)


@pytest.fixture(scope="module", params=["question", "attention", "answer"])
def pair(request):
    """A model and its graph."""
    model = make_model(request.param)
    return model, export_graph(model, model.config)


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("budget", BUDGETS, ids=str)
def test_graph_equals_the_model(pair, batch, budget):
    model, graph = pair
    with torch.no_grad():
        results = dict(zip(graph_outputs(model.config), graph(inputs_of(batch, model.config, budget)), strict=True))
        expected = model(**batch, budget=budget or "full")
    is_real = batch["attention_mask"] > 0
    for name in ("start_logits", "end_logits"):
        torch.testing.assert_close(results[name][is_real], expected[name][is_real], rtol=1e-4, atol=1e-5)


def test_exits_are_outputs_of_a_model_with_span_heads(pair):
    model, graph = pair
    names = graph_outputs(model.config)
    if not model.config.has_span_heads:
        assert names == ["start_logits", "end_logits"]
        return
    assert names == ["start_logits", "end_logits", "start_logits_1", "end_logits_1"]
    budget, batch = LengthConfig((0.7, 0.7), exit_layer=1), BATCHES["one row"]
    with torch.no_grad():
        results = dict(zip(names, graph(inputs_of(batch, model.config, budget)), strict=True))
        expected = model(**batch, budget=budget)
    torch.testing.assert_close(results["start_logits_1"], expected.start_logits, rtol=1e-4, atol=1e-5)


def test_larger_sizes_give_the_same_logits(pair):
    model, graph = pair
    inputs = inputs_of(BATCHES["two rows"], model.config, BUDGETS[2])
    names = [name for name in inputs if name.startswith("sizes")]
    larger = inputs | {name: torch.empty(20 if "question" in name else 40, dtype=torch.bool) for name in names}
    with torch.no_grad():
        torch.testing.assert_close(graph(inputs)[0][0], graph(larger)[0][0], rtol=1e-4, atol=1e-5)


def test_inputs_are_named_in_order():
    model = make_model("question")
    names = ["input_ids", "attention_mask", "token_type_ids", "retention", "sizes_question", "sizes_0", "sizes_1"]
    assert input_names(model.config) == names
    assert list(inputs_of(BATCHES["one row"], model.config, None)) == names
    one_segment = make_model("answer", type_vocab_size=1, drop_layers=[1])
    assert input_names(one_segment.config) == ["input_ids", "attention_mask", "retention", "sizes_1"]


def test_model_without_layers_that_drop_is_refused():
    model = make_model("question", drop_layers=[])
    with pytest.raises(BackendError, match=r"no layer of this model may drop tokens \(drop_layers is \[\]\)"):
        export_graph(model, model.config)


def test_model_that_cannot_be_exported_is_refused(monkeypatch):
    model = make_model("question")

    def decide(self, *arguments, **options):
        return arguments[0] if arguments[0].sum() > 0 else None

    monkeypatch.setattr(type(model), "forward", decide)
    with pytest.raises(BackendError, match=f"torch {torch.__version__.partition('+')[0]}.* cannot export this model"):
        export_graph(model, model.config)


class TestEmbeddings:
    def test_rows_keep_their_precision(self):
        model = make_model("question")
        quantized = quantize_embeddings(copy.deepcopy(model))
        table = model.quala.embeddings.word_embeddings.weight
        ids = torch.arange(len(table)).unsqueeze(0)
        rows = quantized.quala.embeddings.word_embeddings(ids)[0]
        # Half a step of each row's own scale.
        steps = table.abs().amax(dim=1, keepdim=True) / 127
        assert ((rows - table).abs() <= 0.5 * steps + 1e-7).all()

    def test_tables_are_int8_and_an_empty_row_stays_empty(self):
        model = make_model("question")
        with torch.no_grad():
            model.quala.embeddings.word_embeddings.weight[7] = 0.0
        embeddings = quantize_embeddings(model).quala.embeddings
        assert embeddings.word_embeddings.table.dtype is torch.int8
        assert embeddings.position_embeddings.table.dtype is torch.int8
        assert not embeddings.word_embeddings(torch.tensor([[7]])).any()
