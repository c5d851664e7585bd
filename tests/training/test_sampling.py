"""LengthDrop and LayerDrop sampling."""

from __future__ import annotations

import random

import pytest

from optimum_qala.errors import ConfigurationError
from optimum_qala.training.sampling import (
    sample_exit_layer,
    sample_length_config,
    sample_skip_layers,
    smallest_length_config,
)


def test_sample_length_config_stays_within_the_bound_of_the_previous_ratio():
    rng = random.Random(0)
    for _ in range(500):
        num_layers, bound = rng.randint(1, 12), rng.random() * 0.9
        retention = sample_length_config(rng, num_layers, bound).retention
        assert len(retention) == num_layers
        for previous, ratio in zip((1.0, *retention), retention, strict=False):
            assert (1 - bound) * previous - 1e-12 <= ratio <= previous


def test_sample_length_config_is_uniform_between_the_bounds():
    rng = random.Random(0)
    ratios = [sample_length_config(rng, 1, 0.4).retention[0] for _ in range(20_000)]
    tenths = [sum(0.6 + 0.04 * i <= ratio < 0.6 + 0.04 * (i + 1) for ratio in ratios) for i in range(10)]
    assert min(tenths) > 1_800
    assert max(tenths) < 2_200


def test_sample_length_config_same_seed_gives_same_config():
    draws = [[sample_length_config(random.Random(seed), 6, 0.2) for _ in range(2)] for seed in (3, 4)]
    assert draws[0][0] == draws[0][1]
    assert draws[0][0] != draws[1][0]


def test_sample_length_config_does_not_touch_the_global_rng():
    state = random.getstate()
    sample_length_config(random.Random(0), 6, 0.2)
    sample_skip_layers(random.Random(0), 6, 0.5)
    assert random.getstate() == state


def test_sample_length_config_drops_only_in_drop_layers():
    config = sample_length_config(random.Random(0), 6, 0.3, drop_layers=[1, 4])
    assert config.drop_layers == (1, 4)


def test_sample_length_config_skipped_layers_do_not_shrink_and_leave_the_other_shares_alone():
    plain = sample_length_config(random.Random(0), 4, 0.3)
    skipping = sample_length_config(random.Random(0), 4, 0.3, skip_layers=(2,))
    assert skipping.drop_layers == (0, 1, 3)
    assert skipping.retention[:2] == plain.retention[:2]
    assert skipping.retention[3] / skipping.retention[2] == pytest.approx(plain.retention[3] / plain.retention[2])


def test_sample_length_config_without_drop_layers_is_full():
    assert sample_length_config(random.Random(0), 3, 0.3, drop_layers=()).is_full


def test_smallest_length_config_equals_the_closed_form():
    assert smallest_length_config(3, 0.2).retention == pytest.approx((0.8, 0.64, 0.512))
    assert smallest_length_config(4, 0.5, drop_layers=[1, 3]).retention == (1.0, 0.5, 0.5, 0.25)
    assert smallest_length_config(4, 0.5, drop_layers=[1, 3], skip_layers=[1]).retention == (1.0, 1.0, 1.0, 0.5)


def test_smallest_length_config_is_below_every_sample():
    rng = random.Random(0)
    smallest = smallest_length_config(6, 0.25, drop_layers=[0, 2, 5]).retention
    for _ in range(200):
        sample = sample_length_config(rng, 6, 0.25, drop_layers=[0, 2, 5]).retention
        assert all(low <= ratio + 1e-12 for low, ratio in zip(smallest, sample, strict=True))


def test_sample_skip_layers_never_skips_all():
    rng = random.Random(0)
    for num_layers in (1, 2, 3):
        assert max(len(sample_skip_layers(rng, num_layers, 0.99)) for _ in range(300)) == num_layers - 1


def test_sample_skip_layers_survivor_is_any_layer():
    rng = random.Random(0)
    survivors = {next(iter({0, 1, 2} - set(sample_skip_layers(rng, 3, 0.999)))) for _ in range(100)}
    assert survivors == {0, 1, 2}


def test_sample_skip_layers_rate_follows_the_probability():
    rng = random.Random(0)
    skipped = [layer for _ in range(4_000) for layer in sample_skip_layers(rng, 6, 0.2)]
    for layer in range(6):
        assert skipped.count(layer) / 4_000 == pytest.approx(0.2, abs=0.03)
    assert sample_skip_layers(rng, 6, 0.0) == ()


@pytest.mark.parametrize(
    "sample", [lambda *args: sample_length_config(random.Random(0), *args), smallest_length_config]
)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0.2), "num_layers is 0"),
        ((6, 1.0), r"drop_ratio_bound 1 is not in \[0, 1\)"),
        ((6, -0.1), r"drop_ratio_bound -0.1 is not in"),
        ((6, float("nan")), r"drop_ratio_bound nan is not in"),
        ((6, 0.2, [6]), "drop_layers names layer 6, but the model has layers 0 to 5"),
        ((6, 0.2, None, [-1]), "skip_layers names layer -1, but the model has layers 0 to 5"),
    ],
)
def test_length_samplers_refuse_illegal_arguments(sample, arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        sample(*arguments)


def test_sample_skip_layers_refuses_illegal_arguments():
    with pytest.raises(ConfigurationError, match=r"probability 1 is not in \[0, 1\)"):
        sample_skip_layers(random.Random(0), 6, 1.0)
    with pytest.raises(ConfigurationError, match="num_layers is 0"):
        sample_skip_layers(random.Random(0), 0, 0.1)


def test_sample_exit_layer_is_uniform_over_the_exits():
    rng = random.Random(0)
    drawn = [sample_exit_layer(rng, 6, 0.5) for _ in range(10_000)]
    assert drawn.count(None) / 10_000 == pytest.approx(0.5, abs=0.02)
    for exit_layer in range(1, 6):
        assert drawn.count(exit_layer) / 10_000 == pytest.approx(0.1, abs=0.02)


def test_sample_exit_layer_keeps_to_the_fewest_layers():
    rng = random.Random(0)
    assert {sample_exit_layer(rng, 6, 1.0, 4) for _ in range(100)} == {4, 5}


def test_sample_exit_layer_that_is_off_leaves_other_draws_alone():
    rng = random.Random(0)
    assert sample_exit_layer(rng, 6, 0.0) is None
    assert rng.random() == random.Random(0).random()
    assert sample_exit_layer(rng, 1, 0.0) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0.5), "num_layers is 0"),
        ((6, 1.5), r"probability of an early exit 1.5 is not in \[0, 1\]"),
        ((6, float("nan")), "probability of an early exit nan is not in"),
        ((6, 0.5, 6), "min_exit_layer 6 is not between 1 and 5, where a model of 6 layers may stop early"),
        ((1, 0.5), "min_exit_layer 1 is not between 1 and 0"),
    ],
)
def test_sample_exit_layer_refuses_illegal_arguments(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        sample_exit_layer(random.Random(0), *arguments)
