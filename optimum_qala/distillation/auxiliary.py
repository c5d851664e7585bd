"""The registry of auxiliary losses: what each compares in a layer of the teacher and a layer of the student."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from optimum_qala.errors import ConfigurationError

from .attention import attention_map_kl, attention_score_mse, attention_scores
from .mutual_information import ContrastOptions, mutual_information_loss
from .relations import mean_relation_kl, relation_kl
from .states import state_mse
from .traces import COLUMN_PARTS, EMBEDDINGS, ROW_PARTS, LayerTrace


# Where a loss acts: on every layer, summed; on the last layer of the student; before the first layer.
SCOPES = ("all", "last", "embeddings")


@dataclass(frozen=True)
class HeadCounts:
    """Heads that losses split widths into.

    Args:
        attention: Attention heads, the same in teacher and student where a loss asks for it.
        relation: Relation heads.
    """

    attention: int
    relation: int


@dataclass(frozen=True)
class LossOptions:
    """What losses are told besides the traces.

    Args:
        heads: Heads that they split widths into.
        contrast: How they tell tokens from each other.
    """

    heads: HeadCounts
    contrast: ContrastOptions = ContrastOptions()


Compute = Callable[[LayerTrace, LayerTrace, LossOptions], Tensor]


@dataclass(frozen=True)
class AuxiliaryLoss:
    """A loss on what a layer computes.

    Args:
        compute: Maps the trace of the teacher's layer, at the student's places, and that of the student's layer to a
            scalar.
        parts: What it reads of a trace.
        scope: Layers of the student that it acts on, one of `SCOPES`.
        projected: The student's only part is projected to the teacher's width where the widths differ.
        critic: The only part of both is projected to a common width, whatever theirs, by matrices that are learned.
        needs_same_heads: It compares attention heads one by one.
        uses_relation_heads: It splits widths into relation heads.
    """

    compute: Compute
    parts: tuple[str, ...]
    scope: str = "all"
    projected: bool = False
    critic: bool = False
    needs_same_heads: bool = False
    uses_relation_heads: bool = False

    def acts_on(self, layer: int, num_layers: int) -> bool:
        """Tell whether it acts on a layer of a student with that many layers."""
        if self.scope == "embeddings" or layer == EMBEDDINGS:
            return self.scope == "embeddings" and layer == EMBEDDINGS
        return self.scope == "all" or layer == num_layers - 1


AUXILIARY_LOSSES: dict[str, AuxiliaryLoss] = {}


def register_auxiliary_loss(name: str, loss: AuxiliaryLoss) -> None:
    """Add a loss to the registry, so that `QuaLATrainingArguments(auxiliary_losses={name: 1.0})` uses it.

    Args:
        name: Lower-case letters and underscores; part of the key that the loss is logged under.
        loss: The loss.

    Raises:
        ConfigurationError: If the name is taken or not legal, or the loss names an unknown part or scope, is projected
            in two ways, or is projected and reads more than one part.
    """
    if name in AUXILIARY_LOSSES:
        raise ConfigurationError(f"auxiliary loss {name!r} is registered already")
    if not name.isidentifier() or name != name.lower():
        raise ConfigurationError(f"auxiliary loss name {name!r} must be lower-case letters and underscores")
    if unknown := sorted(set(loss.parts) - {*ROW_PARTS, *COLUMN_PARTS}):
        raise ConfigurationError(
            f"auxiliary loss {name!r} reads {unknown[0]!r}, which is none of {sorted((*ROW_PARTS, *COLUMN_PARTS))}"
        )
    if loss.scope not in SCOPES:
        raise ConfigurationError(f"scope {loss.scope!r} of auxiliary loss {name!r} is not in {SCOPES}")
    if loss.projected and loss.critic:
        raise ConfigurationError(f"auxiliary loss {name!r} is projected by its critic; leave projected out")
    if (loss.projected or loss.critic) and len(loss.parts) != 1:
        raise ConfigurationError(f"auxiliary loss {name!r} is projected, so it must read one part, not {loss.parts}")
    AUXILIARY_LOSSES[name] = loss


def parse_loss_weights(field: str, weights: Mapping[str, float] | str | None) -> dict[str, float]:
    """Read the weights of auxiliary losses.

    Args:
        field: What the message calls them.
        weights: A mapping, text such as "hidden_states=1,relations=0.5", or None for no losses.

    Returns:
        Weight by name.

    Raises:
        ConfigurationError: If it is none of these, a name is unknown or given twice, or a weight is not a
            positive number.
    """
    if not isinstance(weights, Mapping | str | None):
        raise ConfigurationError(
            f"{field} {weights!r} has no weights; give a mapping, or text such as hidden_states=1,relations=0.5"
        )
    pairs = list(weights.items()) if isinstance(weights, Mapping) else _split(field, weights or "")
    parsed: dict[str, float] = {}
    for name, weight in pairs:
        if name not in AUXILIARY_LOSSES:
            raise ConfigurationError(f"{field} names {name!r}, which is none of {sorted(AUXILIARY_LOSSES)}")
        if name in parsed:
            raise ConfigurationError(f"{field} names {name!r} twice")
        try:
            parsed[name] = float(weight)
        except (TypeError, ValueError):
            parsed[name] = math.nan
        if not (math.isfinite(parsed[name]) and parsed[name] > 0.0):
            raise ConfigurationError(
                f"{field} gives {name!r} the weight {weight!r}, which is not a positive number; leave a loss out to "
                "turn it off"
            )
    return parsed


def _split(field: str, text: str) -> list[tuple[str, str]]:
    pairs = []
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, separator, weight = entry.partition("=")
        if not separator:
            raise ConfigurationError(f"{field} holds {entry!r}; write NAME=WEIGHT, as in hidden_states=1")
        pairs.append((name.strip(), weight.strip()))
    return pairs


def _states(part: str) -> Compute:
    return lambda teacher, student, _: state_mse(teacher.states[part], student.states[part], student.rows.valid)


def _attention(loss: Callable[..., Tensor]) -> Compute:
    def compute(teacher: LayerTrace, student: LayerTrace, options: LossOptions) -> Tensor:
        masks = (student.rows.valid, student.columns.valid)
        scores = (
            attention_scores(trace.states["queries"], trace.states["keys"], *masks, options.heads.attention)
            for trace in (teacher, student)
        )
        return loss(*scores, *masks)

    return compute


def _relations(teacher: LayerTrace, student: LayerTrace, options: LossOptions) -> Tensor:
    parts = ("queries", "keys", "values")
    taught, learned = (tuple(trace.states[part] for part in parts) for trace in (teacher, student))
    masks = tuple(student.places(part).valid for part in parts)
    return mean_relation_kl(taught, learned, masks, options.heads.relation)


def _minilm(teacher: LayerTrace, student: LayerTrace, options: LossOptions) -> Tensor:
    """L_AT + L_VR of MiniLM (arXiv 2002.10957, section 3), whose relation heads are the attention heads."""
    taught, learned = (trace.states["values"] for trace in (teacher, student))
    value_loss = relation_kl(taught, learned, student.columns.valid, options.heads.attention)
    return _attention(attention_map_kl)(teacher, student, options) + value_loss


def _mutual_information(teacher: LayerTrace, student: LayerTrace, options: LossOptions) -> Tensor:
    taught, learned = (trace.states["hidden_states"] for trace in (teacher, student))
    return mutual_information_loss(taught, learned, student.rows.valid, options.contrast)


_SCORED = ("queries", "keys")
for _name, _loss in {
    "embeddings": AuxiliaryLoss(_states("hidden_states"), ("hidden_states",), scope="embeddings", projected=True),
    "hidden_states": AuxiliaryLoss(_states("hidden_states"), ("hidden_states",), projected=True),
    "attention_outputs": AuxiliaryLoss(_states("attention_outputs"), ("attention_outputs",), projected=True),
    "attention_scores": AuxiliaryLoss(_attention(attention_score_mse), _SCORED, needs_same_heads=True),
    "attention_maps": AuxiliaryLoss(_attention(attention_map_kl), _SCORED, needs_same_heads=True),
    "minilm": AuxiliaryLoss(_minilm, (*_SCORED, "values"), scope="last", needs_same_heads=True),
    "mutual_information": AuxiliaryLoss(_mutual_information, ("hidden_states",), critic=True),
    "relations": AuxiliaryLoss(_relations, (*_SCORED, "values"), scope="last", uses_relation_heads=True),
}.items():
    register_auxiliary_loss(_name, _loss)


__all__ = [
    "AUXILIARY_LOSSES",
    "SCOPES",
    "AuxiliaryLoss",
    "HeadCounts",
    "LossOptions",
    "parse_loss_weights",
    "register_auxiliary_loss",
]
