"""What callers of the model rely on: budgets, gradients, outputs, saving, precision, memory."""

from __future__ import annotations

import re

import pytest
import torch
from safetensors.torch import load_file

from optimum_qala import LengthConfig, QuaLAMiniLMConfig, QuaLAMiniLMForQuestionAnswering, QuaLAMiniLMModel
from optimum_qala.errors import CheckpointError, ConfigurationError, LengthConfigError, UnknownBudgetError
from optimum_qala.models.layers import additive_mask
from tests.conftest import tiny_config
from tests.models.batches import assert_equal_logits, assert_equal_tensors, make_batch


SUB_MODELS = ("1,0.8,0.8,0.5", "0.9,0.6,0.4,0.2", "0.4,0.4,0.4,0.4")
# What shifts all inputs of a softmax by the same amount changes nothing, hence has no gradient in any transformer.
SHIFTS = ("key.bias", "qa_outputs.bias")
BUDGETS = {"fast": {"retention": [0.9, 0.6, 0.4, 0.2], "f1": 61.5, "latency_ms": [{"threads": 1, "p50": 2.5}]}}


def run(model, budget=None, **options):
    with torch.no_grad():
        return model(**make_batch([40, 25]), budget=budget, **options)


# --- budgets


def test_set_budget_applies_to_calls_that_name_none(tiny_model):
    full, fast = run(tiny_model), run(tiny_model, "0.9,0.6,0.4,0.2")
    assert (full.start_logits - fast.start_logits).abs().max() > 0.1
    tiny_model.set_budget("0.9,0.6,0.4,0.2")
    assert tiny_model.budget == LengthConfig((0.9, 0.6, 0.4, 0.2))
    assert_equal_logits(run(tiny_model), fast, 0)
    assert_equal_logits(run(tiny_model, "full"), full, 0)
    assert_equal_tensors(run(tiny_model, retention=torch.ones(4)).start_logits[0], full.start_logits[0], 1e-4)
    tiny_model.set_budget()
    assert tiny_model.budget is None
    assert_equal_logits(run(tiny_model), full, 0)


def test_named_budget_is_that_of_the_config():
    model = QuaLAMiniLMForQuestionAnswering(tiny_config(budgets=BUDGETS)).eval()
    expected = run(model, LengthConfig((0.9, 0.6, 0.4, 0.2)))
    assert_equal_logits(run(model, "fast"), expected, 0)
    model.set_budget("fast")
    assert_equal_logits(run(model), expected, 0)


def test_base_model_has_its_own_budget(tiny_model):
    base, batch = tiny_model.quala, make_batch([40])
    with torch.no_grad():
        expected = base(**batch, budget="0.9,0.6,0.4,0.2").last_hidden_state
        base.set_budget("0.9,0.6,0.4,0.2")
        assert_equal_tensors(base(**batch).last_hidden_state, expected, 0)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"budget": "swift"}, UnknownBudgetError, r"no budget 'swift'; it has \['full'\]\. Ratios such as 0\.9,0\.81"),
        ({"budget": "1,0.5"}, LengthConfigError, r"1,0\.5 has 2 ratios, but the model has 4 layers"),
        ({"retention": torch.ones(3)}, LengthConfigError, r"shape \(3,\).* in layers \[0, 1, 2, 3\].* shape \(4,\)"),
        ({"budget": "full", "retention": torch.ones(4)}, ConfigurationError, "either budget or retention, not both"),
        ({"skip_layers": (1, 4)}, ConfigurationError, "skip_layers names layer 4, but the model has layers 0 to 3"),
        ({"skip_layers": (-1,)}, ConfigurationError, "skip_layers names layer -1"),
    ],
)
def test_forward_refuses_what_does_not_fit(tiny_model, options, error, message):
    with pytest.raises(error, match=message):
        run(tiny_model, **options)
    with pytest.raises(error, match=message):
        tiny_model.quala(**make_batch([20]), **options)


def test_set_budget_refuses_what_does_not_fit_and_keeps_the_old_one(tiny_model):
    tiny_model.set_budget("1,1,0.5,0.5")
    with pytest.raises(UnknownBudgetError, match="no budget 'fast2'"):
        tiny_model.set_budget("fast2")
    with pytest.raises(LengthConfigError, match="exceeds 0.5 of layer 0"):
        tiny_model.set_budget([0.5, 0.6, 0.6, 0.6])
    assert tiny_model.budget == LengthConfig((1, 1, 0.5, 0.5))


# --- precision


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("token_scoring", ["question", "attention", "answer"])
def test_bf16_autocast_trains_every_parameter(token_scoring, attn_implementation):
    """The score runs without gradients ahead of the layer's own use of the same weights, which autocast caches."""
    torch.manual_seed(0)
    model = QuaLAMiniLMForQuestionAnswering(
        tiny_config(token_scoring=token_scoring, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
    ).train()
    model.set_attn_implementation(attn_implementation)
    labels = {"start_positions": torch.tensor([7, 9]), "end_positions": torch.tensor([8, 12])}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = sum(model(**make_batch([40, 25]), **labels, budget=budget).loss for budget in SUB_MODELS)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0 or name.endswith(SHIFTS), name


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
def test_bf16_autocast_stays_finite_and_near_float32(tiny_model, attn_implementation):
    tiny_model.set_attn_implementation(attn_implementation)
    batch = make_batch([40, 25, 10])
    batch["attention_mask"][2] = 0  # a row that only fills up the batch
    with torch.no_grad():
        expected = tiny_model(**batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            full, dropping = tiny_model(**batch), tiny_model(**batch, budget="0.9,0.6,0.4,0.2")
    assert torch.isfinite(dropping.start_logits).all()
    assert_equal_tensors(full.start_logits[:2].float(), expected.start_logits[:2], 0.5)


def test_model_in_bf16_runs(tiny_model):
    output = run(tiny_model.to(torch.bfloat16), "0.9,0.6,0.4,0.2", output_survival=True)
    assert output.start_logits.dtype == torch.bfloat16
    assert torch.isfinite(output.end_logits).all()
    assert (output.survival[0] == 4).sum() == 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_additive_mask_is_finite(dtype):
    mask = additive_mask(torch.tensor([[1, 0]]), dtype)
    assert mask.dtype == dtype
    assert mask.flatten().tolist() == [0.0, torch.finfo(dtype).min]


# --- memory


@pytest.mark.parametrize("token_scoring", ["question", "attention", "answer"])
def test_training_keeps_no_attention_probabilities(token_scoring):
    model = QuaLAMiniLMForQuestionAnswering(tiny_config(token_scoring=token_scoring)).train()
    kept: list[tuple[int, ...]] = []

    def pack(tensor):
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(**make_batch([41, 37], 9), budget="0.9,0.8,0.7,0.6")
    rows = [count for ratio in (1.0, 0.9, 0.8, 0.7, 0.6) for count in [-(-41 * ratio // 1)]] + [11]
    assert len(kept) > 50
    assert not [shape for shape in kept if len(shape) == 4 and shape[2] in rows and shape[3] in rows]


def test_hidden_states_are_kept_only_when_asked_for(tiny_model):
    assert run(tiny_model).hidden_states is None
    tiny_model.config.output_hidden_states = True
    assert len(run(tiny_model).hidden_states) == 5


# --- outputs


def test_exit_logits_need_span_heads(tiny_model):
    assert run(tiny_model).exit_logits is None
    with pytest.raises(ConfigurationError, match="output_exit_logits needs early span heads, but span_heads .* False"):
        run(tiny_model, output_exit_logits=True)


def test_base_model_stops_early():
    model = QuaLAMiniLMModel(tiny_config(span_heads=True)).eval()
    with torch.no_grad():
        output = model(**make_batch([20]), budget="1,1,1,1@2", output_hidden_states=True)
    assert len(output.hidden_states) == 3
    assert torch.equal(output.last_hidden_state, output.hidden_states[2])


def test_hidden_states_hold_the_tokens_that_left_each_layer(tiny_model):
    output = run(tiny_model, "1,0.8,0.8,0.5", output_hidden_states=True)
    assert [state.shape[1] for state in output.hidden_states] == [40, 40, 32, 32, 20]
    skipping = run(tiny_model, "1,0.8,0.8,0.5", output_hidden_states=True, skip_layers=(0, 3))
    assert [state.shape[1] for state in skipping.hidden_states] == [40, 40, 32, 32, 32]
    assert torch.equal(skipping.hidden_states[0], skipping.hidden_states[1])


def test_survival_counts_layers(tiny_model):
    survival = run(tiny_model, "1,0.8,0.8,0.5", output_survival=True).survival
    assert survival.dtype == torch.int64
    assert [(survival[0] == depth).sum().item() for depth in range(5)] == [0, 8, 0, 12, 20]
    assert set(run(tiny_model, output_survival=True).survival.flatten().tolist()) == {4}
    assert run(tiny_model).survival is None


def test_return_dict_false_gives_a_tuple(tiny_model):
    labels = {"start_positions": torch.tensor([7, 9]), "end_positions": torch.tensor([8, 12])}
    named = run(tiny_model, "1,0.8,0.8,0.5", **labels)
    loss, start_logits, end_logits = run(tiny_model, "1,0.8,0.8,0.5", return_dict=False, **labels)
    assert torch.equal(loss, named.loss)
    assert torch.equal(start_logits, named.start_logits)
    assert torch.equal(end_logits, named.end_logits)
    assert len(run(tiny_model, return_dict=False)) == 2
    assert len(tiny_model.quala(**make_batch([20]), return_dict=False)) == 1


def test_loss_needs_both_positions(tiny_model):
    assert run(tiny_model, start_positions=torch.tensor([7, 9])).loss is None


def test_loss_of_a_sub_model_is_that_of_its_logits(tiny_model):
    start, end = torch.tensor([7, 999]), torch.tensor([8, 12])
    output = run(tiny_model, "0.9,0.6,0.4,0.2", start_positions=start, end_positions=end)
    start_loss = -torch.log_softmax(output.start_logits, 1)[0, 7]  # 999 is outside, hence ignored
    end_loss = -(torch.log_softmax(output.end_logits, 1)[[0, 1], end]).mean()
    assert_equal_tensors(output.loss, (start_loss + end_loss) / 2)


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    model = QuaLAMiniLMForQuestionAnswering(tiny_config(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2))
    assert not torch.equal(run(model.train()).start_logits, run(model).start_logits)
    assert torch.equal(run(model.eval()).start_logits, run(model).start_logits)


@pytest.mark.parametrize("dropout", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
def test_each_dropout_acts(dropout, attn_implementation):
    torch.manual_seed(0)
    model = QuaLAMiniLMForQuestionAnswering(tiny_config(**{dropout: 0.3})).train()
    model.set_attn_implementation(attn_implementation)
    assert not torch.equal(run(model).start_logits, run(model).start_logits)


def test_embeddings_can_be_resized(tiny_model):
    assert tiny_model.get_input_embeddings() is tiny_model.quala.embeddings.word_embeddings
    tiny_model.resize_token_embeddings(210)
    assert tiny_model.config.vocab_size == tiny_model.quala.embeddings.word_embeddings.num_embeddings == 210


# --- saving and loading


def test_save_and_load_round_trip_keeps_weights_budgets_and_choices(tmp_path):
    torch.manual_seed(0)
    model = QuaLAMiniLMForQuestionAnswering(tiny_config(budgets=BUDGETS, drop_layers=[0, 1, 2, 3], score_pooling=1))
    expected = run(model.eval(), "fast")
    model.save_pretrained(tmp_path)
    del model
    loaded, info = QuaLAMiniLMForQuestionAnswering.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert loaded.config.budgets == BUDGETS
    assert loaded.config.score_pooling == 1
    assert_equal_logits(run(loaded, "fast"), expected, 0)


def test_early_span_heads_that_are_missing_start_as_copies_of_the_span_head(bert_checkpoint):
    plain = QuaLAMiniLMForQuestionAnswering.from_pretrained(bert_checkpoint, sep_token_id=3)
    model, info = QuaLAMiniLMForQuestionAnswering.from_pretrained(
        bert_checkpoint, sep_token_id=3, span_heads=True, output_loading_info=True
    )
    assert {name.rpartition(".span_heads.")[0] for name in info["missing_keys"]} == {"quala.encoder"}
    assert len(info["missing_keys"]) == 4
    for head in model.quala.encoder.span_heads:
        assert torch.equal(head.weight, plain.qa_outputs.weight)
        assert torch.equal(head.bias, plain.qa_outputs.bias)
    for budget in (None, "0.8,0.4"):
        assert_equal_logits(run(model, budget), run(plain, budget), 0)


def test_early_span_heads_that_are_stored_are_loaded(tmp_path):
    torch.manual_seed(0)
    model = QuaLAMiniLMForQuestionAnswering(tiny_config(token_scoring="answer")).eval()
    expected = {budget: run(model, budget) for budget in ("1,0.8,0.8,0.5", "1,0.8,0.8,0.8@3")}
    model.save_pretrained(tmp_path)
    del model
    loaded, info = QuaLAMiniLMForQuestionAnswering.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for budget, logits in expected.items():
        assert_equal_logits(run(loaded, budget), logits, 0)
    without = QuaLAMiniLMForQuestionAnswering.from_pretrained(tmp_path, token_scoring="question")
    assert without.quala.encoder.span_heads is None
    base = QuaLAMiniLMModel.from_pretrained(tmp_path)
    assert_equal_tensors(base.encoder.span_heads[2].weight, loaded.quala.encoder.span_heads[2].weight, 0)


def test_checkpoint_loads_as_base_model_and_back(tmp_path, tiny_model):
    tiny_model.save_pretrained(tmp_path / "span")
    base = QuaLAMiniLMModel.from_pretrained(tmp_path / "span")
    base.save_pretrained(tmp_path / "base")
    again, info = QuaLAMiniLMForQuestionAnswering.from_pretrained(tmp_path / "base", output_loading_info=True)
    assert set(info["missing_keys"]) == {"qa_outputs.weight", "qa_outputs.bias"}
    batch = make_batch([20])
    with torch.no_grad():
        expected = tiny_model.quala(**batch).last_hidden_state
        assert_equal_tensors(again.quala(**batch).last_hidden_state, expected, 0)


@pytest.mark.parametrize("model_class", [QuaLAMiniLMForQuestionAnswering, QuaLAMiniLMModel])
def test_converted_checkpoint_is_saved_under_its_own_names(tmp_path, bert_checkpoint, model_class):
    model_class.from_pretrained(bert_checkpoint).save_pretrained(tmp_path)
    names = set(load_file(tmp_path / "model.safetensors"))
    assert names == set(model_class(QuaLAMiniLMConfig.from_pretrained(tmp_path)).state_dict())
    _, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_plain_checkpoint_takes_fields_of_the_config(bert_checkpoint):
    model = QuaLAMiniLMForQuestionAnswering.from_pretrained(
        bert_checkpoint, token_scoring="attention", drop_layers=[1], sep_token_id=7, hidden_dropout_prob=0.3
    )
    config = model.config
    assert (config.token_scoring, config.drop_layers, config.sep_token_id) == ("attention", [1], 7)
    assert model.quala.embeddings.dropout.p == 0.3


@pytest.mark.parametrize("kind", ["quala", "backbone"])
def test_plain_checkpoint_loads_with_a_config_that_is_given(bert_checkpoint, kind):
    expected = QuaLAMiniLMForQuestionAnswering.from_pretrained(bert_checkpoint)
    config = expected.config
    if kind == "backbone":
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(bert_checkpoint)
    model, info = QuaLAMiniLMForQuestionAnswering.from_pretrained(
        bert_checkpoint, config=config, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert_equal_logits(run(model), run(expected), 0)


def test_separator_comes_from_the_tokenizer(bert_checkpoint, tiny_tokenizer):
    assert QuaLAMiniLMForQuestionAnswering.from_pretrained(bert_checkpoint).config.sep_token_id == 102
    tiny_tokenizer.save_pretrained(bert_checkpoint)
    assert QuaLAMiniLMForQuestionAnswering.from_pretrained(bert_checkpoint).config.sep_token_id == 3


def test_half_precision_backbone_becomes_float32_unless_asked(tmp_path, bert_checkpoint):
    from transformers import BertForQuestionAnswering

    BertForQuestionAnswering.from_pretrained(bert_checkpoint).half().save_pretrained(tmp_path)
    assert QuaLAMiniLMForQuestionAnswering.from_pretrained(tmp_path).dtype == torch.float32
    assert QuaLAMiniLMForQuestionAnswering.from_pretrained(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_own_checkpoint_checks_overrides(tmp_path, tiny_model):
    tiny_model.save_pretrained(tmp_path)
    assert QuaLAMiniLMForQuestionAnswering.from_pretrained(tmp_path, score_pooling=2).config.score_pooling == 2
    with pytest.raises(ConfigurationError, match=r"token_scoring 'loudest' is not one of"):
        QuaLAMiniLMForQuestionAnswering.from_pretrained(tmp_path, token_scoring="loudest")


def test_foreign_checkpoint_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "distilbert"}')
    message = re.escape(f"{tmp_path} holds a 'distilbert' checkpoint, which cannot become a QuaLA-MiniLM; legal kinds")
    with pytest.raises(CheckpointError, match=message):
        QuaLAMiniLMForQuestionAnswering.from_pretrained(tmp_path)


def test_folder_without_config_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=re.escape(f"{tmp_path} holds no config.json")):
        QuaLAMiniLMForQuestionAnswering.from_pretrained(tmp_path)
