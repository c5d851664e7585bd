"""Making the configuration of a plain BERT, RoBERTa or XLM-R checkpoint that of a QuaLA-MiniLM."""

from __future__ import annotations

from typing import Any

from transformers import AutoTokenizer, PreTrainedConfig
from transformers.utils import logging

from .configuration_quala_minilm import QuaLAMiniLMConfig


__all__ = ["HUB_ARGUMENTS", "convert_config"]

logger = logging.get_logger(__name__)

# Arguments of from_pretrained that say where a checkpoint is, hence go to its configuration and tokenizer too.
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


def convert_config(
    backbone: PreTrainedConfig, path: Any, hub: dict[str, Any], kwargs: dict[str, Any]
) -> QuaLAMiniLMConfig:
    """Convert the configuration of a checkpoint.

    Args:
        backbone: Its configuration.
        path: Folder or repository id of the checkpoint, whose tokenizer names the separator; None if there is none.
        hub: Those of `HUB_ARGUMENTS` that were given.
        kwargs: Arguments of `from_pretrained`; fields of `QuaLAMiniLMConfig` are taken out and win.

    Returns:
        The configuration.

    Raises:
        CheckpointError: If the backbone is of another kind, or uses relative positions.
        ConfigurationError: If a field has a value that is not legal.
    """
    fields = set(QuaLAMiniLMConfig.__dataclass_fields__) - {"dtype"}  # which says how to load, not what
    overrides = {name: kwargs.pop(name) for name in fields & set(kwargs)}
    reason = None
    if "sep_token_id" not in overrides and path is not None:
        separator, reason = _find_separator(path, hub)
        if separator is not None:
            overrides["sep_token_id"] = separator
    config = QuaLAMiniLMConfig.from_backbone_config(backbone, **overrides)
    if reason is not None and "sep_token_id" not in overrides:
        logger.warning(
            f"{path}: no separator from its tokenizer ({reason}), so token {config.sep_token_id}, the usual one, "
            "is taken to end the question; pass sep_token_id if it is another"
        )
    return config


def _find_separator(path: Any, hub: dict[str, Any]) -> tuple[int | None, str]:
    """Return the separator that the tokenizer beside a checkpoint names, or None and the reason."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **hub)
    except (OSError, ValueError, KeyError, ImportError) as error:
        return None, str(error).strip().partition("\n")[0]
    # Where no tokenizer is stored, transformers makes one up that knows special tokens only, under numbers of its own.
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        return None, "there is none"
    return tokenizer.sep_token_id, "it names none"
