"""The configs of a search, on a model of four layers."""

from __future__ import annotations

import random

import pytest

from optimum_qala.errors import ConfigurationError
from optimum_qala.models.length_config import LengthConfig
from optimum_qala.search.options import SearchOptions
from optimum_qala.search.space import Genome, SearchSpace, exits_of
from tests.conftest import tiny_config


def space(num_layers=4, **options):
    return SearchSpace(num_layers, SearchOptions(step=0.1, **options))


def test_canonical_repeats_the_last_level_before_the_exit():
    exits = space(exit_layers=(2, 3))
    assert exits.canonical((9, 8, 7, 6), 2) == Genome((9, 8, 8, 8), 2)
    assert exits.canonical((9, 8, 7, 6), 3) == Genome((9, 8, 7, 7), 3)
    assert exits.canonical((9, 8, 7, 6), 4) == Genome((9, 8, 7, 6), 4)
    odd = space(exit_layers=(1, 2), drop_layers=(1, 3))
    assert odd.canonical((8, 5), 2) == Genome((8, 8), 2)
    assert odd.canonical((8, 5), 1) == Genome((10, 10), 1)


def test_canonical_genomes_are_equal_where_the_configs_are():
    exits = space(exit_layers=(1, 2, 3), drop_layers=(1, 3))
    rng = random.Random(0)
    genomes = {exits.full}
    for _ in range(500):
        genomes.add(exits.mutate(rng, rng.choice(sorted(genomes))))
    assert len({exits.length_config(genome) for genome in genomes}) == len(genomes) > 50


def test_length_config_has_ratios_and_exit():
    assert space(exit_layers=(3,)).length_config(Genome((10, 8, 5, 5), 3)) == LengthConfig((1, 0.8, 0.5, 0.5), 3)
    assert space(drop_layers=(1, 3)).length_config(Genome((8, 5), 4)) == LengthConfig((1, 0.8, 0.8, 0.5))


def test_full_and_smallest_are_the_ends():
    exits = space(exit_layers=(2, 4))
    assert exits.depths == (2, 4)
    assert exits.length_config(exits.full) == LengthConfig.full(4)
    assert exits.length_config(exits.smallest) == LengthConfig((0.6, 0.4, 0.4, 0.4), 2)


def test_simple_configs_change_one_thing_late_and_gentle_changes_first():
    found = [space(exit_layers=(2, 3)).length_config(genome) for genome in space(exit_layers=(2, 3)).simple_configs()]
    assert found[:5] == [
        LengthConfig.parse("1,1,1,1@3"),
        LengthConfig.parse("1,1,1,0.6"),
        LengthConfig.parse("1,1,1,1@2"),
        LengthConfig.parse("1,1,0.6,0.6"),
        LengthConfig.parse("1,1,1,0.4"),
    ]
    assert len(found) == len(set(found)) == 2 + 4 * 3
    assert all((config.exit_layer is not None) + len(config.drop_layers) == 1 for config in found)


def test_mutate_redraws_exits_and_has_layers_stop_dropping():
    exits, rng = space(exit_layers=(2, 3)), random.Random(0)
    parent = Genome((9, 8, 7, 6), 4)
    children = [exits.mutate(rng, parent) for _ in range(300)]
    assert {child.depth for child in children} == {2, 3, 4}

    def share_that_drops_everywhere(**options):
        one, own = space(mutation_probability=0.01, **options), random.Random(0)
        drops = [len(one.length_config(one.mutate(own, parent)).drop_layers) for _ in range(300)]
        return sum(number == 4 for number in drops) / 300

    assert share_that_drops_everywhere(merge_probability=0.0) > 0.9
    assert share_that_drops_everywhere(merge_probability=1.0) < 0.1


def test_cross_averages_exits_among_those_allowed():
    exits = space(exit_layers=(1, 3))
    assert exits.cross(Genome((10, 8, 8, 8), 1), Genome((10, 6, 4, 2), 4)) == Genome((10, 7, 6, 6), 3)
    assert exits.cross(exits.full, exits.full) == exits.full


def test_space_refuses_a_bound_that_the_grid_rounds_away_unless_there_are_exits():
    with pytest.raises(ConfigurationError, match="with step 0.1 the smallest config of drop_ratio_bound 0.01 rounds"):
        space(drop_ratio_bound=0.01)
    assert space(drop_ratio_bound=0.01, exit_layers=(2,)).smallest == Genome((10, 10, 10, 10), 2)


def test_exits_of_a_model_start_at_half_of_its_layers():
    assert exits_of(tiny_config(token_scoring="answer")) == (2, 3)
    assert exits_of(tiny_config(token_scoring="answer", num_hidden_layers=5)) == (3, 4)
    assert exits_of(tiny_config(token_scoring="answer"), least=1) == (1, 2, 3)
    assert exits_of(tiny_config(token_scoring="answer"), least=4) == ()
    assert exits_of(tiny_config()) == ()


def test_exits_of_a_model_refuse_what_it_cannot_do():
    with pytest.raises(ConfigurationError, match="min_exit_layer 2 needs a model with early span heads"):
        exits_of(tiny_config(), least=2)
    for least in (0, 5):
        with pytest.raises(ConfigurationError, match=f"min_exit_layer {least} is not in 1 to 4"):
            exits_of(tiny_config(token_scoring="answer"), least=least)
