"""Auxiliary losses in a training step: which layers are recorded, compared and projected."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from optimum_qala.distillation.auxiliary import AUXILIARY_LOSSES, HeadCounts, LossOptions, parse_loss_weights
from optimum_qala.distillation.layer_map import check_layer_map, uniform_layer_map
from optimum_qala.distillation.mutual_information import ContrastOptions
from optimum_qala.distillation.traces import (
    EMBEDDINGS,
    LayerTrace,
    Trace,
    TraceRequest,
    check_can_be_traced,
    record_trace,
)
from optimum_qala.errors import ConfigurationError
from optimum_qala.training.arguments import QuaLATrainingArguments
from optimum_qala.training.compatibility import check_full_length
from optimum_qala.training.pass_losses import WeightedLoss


CRITIC_WIDTH = 128  # what a critic projects states of either model to


class Critic(nn.Module):
    """What a loss with a critic learns: a projection of each model's states to a common width.

    The projections are affine, so that the bilinear product of theirs takes in a baseline, see `interpolated_bound`.

    Args:
        teacher_width: Width of the teacher.
        student_width: Width of the student.
        generator: Draws the initial weights.
    """

    def __init__(self, teacher_width: int, student_width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.teacher = _projection(teacher_width, CRITIC_WIDTH, generator, bias=True)
        self.student = _projection(student_width, CRITIC_WIDTH, generator, bias=True)

    def forward(self, teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
        """Project the states of both, of which the teacher gets no gradient.

        Args:
            teacher: *Shape:* `(batch_size, num_tokens, teacher_width)`
            student: *Shape:* `(batch_size, num_tokens, student_width)`

        Returns:
            *Shape:* `(batch_size, num_tokens, CRITIC_WIDTH)` each
        """
        return self.teacher(teacher.float().detach()), self.student(student.float())


class AuxiliaryLosses(nn.Module):
    """The auxiliary losses of a training, and the projections that they learn.

    The full-length pass learns from the teacher, layer by layer as `args.teacher_layers` maps them; sub-models learn
    from the same layers of the full-length pass, at the tokens that they still have. A layer that a sub-model takes
    from the full-length pass, skips or does not reach is not compared. Where teacher and student differ in width, a
    projected loss maps the student's states through one matrix for all layers, as TinyBERT does. A loss with a critic
    has one for all layers of the teacher, and one for all layers of sub-models.

    Args:
        model: The student.
        teacher: The teacher, if there is one.
        args: The arguments.

    Raises:
        ConfigurationError: If a loss needs a teacher, a sub-model, the same attention heads or other relation heads,
            if the layers do not fit, or if a model is not built as BERT.
    """

    def __init__(self, model: Any, teacher: Any, args: QuaLATrainingArguments) -> None:
        super().__init__()
        self.full_weights = parse_loss_weights("auxiliary_losses", args.auxiliary_losses)
        self.sub_weights = parse_loss_weights("sub_model_auxiliary_losses", args.sub_model_auxiliary_losses)
        self.projections = nn.ModuleDict()
        self.critics = nn.ModuleDict()
        self.num_layers: int = model.config.num_hidden_layers
        self.layer_map: dict[int, int] = {}
        self._check_arguments(teacher, args)
        num_heads = model.config.num_attention_heads
        self.options = LossOptions(
            HeadCounts(num_heads, args.relation_heads or num_heads),
            ContrastOptions(args.mutual_information_alpha, args.mutual_information_tokens),
        )
        if not (self.full_weights or self.sub_weights):
            return
        check_can_be_traced(model, "model")
        self._check_relation_heads(model.config, "model", self.full_weights | self.sub_weights)
        if self.full_weights:
            self._prepare_teacher(model.config, teacher, args)
            self._add_critics("full", self.full_weights, teacher.config, model.config, args)
        self._add_critics("sub_model", self.sub_weights, model.config, model.config, args)

    def _check_arguments(self, teacher: Any, args: QuaLATrainingArguments) -> None:
        if self.full_weights and teacher is None:
            raise ConfigurationError(
                f"auxiliary_losses {sorted(self.full_weights)} compare with a teacher, but none is given; "
                "sub_model_auxiliary_losses need none"
            )
        if self.sub_weights and args.num_sub_models == 0:
            raise ConfigurationError(
                f"sub_model_auxiliary_losses {sorted(self.sub_weights)} act on sub-models, but none is trained"
            )
        if "embeddings" in self.sub_weights:
            raise ConfigurationError(
                "sub_model_auxiliary_losses names 'embeddings', but a sub-model has those of the full-length pass"
            )
        if args.teacher_layers is not None and not self.full_weights:
            raise ConfigurationError(
                f"teacher_layers {args.teacher_layers} maps layers for auxiliary_losses, but there are none"
            )
        if (self.full_weights or self.sub_weights) and args.torch_compile:
            raise ConfigurationError(
                "auxiliary losses record what the layers compute, which torch_compile=True hides; turn one of them off"
            )

    def _check_relation_heads(self, config: Any, role: str, weights: Mapping[str, float]) -> None:
        num_heads = self.options.heads.relation
        for name in weights:
            if AUXILIARY_LOSSES[name].uses_relation_heads and config.hidden_size % num_heads:
                raise ConfigurationError(
                    f"relation_heads {num_heads} does not divide the hidden size {config.hidden_size} of the {role}; "
                    "it must divide that of model and teacher"
                )

    def _prepare_teacher(self, config: Any, teacher: Any, args: QuaLATrainingArguments) -> None:
        check_can_be_traced(teacher, "teacher")
        check_full_length(teacher, "teacher")
        taught = teacher.config
        self._check_relation_heads(taught, "teacher", self.full_weights)
        num_layers = (self.num_layers, taught.num_hidden_layers)
        if args.teacher_layers is None:
            layers = uniform_layer_map(*num_layers)
        else:
            layers = check_layer_map(args.teacher_layers, *num_layers)
        self.layer_map = {EMBEDDINGS: EMBEDDINGS, **dict(enumerate(layers))}
        generator = _generator(args)
        for name in self.full_weights:
            loss = AUXILIARY_LOSSES[name]
            if loss.needs_same_heads and taught.num_attention_heads != config.num_attention_heads:
                raise ConfigurationError(
                    f"auxiliary loss {name!r} compares attention heads one by one, but the teacher has "
                    f"{taught.num_attention_heads} and the model {config.num_attention_heads}; 'relations' takes any"
                )
            if loss.projected and taught.hidden_size != config.hidden_size:
                self.projections[name] = _projection(config.hidden_size, taught.hidden_size, generator)

    def _add_critics(
        self, kind: str, weights: Mapping[str, float], teacher: Any, student: Any, args: QuaLATrainingArguments
    ) -> None:
        generator = _generator(args)
        for name in weights:
            if AUXILIARY_LOSSES[name].critic:
                self.critics[f"{kind}_{name}"] = Critic(teacher.hidden_size, student.hidden_size, generator)

    def start_batch(self, seed: str) -> None:
        """Decide the draws of the losses of a batch.

        Args:
            seed: Differs from batch to batch, and is the same when a training is resumed.
        """
        self.options = replace(self.options, contrast=replace(self.options.contrast, seed=seed))

    def _request(self, weights: Mapping[str, float]) -> TraceRequest:
        losses = [AUXILIARY_LOSSES[name] for name in weights]
        layers = [layer for layer in range(EMBEDDINGS, self.num_layers)]
        return TraceRequest(
            frozenset(layer for layer in layers if any(loss.acts_on(layer, self.num_layers) for loss in losses)),
            frozenset(part for loss in losses for part in loss.parts),
        )

    @contextlib.contextmanager
    def record_full_pass(self, model: Any, attention_mask: Tensor, has_sub_models: bool) -> Iterator[Trace]:
        """Record a full-length pass for its own losses and for those of the sub-models that follow.

        Args:
            model: The student, not wrapped.
            attention_mask: That of the batch. *Shape:* `(batch_size, sequence_length)`
            has_sub_models: Sub-models follow.

        Yields:
            The trace.
        """
        weights = self.full_weights | (self.sub_weights if has_sub_models else {})
        with record_trace(model, self._request(weights), attention_mask) as trace:
            yield trace

    @contextlib.contextmanager
    def record_teacher(self, teacher: Any, attention_mask: Tensor) -> Iterator[Trace]:
        """Record what the teacher computes.

        Args:
            teacher: The teacher.
            attention_mask: That of the batch. *Shape:* `(batch_size, sequence_length)`

        Yields:
            The trace.
        """
        request = self._request(self.full_weights)
        layers = frozenset(self.layer_map[layer] for layer in request.layers)
        with record_trace(teacher, replace(request, layers=layers), attention_mask) as trace:
            yield trace

    @contextlib.contextmanager
    def record_sub_model(self, model: Any, attention_mask: Tensor) -> Iterator[Trace]:
        """Record the pass of a sub-model.

        Args:
            model: The student, not wrapped.
            attention_mask: That of the batch. *Shape:* `(batch_size, sequence_length)`

        Yields:
            The trace.
        """
        with record_trace(model, self._request(self.sub_weights), attention_mask) as trace:
            yield trace

    def full_length_losses(self, teacher: Trace, student: Trace) -> dict[str, WeightedLoss]:
        """Compare the full-length pass with the teacher.

        Args:
            teacher: Trace of the teacher.
            student: Trace of the full-length pass.

        Returns:
            Losses by name, summed over layers.
        """
        return self._compare(self.full_weights, teacher, student, self.layer_map)

    def sub_model_losses(self, full: Trace, sub_model: Trace) -> dict[str, WeightedLoss]:
        """Compare a sub-model with the full-length pass of the same step, which gets no gradient from it.

        Args:
            full: Trace of the full-length pass.
            sub_model: Trace of the sub-model.

        Returns:
            Losses by name, summed over the layers that it ran; those that act on none are missing.
        """
        return self._compare(self.sub_weights, full, sub_model, None)

    def _compare(
        self, weights: Mapping[str, float], teacher: Trace, student: Trace, layer_map: Mapping[int, int] | None
    ) -> dict[str, WeightedLoss]:
        sums: dict[str, Tensor] = {}
        for index, learned in student.layers.items():
            names = [name for name in weights if AUXILIARY_LOSSES[name].acts_on(index, self.num_layers)]
            if not names:
                continue
            taught = teacher.layers[index if layer_map is None else layer_map[index]].at_places_of(learned)
            with torch.autocast(learned.rows.valid.device.type, enabled=False):
                for name in names:
                    compared = self._project(name, taught, learned, "sub_model" if layer_map is None else "full")
                    loss = AUXILIARY_LOSSES[name].compute(*compared, self.options)
                    sums[name] = sums[name] + loss if name in sums else loss
        return {name: WeightedLoss(weights[name], loss) for name, loss in sums.items()}

    def _project(
        self, name: str, teacher: LayerTrace, student: LayerTrace, kind: str
    ) -> tuple[LayerTrace, LayerTrace]:
        critic, part = f"{kind}_{name}", AUXILIARY_LOSSES[name].parts[0]
        if critic in self.critics:
            projected = self.critics[critic](teacher.states[part], student.states[part])
            teacher, student = (
                replace(trace, states={part: states})
                for trace, states in zip((teacher, student), projected, strict=True)
            )
        elif kind == "full" and name in self.projections:
            student = replace(student, states={part: self.projections[name](student.states[part].float())})
        return teacher, student


def _projection(width: int, new_width: int, generator: torch.Generator, bias: bool = False) -> nn.Linear:
    projection = nn.Linear(width, new_width, bias=bias, device="meta").to_empty(device="cpu")
    nn.init.normal_(projection.weight, std=width**-0.5, generator=generator)
    if bias:
        nn.init.zeros_(projection.bias)
    return projection


def _generator(args: QuaLATrainingArguments) -> torch.Generator:
    return torch.Generator().manual_seed(args.seed)  # the same in every process, and no other draw changes


__all__ = ["CRITIC_WIDTH", "AuxiliaryLosses", "Critic"]
