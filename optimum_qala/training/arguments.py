"""Arguments of `QuaLATrainer`: those of transformers' Trainer and the settings of length-adaptive training."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from optimum_qala._checks import check_numbers, check_unchanged
from optimum_qala.distillation.auxiliary import AUXILIARY_LOSSES, parse_loss_weights
from optimum_qala.distillation.divergences import check_divergence
from optimum_qala.distillation.mutual_information import ContrastOptions
from optimum_qala.errors import ConfigurationError
from optimum_qala.quantization.configuration import DEFAULT_OUTLIER_FACTOR
from optimum_qala.quantization.rounding import WEIGHT_BITS
from optimum_qala.training.recipe import load_recipe, override, save_recipe


@dataclass
class QuaLATrainingArguments(TrainingArguments):
    """`TrainingArguments` plus LengthDrop, LayerDrop, early exits, deep supervision and in-place distillation.

    Every optimisation step runs the full-length model on the labels and then sub-models, which learn from the
    full-length model's logits: the smallest one and a few random ones (sandwich rule). In a model with early span
    heads the full-length pass trains these too, on the labels and on its own final logits (deep supervision). Settings
    of the published recipe, where they differ from the defaults: `num_random_sub_models=2`, `layer_drop_prob=0.2`,
    `divergence="reverse"`.

    Raises:
        ConfigurationError: If a value is not legal.
    """

    drop_ratio_bound: float = field(
        default=0.2, metadata={"help": "Largest share of its tokens that a layer drops in a sub-model."}
    )
    smallest_sub_model: bool = field(
        default=True, metadata={"help": "Run the smallest sub-model in every step (sandwich rule)."}
    )
    num_random_sub_models: int = field(default=1, metadata={"help": "Random sub-models in every step."})
    layer_drop_prob: float = field(
        default=0.0, metadata={"help": "Probability with which a sub-model skips each layer (LayerDrop)."}
    )
    deep_supervision_weight: float = field(
        default=1.0,
        metadata={"help": "Weight of the early span heads' loss beside that of the full-length model, if it has any."},
    )
    early_exit_prob: float = field(
        default=0.0, metadata={"help": "Probability with which a random sub-model stops at an early span head."}
    )
    min_exit_layer: int = field(
        default=1,
        metadata={
            "help": "Fewest layers that a sub-model runs. Span heads before it learn only where tokens may be dropped."
        },
    )
    divergence: str = field(
        default="forward",
        metadata={"help": "How sub-models learn from the full-length model: forward, reverse or skew KL."},
    )
    skew: float = field(default=0.1, metadata={"help": "Share of the full-length model in the mixture of skew KL."})
    temperature: float = field(default=1.0, metadata={"help": "Divides logits before they are compared."})
    sub_model_label_weight: float = field(
        default=0.0, metadata={"help": "Share of the labels in a sub-model's loss; the rest is distillation."}
    )
    teacher_weight: float = field(
        default=0.5, metadata={"help": "Share of the teacher in the full-length model's loss, where one is given."}
    )
    auxiliary_losses: dict[str, float] | str | None = field(
        default=None,
        metadata={
            "help": "Losses between the layers of the full-length model and those of the teacher, with their weights: "
            "a mapping, or text such as hidden_states=1,relations=0.5."
        },
    )
    sub_model_auxiliary_losses: dict[str, float] | str | None = field(
        default=None,
        metadata={"help": "The same between the layers of sub-models and those of the full-length model."},
    )
    teacher_layers: list[int] | None = field(
        default=None,
        metadata={
            "help": "Layer of the teacher, from 0, that each layer of the model learns from; spread evenly if not "
            "given."
        },
    )
    relation_heads: int | None = field(
        default=None,
        metadata={"help": "Relation heads of the loss 'relations'; as many as attention heads if not given."},
    )
    mutual_information_alpha: float = field(
        default=ContrastOptions.alpha,
        metadata={"help": "Bound of the loss 'mutual_information': from 0, NWJ, to 1, InfoNCE."},
    )
    mutual_information_tokens: int = field(
        default=ContrastOptions.max_tokens,
        metadata={"help": "Most tokens of a batch that the loss 'mutual_information' compares with each other."},
    )
    quantization_aware: bool = field(
        default=False,
        metadata={"help": "Round weights and activations in every pass as an int8 model does, so that it learns to."},
    )
    weight_bits: int = field(
        default=8, metadata={"help": "Bits of the rounded weights of the layers: 8, 4, or 2 for ternary weights."}
    )
    outlier_factor: float = field(
        default=DEFAULT_OUTLIER_FACTOR,
        metadata={
            "help": "Neurons whose activations exceed what is usual in their layer by this factor are not rounded; 0 "
            "rounds all."
        },
    )
    range_averaging: float = field(
        default=0.1, metadata={"help": "Weight of the last step in the ranges of the rounded activations."}
    )
    eval_budgets: list[str] = field(
        default_factory=list,
        metadata={"help": "Budgets besides full length to evaluate at: names or ratios such as 1,1,0.8,0.8,0.5,0.5."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not torch.accelerator.is_available():
            self.dataloader_pin_memory = False  # torch would warn that there is no memory to copy to
        if isinstance(self.eval_budgets, str):
            raise ConfigurationError(
                f"eval_budgets {self.eval_budgets!r} is one text; give a list, such as [{self.eval_budgets!r}]"
            )
        check_numbers(self, QuaLATrainingArguments)
        check_unchanged(self, ["label_smoothing_factor"], "on the loss of spans; leave it out")
        check_divergence(self.divergence, self.temperature, self.skew)
        if self.divergence != "skew":
            check_unchanged(self, ["skew"], "without divergence='skew'; leave it out, or choose that")
        ContrastOptions(self.mutual_information_alpha, self.mutual_information_tokens)  # checks both
        self._check_quantization()
        self._check_ranges()
        for name in ("auxiliary_losses", "sub_model_auxiliary_losses"):
            setattr(self, name, parse_loss_weights(name, getattr(self, name)))
        self._check_losses()

    def _check_losses(self) -> None:
        losses = {*self.auxiliary_losses, *self.sub_model_auxiliary_losses}  # type: ignore[misc]
        for reads, names in (
            ("uses_relation_heads", ["relation_heads"]),
            ("critic", ["mutual_information_alpha", "mutual_information_tokens"]),
        ):
            readers = sorted(name for name, loss in AUXILIARY_LOSSES.items() if getattr(loss, reads))
            if losses.isdisjoint(readers):
                check_unchanged(
                    self, names, f"without one of the losses {readers}; leave it out, or name one in auxiliary_losses"
                )

    def _check_ranges(self) -> None:
        if self.num_random_sub_models < 0:
            raise ConfigurationError(
                f"num_random_sub_models {self.num_random_sub_models} is negative; 0 turns them off"
            )
        for name in ("drop_ratio_bound", "layer_drop_prob"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigurationError(f"{name} {getattr(self, name)} is not in [0, 1)")
        if not 0.0 <= self.deep_supervision_weight < float("inf"):
            raise ConfigurationError(
                f"deep_supervision_weight {self.deep_supervision_weight} is not a number of at least 0; 0 turns it off"
            )
        for name in ("min_exit_layer", "relation_heads"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigurationError(f"{name} {getattr(self, name)} is less than 1")
        for name in ("sub_model_label_weight", "teacher_weight", "early_exit_prob"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigurationError(f"{name} {getattr(self, name)} is not in [0, 1]")

    def _check_quantization(self) -> None:
        if self.weight_bits not in WEIGHT_BITS:
            raise ConfigurationError(f"weight_bits {self.weight_bits!r} is not one of {list(WEIGHT_BITS)}")
        if not (self.outlier_factor == 0.0 or 1.0 < self.outlier_factor < float("inf")):
            raise ConfigurationError(
                f"outlier_factor {self.outlier_factor!r} is not above 1; 0 rounds the activations of all neurons"
            )
        if not 0.0 < self.range_averaging <= 1.0:
            raise ConfigurationError(f"range_averaging {self.range_averaging!r} is not in (0, 1]")
        if self.quantization_aware and self.torch_compile:
            raise ConfigurationError(
                "quantization_aware=True changes what the layers compute, which torch_compile=True hides; turn one "
                "of them off"
            )
        if not self.quantization_aware:
            settings = ("weight_bits", "outlier_factor", "range_averaging")
            check_unchanged(self, settings, "without quantization_aware=True; leave it out, or turn that on")

    @classmethod
    def from_recipe(cls, path: str | Path, **arguments: Any) -> QuaLATrainingArguments:
        """Make arguments of a recipe.

        Args:
            path: YAML file with fields of these arguments, see `load_recipe`.
            arguments: Fields; those that the recipe has too win over it.

        Returns:
            The arguments.

        Raises:
            ConfigurationError: If the recipe cannot be read, or a value is not legal.
        """
        return cls(**override(load_recipe(path, cls), arguments))

    def save_recipe(self, path: str | Path) -> None:
        """Write the recipe of a training with these arguments, defaults included.

        Args:
            path: The YAML file; it is overwritten.
        """
        save_recipe(self, path)

    @property
    def num_sub_models(self) -> int:
        """Sub-model passes in every step; 0 means that length-adaptive training is off."""
        is_adaptive = self.drop_ratio_bound > 0.0 or self.layer_drop_prob > 0.0 or self.early_exit_prob > 0.0
        return (int(self.smallest_sub_model) + self.num_random_sub_models) if is_adaptive else 0
