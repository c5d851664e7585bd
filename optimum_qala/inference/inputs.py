"""Inputs of a call, checked before they reach what would fail without saying why, or would not fail at all."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimum_qala.errors import CheckpointError, ConfigurationError
from optimum_qala.question_answering.predictor import position_capacity


__all__ = ["read_inputs"]


def read_inputs(model: Any, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> dict[str, NDArray[Any]]:
    """Make arrays of what a caller gave, and defaults of what was left out.

    Args:
        model: The model that is called; its `config` says what it embeds.
        input_ids: Token ids, as a tensor or an array. *Shape:* `(batch_size, sequence_length)`
        attention_mask: All ones if None. *Shape:* `(batch_size, sequence_length)`
        token_type_ids: Zeros if None. *Shape:* `(batch_size, sequence_length)`

    Returns:
        The three by name. *Shape:* `(batch_size, sequence_length)` each

    Raises:
        CheckpointError: If a token id is outside the vocabulary.
        ConfigurationError: If there is no token, a shape is another one, or the sequence is too long.
    """
    ids = np.asarray(input_ids)
    if ids.ndim != 2 or not ids.size:
        raise ConfigurationError(
            f"input_ids have the shape {ids.shape}; give (batch_size, sequence_length), with one token or more"
        )
    given = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids) if attention_mask is None else np.asarray(attention_mask),
        "token_type_ids": np.zeros_like(ids) if token_type_ids is None else np.asarray(token_type_ids),
    }
    for name, array in given.items():
        if array.shape != ids.shape:
            raise ConfigurationError(
                f"{name} has the shape {array.shape}, but input_ids have {ids.shape}; give one value for each token"
            )
    _check_ids(model, ids)
    return given


def _check_ids(model: Any, ids: NDArray[np.int64]) -> None:
    # OpenVINO reads past the end of an embedding table without any error.
    limit = position_capacity(model)
    if limit is not None and ids.shape[1] > limit:
        raise ConfigurationError(
            f"a sequence of {ids.shape[1]} tokens exceeds the {limit} positions of the model; "
            "use windows of at most that many tokens"
        )
    if not 0 <= ids.min() <= ids.max() < model.config.vocab_size:
        raise CheckpointError(
            f"input_ids go from {ids.min()} to {ids.max()}, but the model embeds tokens 0 to "
            f"{model.config.vocab_size - 1}; use the tokenizer that the model was trained with"
        )
