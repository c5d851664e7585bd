"""Gradients reach what computed the logits, and nothing else, at every sub-model and exit."""

from __future__ import annotations

import pytest
import torch

from optimum_qala import LengthConfig, QuaLAMiniLMForQuestionAnswering
from tests.conftest import tiny_config
from tests.models.batches import make_batch


SUB_MODELS = ("1,0.8,0.8,0.5", "0.9,0.6,0.4,0.2", "0.4,0.4,0.4,0.4")
# What shifts all inputs of a softmax by the same amount changes nothing, hence has no gradient in any transformer.
SHIFTS = ("key.bias", "qa_outputs.bias")


@pytest.mark.parametrize("token_scoring", ["question", "attention", "answer"])
@pytest.mark.parametrize("budget", [None, *SUB_MODELS])
@pytest.mark.parametrize("head", ["start_logits", "end_logits"])
def test_gradients_reach_every_parameter_from_start_and_from_end(token_scoring, budget, head):
    torch.manual_seed(0)
    model = QuaLAMiniLMForQuestionAnswering(tiny_config(token_scoring=token_scoring)).train()
    output = model(**make_batch([40, 25]), budget=budget)
    torch.log_softmax(getattr(output, head), dim=1)[:, 7].sum().backward()
    row = ["start_logits", "end_logits"].index(head)
    assert model.qa_outputs.weight.grad[row].abs().sum() > 0
    assert model.qa_outputs.weight.grad[1 - row].abs().sum() == 0
    for name, parameter in model.named_parameters():
        if "span_heads" in name and int(name.split(".")[3]) not in LengthConfig.parse(budget or "1,1,1,1").drop_layers:
            assert parameter.grad is None, name
            continue
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0 or name.endswith(SHIFTS), name


@pytest.mark.parametrize("exit_layer", [1, 2, 3])
@pytest.mark.parametrize("head", ["start_logits", "end_logits"])
def test_gradients_of_an_exit_reach_its_head_and_the_layers_below(exit_layer, head):
    torch.manual_seed(0)
    model = QuaLAMiniLMForQuestionAnswering(tiny_config(token_scoring="answer")).train()
    output = model(**make_batch([40, 25]), budget=f"0.9,0.7,0.7,0.7@{exit_layer}")
    torch.log_softmax(getattr(output, head), dim=1)[:, 7].sum().backward()
    row = ["start_logits", "end_logits"].index(head)
    encoder = model.quala.encoder
    assert encoder.span_heads[exit_layer].weight.grad[row].abs().sum() > 0
    assert encoder.span_heads[exit_layer].weight.grad[1 - row].abs().sum() == 0
    assert model.qa_outputs.weight.grad is None
    for index, layer in enumerate(encoder.layer):
        reached = [parameter.grad is not None for parameter in layer.parameters()]
        assert all(reached) if index < exit_layer else not any(reached), f"layer {index}"


def test_gradients_of_exit_logits_reach_every_head():
    torch.manual_seed(0)
    model = QuaLAMiniLMForQuestionAnswering(tiny_config(token_scoring="answer")).train()
    output = model(**make_batch([40, 25]), budget="full", output_exit_logits=True)
    sum(torch.log_softmax(logits, dim=1)[:, 7].sum() for logits in output.exit_logits).backward()
    for head in model.quala.encoder.span_heads:
        assert (head.weight.grad.abs().sum(dim=1) > 0).all()


def test_the_choice_of_survivors_has_no_gradient():
    """The head of a dropping layer learns from what the tokens that leave are read as, and from nothing else."""
    torch.manual_seed(0)
    model = QuaLAMiniLMForQuestionAnswering(tiny_config(token_scoring="answer")).train()
    output = model(**make_batch([40]), budget="1,0.5,0.5,0.5", output_survival=True)
    output.start_logits[output.survival == 4].sum().backward()
    assert model.quala.encoder.span_heads[1].weight.grad.abs().sum() == 0


def test_gradients_flow_through_what_dropped_tokens_left_behind(tiny_model):
    batch = make_batch([40])
    output = tiny_model.train()(**batch, budget="1,0.8,0.5,0.3", output_survival=True)
    left = output.survival == 2
    assert left.any()
    output.end_logits[left].sum().backward()
    assert tiny_model.quala.embeddings.word_embeddings.weight.grad[batch["input_ids"][left]].abs().sum() > 0
    for index, layer in enumerate(tiny_model.quala.encoder.layer):
        gradient = sum(parameter.grad.abs().sum() for parameter in layer.parameters() if parameter.grad is not None)
        assert (gradient > 0) == (index < 2), f"layer {index}"
