"""The encoder of QuaLA-MiniLM: the loop that runs the layers, drops tokens, stops early and restores outputs.

At full length it computes what the encoder of BERT or RoBERTa computes with the same weights. A token that leaves
keeps the output of the layer before, and a span head reads it there: the head of the whole model, or, in a model with
early span heads, the head of the layer that it leaves at. Such a model may also stop after any number of layers. A
head is a function of one token, so logits are restored, and not the hidden states that they are made of.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .configuration_quala_minilm import QuaLAMiniLMConfig
from .errors import LengthConfigError
from .layers import QuaLAMiniLMLayer
from .token_selection import (
    TOKEN_SCORES,
    Survivors,
    Tokens,
    as_size,
    count_survivors,
    gather_rows,
    is_tracing,
    narrow,
    restore,
    select_survivors,
)


# How much to keep, by layer: a Python number, or a 0-dimensional tensor where it is an input of the graph.
Ratios = Mapping[int, "float | Tensor"]


@dataclass(frozen=True)
class Schedule:
    """What one pass through the encoder runs.

    Args:
        ratios: Retention ratio of each layer that drops.
        exit_layer: Number of layers that run; all if None.
        skip_layers: Layers that LayerDrop removes from this pass; they do not drop tokens either.
        sizes: Leading tokens that hold every question, then the tokens of the widest sample that leave each layer of
            `config.dropping_layers`; counted if None. Numbers, where `torch.export` takes them from the shapes of
            its inputs. *Shape:* `(1 + num_dropping_layers,)`
    """

    ratios: Ratios = field(default_factory=dict)
    exit_layer: int | None = None
    skip_layers: Collection[int] = ()
    sizes: Tensor | Sequence[int] | None = None


@dataclass
class EncoderOutput:
    """What leaves the encoder.

    Args:
        last_readout: Output of the readout for every token, read where the token left the encoder.
            *Shape:* `(batch_size, sequence_length, readout_size)`
        hidden_states: Embeddings and the output of every layer, each with the tokens that left it.
            *Shape:* `(batch_size, num_tokens, hidden_size)`
        survival: Number of layers that each token went through. *Shape:* `(batch_size, sequence_length)`
        exit_logits: For every number of layers from 0 on, what a pass that stops there returns as `last_readout`.
            *Shape:* `(batch_size, sequence_length, 2)` each
    """

    last_readout: Tensor
    hidden_states: tuple[Tensor, ...] | None = None
    survival: Tensor | None = None
    exit_logits: tuple[Tensor, ...] | None = None


class _Places:
    """What was read of each token, at its place in the sequence."""

    def __init__(self, sequence_length: int) -> None:
        self.sequence_length = sequence_length
        self.places: Tensor | None = None

    def write(self, values: Tensor, tokens: Tokens, remember: bool) -> Tensor:
        """Return what was read of every token of the sequence, and remember it if some of them are about to leave."""
        if self.places is None:  # all tokens are there, in order; one row more takes what surplus entries write later
            self.places = nn.functional.pad(values, (0, 0, 0, 1)) if remember else None
            return values
        places = restore(self.places, values, tokens.positions)
        self.places = places if remember else self.places
        return places[:, : self.sequence_length]


class QuaLAMiniLMEncoder(nn.Module):
    """The layers, span heads of theirs if the model has any, and the loop that drops tokens and restores outputs."""

    def __init__(self, config: QuaLAMiniLMConfig) -> None:
        super().__init__()
        self.config = config
        self.layer = nn.ModuleList(QuaLAMiniLMLayer(config) for _ in range(config.num_hidden_layers))
        self.span_heads: nn.ModuleList | None = None
        if config.has_span_heads:  # head i reads the input of layer i, which is the output after i layers
            self.span_heads = nn.ModuleList(nn.Linear(config.hidden_size, 2) for _ in self.layer)

    def forward(
        self,
        hidden_states: Tensor,
        tokens: Tokens,
        schedule: Schedule,
        readout: Callable[[Tensor], Tensor],
        reads_spans: bool = False,
        output_hidden_states: bool = False,
        output_survival: bool = False,
        output_exit_logits: bool = False,
        shared_states: tuple[Tensor, ...] | None = None,
    ) -> EncoderOutput:
        """Run the layers.

        A task head that treats each token on its own is the `readout`: its outputs are restored instead of the hidden
        states, which gives the same result for a fraction of the memory traffic.

        Args:
            hidden_states: Embeddings. *Shape:* `(batch_size, sequence_length, hidden_size)`
            tokens: The tokens that enter.
            schedule: What to run.
            readout: Maps `(batch_size, num_tokens, hidden_size)` to `(batch_size, num_tokens, readout_size)`.
            reads_spans: The readout is a span head, so the encoder's span heads, if there are any, stand in for it
                before the last layer.
            output_hidden_states: Return all hidden states.
            output_survival: Return the number of layers that each token went through.
            output_exit_logits: Return what the readout gives after every number of layers that is less than the pass
                goes through.
            shared_states: Hidden states of a pass of the same batch at full length, which are taken instead of running
                the layers before the first one that drops tokens or is skipped.
                *Shape:* `(batch_size, sequence_length, hidden_size)` each

        Returns:
            The readout of every token and what was asked for.

        Raises:
            LengthConfigError: If `schedule.sizes` does not fit the tokens.
        """
        num_real_tokens = tokens.valid.sum(dim=1)
        num_layers = len(self.layer) if schedule.exit_layer is None else schedule.exit_layer
        num_rows = self._count_rows(tokens, schedule)
        places, depths = _Places(hidden_states.shape[1]), _Places(hidden_states.shape[1])
        exits: list[Tensor] = []
        states: tuple[Tensor, ...] = (
            hidden_states,
        )  # grows only if asked for: a list of all of them would keep them all in memory
        for index in range(num_layers):
            drops = index in schedule.ratios and index not in schedule.skip_layers
            spans = None
            if drops or output_exit_logits:
                values, spans = self.read(index, hidden_states, readout, reads_spans)
                values = places.write(values, tokens, remember=drops)
                if output_exit_logits:
                    exits.append(values)
            if drops and output_survival:
                depths.write(torch.full_like(hidden_states[:, :, :1], index), tokens, remember=True)
            if drops:
                hidden_states, tokens = self._drop(
                    index,
                    hidden_states,
                    tokens,
                    spans,
                    self._chooser(index, tokens, num_real_tokens, schedule),
                    num_rows,
                    places.sequence_length,
                )
            elif shared_states is not None and index < self._first_change(schedule):
                hidden_states = shared_states[index + 1]
            elif index not in schedule.skip_layers:
                hidden_states, _ = self.layer[index](hidden_states, tokens)
            if output_hidden_states:
                states = (*states, hidden_states)
        survival = None
        if output_survival:
            depth = torch.full_like(hidden_states[:, :, :1], num_layers)
            survival = depths.write(depth, tokens, remember=False).squeeze(-1).to(torch.int64)
        values, _ = self.read(num_layers, hidden_states, readout, reads_spans)
        return EncoderOutput(
            last_readout=places.write(values, tokens, remember=False),
            hidden_states=states if output_hidden_states else None,
            survival=survival,
            exit_logits=tuple(exits) if output_exit_logits else None,
        )

    def _first_change(self, schedule: Schedule) -> int:
        """Return the first layer whose output is not that of a pass at full length."""
        return min([*schedule.ratios, *schedule.skip_layers], default=len(self.layer))

    def read(
        self, index: int, hidden_states: Tensor, readout: Callable[[Tensor], Tensor], reads_spans: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Read tokens.

        Args:
            index: After how many layers.
            hidden_states: *Shape:* `(batch_size, num_tokens, hidden_size)`
            readout: As in `forward`.
            reads_spans: As in `forward`.

        Returns:
            What they leave behind, `(batch_size, num_tokens, readout_size)`, and the logits of the span head there,
            `(batch_size, num_tokens, 2)`, if there is one.
        """
        if self.span_heads is None or index == len(self.layer):
            return readout(hidden_states), None
        spans = self.span_heads[index](hidden_states)
        return (spans if reads_spans else readout(hidden_states)), spans

    def _drop(
        self,
        index: int,
        hidden_states: Tensor,
        tokens: Tokens,
        spans: Tensor | None,
        choose: Callable[[Tensor], Survivors],
        num_rows: int | None,
        sequence_length: int,
    ) -> tuple[Tensor, Tokens]:
        """Run a layer that drops tokens; return the hidden states and the tokens that leave it."""
        if spans is not None and self.config.score_source == "answer":
            with torch.no_grad():  # the choice of survivors has no gradient
                survivors = choose(TOKEN_SCORES[self.config.token_scoring].score(spans.detach(), tokens.valid))
            tokens = narrow(tokens, survivors, sequence_length)
            hidden_states, _ = self.layer[index](gather_rows(hidden_states, survivors.indices), tokens)
            return hidden_states, tokens
        hidden_states, survivors = self.layer[index](hidden_states, tokens, choose, num_rows)
        return hidden_states, narrow(tokens, survivors, sequence_length)

    def _chooser(
        self, index: int, tokens: Tokens, num_real_tokens: Tensor, schedule: Schedule
    ) -> Callable[[Tensor], Survivors]:
        """Make the function that chooses the survivors of a layer by the scores of the tokens that enter it."""
        num_kept = count_survivors(schedule.ratios[index], num_real_tokens, tokens, self.config.min_tokens)
        if schedule.sizes is None:
            width = as_size(num_kept.max())
        else:
            width = as_size(schedule.sizes[1 + self.config.dropping_layers.index(index)])
            _check_size(f"tokens that leave layer {index}", width, num_kept, tokens)
        return lambda scores: select_survivors(scores, tokens, num_kept, self.config.score_pooling, width)

    def _count_rows(self, tokens: Tokens, schedule: Schedule) -> int | None:
        """Count the leading tokens that hold every question, for a score that reads their rows."""
        if not schedule.ratios or self.config.score_source != "question":
            return None
        # At least one, whose vote does not count where there is no question at all: no tensor gets empty.
        counts = tokens.question.sum(dim=1).clamp(min=1)
        if schedule.sizes is None:
            return as_size(counts.max())
        num_rows = as_size(schedule.sizes[0])
        _check_size("leading tokens that hold every question", num_rows, counts, tokens)
        return num_rows


def _check_size(what: str, size: int, counts: Tensor, tokens: Tokens) -> None:
    if is_tracing():
        return
    least, most = int(counts.max()), tokens.valid.shape[1]
    if not least <= size <= most:
        raise LengthConfigError(
            f"sizes counts {size} {what}, but this batch needs {least} to {most}; plan_sizes gives the least"
        )


__all__ = ["EncoderOutput", "QuaLAMiniLMEncoder", "Ratios", "Schedule"]
