"""Arguments of `MiniLMDistillationTrainer`: those of transformers' Trainer and the settings of MiniLM."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments

from optimum_qala._checks import check_numbers, check_unchanged
from optimum_qala.errors import ConfigurationError


# Method -> the auxiliary loss that it trains on.
METHODS = {"minilm": "minilm", "minilmv2": "relations"}


@dataclass
class MiniLMDistillationArguments(TrainingArguments):
    """`TrainingArguments` plus what the student learns from the teacher.

    Learning rate, its warm-up, weight decay and epsilon are those of MiniLMv2, which trains for 400,000 steps of 256
    rows.

    Raises:
        ConfigurationError: If a value is not legal.
    """

    method: str = field(
        default="minilmv2",
        metadata={
            "help": "minilmv2: relations of queries, keys and values of one layer. minilm: attention and value "
            "relations of the last layer, with as many attention heads in student and teacher."
        },
    )
    teacher_layer: int | None = field(
        default=None,
        metadata={
            "help": "Layer of the teacher, from 0, that the last layer of the student learns from. If not given, the "
            "last; for minilmv2 and teachers of 24 layers layer 20 of BERT, 18 of others."
        },
    )
    relation_heads: int | None = field(
        default=None,
        metadata={
            "help": "Relation heads of minilmv2, which divide the widths of student and teacher. If not given, the "
            "width of the teacher / 16 (48 for base, 64 for large), or the next lower number that divides both."
        },
    )
    teacher_cache: str | None = field(
        default=None,
        metadata={
            "help": "Folder on disk for the hidden states that the teacher gives, so that it runs once for each block "
            "and not in every epoch. They take 4 bytes x hidden size for every token."
        },
    )
    learning_rate: float = field(default=6e-4, metadata={"help": "Highest learning rate."})
    warmup_steps: float = field(default=0.01, metadata={"help": "Steps, or share of all if below 1."})
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay."})
    adam_epsilon: float = field(default=1e-6, metadata={"help": "Epsilon of AdamW."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not torch.accelerator.is_available():
            self.dataloader_pin_memory = False  # torch would warn that there is no memory to copy to
        check_numbers(self, MiniLMDistillationArguments)
        if self.method not in METHODS:
            raise ConfigurationError(f"method {self.method!r} is not one of {sorted(METHODS)}")
        if self.relation_heads is not None and self.method != "minilmv2":
            raise ConfigurationError(
                f"relation_heads {self.relation_heads} belongs to minilmv2; {self.method} compares attention heads"
            )
        if self.relation_heads is not None and self.relation_heads < 1:
            raise ConfigurationError(f"relation_heads {self.relation_heads} is less than 1")
        if self.torch_compile:
            raise ConfigurationError(
                "distillation records what the layers compute, which torch_compile=True hides; turn it off"
            )
        if self.gradient_checkpointing and (self.gradient_checkpointing_kwargs or {}).get("use_reentrant"):
            raise ConfigurationError(
                "distillation records what the layers compute, which has no gradients under reentrant checkpoints; "
                "set gradient_checkpointing_kwargs={'use_reentrant': False}"
            )
        check_unchanged(self, ["label_smoothing_factor"], "without labels; leave it out")


__all__ = ["METHODS", "MiniLMDistillationArguments"]
