"""Seeds, mutation and crossover on the grid."""

from __future__ import annotations

import random
from itertools import pairwise

from optimum_qala.search.operators import cross, merge, mutate, uniform_path


def random_levels(rng, num_layers, num_levels):
    return tuple(sorted((rng.randint(1, num_levels) for _ in range(num_layers)), reverse=True))


def is_legal(levels, num_levels):
    return all(a >= b for a, b in pairwise(levels)) and levels[-1] >= 1 and levels[0] <= num_levels


def test_mutate_stays_non_increasing_and_in_bounds():
    rng = random.Random(0)
    for _ in range(2_000):
        num_layers, num_levels = rng.randint(1, 12), rng.randint(2, 64)
        parent = random_levels(rng, num_layers, num_levels)
        assert is_legal(mutate(rng, parent, rng.random(), num_levels), num_levels)


def test_mutate_reaches_both_ends_of_its_range():
    rng = random.Random(0)
    children = [mutate(rng, (10, 5), 1.0, 20) for _ in range(2_000)]
    assert {first for first, _ in children} == set(range(5, 21))
    assert {second for _, second in children} == set(range(1, 21))


def test_mutate_probability_decides_how_many_levels_are_redrawn():
    rng = random.Random(0)
    parent = (50, 40, 30, 20)

    def mean_changes(probability):
        children = [mutate(rng, parent, probability, 64) for _ in range(500)]
        return sum(a != b for child in children for a, b in zip(parent, child, strict=True)) / 500

    assert mean_changes(0.0) == 0
    assert 0.2 < mean_changes(0.1) < 0.6
    assert mean_changes(1.0) > 3.5


def test_cross_is_the_mean_rounded_up_and_stays_non_increasing():
    assert cross((20, 10, 3), (15, 10, 2)) == (18, 10, 3)
    rng = random.Random(0)
    for _ in range(1_000):
        num_layers = rng.randint(1, 12)
        first, second = random_levels(rng, num_layers, 20), random_levels(rng, num_layers, 20)
        child = cross(first, second)
        assert is_legal(child, 20)
        assert all(min(a, b) <= c <= max(a, b) for a, b, c in zip(first, second, child, strict=True))


def test_uniform_path_falls_from_full_length_to_the_bound_without_repeats():
    path = uniform_path(num_dropping=6, drop_ratio_bound=0.2, num_levels=100)
    assert path[0] == (100,) * 6
    assert path[-1] == (80, 64, 51, 41, 33, 26)
    assert len(set(path)) == len(path) > 100
    assert all(is_legal(levels, 100) for levels in path)
    assert all(a >= b for left, right in pairwise(path) for a, b in zip(left, right, strict=True))


def test_uniform_path_never_goes_below_the_lowest_level():
    assert uniform_path(num_dropping=6, drop_ratio_bound=0.9, num_levels=20)[-1] == (2, 1, 1, 1, 1, 1)


def test_merge_has_one_layer_stop_dropping():
    rng = random.Random(0)
    children = {merge(rng, (20, 15, 15, 5), 20) for _ in range(100)}
    assert children == {(20, 20, 15, 5), (20, 15, 15, 15)}
    assert merge(rng, (15, 15), 20) == (20, 15)
    assert merge(rng, (20, 20), 20) == (20, 20)


def test_merge_stays_non_increasing_and_keeps_more():
    rng = random.Random(0)
    for _ in range(1_000):
        num_layers, num_levels = rng.randint(1, 12), rng.randint(2, 64)
        parent = random_levels(rng, num_layers, num_levels)
        child = merge(rng, parent, num_levels)
        assert is_legal(child, num_levels)
        assert sum(a != b for a, b in zip(parent, child, strict=True)) <= 1
