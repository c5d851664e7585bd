"""Turning plain BERT, RoBERTa, XLM-R and MiniLM checkpoints into QuaLA-MiniLM, and saying what did not fit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from optimum_qala.errors import CheckpointError
from optimum_qala.models.modeling_quala_minilm import QuaLAMiniLMForQuestionAnswering


# Parameters that a checkpoint without a span head lacks: fine-tuning creates them.
HEAD_KEYS = frozenset({"qa_outputs.weight", "qa_outputs.bias"})


@dataclass(frozen=True)
class KeyReport:
    """Which parameters a checkpoint and the model do not share.

    Args:
        missing: Parameters of the model that the checkpoint lacks; they were initialised at random.
        unexpected: Parameters of the checkpoint that the model has no place for; they were ignored.
        mismatched: Parameters of another shape; they were initialised at random.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]

    @property
    def has_new_head(self) -> bool:
        """True if the span head was initialised at random, so that the model must be fine-tuned before use."""
        return bool(HEAD_KEYS & {*self.missing, *self.mismatched})


def load_backbone(path: str | Path, **config_overrides: Any) -> tuple[QuaLAMiniLMForQuestionAnswering, KeyReport]:
    """Load a checkpoint as a QuaLA-MiniLM for question answering.

    Args:
        path: Folder or repository id of a BERT, RoBERTa, XLM-R or QuaLA-MiniLM checkpoint, span head or not.
        config_overrides: Fields of `QuaLAMiniLMConfig` and arguments of `from_pretrained`.

    Returns:
        The model and the parameters that did not fit.

    Raises:
        CheckpointError: If the checkpoint is of another kind, or lacks parameters of the encoder.
    """
    model, info = QuaLAMiniLMForQuestionAnswering.from_pretrained(path, output_loading_info=True, **config_overrides)
    report = KeyReport(
        missing=tuple(sorted(info["missing_keys"])),
        unexpected=tuple(sorted(info["unexpected_keys"])),
        mismatched=tuple(sorted(str(key[0]) for key in info["mismatched_keys"])),
    )
    lost = sorted({*report.missing, *report.mismatched} - HEAD_KEYS)
    if lost:
        raise CheckpointError(
            f"{path} lacks {len(lost)} parameters of the encoder, the first is {lost[0]}; "
            "the checkpoint is damaged or its config.json describes another model"
        )
    return model, report


def check_tokenizer(model_config: Any, tokenizer: PreTrainedTokenizerBase, path: str | Path) -> None:
    """Raise if a tokenizer does not belong to a model.

    Args:
        model_config: Configuration of the model.
        tokenizer: The tokenizer.
        path: Where the tokenizer came from, for the message.

    Raises:
        CheckpointError: If the vocabularies or the special tokens differ.
    """
    if len(tokenizer) > model_config.vocab_size:
        raise CheckpointError(
            f"the tokenizer of {path} has {len(tokenizer)} tokens, but the model embeds only "
            f"{model_config.vocab_size}; load the tokenizer that the model was trained with"
        )
    for name in ("pad_token_id", "sep_token_id"):
        expected, given = getattr(model_config, name, None), getattr(tokenizer, name)
        if expected is not None and given != expected:
            raise CheckpointError(
                f"{name} is {given} in the tokenizer of {path}, but {expected} in the model's config.json; "
                "load the tokenizer that the model was trained with"
            )
