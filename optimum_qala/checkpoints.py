"""Loading BERT, RoBERTa, XLM-R and MiniLM checkpoints, as QuaLA-MiniLM or as they are, and saying what did not fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForQuestionAnswering,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from optimum_qala.errors import CheckpointError
from optimum_qala.models.configuration_quala_minilm import BACKBONE_POSITION_SCHEMES, QuaLAMiniLMConfig
from optimum_qala.models.modeling_quala_minilm import SPAN_HEADS, QuaLAMiniLMForQuestionAnswering


# Parameters that a checkpoint without a span head lacks: fine-tuning creates them.
HEAD_KEYS = frozenset({"qa_outputs.weight", "qa_outputs.bias"})


@dataclass(frozen=True)
class KeyReport:
    """Which parameters a checkpoint and the model do not share.

    Args:
        missing: Parameters of the model that the checkpoint lacks; they were initialised at random, early span heads
            as copies of the span head.
        unexpected: Parameters of the checkpoint that the model has no place for; they were ignored.
        mismatched: Parameters of another shape; they were initialised at random.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]

    @classmethod
    def from_loading_info(cls, info: Mapping[str, Any]) -> KeyReport:
        """Read what `from_pretrained(..., output_loading_info=True)` returns beside the model."""
        return cls(
            missing=tuple(sorted(info["missing_keys"])),
            unexpected=tuple(sorted(info["unexpected_keys"])),
            mismatched=tuple(sorted(str(key[0]) for key in info["mismatched_keys"])),
        )

    @property
    def has_new_head(self) -> bool:
        """True if the span head was initialised at random, so that the model must be fine-tuned before use."""
        return bool(HEAD_KEYS & {*self.missing, *self.mismatched})

    @property
    def has_new_span_heads(self) -> bool:
        """True if an early span head is a copy of the span head, so that it has not been trained where it reads."""
        return any(SPAN_HEADS in name for name in (*self.missing, *self.mismatched))

    def check_heads(self, path: str | Path) -> None:
        """Raise unless every head of the model was trained.

        Args:
            path: Where the checkpoint is, for the message.

        Raises:
            CheckpointError: If the span head or an early span head is new.
        """
        if self.has_new_head:
            raise CheckpointError(
                f"{path} has no trained span head, so its answers would be random; "
                "fine-tune it first: optimum-cli qala train --model ..."
            )
        if self.has_new_span_heads:
            raise CheckpointError(
                f"{path} has no trained early span heads, so it would drop the wrong tokens; "
                "fine-tune it with them first: optimum-cli qala train --token-scoring answer --model ..."
            )

    def check_encoder(self, path: str | Path, is_shallower: bool = False) -> None:
        """Raise unless the checkpoint holds the whole encoder and no more.

        Args:
            path: Where the checkpoint is, for the message.
            is_shallower: The caller wants fewer layers than the checkpoint has.

        Raises:
            CheckpointError: If parameters are missing or left over.
        """
        lost = sorted(name for name in {*self.missing, *self.mismatched} - HEAD_KEYS if SPAN_HEADS not in name)
        surplus = [] if is_shallower else [name for name in self.unexpected if "encoder.layer." in name]
        for names, problem in ((lost, "lacks, or has in another shape,"), (surplus, "holds more than the model has:")):
            if names:
                raise CheckpointError(
                    f"{path} {problem} {len(names)} parameters of the encoder, the first is {names[0]}; "
                    "the checkpoint is damaged or its config.json describes another model"
                )


def load_backbone(path: str | Path, **config_overrides: Any) -> tuple[QuaLAMiniLMForQuestionAnswering, KeyReport]:
    """Load a checkpoint as a QuaLA-MiniLM for question answering.

    Args:
        path: Folder or repository id of a BERT, RoBERTa, XLM-R or QuaLA-MiniLM checkpoint, span head or not.
        config_overrides: Fields of `QuaLAMiniLMConfig` and arguments of `from_pretrained`.

    Returns:
        The model and the parameters that did not fit.

    Raises:
        CheckpointError: If the checkpoint is of another kind, cannot be read, or does not hold the encoder that its
            config.json describes. Fewer layers are taken where `num_hidden_layers` asks for them.
    """
    model, report = _load(QuaLAMiniLMForQuestionAnswering, path, **config_overrides)
    report.check_encoder(path, is_shallower="num_hidden_layers" in config_overrides)
    return model, report


def load_encoder(path: str | Path, revision: str | None = None, **config_overrides: Any) -> Any:
    """Load the encoder of a checkpoint as a model of its own kind, in float32, without its heads and its pooler.

    Args:
        path: Folder or repository id of a BERT, RoBERTa, XLM-R or QuaLA-MiniLM checkpoint.
        revision: Branch, tag or commit of the repository.
        config_overrides: Fields of its configuration to change.

    Returns:
        The encoder.

    Raises:
        CheckpointError: If the checkpoint is of another kind, cannot be read, or does not hold the encoder that its
            config.json describes.
    """
    config = AutoConfig.from_pretrained(path, revision=revision, **config_overrides)
    _check_kind(path, config.model_type)
    options = {"revision": revision, "dtype": torch.float32, **_without_pooler(config.model_type)}
    model, report = _load(AutoModel, path, config=config, **options)
    report.check_encoder(path)
    return model


def load_unchanged(path: str | Path, revision: str | None = None) -> PreTrainedModel:
    """Load a checkpoint as the kind of model that it is, in the precision that it is stored in.

    Args:
        path: Folder or repository id of a BERT, RoBERTa, XLM-R or QuaLA-MiniLM checkpoint.
        revision: Branch, tag or commit of the repository.

    Returns:
        A model for question answering if the checkpoint has a span head, otherwise the encoder alone.

    Raises:
        CheckpointError: If the checkpoint is of another kind, cannot be read, or does not hold the encoder that its
            config.json describes.
    """
    kind = PreTrainedConfig.get_config_dict(path, revision=revision)[0].get("model_type")
    _check_kind(path, kind)
    options: dict[str, Any] = {"revision": revision, "dtype": "auto"}
    model, report = _load(AutoModelForQuestionAnswering, path, **options)
    if report.has_new_head:
        model, report = _load(AutoModel, path, **options, **_without_pooler(kind))
    report.check_encoder(path)
    return model  # type: ignore[no-any-return]


def _load(model_class: Any, path: str | Path, **options: Any) -> tuple[Any, KeyReport]:
    """Load what fits, and say what does not."""
    options = {"output_loading_info": True, "ignore_mismatched_sizes": True} | options
    try:
        model, info = model_class.from_pretrained(path, **options)
    except (SafetensorError, UnpicklingError) as error:
        reason = str(error).partition(". ")[0]
        raise CheckpointError(f"model {path} cannot be loaded: its weights are damaged ({reason})") from error
    return model, KeyReport.from_loading_info(info)


def _without_pooler(kind: str | None) -> dict[str, bool]:
    """Leave out the pooler, which the encoders of others have."""
    return {"add_pooling_layer": False} if kind in BACKBONE_POSITION_SCHEMES else {}


def _check_kind(path: str | Path, kind: str | None) -> None:
    legal = sorted({*BACKBONE_POSITION_SCHEMES, QuaLAMiniLMConfig.model_type})
    if kind not in legal:
        raise CheckpointError(f"{path} holds a {kind!r} checkpoint; legal kinds are {legal}")


def check_tokenizer(model_config: Any, tokenizer: PreTrainedTokenizerBase, path: str | Path) -> None:
    """Raise if a tokenizer does not belong to a model.

    Args:
        model_config: Configuration of the model.
        tokenizer: The tokenizer.
        path: Where the tokenizer came from, for the message.

    Raises:
        CheckpointError: If the vocabularies or the special tokens differ, or there is no tokenizer at all.
    """
    # Where none is stored, transformers makes one up for the kind of model, and it reads every word as unknown.
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise CheckpointError(
            f"{path} has no tokenizer: transformers made up one of {len(tokenizer)} special tokens; save the "
            "tokenizer beside the model"
        )
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


def check_same_tokens(teacher_tokenizer: Any, tokenizer: Any, teacher: str | Path) -> None:
    """Raise if a teacher reads other tokens than its student, even if it reads as many.

    Args:
        teacher_tokenizer: Tokenizer of the teacher.
        tokenizer: Tokenizer of the student.
        teacher: What the message calls the teacher.

    Raises:
        CheckpointError: If their vocabularies differ.
    """
    if teacher_tokenizer.get_vocab() != tokenizer.get_vocab():
        raise CheckpointError(
            f"teacher {teacher} has another vocabulary than the model; both must read the same tokens"
        )
