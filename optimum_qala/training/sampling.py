"""Random sub-models for length-adaptive training: LengthDrop, LayerDrop and early exits. Needs no torch.

The first two come from the Length-Adaptive Transformer (Kim & Cho, arXiv 2010.07003). LengthDrop there draws token
counts of an input padded to a fixed length; here it draws retention ratios of each sequence's real length.
"""

from __future__ import annotations

import random
from collections.abc import Collection

from optimum_qala.errors import ConfigurationError
from optimum_qala.models.length_config import LengthConfig


__all__ = ["sample_exit_layer", "sample_length_config", "sample_skip_layers", "smallest_length_config"]


def _shrinking_layers(
    num_layers: int, drop_ratio_bound: float, drop_layers: Collection[int] | None, skip_layers: Collection[int]
) -> set[int]:
    """Check the arguments that the samplers share and return the layers whose ratio may shrink."""
    if num_layers < 1:
        raise ConfigurationError(f"num_layers is {num_layers}, but a model has at least one layer")
    if not 0.0 <= drop_ratio_bound < 1.0:  # also catches nan
        raise ConfigurationError(
            f"drop_ratio_bound {drop_ratio_bound:g} is not in [0, 1); 0.2 lets a layer drop a fifth of its tokens"
        )
    for name, layers in (("drop_layers", drop_layers or ()), ("skip_layers", skip_layers)):
        unknown = sorted(layer for layer in layers if not 0 <= layer < num_layers)
        if unknown:
            raise ConfigurationError(
                f"{name} names layer {unknown[0]}, but the model has layers 0 to {num_layers - 1}; layers count from 0"
            )
    dropping = set(range(num_layers)) if drop_layers is None else set(drop_layers)
    return dropping - set(skip_layers)


def sample_length_config(
    rng: random.Random,
    num_layers: int,
    drop_ratio_bound: float,
    drop_layers: Collection[int] | None = None,
    skip_layers: Collection[int] = (),
) -> LengthConfig:
    """Draw the `LengthConfig` of one LengthDrop sub-model.

    The ratio before the first layer is 1; each layer that may drop draws its own ratio uniformly from
    [(1 - drop_ratio_bound) * previous, previous], every other layer keeps the previous ratio.

    Args:
        rng: The only source of randomness. It yields one number per layer, whichever layers drop.
        num_layers: Layers of the model.
        drop_ratio_bound: Largest share of the remaining tokens that one layer drops, 0 <= drop_ratio_bound < 1.
        drop_layers: 0-based layers that may drop; all by default.
        skip_layers: 0-based layers that LayerDrop removes from this pass; they do not shrink the length.

    Returns:
        Non-increasing ratios, one per layer.

    Raises:
        ConfigurationError: If an argument is out of range.
    """
    shrinking = _shrinking_layers(num_layers, drop_ratio_bound, drop_layers, skip_layers)
    ratio, retention = 1.0, []
    for layer in range(num_layers):
        share = rng.random()
        if layer in shrinking:
            ratio *= 1.0 - drop_ratio_bound * share
        retention.append(ratio)
    return LengthConfig(tuple(retention))


def smallest_length_config(
    num_layers: int,
    drop_ratio_bound: float,
    drop_layers: Collection[int] | None = None,
    skip_layers: Collection[int] = (),
) -> LengthConfig:
    """Return the smallest config that `sample_length_config` can draw, the second pass of the sandwich rule.

    Args:
        num_layers: Layers of the model.
        drop_ratio_bound: Share of the remaining tokens that each dropping layer drops, 0 <= drop_ratio_bound < 1.
        drop_layers: 0-based layers that may drop; all by default.
        skip_layers: 0-based layers that LayerDrop removes from this pass; they do not shrink the length.

    Returns:
        Ratios (1 - drop_ratio_bound) ** (number of dropping layers up to and including this one).

    Raises:
        ConfigurationError: If an argument is out of range.
    """
    shrinking = _shrinking_layers(num_layers, drop_ratio_bound, drop_layers, skip_layers)
    return LengthConfig.from_drop_ratio(num_layers, drop_ratio_bound, shrinking)


def sample_skip_layers(rng: random.Random, num_layers: int, prob: float) -> tuple[int, ...]:
    """Draw the layers that LayerDrop removes from one pass; at least one layer always remains.

    Args:
        rng: The only source of randomness.
        num_layers: Layers of the model.
        prob: Probability with which each layer is removed on its own, 0 <= prob < 1. Where all would go, one layer,
            drawn uniformly, stays.

    Returns:
        0-based layers to skip, increasing.

    Raises:
        ConfigurationError: If an argument is out of range.
    """
    if num_layers < 1:
        raise ConfigurationError(f"num_layers is {num_layers}, but a model has at least one layer")
    if not 0.0 <= prob < 1.0:
        raise ConfigurationError(f"the LayerDrop probability {prob:g} is not in [0, 1); 0 turns LayerDrop off")
    skipped = [layer for layer in range(num_layers) if rng.random() < prob]
    if len(skipped) == num_layers:
        del skipped[rng.randrange(num_layers)]
    return tuple(skipped)


def sample_exit_layer(rng: random.Random, num_layers: int, prob: float, min_exit_layer: int = 1) -> int | None:
    """Draw how many layers a pass runs.

    Args:
        rng: The only source of randomness. Yields nothing if `prob` is 0, so that other draws stay as they are.
        num_layers: Layers of the model.
        prob: Probability with which the pass stops early, 0 <= prob <= 1.
        min_exit_layer: Fewest layers that a pass runs.

    Returns:
        Drawn uniformly from `min_exit_layer` to `num_layers` - 1, or None where all layers run.

    Raises:
        ConfigurationError: If an argument is out of range, or passes are to stop early and no exit is left.
    """
    if num_layers < 1:
        raise ConfigurationError(f"num_layers is {num_layers}, but a model has at least one layer")
    if not 0.0 <= prob <= 1.0:  # also catches nan
        raise ConfigurationError(f"the probability of an early exit {prob:g} is not in [0, 1]; 0 turns them off")
    if prob == 0.0:
        return None
    if not 1 <= min_exit_layer < num_layers:
        raise ConfigurationError(
            f"min_exit_layer {min_exit_layer} is not between 1 and {num_layers - 1}, where a model of {num_layers} "
            "layers may stop early"
        )
    return rng.randint(min_exit_layer, num_layers - 1) if rng.random() < prob else None
