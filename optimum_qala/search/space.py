"""The configs that a search looks at: ratios on a grid, and the number of layers that run."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from optimum_qala.errors import ConfigurationError
from optimum_qala.models.configuration_quala_minilm import QuaLAMiniLMConfig
from optimum_qala.models.length_config import LengthConfig
from optimum_qala.search.operators import Levels, cross, merge, mutate, uniform_path
from optimum_qala.search.options import SearchOptions


__all__ = ["Genome", "SearchSpace", "exits_of"]

# Times that a seed which drops in a single layer applies the bound there.
MOST_SINGLE_DROPS = 3


class Genome(NamedTuple):
    """A config inside the search.

    Args:
        levels: Grid level of each layer that may drop, non-increasing.
        depth: Number of layers that run.
    """

    levels: Levels
    depth: int


@dataclass(frozen=True)
class SearchSpace:
    """All configs of a model that a search may look at.

    Args:
        num_layers: Layers of the model.
        options: Options of the search.

    Raises:
        ConfigurationError: If the options name layers that the model lacks, or the smallest config is the full one.
    """

    num_layers: int
    options: SearchOptions

    def __post_init__(self) -> None:
        if self.num_layers < 1:
            raise ConfigurationError(f"num_layers is {self.num_layers}: a model without layers has nothing to search")
        unknown = [layer for layer in self.drop_layers if not 0 <= layer < self.num_layers]
        if unknown:
            raise ConfigurationError(
                f"drop_layers names layer {unknown[0]}, but the model has layers 0 to {self.num_layers - 1}; layers "
                "count from 0"
            )
        unknown = [depth for depth in self.options.exit_layers if not 1 <= depth <= self.num_layers]
        if unknown:
            raise ConfigurationError(
                f"exit_layers names {unknown[0]} layers, but the model can run 1 to {self.num_layers}"
            )
        if self.full == self.smallest:
            raise ConfigurationError(
                f"nothing to search: with step {self.options.step:g} the smallest config of drop_ratio_bound "
                f"{self.options.drop_ratio_bound:g} rounds to full length; lower step or raise drop_ratio_bound"
            )

    @property
    def drop_layers(self) -> tuple[int, ...]:
        """0-based layers that may drop."""
        return tuple(range(self.num_layers)) if self.options.drop_layers is None else self.options.drop_layers

    @property
    def depths(self) -> tuple[int, ...]:
        """Numbers of layers that a config may run, ascending; all layers last."""
        return (*(depth for depth in self.options.exit_layers if depth < self.num_layers), self.num_layers)

    @property
    def full(self) -> Genome:
        """The config of full length and depth."""
        return Genome((self.options.num_levels,) * len(self.drop_layers), self.num_layers)

    @property
    def smallest(self) -> Genome:
        """The config that drops the bound in every layer and stops at the first exit."""
        return self.canonical(self.even_path()[-1].levels, self.depths[0])

    def canonical(self, levels: Sequence[int], depth: int) -> Genome:
        """Make a genome such that configs that compute the same are equal.

        Args:
            levels: Grid levels; those of layers that do not run are replaced by the last one that counts.
            depth: Number of layers that run.

        Returns:
            The genome.
        """
        kept, level = [], self.options.num_levels
        for layer, own in zip(self.drop_layers, levels, strict=True):
            level = own if layer < depth else level
            kept.append(level)
        return Genome(tuple(kept), depth)

    def length_config(self, genome: Genome) -> LengthConfig:
        """Write a genome as a `LengthConfig`."""
        ratios, ratio = dict(zip(self.drop_layers, genome.levels, strict=True)), 1.0
        retention = []
        for layer in range(self.num_layers):
            ratio = ratios[layer] / self.options.num_levels if layer in ratios else ratio
            retention.append(ratio)
        return LengthConfig(tuple(retention), genome.depth)

    def even_path(self) -> list[Genome]:
        """List the configs of all layers in which every layer drops the same share, from full length on."""
        path = uniform_path(len(self.drop_layers), self.options.drop_ratio_bound, self.options.num_levels)
        return [Genome(levels, self.num_layers) for levels in path]

    def simple_configs(self) -> list[Genome]:
        """List the configs with one change to full length: an exit, or a drop in one layer.

        Returns:
            Deep exits and gentle drops in late layers first, for these lose least; exits and drops in turns.
        """
        exits = [Genome(self.full.levels, depth) for depth in reversed(self.depths[:-1])]
        drops = []
        for order in range(len(self.drop_layers) + MOST_SINGLE_DROPS - 1):
            for times in range(MOST_SINGLE_DROPS):
                position = len(self.drop_layers) - 1 - (order - times)
                if not 0 <= order - times < len(self.drop_layers):
                    continue
                ratio = (1.0 - self.options.drop_ratio_bound) ** (times + 1)
                level = max(1, round(ratio * self.options.num_levels))
                levels = self.full.levels[:position] + (level,) * (len(self.drop_layers) - position)
                drops.append(self.canonical(levels, self.num_layers))
        turns = [pair[index] for pair in zip(exits, drops, strict=False) for index in (0, 1)]
        paired = min(len(exits), len(drops))
        return list(dict.fromkeys([*turns, *exits[paired:], *drops[paired:]]))

    def mutate(self, rng: random.Random, parent: Genome) -> Genome:
        """Redraw some ratios and perhaps the exit of a config, and perhaps have a layer stop dropping.

        Args:
            rng: The only source of randomness.
            parent: The config.

        Returns:
            Another config, or the same one where chance has it so.
        """
        options = self.options
        levels = mutate(rng, parent.levels, options.mutation_probability, options.num_levels)
        if rng.random() < options.merge_probability:
            levels = merge(rng, levels, options.num_levels)
        depth = parent.depth
        if len(self.depths) > 1 and rng.random() < options.mutation_probability:
            depth = rng.choice(self.depths)
        return self.canonical(levels, depth)

    def cross(self, first: Genome, second: Genome) -> Genome:
        """Average two configs, rounding up: their ratios, and their depths among those that the search may use."""
        mean = (first.depth + second.depth) / 2
        depth = next(depth for depth in self.depths if depth >= mean)
        return self.canonical(cross(first.levels, second.levels), depth)


def exits_of(config: QuaLAMiniLMConfig, least: int | None = None) -> tuple[int, ...]:
    """List the numbers of layers that configs of a model may stop after.

    Args:
        config: Configuration of the model.
        least: Fewest layers; half of them, rounded up, if None.

    Returns:
        Exits before the last layer; none for a model without early span heads.

    Raises:
        ConfigurationError: If `least` is given for a model without early span heads, or out of range.
    """
    if not config.has_span_heads:
        if least is not None:
            raise ConfigurationError(
                f"min_exit_layer {least} needs a model with early span heads, to stop at one of them; leave it out"
            )
        return ()
    if least is not None and not 1 <= least <= config.num_hidden_layers:
        raise ConfigurationError(f"min_exit_layer {least} is not in 1 to {config.num_hidden_layers}")
    return tuple(range((config.num_hidden_layers + 1) // 2 if least is None else least, config.num_hidden_layers))
