"""Oracle: the same layer computed step by step from its weights, token by token."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForQuestionAnswering, DistilBertConfig, DistilBertForQuestionAnswering

from optimum_qala import QuaLAMiniLMForQuestionAnswering
from optimum_qala.distillation.traces import (
    COLUMN_PARTS,
    EMBEDDINGS,
    ROW_PARTS,
    Trace,
    TraceRequest,
    check_can_be_traced,
    record_trace,
)
from optimum_qala.errors import ConfigurationError
from optimum_qala.models.token_selection import gather_rows
from tests.conftest import tiny_config


PARTS = frozenset({*ROW_PARTS, *COLUMN_PARTS})
EVERYTHING = TraceRequest(frozenset({EMBEDDINGS, 0, 1, 2, 3}), PARTS)
BUDGET = "1,0.8,0.8,0.4"


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 200, (2, 20), generator=generator)
    ids[:, 4] = 3  # ends the question
    mask = torch.ones_like(ids)
    mask[1, 12:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def make_model(token_scoring: str, attention: str) -> QuaLAMiniLMForQuestionAnswering:
    torch.manual_seed(0)
    model = QuaLAMiniLMForQuestionAnswering(tiny_config(token_scoring=token_scoring)).eval()
    model.set_attn_implementation(attention)
    return model


def trace_of(model: Any, batch: dict[str, torch.Tensor], request: TraceRequest = EVERYTHING, **options: Any) -> Trace:
    with torch.no_grad(), record_trace(model, request, batch["attention_mask"]) as trace:
        trace.output = model(**batch, output_hidden_states=True, **options)
    return trace


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("token_scoring", ["question", "attention", "answer"])
def test_layers_that_drop_are_recorded_at_their_tokens(
    batch: dict[str, torch.Tensor], token_scoring: str, attention: str
) -> None:
    model = make_model(token_scoring, attention)
    trace = trace_of(model, batch, budget=BUDGET)
    hidden_states = trace.output.hidden_states
    for index in range(4):
        traced, layer = trace.layers[index], model.quala.encoder.layer[index]
        rows, columns = traced.rows, traced.columns
        torch.testing.assert_close(traced.states["hidden_states"], hidden_states[index + 1])
        entering = hidden_states[index]
        if token_scoring == "answer" and entering.shape[1] != columns.valid.shape[1]:  # tokens leave before the layer
            previous = trace.layers[index - 1].rows.positions
            entering = gather_rows(entering, _find(columns.positions, previous))
        keys = layer.attention.self.key(entering)
        torch.testing.assert_close(_kept(traced.states["keys"], columns.valid), _kept(keys, columns.valid))
        leaving = gather_rows(entering, _find(rows.positions, columns.positions))
        queries = layer.attention.self.query(leaving)
        torch.testing.assert_close(_kept(traced.states["queries"], rows.valid), _kept(queries, rows.valid))
        outputs = layer.output(
            layer.intermediate(traced.states["attention_outputs"]), traced.states["attention_outputs"]
        )
        torch.testing.assert_close(outputs, hidden_states[index + 1])
    assert trace.layers[3].rows.valid.sum(dim=1).tolist() == [8, 5]
    if token_scoring != "answer":
        assert trace.layers[3].columns.valid.sum(dim=1).tolist() == [16, 10]


def _find(wanted: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Indices into `positions` of the wanted ones; surplus ones find any."""
    return (positions.unsqueeze(1) == wanted.unsqueeze(2)).to(torch.int64).argmax(dim=2)


def _kept(values: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    return values[valid.bool()]


@pytest.mark.parametrize("token_scoring", ["question", "attention", "answer"])
def test_teacher_is_taken_at_the_places_of_the_student(batch: dict[str, torch.Tensor], token_scoring: str) -> None:
    """Oracle: a loop over tokens and their positions."""
    model = make_model(token_scoring, "sdpa")
    full, student = trace_of(model, batch, budget="full"), trace_of(model, batch, budget=BUDGET)
    taught, learned = full.layers[3].at_places_of(student.layers[3]), student.layers[3]
    assert taught.states.keys() == PARTS
    for part, values in taught.states.items():
        places = learned.places(part)
        assert values.shape == learned.states[part].shape
        for row in range(2):
            for token in range(values.shape[1]):
                if places.valid[row, token]:
                    expected = full.layers[3].states[part][row, places.positions[row, token]]
                    assert torch.equal(values[row, token], expected), part


def test_full_length_pass_has_every_token(batch: dict[str, torch.Tensor]) -> None:
    trace = trace_of(make_model("question", "sdpa"), batch)
    torch.testing.assert_close(trace.layers[EMBEDDINGS].states["hidden_states"], trace.output.hidden_states[0])
    for index in range(4):
        assert torch.equal(trace.layers[index].rows.valid, batch["attention_mask"])
        assert torch.equal(trace.layers[index].rows.positions, torch.arange(20).expand(2, 20))


def test_bert_with_the_same_weights_has_the_same_trace(batch: dict[str, torch.Tensor]) -> None:
    model = make_model("question", "sdpa")
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    sizes = {name: getattr(model.config, name) for name in (*names, "max_position_embeddings")}
    bert = BertForQuestionAnswering(BertConfig(**sizes)).eval()
    bert.bert.load_state_dict(model.quala.state_dict())
    ours, theirs = trace_of(model, batch), trace_of(bert, batch)
    assert ours.layers.keys() == theirs.layers.keys() == EVERYTHING.layers
    for index in ours.layers:
        aligned = theirs.layers[index].at_places_of(ours.layers[index])
        for part, values in ours.layers[index].states.items():
            kept = batch["attention_mask"]
            torch.testing.assert_close(_kept(aligned.states[part], kept), _kept(values, kept), atol=1e-4, rtol=1e-4)


def test_layers_that_do_not_run_are_missing(batch: dict[str, torch.Tensor]) -> None:
    model = make_model("question", "sdpa")
    full = trace_of(model, batch)
    trace = trace_of(model, batch, budget=BUDGET, skip_layers=(2,), shared_states=full.output.hidden_states)
    assert set(trace.layers) == {1, 3}


def test_only_what_was_asked_for_is_recorded(batch: dict[str, torch.Tensor]) -> None:
    request = TraceRequest(frozenset({2}), frozenset({"values"}))
    trace = trace_of(make_model("question", "sdpa"), batch, request)
    assert {index: set(layer.states) for index, layer in trace.layers.items()} == {2: {"values"}}


def test_hooks_are_removed_and_leave_the_output_alone(batch: dict[str, torch.Tensor]) -> None:
    model = make_model("attention", "sdpa")
    with torch.no_grad():
        expected = model(**batch, budget=BUDGET).start_logits
    assert torch.equal(trace_of(model, batch, budget=BUDGET).output.start_logits, expected)
    with pytest.raises(ZeroDivisionError), record_trace(model, EVERYTHING, batch["attention_mask"]):
        raise ZeroDivisionError
    assert not any(module._forward_hooks for module in model.modules())


def test_trace_keeps_gradients(batch: dict[str, torch.Tensor]) -> None:
    model = copy.deepcopy(make_model("question", "sdpa"))
    with record_trace(model, EVERYTHING, batch["attention_mask"]) as trace:
        model(**batch, budget=BUDGET)
    trace.layers[3].states["queries"].sum().backward()
    assert model.quala.encoder.layer[0].attention.self.value.weight.grad.abs().sum() > 0


def test_model_of_another_build_is_refused() -> None:
    config = DistilBertConfig(vocab_size=20, dim=8, n_layers=1, n_heads=2, hidden_dim=8)
    with pytest.raises(
        ConfigurationError, match="the teacher is a DistilBertForQuestionAnswering, whose layers are not"
    ):
        check_can_be_traced(DistilBertForQuestionAnswering(config), "teacher")
    with pytest.raises(ConfigurationError, match="the model is a Linear, whose layers are not"):
        check_can_be_traced(torch.nn.Linear(1, 1), "model")
