"""How the search makes new configs: even drop ratios, mutation, merging and crossover, all on a grid of ratios."""

from __future__ import annotations

import random


__all__ = ["Levels", "cross", "merge", "mutate", "uniform_path"]

# A config inside the search: one grid level per layer that may drop, non-increasing, 1 <= level <= number of levels.
Levels = tuple[int, ...]

# Points at which the path of uniform drop ratios is sampled; finer than any grid that is of use.
PATH_POINTS = 2000


def uniform_path(num_dropping: int, drop_ratio_bound: float, num_levels: int) -> list[Levels]:
    """List the configs on the grid in which every layer drops the same share, from full length to the smallest.

    Args:
        num_dropping: Layers that may drop.
        drop_ratio_bound: Share that each layer of the last config drops.
        num_levels: Levels of the grid.

    Returns:
        Grid levels, without repeats; no level rises along the path.
    """
    path: list[Levels] = []
    for point in range(PATH_POINTS + 1):
        keep = 1.0 - drop_ratio_bound * point / PATH_POINTS
        levels = tuple(max(1, round(num_levels * keep ** (position + 1))) for position in range(num_dropping))
        if not path or levels != path[-1]:
            path.append(levels)
    return path


def mutate(rng: random.Random, parent: Levels, mutation_probability: float, num_levels: int) -> Levels:
    """Redraw some levels of a config, each between its right neighbour and its new left neighbour.

    Args:
        rng: The only source of randomness.
        parent: Grid levels, non-increasing.
        mutation_probability: Probability with which each level is redrawn.
        num_levels: Levels of the grid, the upper bound of the first level.

    Returns:
        Grid levels, non-increasing, between 1 and `num_levels`.
    """
    levels = list(parent)
    for position in range(len(levels)):
        if rng.random() < mutation_probability:
            lowest = levels[position + 1] if position + 1 < len(levels) else 1
            levels[position] = rng.randint(lowest, levels[position - 1] if position else num_levels)
    return tuple(levels)


def cross(first: Levels, second: Levels) -> Levels:
    """Average two configs element by element, rounding up.

    Args:
        first: Grid levels, non-increasing.
        second: Grid levels, non-increasing.

    Returns:
        Grid levels, non-increasing.
    """
    return tuple(-(-(a + b) // 2) for a, b in zip(first, second, strict=True))


def merge(rng: random.Random, parent: Levels, num_levels: int) -> Levels:
    """Have one layer that drops keep what enters it: its level becomes that of its left neighbour.

    What it dropped is dropped by the next layer, or by none if it was the last one.

    Args:
        rng: The only source of randomness.
        parent: Grid levels, non-increasing.
        num_levels: Levels of the grid, what enters the first layer.

    Returns:
        Grid levels, non-increasing; the same ones where no layer drops.
    """
    entering = (num_levels, *parent[:-1])
    dropping = [position for position, level in enumerate(parent) if level < entering[position]]
    if not dropping:
        return parent
    position = rng.choice(dropping)
    return (*parent[:position], entering[position], *parent[position + 1 :])
