"""At full length the model computes what transformers' BERT, RoBERTa and XLM-R compute with the same weights."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertModel,
    RobertaConfig,
    RobertaForQuestionAnswering,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaForQuestionAnswering,
)

from optimum_qala import QuaLAMiniLMForQuestionAnswering, QuaLAMiniLMModel
from tests.models.batches import assert_equal_logits, assert_equal_tensors, make_batch


SIZES = {
    "vocab_size": 200,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "initializer_range": 0.1,
}
BACKBONES = {
    "bert": (BertForQuestionAnswering, BertConfig, {"max_position_embeddings": 64}),
    "bert-relu-eps": (
        BertForQuestionAnswering,
        BertConfig,
        {"max_position_embeddings": 64, "hidden_act": "relu", "layer_norm_eps": 0.01},
    ),
    "roberta": (
        RobertaForQuestionAnswering,
        RobertaConfig,
        {"max_position_embeddings": 66, "type_vocab_size": 1, "pad_token_id": 1, "layer_norm_eps": 1e-5},
    ),
    "xlm-roberta": (
        XLMRobertaForQuestionAnswering,
        XLMRobertaConfig,
        {"max_position_embeddings": 66, "type_vocab_size": 1, "pad_token_id": 1, "layer_norm_eps": 1e-5},
    ),
}


def make_backbone(kind: str, model_class=None, **overrides):
    default_class, config_class, fields = BACKBONES[kind]
    torch.manual_seed(0)
    model = (model_class or default_class)(config_class(**(SIZES | fields | overrides))).eval()
    with torch.no_grad():  # biases and norms start as zeros and ones, which would hide a forgotten one
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def make_inputs(backbone, lengths=(30, 12, 21)):
    batch = make_batch(lengths, 4, pad_to=34, pad_token_id=backbone.config.pad_token_id)
    if backbone.config.type_vocab_size == 1:
        del batch["token_type_ids"]
    return batch


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", BACKBONES)
@pytest.mark.parametrize("token_scoring", ["question", "answer"])
def test_span_logits_equal_transformers(tmp_path, kind, attn_implementation, token_scoring):
    backbone = make_backbone(kind)
    backbone.set_attn_implementation(attn_implementation)
    backbone.save_pretrained(tmp_path)
    model = QuaLAMiniLMForQuestionAnswering.from_pretrained(
        tmp_path, attn_implementation=attn_implementation, token_scoring=token_scoring
    )
    assert model.config._attn_implementation == attn_implementation
    assert not model.training
    batch = make_inputs(backbone)
    with torch.no_grad():
        expected = backbone(**batch)
        for budget in (None, "full", "1,1,1"):
            assert_equal_logits(model(**batch, budget=budget), expected)
        real = batch["attention_mask"] > 0  # a layer that may drop tokens always drops padding
        graph = model(**batch, retention=torch.ones(3))
        assert_equal_tensors(graph.start_logits[real], expected.start_logits[real], 1e-5)
        assert_equal_tensors(graph.end_logits[real], expected.end_logits[real], 1e-5)


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta"])
def test_early_exit_equals_a_shallower_transformer(tmp_path, kind):
    """Its head is that of the exit."""
    backbone = make_backbone(kind)
    backbone.save_pretrained(tmp_path)
    model = QuaLAMiniLMForQuestionAnswering.from_pretrained(tmp_path, token_scoring="answer")
    batch = make_inputs(backbone)
    for exit_layer in (1, 2):
        with torch.no_grad():
            head = model.quala.encoder.span_heads[exit_layer]
            for parameter in head.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
            shallow = make_backbone(kind, num_hidden_layers=exit_layer)
            shallow.load_state_dict(backbone.state_dict(), strict=False)
            shallow.qa_outputs.load_state_dict(head.state_dict())
            assert_equal_logits(model(**batch, budget=f"1,1,1@{exit_layer}"), shallow(**batch))


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta"])
def test_hidden_states_equal_transformers(tmp_path, kind):
    backbone = make_backbone(kind)
    backbone.save_pretrained(tmp_path)
    model = QuaLAMiniLMForQuestionAnswering.from_pretrained(tmp_path)
    batch = make_inputs(backbone)
    with torch.no_grad():
        expected = backbone(**batch, output_hidden_states=True).hidden_states
        actual = model(**batch, output_hidden_states=True).hidden_states
    assert len(actual) == len(expected) == 4
    for layer, (state, wanted) in enumerate(zip(actual, expected, strict=True)):
        assert_equal_tensors(state, wanted, 1e-6, f"hidden states {layer}")


@pytest.mark.parametrize(("kind", "model_class"), [("bert", BertModel), ("roberta", RobertaModel)])
@pytest.mark.parametrize("head", [False, True], ids=["saved without prefix", "saved with prefix"])
def test_base_model_equals_transformers(tmp_path, kind, model_class, head):
    """A checkpoint without prefix is how sentence-transformers and many MiniLM repositories store theirs."""
    backbone = make_backbone(kind, None if head else model_class)
    backbone.save_pretrained(tmp_path)
    model, info = QuaLAMiniLMModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    batch = make_inputs(backbone)
    with torch.no_grad():
        expected = (backbone.base_model if head else backbone)(**batch).last_hidden_state
        assert_equal_tensors(model(**batch).last_hidden_state, expected)


def test_inputs_default_as_in_transformers(tmp_path):
    backbone = make_backbone("bert")
    backbone.save_pretrained(tmp_path)
    model = QuaLAMiniLMForQuestionAnswering.from_pretrained(tmp_path)
    input_ids = make_batch([20, 20])["input_ids"]
    with torch.no_grad():
        assert_equal_logits(model(input_ids), backbone(input_ids))
        position_ids = torch.arange(20).flip(0).unsqueeze(0)
        assert_equal_logits(
            model(input_ids, position_ids=position_ids), backbone(input_ids, position_ids=position_ids)
        )


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ([3, 5, 9], [4, 5, 11]),
        ([3, 999, 9], [4, 999, 11]),
        ([3, 0, 33], [33, 0, 34]),
        ([[3], [5], [9]], [[4], [6], [9]]),
    ],
    ids=["inside", "one ignored", "at the end", "column"],
)
def test_loss_equals_transformers(tmp_path, start, end):
    backbone = make_backbone("bert")
    backbone.save_pretrained(tmp_path)
    model = QuaLAMiniLMForQuestionAnswering.from_pretrained(tmp_path)
    labels = {"start_positions": torch.tensor(start), "end_positions": torch.tensor(end)}
    batch = make_inputs(backbone)
    with torch.no_grad():
        actual, expected = model(**batch, **labels), backbone(**batch, **labels)
    assert_equal_tensors(actual.loss, expected.loss)
    assert_equal_logits(actual, expected)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_gradients_equal_transformers(tmp_path, kind):
    backbone = make_backbone(kind, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    backbone.save_pretrained(tmp_path)
    model = QuaLAMiniLMForQuestionAnswering.from_pretrained(tmp_path)
    labels = {"start_positions": torch.tensor([3, 5, 9]), "end_positions": torch.tensor([4, 5, 11])}
    batch = make_inputs(backbone)
    for network in (model, backbone):
        network.train()
        network(**batch, **labels).loss.backward()
    expected = {
        name.removeprefix(f"{backbone.base_model_prefix}."): value.grad for name, value in backbone.named_parameters()
    }
    for name, value in model.named_parameters():
        assert_equal_tensors(value.grad, expected[name.removeprefix("quala.")], 1e-5, name)


def test_too_long_sequence_is_refused_before_the_position_table_overflows(tmp_path):
    for kind in ("bert", "roberta"):  # 64 positions each: RoBERTa's first two numbers are never used
        backbone = make_backbone(kind)
        backbone.save_pretrained(tmp_path / kind)
        model = QuaLAMiniLMForQuestionAnswering.from_pretrained(tmp_path / kind)
        assert torch.isfinite(model(make_batch([64])["input_ids"]).start_logits).all()
        with pytest.raises(ValueError, match="a sequence of 65 tokens exceeds the 64 positions of the model"):
            model(make_batch([65])["input_ids"])
