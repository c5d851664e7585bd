"""Checkpoints are read with a report; what is damaged, foreign or beside another model's tokenizer is refused."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertModel,
    XLMRobertaConfig,
)

from optimum_qala import QuaLAMiniLMModel
from optimum_qala.checkpoints import KeyReport, check_tokenizer, load_backbone, load_encoder, load_unchanged
from optimum_qala.errors import CheckpointError, ConfigurationError
from tests.conftest import tiny_config


SIZES = {
    "vocab_size": 200,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}


def test_check_tokenizer_accepts_the_model_s_own(tiny_tokenizer):
    check_tokenizer(tiny_config(), tiny_tokenizer, "folder")


def test_check_tokenizer_refuses_one_that_transformers_made_up(tmp_path):
    # The special tokens of XLM-R and of what is made up have the same numbers, so nothing else would show it.
    config = XLMRobertaConfig(vocab_size=200)
    config.save_pretrained(tmp_path)
    made_up = AutoTokenizer.from_pretrained(tmp_path)
    model_config = tiny_config(sep_token_id=2, pad_token_id=1)
    with pytest.raises(
        CheckpointError, match=r"folder has no tokenizer: transformers made up one of 5 special tokens"
    ):
        check_tokenizer(model_config, made_up, "folder")


def test_check_tokenizer_refuses_a_larger_vocabulary(tiny_tokenizer):
    size = len(tiny_tokenizer)
    with pytest.raises(CheckpointError, match=rf"of folder has {size} tokens, but the model embeds only {size - 1}"):
        check_tokenizer(tiny_config(vocab_size=size - 1), tiny_tokenizer, "folder")


@pytest.mark.parametrize(("name", "token"), [("sep_token", "."), ("pad_token", "[MASK]")])
def test_check_tokenizer_refuses_other_special_tokens(tiny_tokenizer, name, token):
    other = copy.deepcopy(tiny_tokenizer)
    setattr(other, name, token)
    expected, given = getattr(tiny_tokenizer, f"{name}_id"), other.convert_tokens_to_ids(token)
    with pytest.raises(CheckpointError, match=f"{name}_id is {given} in the tokenizer of folder, but {expected} in"):
        check_tokenizer(tiny_config(), other, "folder")


# --- loading


def damage(folder, what):
    weights, config = folder / "model.safetensors", folder / "config.json"
    if what == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif what == "no safetensors at all":
        weights.write_bytes(b"hello")
    elif what == "pickle":
        weights.rename(folder / "pytorch_model.bin")
    else:
        config.write_text(json.dumps(json.loads(config.read_text()) | what))


def test_load_backbone_reports_a_complete_checkpoint(tmp_path, tiny_model):
    tiny_model.save_pretrained(tmp_path)
    model, report = load_backbone(tmp_path)
    assert report == KeyReport((), (), ())
    assert not report.has_new_head
    assert torch.equal(model.qa_outputs.weight, tiny_model.qa_outputs.weight)


@pytest.mark.parametrize("model_class", [BertModel, BertForMaskedLM, BertForSequenceClassification])
def test_load_backbone_reports_a_new_head(tmp_path, model_class):
    torch.manual_seed(0)
    backbone = model_class(BertConfig(**SIZES))
    backbone.save_pretrained(tmp_path)
    model, report = load_backbone(tmp_path)
    assert report.missing == ("qa_outputs.bias", "qa_outputs.weight")
    assert report.unexpected == report.mismatched == ()  # poolers and other heads are expected to be of no use
    assert report.has_new_head
    expected = backbone.base_model.embeddings.word_embeddings.weight
    assert torch.equal(model.quala.embeddings.word_embeddings.weight, expected)


def test_load_backbone_reports_a_head_of_another_shape(tmp_path):
    BertForQuestionAnswering(BertConfig(**SIZES, num_labels=3)).save_pretrained(tmp_path)
    _, report = load_backbone(tmp_path)
    assert report.mismatched == ("qa_outputs.bias", "qa_outputs.weight")
    assert report.has_new_head


def test_load_backbone_reports_unexpected_parameters(tmp_path):
    BertForQuestionAnswering(BertConfig(**SIZES)).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file(weights | {"extra.weight": torch.zeros(2)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    _, report = load_backbone(tmp_path)
    assert report == KeyReport((), ("extra.weight",), ())


def test_load_backbone_reports_new_span_heads(tmp_path):
    BertForQuestionAnswering(BertConfig(**SIZES)).save_pretrained(tmp_path / "plain")
    model, report = load_backbone(tmp_path / "plain", token_scoring="answer")
    assert report.missing[0] == "quala.encoder.span_heads.0.bias"
    assert report.has_new_span_heads
    assert not report.has_new_head
    model.save_pretrained(tmp_path / "own")
    report = load_backbone(tmp_path / "own")[1]
    assert report == KeyReport((), (), ())
    assert not report.has_new_span_heads


def test_load_backbone_reads_old_names_of_norms(tmp_path):
    """Checkpoints converted from TensorFlow call the LayerNorm's parameters gamma and beta."""
    BertForQuestionAnswering(BertConfig(**SIZES)).save_pretrained(tmp_path)
    weights = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in load_file(tmp_path / "model.safetensors").items()
    }
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model, report = load_backbone(tmp_path)
    assert report == KeyReport((), (), ())
    model.save_pretrained(tmp_path / "again")
    assert load_backbone(tmp_path / "again")[1] == KeyReport((), (), ())


def test_load_backbone_passes_fields_of_the_config(tmp_path):
    BertForQuestionAnswering(BertConfig(**SIZES)).save_pretrained(tmp_path)
    model, _ = load_backbone(tmp_path, score_pooling=1, sep_token_id=9)
    assert (model.config.score_pooling, model.config.sep_token_id) == (1, 9)


FOREIGN_KIND = r"holds a '%s' checkpoint; legal kinds are \['bert', 'quala_minilm', 'roberta'"


@pytest.mark.parametrize(
    ("load", "what", "message"),
    [
        *(
            (load, "truncated", r"model .* cannot be loaded: its weights are damaged \(.*file not fully covered\)")
            for load in (load_backbone, load_encoder, load_unchanged)
        ),
        (
            load_backbone,
            "no safetensors at all",
            r"model .* cannot be loaded: its weights are damaged \(.*header too small\)",
        ),
        (load_backbone, "pickle", r"model .* cannot be loaded: its weights are damaged \(Weights only load failed\)"),
        (
            load_backbone,
            {"num_hidden_layers": 6},
            r"lacks, or .* 32 parameters of the encoder, the first is quala\.encoder\.layer\.4\.",
        ),
        (
            load_encoder,
            {"num_hidden_layers": 6},
            r"lacks, or .* 32 parameters of the encoder, the first is encoder\.layer\.4\.",
        ),
        (load_unchanged, {"num_hidden_layers": 5}, "lacks, or has in another shape,"),
        (
            load_backbone,
            {"num_hidden_layers": 3},
            r"holds more .* 16 parameters of the encoder, the first is quala\.encoder\.layer\.3\.",
        ),
        (load_encoder, {"num_hidden_layers": 3}, r"holds more .* 16 parameters of the encoder"),
        (load_unchanged, {"num_hidden_layers": 2}, "holds more than the model has: "),
        (
            load_backbone,
            {"hidden_size": 64},
            r"another shape, \d+ parameters of the encoder, the first is quala\.embeddings\.LayerNorm",
        ),
        (
            load_backbone,
            {"vocab_size": 300},
            r"another shape, 1 parameters of the encoder, .* quala\.embeddings\.word_embeddings",
        ),
        (
            load_backbone,
            {"model_type": "distilbert"},
            r"holds a 'distilbert' checkpoint, which cannot become a QuaLA-MiniLM",
        ),
        (load_backbone, {"model_type": None}, r"holds a None checkpoint"),
        (load_encoder, {"model_type": "distilbert"}, FOREIGN_KIND % "distilbert"),
        (load_unchanged, {"model_type": "gpt2"}, FOREIGN_KIND % "gpt2"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_damaged_or_foreign_checkpoint_is_refused(tmp_path, tiny_model, load, what, message):
    tiny_model.save_pretrained(tmp_path)
    damage(tmp_path, what)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


def test_load_backbone_names_a_field_that_is_no_longer_legal(tmp_path, tiny_model):
    tiny_model.save_pretrained(tmp_path)
    damage(tmp_path, {"min_tokens": "many"})
    with pytest.raises(ConfigurationError, match="min_tokens 'many' is not an integer"):
        load_backbone(tmp_path)


def test_load_backbone_takes_fewer_layers_where_asked(tmp_path):
    BertForQuestionAnswering(BertConfig(**SIZES)).save_pretrained(tmp_path)
    model, report = load_backbone(tmp_path, num_hidden_layers=1)
    assert len(model.quala.encoder.layer) == 1
    assert len(report.unexpected) == 16
    assert report.missing == ()


def test_heads_that_were_not_trained_are_refused(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    _, report = load_backbone(tmp_path)
    report.check_heads(tmp_path)
    _, report = load_backbone(tmp_path, token_scoring="answer")
    with pytest.raises(CheckpointError, match="has no trained early span heads, so it would drop the wrong tokens"):
        report.check_heads(tmp_path)


# --- loading as it is


@pytest.mark.parametrize("model_class", [BertForQuestionAnswering, BertModel, BertForMaskedLM])
def test_load_unchanged_keeps_kind_precision_and_head(tmp_path, model_class):
    torch.manual_seed(0)
    stored = model_class(BertConfig(**SIZES)).half()
    stored.save_pretrained(tmp_path)
    model = load_unchanged(tmp_path)
    expected = BertForQuestionAnswering if model_class is BertForQuestionAnswering else BertModel
    assert type(model) is expected
    assert model.dtype == torch.float16
    ours, theirs = (one.base_model.state_dict() for one in (model, stored))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_load_unchanged_takes_a_quala_model(tmp_path, tiny_model):
    tiny_model.save_pretrained(tmp_path)
    assert type(load_unchanged(tmp_path)) is type(tiny_model)
    tiny_model.quala.save_pretrained(tmp_path / "encoder")
    assert type(load_unchanged(tmp_path / "encoder")) is type(tiny_model.quala)


@pytest.mark.parametrize("model_class", [BertModel, BertForMaskedLM, BertForQuestionAnswering])
def test_load_encoder_leaves_heads_out(tmp_path, model_class):
    saved = model_class(BertConfig(**SIZES)).to(torch.bfloat16)
    saved.save_pretrained(tmp_path)
    model = load_encoder(tmp_path, hidden_dropout_prob=0.5)
    assert type(model) is BertModel
    assert (model.dtype, model.pooler, model.config.hidden_dropout_prob) == (torch.float32, None, 0.5)
    expected = saved.base_model.embeddings.word_embeddings.weight
    assert torch.equal(model.embeddings.word_embeddings.weight, expected.float())


def test_load_encoder_keeps_a_quala_minilm(tmp_path, tiny_model):
    tiny_model.save_pretrained(tmp_path)
    model = load_encoder(tmp_path)
    assert type(model) is QuaLAMiniLMModel
    assert torch.equal(model.encoder.layer[3].output.dense.bias, tiny_model.quala.encoder.layer[3].output.dense.bias)
