"""Model inputs: padded batches of windows, and a training set of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from optimum_qala.errors import ConfigurationError, DataError
from optimum_qala.question_answering.records import QARecord
from optimum_qala.question_answering.windows import Window, WindowOptions, make_windows


__all__ = [
    "Window",
    "WindowDataset",
    "WindowOptions",
    "collate",
    "make_windows",
    "padded_length",
    "tokenize_for_training",
]


class WindowDataset(Dataset[dict[str, Any]]):
    """Training windows, held as flat arrays: 4 to 5 bytes a token.

    Args:
        windows: Windows made `with_positions`.
    """

    def __init__(self, windows: Sequence[Window]) -> None:
        lengths = [len(window) for window in windows]
        self._ends = np.cumsum([0, *lengths])
        self._input_ids = np.concatenate([np.array(window.input_ids, dtype=np.int32) for window in windows])
        self._type_ids: NDArray[np.int8] | None = None
        if windows[0].token_type_ids is not None:
            self._type_ids = np.concatenate([np.array(window.token_type_ids, dtype=np.int8) for window in windows])
        self._positions = np.array(
            [(window.start_position, window.end_position) for window in windows], dtype=np.int32
        )
        self.record_indices: list[int] = [window.record_index for window in windows]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each window, for sampling by length."""
        lengths: list[int] = np.diff(self._ends).tolist()
        return lengths

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"window {index} of a data set of {len(self)}")
        index %= len(self)
        part = slice(self._ends[index], self._ends[index + 1])
        ids = self._input_ids[part].tolist()
        item: dict[str, Any] = {"input_ids": ids, "attention_mask": [1] * len(ids)}
        if self._type_ids is not None:
            item["token_type_ids"] = self._type_ids[part].tolist()
        item["start_positions"], item["end_positions"] = self._positions[index].tolist()
        return item


def tokenize_for_training(
    records: Sequence[QARecord], tokenizer: Any, options: WindowOptions | None = None, chunk_size: int = 2048
) -> WindowDataset:
    """Make a training set: one item per window, with the positions of the answer.

    Args:
        records: Records with answers or `is_impossible`.
        tokenizer: A fast tokenizer.
        options: How to cut; `WindowOptions()` by default.
        chunk_size: Records that are tokenized at once; bounds the memory, does not change the result.

    Returns:
        A map-style data set of dictionaries with lists `input_ids`, `attention_mask`, (`token_type_ids`) and integers
        `start_positions`, `end_positions`; [CLS] where the window does not hold the whole answer.

    Raises:
        DataError: If there are no records, or as `make_windows`.
    """
    if not records:
        raise DataError("there are no records to train on, got an empty list")
    windows: list[Window] = []
    for start in range(0, len(records), chunk_size):
        for window in make_windows(records[start : start + chunk_size], tokenizer, options, with_positions=True):
            window.record_index += start
            windows.append(window)
    return WindowDataset(windows)


def collate(
    items: Sequence[Window | dict[str, Any]],
    tokenizer: Any,
    pad_to_multiple_of: int | None = None,
    pad_to_length: int | None = None,
) -> dict[str, torch.Tensor]:
    """Pad windows on the right to a common length and stack them.

    Args:
        items: Windows, or the dictionaries of a `WindowDataset`.
        tokenizer: Gives the padding ids.
        pad_to_multiple_of: Round the length of the longest up to a multiple of this.
        pad_to_length: Pad to exactly this length instead.

    Returns:
        `input_ids`, `attention_mask` and, if the items have them, `token_type_ids`, each (batch_size,
        sequence_length), and `start_positions`, `end_positions`, (batch_size,); all int64.

    Raises:
        ConfigurationError: If there are no items, a window is longer than `pad_to_length`, both paddings are given or
            one is not positive, or the tokenizer has no padding token.
    """
    if not items:
        raise ConfigurationError("collate needs at least one window, got none")
    if tokenizer.pad_token_id is None:
        raise ConfigurationError(f"{type(tokenizer).__name__} has no padding token; set tokenizer.pad_token")
    rows = [_as_dict(item) if isinstance(item, Window) else item for item in items]
    longest = max(len(row["input_ids"]) for row in rows)
    length = padded_length(longest, pad_to_multiple_of, pad_to_length)
    padding = {"input_ids": tokenizer.pad_token_id, "attention_mask": 0, "token_type_ids": tokenizer.pad_token_type_id}
    batch: dict[str, torch.Tensor] = {}
    for name, value in padding.items():
        if name not in rows[0]:
            continue
        array = np.full((len(rows), length), value, dtype=np.int64)
        for index, row in enumerate(rows):
            array[index, : len(row[name])] = row[name]
        batch[name] = torch.from_numpy(array)
    for name in ("start_positions", "end_positions"):
        if name in rows[0]:
            batch[name] = torch.tensor([int(row[name]) for row in rows], dtype=torch.int64)
    return batch


def _as_dict(window: Window) -> dict[str, Any]:
    row: dict[str, Any] = {"input_ids": window.input_ids, "attention_mask": [1] * len(window)}
    if window.token_type_ids is not None:
        row["token_type_ids"] = window.token_type_ids
    if window.start_position is not None:
        row["start_positions"], row["end_positions"] = window.start_position, window.end_position
    return row


def padded_length(longest: int, pad_to_multiple_of: int | None, pad_to_length: int | None) -> int:
    """Length that a batch is padded to.

    Args:
        longest: Tokens of the longest window.
        pad_to_multiple_of: Round up to a multiple of this.
        pad_to_length: The length itself.

    Returns:
        The padded length.

    Raises:
        ConfigurationError: As `collate`.
    """
    for name, value in (("pad_to_multiple_of", pad_to_multiple_of), ("pad_to_length", pad_to_length)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ConfigurationError(f"{name} {value!r} is not a positive integer")
    if pad_to_multiple_of is not None and pad_to_length is not None:
        raise ConfigurationError(
            f"pad_to_multiple_of {pad_to_multiple_of} and pad_to_length {pad_to_length} exclude each other; give one"
        )
    if pad_to_length is not None:
        if longest > pad_to_length:
            raise ConfigurationError(
                f"a window of {longest} tokens does not fit pad_to_length {pad_to_length}; raise it to max_length"
            )
        return pad_to_length
    multiple = pad_to_multiple_of or 1
    return -(-longest // multiple) * multiple
