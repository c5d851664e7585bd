"""What a pass through an encoder computed in its layers, recorded by hooks while it runs.

Nothing is recorded, and nothing is paid, outside `record_trace`; the model does not know of it, so an exported graph
has no trace of it either. Queries, keys and values are the outputs of the linear layers that make them, the same
whether attention is fused or not.

A layer that drops tokens reads, as keys and values, the tokens that enter it, and gives queries, attention outputs and
hidden states of those that leave it: a trace has a place for each, and a teacher is compared at these places alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from optimum_qala.errors import ConfigurationError
from optimum_qala.models.layers import QuaLAMiniLMLayer
from optimum_qala.models.token_selection import gather_rows, narrow


EMBEDDINGS = -1  # stands for a layer before the first one, whose hidden states are the embeddings
COLUMN_PARTS = ("keys", "values")
ROW_PARTS = ("attention_outputs", "hidden_states", "queries")

# Modules of an encoder that learn: its embeddings and layers, and what only reads the outputs of layers.
_KNOWN_MODULES = ("embeddings.", "encoder.layer.", "encoder.span_heads.", "pooler.")

# Parts that are the outputs of linear layers of the attention, and the names of these.
LINEAR_PARTS = {"queries": "query", "keys": "key", "values": "value"}


@dataclass(frozen=True)
class Places:
    """Which tokens a layer has.

    Args:
        valid: 1 for tokens, 0 for padding and surplus entries. *Shape:* `(batch_size, num_tokens)`
        positions: Place of each token in the sequence, beyond its end for surplus entries; all tokens in their order
            if None. *Shape:* `(batch_size, num_tokens)`
    """

    valid: Tensor
    positions: Tensor | None = None


@dataclass(frozen=True)
class LayerTrace:
    """What one layer computed.

    Args:
        states: Of the parts that were asked for: "keys" and "values" at `columns`, the others at `rows`.
            *Shape:* `(batch_size, num_tokens, width)` each
        rows: The tokens that leave the layer.
        columns: The tokens that enter it.
    """

    states: dict[str, Tensor]
    rows: Places
    columns: Places

    def places(self, part: str) -> Places:
        """Return the tokens that a part has states of."""
        return self.columns if part in COLUMN_PARTS else self.rows

    def at_places_of(self, student: LayerTrace) -> LayerTrace:
        """Keep the states of the tokens that a student still has.

        Args:
            student: Trace of a layer that may have dropped tokens; this one must have all of them.

        Returns:
            The parts that both have, at the student's places.
        """
        states = {}
        for part in self.states.keys() & student.states.keys():
            positions, values = student.places(part).positions, self.states[part]
            # Surplus entries point beyond the end; their mask leaves out whatever is read for them.
            states[part] = (
                values if positions is None else gather_rows(values, positions.clamp(max=values.shape[1] - 1))
            )
        return LayerTrace(states, student.rows, student.columns)


@dataclass(frozen=True)
class TraceRequest:
    """What to record.

    Args:
        layers: Layers from 0 on, and `EMBEDDINGS`.
        parts: Names among `ROW_PARTS` and `COLUMN_PARTS`.
    """

    layers: frozenset[int] = frozenset()
    parts: frozenset[str] = frozenset()


@dataclass
class Trace:
    """What a pass computed; a layer that it did not run is missing.

    Args:
        layers: By number, from 0 on, and `EMBEDDINGS`.
    """

    layers: dict[int, LayerTrace] = field(default_factory=dict)


def check_can_be_traced(model: Any, role: str) -> None:
    """Refuse a model whose layers are not built as those of BERT.

    Args:
        model: Any model.
        role: What to call it in the message.

    Raises:
        ConfigurationError: If it cannot be recorded.
    """
    base = getattr(model, "base_model", model)
    layers = getattr(getattr(base, "encoder", None), "layer", None)
    names = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output")
    try:
        base.embeddings  # noqa: B018  # raises if it is absent
        for layer in layers or [nn.Identity()]:
            for name in names:
                layer.get_submodule(name)
    except AttributeError:
        raise ConfigurationError(
            f"the {role} is a {type(model).__name__}, whose layers are not built as those of BERT, RoBERTa or "
            "QuaLA-MiniLM; auxiliary losses cannot look into it"
        ) from None


def check_only_layers(model: Any, role: str) -> None:
    """Refuse a model that computes something of its own between its embeddings and its layers.

    ELECTRA widens small embeddings there, for example. What copies, hashes or trains embeddings and layers alone would
    miss it without a word.

    Args:
        model: A model that can be traced.
        role: What to call it in the message.

    Raises:
        ConfigurationError: If so.
    """
    base = getattr(model, "base_model", model)
    names = [name for name, _ in base.named_parameters() if not name.startswith(_KNOWN_MODULES)]
    if names:
        raise ConfigurationError(
            f"the {role} is a {type(model).__name__}, which learns {names[0]} besides its embeddings and its layers; "
            "task-agnostic distillation cannot take that along"
        )


@contextlib.contextmanager
def record_trace(model: Any, request: TraceRequest, attention_mask: Tensor) -> Iterator[Trace]:
    """Record what the passes through a model compute while the context lasts; the last one counts.

    Args:
        model: A QuaLA-MiniLM, or a model with the layers of BERT or RoBERTa, not wrapped.
        request: What to record.
        attention_mask: That of the batch. *Shape:* `(batch_size, sequence_length)`

    Yields:
        The trace, which fills as the model runs.
    """
    trace = Trace()
    everything = Places(attention_mask)
    handles = []
    try:
        if request.parts and EMBEDDINGS in request.layers:

            def keep_embeddings(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
                trace.layers[EMBEDDINGS] = LayerTrace({"hidden_states": output}, everything, everything)

            handles.append(model.base_model.embeddings.register_forward_hook(keep_embeddings))
        for index in sorted(request.layers - {EMBEDDINGS}) if request.parts else ():
            layer = model.base_model.encoder.layer[index]
            handles += _record_layer(layer, request.parts, everything, _setter(trace.layers, index))
        yield trace
    finally:
        for handle in handles:
            handle.remove()


def _record_layer(
    layer: Any, parts: frozenset[str], everything: Places, keep: Callable[[LayerTrace], None]
) -> list[Any]:
    """Hook a layer and those of its modules whose outputs are asked for."""
    found: dict[str, Tensor] = {}
    modules = {part: getattr(layer.attention.self, name) for part, name in LINEAR_PARTS.items()}
    modules["attention_outputs"] = layer.attention.output

    def finish(module: Any, inputs: Any, output: Any) -> None:
        if "hidden_states" in parts:
            found["hidden_states"] = output[0] if isinstance(output, tuple) else output
        keep(_layer_trace(module, dict(found), inputs, output, everything))
        found.clear()

    # A module that runs twice in a layer, as the query of the rows that score tokens, runs for its output last.
    handles = [
        module.register_forward_hook(lambda _module, _inputs, output, part=part: found.update({part: output}))
        for part, module in modules.items()
        if part in parts
    ]
    return [*handles, layer.register_forward_hook(finish)]


def _layer_trace(
    layer: Any, states: dict[str, Tensor], inputs: tuple[Any, ...], output: Any, everything: Places
) -> LayerTrace:
    if not isinstance(layer, QuaLAMiniLMLayer):
        return LayerTrace(states, everything, everything)
    tokens, survivors = inputs[1], output[1]
    columns = Places(tokens.valid, tokens.positions)
    if survivors is None:
        return LayerTrace(states, columns, columns)
    if "queries" in states and layer.config.score_source == "attention":  # scores there need the queries of all tokens
        states["queries"] = gather_rows(states["queries"], survivors.indices)
    left = narrow(tokens, survivors, everything.valid.shape[1])
    return LayerTrace(states, Places(left.valid, left.positions), columns)


def _setter(layers: dict[int, LayerTrace], index: int) -> Callable[[LayerTrace], None]:
    return lambda layer_trace: layers.update({index: layer_trace})


__all__ = [
    "COLUMN_PARTS",
    "EMBEDDINGS",
    "LINEAR_PARTS",
    "ROW_PARTS",
    "LayerTrace",
    "Places",
    "Trace",
    "TraceRequest",
    "check_can_be_traced",
    "check_only_layers",
    "record_trace",
]
