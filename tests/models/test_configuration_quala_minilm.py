from __future__ import annotations

import json

import pytest
from transformers import BertConfig, DistilBertConfig, RobertaConfig, XLMRobertaConfig

from optimum_qala import LengthConfig, QuaLAMiniLMConfig
from optimum_qala.errors import CheckpointError, ConfigurationError, LengthConfigError, UnknownBudgetError
from tests.conftest import tiny_config


BUDGETS = {
    "fast": {
        "retention": [0.9, 0.6, 0.4, 0.2],
        "macs": 123456,
        "f1": 61.5,
        "em": 50.25,
        "latency_ms": [{"backend": "openvino", "batch": 1, "threads": 2, "cpu": "some", "p50": 2.5}],
        "dataset": "squad",
        "split": "validation",
    },
    "full": {"retention": [1.0, 1.0, 1.0, 1.0]},
}
OWN_FIELDS = {
    "position_scheme": "roberta",
    "sep_token_id": 7,
    "token_scoring": "attention",
    "score_pooling": 2,
    "protected_tokens": "cls",
    "drop_layers": [0, 1, 2, 3],
    "min_tokens": 5,
    "span_heads": True,
    "budgets": BUDGETS | {"shallow": {"retention": [1.0, 0.5, 0.5, 0.5], "exit_layer": 3}},
}


def test_round_trip_keeps_every_field(tmp_path):
    config = tiny_config(**OWN_FIELDS)
    config.save_pretrained(tmp_path)
    expected = config.to_dict()
    del config
    loaded = QuaLAMiniLMConfig.from_pretrained(tmp_path)
    assert {name: getattr(loaded, name) for name in OWN_FIELDS} == OWN_FIELDS
    assert loaded.to_dict() == expected


def test_budget_assigned_later_is_checked_before_it_is_saved(tmp_path):
    config = tiny_config()
    config.budgets["fast"] = {"retention": [1, 0.5]}
    with pytest.raises(LengthConfigError, match="1,0.5 has 2 ratios, but the model has 4 layers"):
        config.save_pretrained(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_file_states_defaults_so_that_later_defaults_do_not_change_old_models(tmp_path):
    config = tiny_config()
    config.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    for name in (*OWN_FIELDS, "hidden_size", "hidden_act", "layer_norm_eps", "type_vocab_size"):
        assert stored[name] == getattr(config, name)
    assert stored["model_type"] == "quala_minilm"
    assert stored["budgets"] == {}


def test_defaults_describe_minilm():
    config = QuaLAMiniLMConfig()
    assert (config.num_hidden_layers, config.hidden_size, config.intermediate_size) == (6, 384, 1536)
    assert config.macs(None, 384) == pytest.approx(4758553344, rel=1e-4)


def test_budgets_of_two_configs_are_separate():
    first, second = tiny_config(), tiny_config()
    first.budgets["fast"] = BUDGETS["fast"]
    assert second.budgets == {}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 33}, "hidden_size 33 is not a multiple of num_attention_heads 2"),
        ({"hidden_size": "32"}, "hidden_size '32' is not an integer of at least 1"),
        ({"num_hidden_layers": 0}, "num_hidden_layers 0 is not an integer of at least 1"),
        ({"num_attention_heads": 0}, "num_attention_heads 0 is not an integer of at least 1"),
        ({"min_tokens": 0}, "min_tokens 0 is not an integer of at least 1"),
        ({"score_pooling": -1}, "score_pooling -1 is not an integer of at least 0"),
        ({"score_pooling": True}, "score_pooling True is not an integer"),
        ({"sep_token_id": -1}, "sep_token_id -1 is not an integer of at least 0"),
        ({"sep_token_id": 200}, "sep_token_id 200 is outside the vocabulary of 200 tokens"),
        ({"hidden_dropout_prob": 1.0}, r"hidden_dropout_prob 1.0 is not in \[0, 1\)"),
        ({"attention_probs_dropout_prob": -0.1}, r"attention_probs_dropout_prob -0.1 is not in \[0, 1\)"),
        ({"hidden_act": "geluu"}, r"hidden_act 'geluu' is not one of \[.*'gelu'.*\]"),
        ({"position_scheme": "rotary"}, r"position_scheme 'rotary' is not one of \['absolute', 'roberta'\]"),
        ({"token_scoring": "loudest"}, r"token_scoring 'loudest' is not one of \['answer', 'attention', 'question'\]"),
        ({"span_heads": 1}, r"span_heads 1 is not one of \[None, False, True\]"),
        (
            {"token_scoring": "answer", "span_heads": False},
            "'answer' reads the span heads, so span_heads must not be False",
        ),
        ({"protected_tokens": "all"}, r"protected_tokens 'all' is not one of \['cls', 'none', 'question'\]"),
        ({"protected_tokens": "cls"}, "'question' reads the question's rows.*must be 'question', got 'cls'"),
        ({"drop_layers": [1, 4]}, r"drop_layers \[1, 4\] must be ascending layer numbers from 0 to 3"),
        ({"drop_layers": [2, 1]}, r"drop_layers \[2, 1\] must be ascending"),
        ({"drop_layers": [1, 1]}, r"drop_layers \[1, 1\] must be ascending"),
        ({"drop_layers": [0.5]}, r"drop_layers \[0\.5\] must be ascending"),
        ({"budgets": ["fast"]}, r"budgets maps names to budgets, got \['fast'\]"),
        ({"budgets": {"fast": [1, 1, 1, 0.5]}}, r"budget 'fast' needs a 'retention' list, got \[1, 1, 1, 0\.5\]"),
        ({"budgets": {"fast": {"macs": 3}}}, r"budget 'fast' needs a 'retention' list, got \{'macs': 3\}"),
        ({"budgets": {"full": {}}}, r"budget 'full' needs a 'retention' list, got \{\}"),
        ({"budgets": {"full": {"retention": [1, 1, 1, 0.5]}}}, "'full' means full length, got retention 1,1,1,0.5"),
        (
            {"budgets": {"full": {"retention": [1] * 4, "exit_layer": 3}}, "span_heads": True},
            "'full' means full length, got retention 1,1,1,1@3",
        ),
        (
            {"budgets": {"fast": {"retention": [1] * 4, "exit_layer": 3}}},
            "1,1,1,1@3 stops after 3 of 4 layers, but this model has no span heads to stop at",
        ),
        (
            {"budgets": {"fast": {"retention": [1] * 4, "exit_layer": 5}}, "token_scoring": "answer"},
            "exit_layer 5 is not an integer from 1 to 4",
        ),
        ({"budgets": {"fast": {"retention": [1, 0.5]}}}, "1,0.5 has 2 ratios, but the model has 4 layers"),
        (
            {"drop_layers": [1], "budgets": {"fast": {"retention": [1, 1, 0.5, 0.5]}}},
            r"1,1,0\.5,0\.5 drops tokens in layer 2, but this model drops only in layers \[1\]",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_illegal_field_is_refused(tmp_path, fields, message):
    with pytest.raises(ConfigurationError, match=message):
        tiny_config(**fields)
    tiny_config().save_pretrained(tmp_path)  # and in the same words where it is an override of a stored configuration
    with pytest.raises(ConfigurationError, match=message):
        QuaLAMiniLMConfig.from_pretrained(tmp_path, **fields)


@pytest.mark.parametrize(("drop_layers", "expected"), [(None, (0, 1, 2, 3)), ([1, 3], (1, 3)), ([], ())])
def test_dropping_layers(drop_layers, expected):
    assert tiny_config(drop_layers=drop_layers).dropping_layers == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, False),
        ({"token_scoring": "answer"}, True),
        ({"token_scoring": "answer", "span_heads": True}, True),
        ({"span_heads": True}, True),
        ({"span_heads": False}, False),
    ],
)
def test_span_heads_follow_the_score_unless_told(fields, expected):
    config = tiny_config(**fields)
    assert config.has_span_heads is expected
    assert config.span_heads == fields.get("span_heads")


# --- budgets


@pytest.mark.parametrize("budget", [None, "full", "1,1,1,1", (1, 1, 1, 1), LengthConfig.full(4)])
def test_resolve_budget_of_full_length_is_none(budget):
    assert tiny_config().resolve_budget(budget) is None
    assert tiny_config(budgets=BUDGETS).resolve_budget(budget) is None


@pytest.mark.parametrize(
    "budget",
    ["fast", "0.9,0.6,0.4,0.2", [0.9, 0.6, 0.4, 0.2], LengthConfig((0.9, 0.6, 0.4, 0.2)), "[.9, .6, 4e-1, .2]"],
)
def test_resolve_budget_reads_names_and_ratios(budget):
    assert tiny_config(budgets=BUDGETS).resolve_budget(budget) == LengthConfig((0.9, 0.6, 0.4, 0.2))


@pytest.mark.parametrize("exit_layer", [None, 3])
def test_resolve_budget_reads_exit_layers(exit_layer):
    budgets = {"shallow": {"retention": [1, 0.5, 0.5, 0.5], "exit_layer": exit_layer}}
    config, expected = tiny_config(budgets=budgets, span_heads=True), LengthConfig((1, 0.5, 0.5, 0.5), exit_layer)
    for budget in ("shallow", str(expected), expected):
        assert config.resolve_budget(budget) == expected
    assert config.resolve_budget("1,1,1,1@2") == LengthConfig((1, 1, 1, 1), 2)
    assert config.resolve_budget("1,1,1,1@4") is None


def test_resolve_budget_prefers_a_name_that_looks_like_ratios():
    budgets = {"0.5": {"retention": [1, 1, 1, 0.5]}}
    assert tiny_config(budgets=budgets).resolve_budget("0.5") == LengthConfig((1, 1, 1, 0.5))


@pytest.mark.parametrize("name", ["swift", "fast2", "5ms", "", "Fast", "e"])
def test_resolve_budget_names_the_budgets_there_are(name):
    message = rf"no budget '{name}'; it has \['fast', 'full'\]\. Ratios such as 1,0\.9,0\.9,0\.81 work too"
    with pytest.raises(UnknownBudgetError, match=message):
        tiny_config(budgets=BUDGETS | {"fast": {"retention": [1, 0.5, 0.5, 0.5]}}, drop_layers=[1, 3]).resolve_budget(
            name
        )


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ("0.5", "0.5 has 1 ratios, but the model has 4 layers"),
        (0.5, "takes one number per layer, got 0.5"),
        ([1, 1, 0.5, 0.5], r"drops tokens in layer 2, but this model drops only in layers \[1, 3\]"),
        ("315,251,242,33", "ratio 315 of layer 0 is not in"),
        ("1,1,1,1@2", "1,1,1,1@2 stops after 2 of 4 layers, but this model has no span heads"),
        (LengthConfig((1, 1, 1, 1), 2), "train one with token_scoring 'answer' or span_heads=True"),
        ("1,1,1,1@last", "has 'last' after @"),
    ],
)
def test_resolve_budget_refuses_what_does_not_fit(budget, message):
    with pytest.raises(LengthConfigError, match=message):
        tiny_config(drop_layers=[1, 3]).resolve_budget(budget)


def test_macs_follow_the_budget_and_keep_the_question():
    config = tiny_config()
    counts = [config.macs(budget and LengthConfig.parse(budget), 50, 10) for budget in (None, "1,1,1,.5", "1,1,.5,.5")]
    assert counts == sorted(counts, reverse=True)
    harsh, harsher = (config.macs(LengthConfig((ratio,) * 4), 50, 20) for ratio in (0.3, 0.02))
    assert harsh == harsher  # the 20 tokens of the question and the last separator survive either way
    free = tiny_config(token_scoring="attention", protected_tokens="none")
    assert free.macs(LengthConfig((0.02,) * 4), 50, 20) < free.macs(LengthConfig((0.3,) * 4), 50, 20)


# --- from a backbone


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [
        (BertConfig(), {"position_scheme": "absolute", "sep_token_id": 102, "pad_token_id": 0}),
        (RobertaConfig(), {"position_scheme": "roberta", "sep_token_id": 2, "pad_token_id": 1}),
        (XLMRobertaConfig(), {"position_scheme": "roberta", "sep_token_id": 2, "pad_token_id": 1}),
    ],
    ids=["bert", "roberta", "xlm-roberta"],
)
def test_backbone_decides_positions_and_separator(backbone, expected):
    config = QuaLAMiniLMConfig.from_backbone_config(backbone)
    assert {name: getattr(config, name) for name in expected} == expected


def test_backbone_sizes_carry_over():
    sizes = {
        "vocab_size": 300,
        "hidden_size": 48,
        "num_hidden_layers": 5,
        "num_attention_heads": 3,
        "intermediate_size": 77,
        "hidden_act": "relu",
        "hidden_dropout_prob": 0.23,
        "attention_probs_dropout_prob": 0.17,
        "max_position_embeddings": 99,
        "type_vocab_size": 3,
        "initializer_range": 0.05,
        "layer_norm_eps": 1e-7,
        "pad_token_id": 4,
        "id2label": {0: "no", 1: "yes", 2: "maybe"},
    }
    config = QuaLAMiniLMConfig.from_backbone_config(BertConfig(**sizes))
    assert {name: getattr(config, name) for name in sizes} == sizes


def test_backbone_overrides_win():
    config = QuaLAMiniLMConfig.from_backbone_config(
        BertConfig(), sep_token_id=5, hidden_dropout_prob=0.3, min_tokens=9
    )
    assert (config.sep_token_id, config.hidden_dropout_prob, config.min_tokens) == (5, 0.3, 9)


def test_foreign_backbone_is_refused():
    message = r"a 'distilbert' checkpoint cannot become.*\['bert', 'roberta', 'xlm-roberta'\]"
    with pytest.raises(CheckpointError, match=message):
        QuaLAMiniLMConfig.from_backbone_config(DistilBertConfig())


def test_relative_positions_are_refused():
    backbone = BertConfig(position_embedding_type="relative_key")
    with pytest.raises(CheckpointError, match="position_embedding_type 'relative_key' is not supported"):
        QuaLAMiniLMConfig.from_backbone_config(backbone)
