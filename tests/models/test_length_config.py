from __future__ import annotations

import math
import random
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from optimum_qala import LengthConfig, QuaLAMiniLMForQuestionAnswering
from optimum_qala.errors import LengthConfigError
from optimum_qala.models.layers import QuaLAMiniLMSelfAttention
from optimum_qala.models.length_config import count_macs, num_tokens_kept
from optimum_qala.models.token_selection import count_survivors, find_tokens
from tests.conftest import tiny_config
from tests.models.batches import make_batch


# evo_search/parents-iter30.tsv of the QuaLA-MiniLM repository, and the full length.
PUBLISHED_MACS = {
    (308, 247, 198, 159, 128, 103): 2484739968,
    (269, 253, 252, 202, 104, 34): 2485456896,
    (300, 243, 214, 197, 129, 36): 2492206848,
    (284, 262, 248, 200, 95, 36): 2510150400,
    (315, 251, 242, 159, 142, 33): 2546934912,
    (303, 268, 256, 182, 118, 29): 2581745280,
    (346, 284, 275, 166, 107, 24): 2695914240,
    (365, 280, 273, 176, 112, 46): 2782709760,
    (375, 331, 283, 213, 127, 18): 3015100416,
    (374, 331, 283, 230, 126, 51): 3085609344,
    (377, 361, 345, 245, 132, 38): 3329854464,
    (383, 363, 360, 242, 134, 42): 3385542144,
    (383, 380, 376, 358, 202, 123): 3955011456,
}
FULL_MACS = 4758553344


@pytest.mark.parametrize(("lengths", "macs"), [*PUBLISHED_MACS.items(), ((384,) * 6, FULL_MACS)], ids=str)
def test_count_macs_reproduces_published_counts(lengths, macs):
    assert count_macs(lengths, 384, hidden_size=384, intermediate_size=1536) == macs


@pytest.mark.parametrize("lengths", PUBLISHED_MACS, ids=str)
def test_from_lengths_keeps_the_published_lengths(lengths):
    assert LengthConfig.from_lengths(lengths, max_length=384).num_tokens(384) == lengths


def test_from_lengths_accepts_numpy_integers():
    assert LengthConfig.from_lengths(np.array([192, 96]), 384) == LengthConfig((0.5, 0.25))


@pytest.mark.parametrize("length", [0, -3, 385, 1.5, "7", True, None])
def test_from_lengths_refuses_what_is_no_length(length):
    with pytest.raises(LengthConfigError, match=rf"length {length!r} is not an integer in \[1, 384\]"):
        LengthConfig.from_lengths((300, length), 384)


def test_from_lengths_refuses_growing_lengths():
    with pytest.raises(LengthConfigError, match=r"ratio 0.75 of layer 1 exceeds 0.5 of layer 0"):
        LengthConfig.from_lengths((192, 288), 384)


@pytest.mark.parametrize(
    "value",
    ["1,0.8,0.5", "(1, 0.8, 0.5)", "[1.0,0.80,5e-1]", " 1 , .8 ,0.5, ", (1, 0.8, 0.5), [1, "0.8", 0.5]],
    ids=repr,
)
def test_parse_reads_what_users_write(value):
    assert LengthConfig.parse(value, num_layers=3) == LengthConfig((1.0, 0.8, 0.5))


def test_parse_reads_arrays_tensors_and_itself():
    config = LengthConfig((1.0, 0.5))
    assert LengthConfig.parse(np.array([1.0, 0.5])) == LengthConfig.parse(torch.tensor([1.0, 0.5])) == config
    assert LengthConfig.parse(config) is config


@pytest.mark.parametrize("exit_layer", [None, 1, 2])
def test_parse_reads_its_own_text(exit_layer):
    config = LengthConfig((1.0, 0.7231, 0.05), exit_layer)
    assert LengthConfig.parse(str(config)) == config
    assert LengthConfig(**config.to_budget()) == config


# --- exit layer


@pytest.mark.parametrize("text", ["1,0.8,0.5,0.5@3", "(1, .8, .5, .2) @ 3", "[1,0.8,0.5,0.5]@3"])
def test_parse_reads_exit_layers(text):
    config = LengthConfig.parse(text, num_layers=4)
    assert config == LengthConfig((1, 0.8, 0.5, 0.5), exit_layer=3)
    assert str(config) == "1,0.8,0.5,0.5@3"
    assert (config.num_layers, config.depth) == (4, 3)


def test_layers_that_do_not_run_take_the_ratio_of_the_last_that_does():
    config = LengthConfig((1, 0.8, 0.5, 0.2), exit_layer=2)
    assert config.retention == (1, 0.8, 0.8, 0.8)
    assert config.drop_layers == (1,)
    assert config.num_tokens(10) == (10, 8)
    assert config == LengthConfig((1, 0.8, 0.8, 0.8), exit_layer=2)
    assert config != LengthConfig((1, 0.8, 0.8, 0.8))


def test_exit_after_all_layers_is_none():
    assert LengthConfig((1, 0.5), exit_layer=2) == LengthConfig((1, 0.5))
    assert LengthConfig((1, 0.5), np.int64(1)).exit_layer == 1


def test_full_length_runs_all_layers():
    assert LengthConfig((1, 1)).is_full
    assert not LengthConfig((1, 1), exit_layer=1).is_full


def test_to_budget_names_the_exit_layer_only_if_there_is_one():
    assert LengthConfig((1, 0.5)).to_budget() == {"retention": [1.0, 0.5]}
    assert LengthConfig((1, 0.5, 0.5), 2).to_budget() == {"retention": [1.0, 0.5, 0.5], "exit_layer": 2}


@pytest.mark.parametrize("exit_layer", [0, 4, -1, 1.5, "2", True])
def test_exit_layer_out_of_range_is_refused(exit_layer):
    message = rf"exit_layer {exit_layer!r} is not an integer from 1 to 3; it counts the layers that run"
    with pytest.raises(LengthConfigError, match=message):
        LengthConfig((1, 1, 0.5), exit_layer)


@pytest.mark.parametrize("exit_layer", ["", "x", "1.5", "-1", "1@2"])
def test_exit_layer_that_is_no_number_is_refused(exit_layer):
    with pytest.raises(LengthConfigError, match=f"has '{exit_layer}' after @, but the number of layers that run"):
        LengthConfig.parse(f"1,0.8,0.8@{exit_layer}")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "needs at least one retention ratio, got none"),
        ((), "needs at least one retention ratio, got none"),
        ("1,much", r"takes one number per layer, got \('1', 'much'\)"),
        (0.5, r"takes one number per layer, got 0\.5; write it as 1,0\.8,0\.5"),
        ([1, None], r"takes one number per layer, got \(1, None\)"),
        ("1,0", r"ratio 0 of layer 1 is not in \(0, 1\]"),
        ("315,251", r"ratio 315 of layer 0 is not in \(0, 1\]; for token counts .* use LengthConfig\.from_lengths"),
        ("1,-0.5", r"ratio -0\.5 of layer 1 is not in"),
        ([1.0, math.nan], r"ratio nan of layer 1 is not in"),
        ([math.inf], r"ratio inf of layer 0 is not in"),
        ("1,0.5,0.6", r"ratio 0\.6 of layer 2 exceeds 0\.5 of layer 1; a dropped token cannot come back"),
    ],
)
def test_parse_refuses_what_is_no_config(value, message):
    with pytest.raises(LengthConfigError, match=message):
        LengthConfig.parse(value)


@pytest.mark.parametrize("value", [(1.0, 0.8, 0.5), LengthConfig((1.0, 0.8, 0.5))])
def test_parse_refuses_another_number_of_layers(value):
    with pytest.raises(LengthConfigError, match=r"1,0\.8,0\.5 has 3 ratios, but the model has 6 layers"):
        LengthConfig.parse(value, num_layers=6)


def test_error_is_a_value_error():
    with pytest.raises(ValueError, match="at least one"):
        LengthConfig(())


def test_config_is_a_value():
    assert len({LengthConfig((1, 0.5)), LengthConfig([1.0, "0.5"]), LengthConfig((1, 0.4))}) == 2


def test_properties_describe_where_tokens_leave():
    config = LengthConfig((1.0, 0.8, 0.8, 0.5))
    assert (config.num_layers, config.drop_layers, config.is_full) == (4, (1, 3), False)
    assert LengthConfig((0.9, 0.9)).drop_layers == (0,)
    assert LengthConfig.full(3) == LengthConfig((1, 1, 1))
    assert LengthConfig.full(3).is_full
    assert LengthConfig.full(3).drop_layers == ()


def test_from_drop_ratio_drops_the_same_share_in_every_layer():
    config = LengthConfig.from_drop_ratio(6, 0.2)
    assert config.retention == pytest.approx([0.8**layer for layer in range(1, 7)])
    # The published smallest sub-model rounds up anew in every layer, from counts instead of ratios.
    length, published = 384, []
    for _ in range(6):
        length = math.ceil(length * Fraction(4, 5))
        published.append(length)
    assert published == [308, 247, 198, 159, 128, 103]
    assert config.num_tokens(384) == (308, 246, 197, 158, 126, 101)
    assert all(0 <= more - fewer <= 2 for more, fewer in zip(published, config.num_tokens(384), strict=True))


def test_from_drop_ratio_drops_in_the_given_layers_only():
    assert LengthConfig.from_drop_ratio(4, 0.5, drop_layers=(1, 3)).retention == (1.0, 0.5, 0.5, 0.25)
    assert LengthConfig.from_drop_ratio(2, 0.0).is_full


@pytest.mark.parametrize("drop_ratio", [1.0, -0.1, math.nan])
def test_from_drop_ratio_refuses_shares_out_of_range(drop_ratio):
    with pytest.raises(LengthConfigError, match=rf"drop_ratio {drop_ratio:g} is not in \[0, 1\)"):
        LengthConfig.from_drop_ratio(6, drop_ratio)


@pytest.mark.parametrize(
    ("ratio", "num_real_tokens", "min_tokens", "kept"),
    [
        (0.5, 10, 1, 5),
        (0.51, 10, 1, 6),
        (0.7, 10, 1, 7),  # 0.7 * 10 is 7.000000000000001 in float64 where 0.7 is rounded up
        (0.1, 30, 1, 3),
        (0.01, 30, 2, 2),
        (0.01, 30, 1, 1),
        (0.5, 3, 8, 3),
        (1.0, 512, 2, 512),
    ],
)
def test_num_tokens_kept_rounds_up_within_bounds(ratio, num_real_tokens, min_tokens, kept):
    assert num_tokens_kept(ratio, num_real_tokens, min_tokens) == kept
    assert LengthConfig((ratio,)).num_tokens(num_real_tokens, min_tokens) == (kept,)


def many_ratios() -> list[float]:
    rng = random.Random(0)
    hundredths = [step / 100 for step in range(1, 101)]
    powers = [0.8**power for power in range(1, 8)]
    fractions = [rng.randrange(1, 385) / 384 for _ in range(60)]
    return [*hundredths, *powers, *fractions, *(rng.uniform(0.01, 1.0) for _ in range(60))]


def test_counts_of_python_and_torch_agree_and_equal_exact_arithmetic():
    lengths = torch.arange(1, 513)
    input_ids = torch.ones(512, 512, dtype=torch.int64)
    mask = (torch.arange(512).unsqueeze(0) < lengths.unsqueeze(1)).to(torch.int64)
    tokens = find_tokens(input_ids, mask, sep_token_id=3, protected_tokens="none")
    for ratio in many_ratios():
        counted = [num_tokens_kept(ratio, int(length), 2) for length in lengths]
        for given in (ratio, torch.tensor(ratio)):  # as a budget gives it, and as a graph's float32 input does
            assert count_survivors(given, lengths, tokens, min_tokens=2).tolist() == counted
        exact = Fraction(ratio).limit_denominator(1000)
        if abs(exact - Fraction(ratio)) < Fraction(1, 10**15):  # a ratio that a user can write
            expected = [min(int(n), max(2, math.ceil(exact * int(n)))) for n in lengths]
            assert counted == expected, ratio


class MacCounter:
    """Counts what a model really multiplies: linear layers, LayerNorms, attention and scores."""

    def __init__(self, monkeypatch, model):
        self.macs = 0
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.register_forward_hook(self._count_linear)
            elif isinstance(module, nn.LayerNorm):
                module.register_forward_hook(self._count_norm)
        for name, products in (("attend", 2), ("probabilities", 1)):
            monkeypatch.setattr(QuaLAMiniLMSelfAttention, name, self._count_attention(name, products))

    def _count_linear(self, module, inputs, output):
        self.macs += output.numel() * module.in_features

    def _count_norm(self, module, inputs, output):
        self.macs += output.numel()

    def _count_attention(self, name, products):
        original = getattr(QuaLAMiniLMSelfAttention, name)

        def counted(module, query, key, *args):
            self.macs += products * query.numel() * key.shape[2]
            return original(module, query, key, *args)

        return counted


@pytest.mark.parametrize("token_scoring", ["question", "attention", "answer"])
@pytest.mark.parametrize(
    "budget",
    [None, "1,0.8,0.8,0.5", "0.9,0.6,0.3,0.2", "0.1,0.1,0.1,0.1", "1,0.8,0.8,0.8@3", "0.9,0.5,0.5,0.5@2", "1,1,1,1@1"],
)
@pytest.mark.parametrize("training", [False, True])
def test_config_macs_equals_what_the_model_computes(monkeypatch, token_scoring, budget, training):
    """In training mode as well: a sub-model pass costs no hidden extra pass."""
    config = tiny_config(token_scoring=token_scoring, span_heads=None if token_scoring == "answer" else True)
    model = QuaLAMiniLMForQuestionAnswering(config).train(training)
    counter = MacCounter(monkeypatch, model)
    model(**make_batch([50], 9), budget=budget)
    expected = model.config.macs(model.config.resolve_budget(budget), sequence_length=50, num_question_tokens=11)
    assert counter.macs == expected


def test_answer_scoring_costs_least():
    """Tokens that leave before the layer are not even its keys and values."""
    answer, question = (
        count_macs((384, 200, 100), 384, 384, 1536, token_scoring=name, num_question_tokens=1)
        for name in ("answer", "question")
    )
    assert answer < question


def test_macs_grow_with_the_exit():
    config = tiny_config(span_heads=True)
    texts = ("1,0.7,0.7,0.7@1", "1,0.7,0.7,0.7@2", "1,0.7,0.7,0.7@3", "1,0.7,0.7,0.7")
    counts = [config.macs(LengthConfig.parse(text), 50, 10) for text in texts]
    assert counts == sorted(set(counts))


def test_question_scoring_costs_less_than_attention_scoring():
    question, attention = (
        count_macs((200, 100), 384, 384, 1536, token_scoring=name, num_question_tokens=16)
        for name in ("question", "attention")
    )
    assert question < attention < count_macs((200, 100), 384, 384, 1536)
    assert question < count_macs((200, 100), 384, 384, 1536, token_scoring="question", num_question_tokens=32)
