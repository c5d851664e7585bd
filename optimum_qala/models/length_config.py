"""How many tokens leave each layer, and how many layers run: the value type of every budget. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from .errors import LengthConfigError


# A count is ceil(ratio * length). Ratios such as 0.7 have no exact binary form, and the model computes the product in
# float32 while this module does in float64; taking this much off before rounding up makes both agree (float32 errs by
# less than 1e-4 for lengths up to 1,024), and costs at most one token where the product exceeds an integer by less.
CEIL_TOLERANCE = 2.0**-11


def num_tokens_kept(ratio: float, num_real_tokens: int, min_tokens: int = 1) -> int:
    """Count the tokens that a retention ratio keeps of one sequence.

    Args:
        ratio: Retention ratio of the real length, 0 < ratio <= 1.
        num_real_tokens: Tokens of the sequence that are not padding.
        min_tokens: Lower bound of the count; a shorter sequence is kept whole.

    Returns:
        max(min_tokens, ceil(ratio * num_real_tokens)), at most `num_real_tokens`.
    """
    return min(num_real_tokens, max(min_tokens, math.ceil(ratio * num_real_tokens - CEIL_TOLERANCE)))


@dataclass(frozen=True)
class LengthConfig:
    """Retention ratios of the real sequence length, one per layer, and the number of layers that run.

    `LengthConfig((1.0, 0.8, 0.5))` keeps every token in layer 0, 80 % of the sequence's own tokens in layer 1 and half
    of them in layer 2. Ratios refer to the tokens before the first layer, not to the previous layer, and to real
    tokens, never to padding. `LengthConfig((1.0, 0.8, 0.8), exit_layer=2)` stops after the first two layers; as text
    that is "1,0.8,0.8@2".

    Args:
        retention: Non-increasing ratios, 0 < ratio <= 1, one per layer. Those of layers that do not run are replaced
            by the ratio of the last layer that runs, so that configs that compute the same are equal.
        exit_layer: Number of layers that run, from 1; all if None. The number of all layers becomes None.

    Raises:
        LengthConfigError: If there are no ratios, one is out of range or not a number, they increase, or `exit_layer`
            is not an integer from 1 to the number of layers.
    """

    retention: tuple[float, ...]
    exit_layer: int | None = None

    def __post_init__(self) -> None:
        try:
            retention = tuple(float(ratio) for ratio in self.retention)
        except (TypeError, ValueError):
            raise LengthConfigError(
                f"a LengthConfig takes one number per layer, got {self.retention!r}; write it as 1,0.8,0.5"
            ) from None
        if not retention:
            raise LengthConfigError("a LengthConfig needs at least one retention ratio, got none")
        for layer, ratio in enumerate(retention):
            if not 0.0 < ratio <= 1.0:  # also catches nan
                raise LengthConfigError(
                    f"retention ratio {ratio:g} of layer {layer} is not in (0, 1]; for token counts such as "
                    "315,251,242 use LengthConfig.from_lengths(lengths, max_length=384)"
                )
            if layer and ratio > retention[layer - 1]:
                raise LengthConfigError(
                    f"retention ratio {ratio:g} of layer {layer} exceeds {retention[layer - 1]:g} of layer "
                    f"{layer - 1}; a dropped token cannot come back, so ratios must not increase"
                )
        if self.exit_layer is not None:
            retention = self._stop_after(self.exit_layer, retention)
        object.__setattr__(self, "retention", retention)

    def _stop_after(self, exit_layer: Any, retention: tuple[float, ...]) -> tuple[float, ...]:
        num_layers = len(retention)
        is_integer = isinstance(exit_layer, Integral) and not isinstance(exit_layer, bool)
        if not is_integer or not 1 <= exit_layer <= num_layers:
            raise LengthConfigError(
                f"exit_layer {exit_layer!r} is not an integer from 1 to {num_layers}; it counts the layers that run"
            )
        depth = int(exit_layer)
        object.__setattr__(self, "exit_layer", None if depth == num_layers else depth)
        return retention[:depth] + retention[depth - 1 : depth] * (num_layers - depth)

    @classmethod
    def full(cls, num_layers: int) -> LengthConfig:
        """Keep every token in all of `num_layers` layers."""
        return cls((1.0,) * num_layers)

    @classmethod
    def from_lengths(cls, lengths: Sequence[int], max_length: int) -> LengthConfig:
        """Read a published config, which counts tokens of a sequence padded to `max_length`.

        Args:
            lengths: Tokens that leave each layer, for example (315, 251, 242, 159, 142, 33).
            max_length: The padded length they refer to, for example 384.

        Returns:
            The same config as ratios.

        Raises:
            LengthConfigError: If a length is not an integer in [1, max_length], or they increase.
        """
        for length in lengths:
            if isinstance(length, bool) or not isinstance(length, Integral) or not 1 <= length <= max_length:
                raise LengthConfigError(f"length {length!r} is not an integer in [1, {max_length}]")
        return cls(tuple(length / max_length for length in lengths))

    @classmethod
    def from_drop_ratio(
        cls, num_layers: int, drop_ratio: float, drop_layers: Iterable[int] | None = None
    ) -> LengthConfig:
        """Drop the same share of the remaining tokens in every layer that may drop.

        This is the smallest sub-model of LengthDrop (arXiv 2010.07003) in ratios. Counted in tokens it may keep up
        to two fewer than the published count, which is rounded up anew in every layer: for six layers, 384
        tokens and 0.2, that is 308,247,198,159,128,103, while these ratios give 308,246,197,158,126,101.

        Args:
            num_layers: Layers of the model.
            drop_ratio: Share of the remaining tokens that each dropping layer drops, 0 <= drop_ratio < 1.
            drop_layers: 0-based layers that may drop; all by default.

        Returns:
            Ratios (1 - drop_ratio) ** (number of dropping layers up to and including this one).

        Raises:
            LengthConfigError: If `drop_ratio` is out of range.
        """
        if not 0.0 <= drop_ratio < 1.0:
            raise LengthConfigError(f"drop_ratio {drop_ratio:g} is not in [0, 1)")
        dropping = set(range(num_layers)) if drop_layers is None else set(drop_layers)
        ratio, retention = 1.0, []
        for layer in range(num_layers):
            ratio *= 1.0 - drop_ratio if layer in dropping else 1.0
            retention.append(ratio)
        return cls(tuple(retention))

    @classmethod
    def parse(cls, value: Any, num_layers: int | None = None) -> LengthConfig:
        """Read a LengthConfig from what a user writes.

        Args:
            value: A LengthConfig, a string such as "1,0.8,0.5", or "1,0.8,0.8@2" to stop after two layers (brackets
                and spaces allowed), or a sequence of numbers.
            num_layers: Layers of the model it is for, if known.

        Returns:
            The LengthConfig.

        Raises:
            LengthConfigError: If `value` is malformed or has another number of layers.
        """
        if isinstance(value, cls):
            config = value
        elif isinstance(value, str):
            ratios, at, exit_layer = (part.strip() for part in value.partition("@"))
            if at and not exit_layer.isdecimal():
                raise LengthConfigError(
                    f"{value!r} has {exit_layer!r} after @, but the number of layers that run belongs there, as in "
                    "1,0.8,0.8@2"
                )
            parts: Iterable[Any] = (part.strip() for part in ratios.strip("()[] ").split(","))
            config = cls(tuple(part for part in parts if part), int(exit_layer) if at else None)
        elif isinstance(value, Iterable):
            config = cls(tuple(value))
        else:
            raise LengthConfigError(f"a LengthConfig takes one number per layer, got {value!r}; write it as 1,0.8,0.5")
        if num_layers is not None and len(config.retention) != num_layers:
            raise LengthConfigError(
                f"LengthConfig {config} has {len(config.retention)} ratios, but the model has {num_layers} layers; "
                "give one ratio per layer"
            )
        return config

    @property
    def num_layers(self) -> int:
        """Number of layers of the model, those that do not run included."""
        return len(self.retention)

    @property
    def depth(self) -> int:
        """Number of layers that run."""
        return self.num_layers if self.exit_layer is None else self.exit_layer

    @property
    def is_full(self) -> bool:
        """True if every layer runs and none drops a token."""
        return self.exit_layer is None and self.retention[-1] == 1.0

    @property
    def drop_layers(self) -> tuple[int, ...]:
        """0-based layers whose ratio is below that of the layer before."""
        previous = (1.0, *self.retention[:-1])
        return tuple(layer for layer, (p, r) in enumerate(zip(previous, self.retention, strict=True)) if r < p)

    def num_tokens(self, num_real_tokens: int, min_tokens: int = 1) -> tuple[int, ...]:
        """Count the tokens that leave each layer that runs, for a sequence of `num_real_tokens` real tokens."""
        return tuple(num_tokens_kept(ratio, num_real_tokens, min_tokens) for ratio in self.retention[: self.depth])

    def to_budget(self) -> dict[str, Any]:
        """Write the fields that config.json has for it: "retention", and "exit_layer" unless every layer runs."""
        exit_layer = {} if self.exit_layer is None else {"exit_layer": self.exit_layer}
        return {"retention": list(self.retention), **exit_layer}

    def __str__(self) -> str:
        ratios = ",".join(f"{ratio:.4g}" for ratio in self.retention)
        return ratios if self.exit_layer is None else f"{ratios}@{self.exit_layer}"


def count_macs(
    num_tokens: Sequence[int],
    sequence_length: int,
    hidden_size: int,
    intermediate_size: int,
    token_scoring: str | None = None,
    num_question_tokens: int = 0,
) -> int:
    """Count the multiply-accumulate operations of one sequence through the encoder and the span head.

    With `token_scoring=None` this is the literal published method, where attention runs at the length that enters a
    layer and the head runs on restored hidden states. It reproduces the counts of the QuaLA-MiniLM repository
    (`evo_search/parents-iter30.tsv`, measured with torchprofile, whose constant of 768 for mask operations is
    included). Otherwise it counts what this package's graph does: a dropping layer computes attention output and
    feed-forward for survivors only, and with "answer" everything, because tokens leave before the layer. The softmax,
    GELU, top-k and gathers are not counted, as in the published numbers.

    Args:
        num_tokens: Tokens that leave each layer that runs, as `LengthConfig.num_tokens` gives.
        sequence_length: Tokens that enter the first layer.
        hidden_size: Width of the hidden states.
        intermediate_size: Width of the feed-forward layer.
        token_scoring: None for the published method, else the source of the token score: "attention", "question" or
            "answer".
        num_question_tokens: Rows that "question" scoring reads, [CLS] and separator included.

    Returns:
        Multiply-accumulate operations, not floating-point operations (which are twice as many).
    """
    d, f = hidden_size, intermediate_size
    total = sequence_length * d  # LayerNorm of the embeddings
    entering = sequence_length
    for leaving in num_tokens:
        if token_scoring == "answer" and leaving < entering:
            total += 2 * entering * d  # span logits of every token, which are its score too
            entering = leaving
        if token_scoring is None:
            total += 4 * entering * d * d + 2 * entering * entering * d + (entering + leaving) * d
        else:
            # Keys and values, attention output, QK^T and AV, two LayerNorms.
            total += 2 * entering * d * d + leaving * d * d + 2 * leaving * entering * d + 2 * leaving * d
            scores_all_rows = token_scoring == "attention" and leaving < entering
            total += (entering if scores_all_rows else leaving) * d * d  # queries
            if leaving < entering:
                rows = entering if scores_all_rows else num_question_tokens
                total += rows * entering * d  # QK^T of the rows that score
                if not scores_all_rows:
                    total += rows * d * d  # their queries, ahead of those of the survivors
                total += 2 * entering * d  # span logits of every token, before some of them leave
        total += 2 * leaving * d * f
        entering = leaving
    if token_scoring is None:
        return total + 2 * sequence_length * d + 768
    return total + 2 * entering * d
