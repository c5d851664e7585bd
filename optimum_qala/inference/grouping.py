"""Rows of a batch that run together: those of about the same number of real tokens, without the padding between."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimum_qala.inference.bucket_options import BucketOptions


__all__ = ["PADDING_LOGIT", "Group", "group_rows", "pad_logits", "place_logits", "real_lengths"]

# What a graph that never sees the padding says of it: that the answer is not there.
PADDING_LOGIT = -1e4


@dataclass(frozen=True)
class Group:
    """A batch to run.

    Args:
        rows: Which rows of the caller's batch it holds. *Shape:* `(num_rows,)`
        size: Rows that its graph takes, `num_rows` or more.
        bucket: Tokens that its rows are padded to.
    """

    rows: NDArray[np.intp]
    size: int
    bucket: int


def real_lengths(attention_mask: NDArray[np.int64]) -> NDArray[np.intp]:
    """Count the tokens of each row up to its last real one.

    Args:
        attention_mask: 1 for real tokens. *Shape:* `(batch_size, sequence_length)`

    Returns:
        At least 1 each: a row without a real token keeps one. *Shape:* `(batch_size,)`
    """
    is_real = attention_mask != 0
    lengths = is_real.shape[1] - np.argmax(is_real[:, ::-1], axis=1)
    return np.where(is_real.any(axis=1), lengths, 1)


def pad_logits(logits: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """Add `PADDING_LOGIT` for padding that was left out.

    Args:
        logits: *Shape:* `(batch_size, sequence_length)`
        width: Tokens that are wanted.

    Returns:
        *Shape:* `(batch_size, width)`
    """
    missing = width - logits.shape[1]
    return np.pad(logits, ((0, 0), (0, missing)), constant_values=PADDING_LOGIT) if missing else logits


def place_logits(
    results: dict[str, NDArray[Any]], name: str, logits: NDArray[Any], rows: NDArray[np.intp], shape: tuple[int, int]
) -> None:
    """Copy the logits of a group to its rows of the caller's batch.

    Args:
        results: What is placed so far, by name; an array of `PADDING_LOGIT` is added for a new name.
        name: Name of the output.
        logits: At least those of the group's rows. *Shape:* `(size, length, ...)`
        rows: As in `Group`. *Shape:* `(num_rows,)`
        shape: Rows and tokens of the caller's batch.
    """
    found = logits[: len(rows), : shape[1]]
    if name not in results:
        results[name] = np.full((*shape, *found.shape[2:]), PADDING_LOGIT, dtype=found.dtype)
    results[name][rows, : found.shape[1]] = found


def group_rows(
    attention_mask: NDArray[np.int64], options: BucketOptions, *, any_shape: bool = False
) -> Iterator[Group]:
    """Split a batch into groups whose rows fall into the same bucket.

    A row costs what its own length costs, however long the others are and however far the caller has padded.

    Args:
        attention_mask: 1 for real tokens. *Shape:* `(batch_size, sequence_length)`
        options: The buckets.
        any_shape: The graph runs any number of rows and tokens: groups have as many as they need and no more.

    Returns:
        Groups, the longest rows first.

    Raises:
        ConfigurationError: If a row is longer than the longest bucket.
    """
    lengths = real_lengths(attention_mask)
    buckets = np.array([options.bucket(int(length)) for length in lengths])
    for bucket in np.unique(buckets)[::-1].tolist():
        rows = np.flatnonzero(buckets == bucket)
        first = 0
        for size in (options.split_exactly if any_shape else options.split)(len(rows), bucket):
            chosen = rows[first : first + size]
            yield Group(chosen, size, int(lengths[chosen].max()) if any_shape else bucket)
            first += size
