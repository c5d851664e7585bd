"""Sizes counted outside of the graph against what the model counts."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from optimum_qala import LengthConfig, QuaLAMiniLMForQuestionAnswering
from optimum_qala.inference.graph import retention_of
from optimum_qala.inference.sizes import find_idle_selections, plan_sizes, round_sizes
from optimum_qala.models.layers import QuaLAMiniLMSelfAttention
from tests.conftest import tiny_config
from tests.inference.batches import random_retention
from tests.models.batches import make_batch


def odd_batch(seed: int) -> dict[str, torch.Tensor]:
    """Short and long questions, padding, and rows without a single token."""
    rng = random.Random(seed)
    lengths = [rng.randint(4, 60) for _ in range(rng.randint(1, 5))]
    questions = [rng.randint(1, length - 3) for length in lengths]
    batch = make_batch(lengths, questions, pad_to=max(lengths) + rng.randint(0, 9), seed=seed)
    for row in range(len(lengths)):
        if rng.random() < 0.2:
            batch["attention_mask"][row] = 0
    return batch


def plan(config, batch, length_config):
    return plan_sizes(batch["input_ids"].numpy(), batch["attention_mask"].numpy(), config, length_config)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"token_scoring": "attention", "protected_tokens": "none", "min_tokens": 5},
        {"token_scoring": "attention", "protected_tokens": "cls", "drop_layers": [1, 3]},
        {"token_scoring": "answer"},
    ],
    ids=["question", "none", "cls", "answer"],
)
def test_planned_sizes_are_those_that_the_model_counts(monkeypatch, overrides):
    torch.manual_seed(0)
    model = QuaLAMiniLMForQuestionAnswering(tiny_config(**overrides)).eval()
    rows, probabilities = [], QuaLAMiniLMSelfAttention.probabilities

    def spy(self, query, *args):
        rows.append(query.shape[2])
        return probabilities(self, query, *args)

    monkeypatch.setattr(QuaLAMiniLMSelfAttention, "probabilities", spy)
    layers = model.config.dropping_layers
    for seed in range(60):
        batch, ratios = odd_batch(seed), random_retention(seed, len(layers))
        if seed % 7 == 0:
            ratios[0] = 1.0
        retention, ratio = [], 1.0
        for layer in range(4):
            ratio = ratios[layers.index(layer)] if layer in layers else ratio
            retention.append(ratio)
        length_config = LengthConfig(tuple(retention))
        sizes = plan(model.config, batch, length_config)
        rows.clear()
        with torch.no_grad():
            counted = model(
                **batch, retention=torch.tensor(retention_of(length_config, layers)), output_hidden_states=True
            )
        assert sizes[1:].tolist() == [counted.hidden_states[layer + 1].shape[1] for layer in layers]
        assert set(rows or [1]) == {sizes[0]} or model.config.token_scoring == "attention"
        assert sizes.dtype == np.int64
        with torch.no_grad():  # and the model takes them
            model(**batch, retention=torch.tensor(ratios), sizes=torch.from_numpy(sizes))


def test_rows_are_counted_only_for_the_score_that_reads_them():
    batch = make_batch([40, 20], [9, 4])
    counts = {
        name: plan(tiny_config(token_scoring=name), batch, None)[0] for name in ("question", "attention", "answer")
    }
    assert counts == {"question": 11, "attention": 1, "answer": 1}


def test_full_length_keeps_every_real_token():
    batch = make_batch([40, 20], [9, 4], pad_to=50)
    assert plan(tiny_config(drop_layers=[1, 2]), batch, None).tolist() == [11, 40, 40]


def test_layers_after_an_exit_stay_as_wide_as_it():
    config = tiny_config(token_scoring="answer")
    batch = make_batch([40, 20], [9, 4])
    assert plan(config, batch, LengthConfig((1, 0.5, 0.4, 0.3), exit_layer=2)).tolist() == [1, 40, 20, 20, 20]


def test_plan_of_an_empty_batch_keeps_one_entry():
    batch = make_batch([10, 10])
    batch["attention_mask"][:] = 0
    assert plan(tiny_config(), batch, LengthConfig((0.5,) * 4)).tolist() == [1, 1, 1, 1, 1]


@pytest.mark.parametrize("scoring", ["question", "answer"])
def test_rounded_sizes_hold_the_planned_ones_and_hardly_vary(scoring):
    config = tiny_config(token_scoring=scoring)
    for seed in range(60):
        rng = random.Random(seed)
        length_config = LengthConfig(tuple(random_retention(seed, 4)))
        seen = set()
        for number in range(5):
            lengths = [rng.randint(8, 96) for _ in range(3)]
            questions = [rng.randint(1, 4) for _ in lengths]
            batch = make_batch(lengths, questions, pad_to=96, seed=number)
            sizes = plan(config, batch, length_config)
            rounded = round_sizes(sizes, 96, config, length_config)
            assert (rounded >= sizes).all()
            assert (np.diff(rounded[1:]) <= 0).all()
            assert rounded.max() <= 96
            seen.add(rounded.tobytes())
        assert len(seen) == 1  # short questions exceed no budget


def test_rounded_sizes_of_long_questions_are_multiples():
    config = tiny_config()
    batch = make_batch([90], [40], pad_to=96, seed=0)
    length_config = LengthConfig((1.0, 0.5, 0.2, 0.1))
    sizes = plan(config, batch, length_config)
    assert sizes.tolist() == [42, 90, 45, 43, 43]
    assert round_sizes(sizes, 96, config, length_config).tolist() == [64, 96, 48, 48, 48]
    assert round_sizes(sizes, 96, config, None).tolist() == [64, 96, 96, 96, 96]


@pytest.mark.parametrize(
    ("retention", "sizes", "idle"),
    [
        ([1.0, 1.0, 1.0], [1, 32, 32, 32], (0, 1, 2)),
        ([1.0, 0.5, 0.5], [1, 32, 16, 16], (0, 2)),
        ([0.5, 0.5, 0.25], [1, 16, 16, 8], (1,)),
        ([0.5, 0.4, 0.4], [1, 32, 32, 32], (2,)),  # a long question keeps the tensors wide, other samples drop
        ([1.0, 1.0, 1.0], [1, 30, 30, 30], (1, 2)),  # padding leaves in the first layer
    ],
)
def test_idle_selections_keep_what_they_are_given(retention, sizes, idle):
    assert find_idle_selections(np.array(retention, np.float32), np.array(sizes), 32) == idle
