"""Token blocks to distil on: texts packed into rows of one length, or one text a row, on disk if they are many."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from optimum_qala.errors import ConfigurationError, DataError


# Column that says which block of the data set a row of a batch is.
BLOCK_INDEX = "block_index"
_TOKEN = np.dtype(np.int32)
_CHUNK = 256  # texts that are tokenized at once


@dataclass(frozen=True)
class BlockOptions:
    """How texts become rows of tokens.

    Args:
        max_length: Tokens of the longest row, [CLS] and [SEP] included; 512 as in MiniLMv2.
        packing: Fill every row: texts follow each other with a separator between them and are cut wherever a row is
            full, so nothing is padding but the end of the last row. Otherwise a row holds one text, and a text that is
            too long goes on in the next row.

    Raises:
        ConfigurationError: If a row has no room for a token beside [CLS] and [SEP].
    """

    max_length: int = 512
    packing: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.max_length, bool) or not isinstance(self.max_length, int) or self.max_length < 3:
            raise ConfigurationError(
                f"max_length {self.max_length!r} is not an integer of at least 3: [CLS], one token and [SEP]"
            )


class TextBlocks(Dataset[dict[str, Any]]):
    """Rows of tokens, held as one flat array: 4 bytes a token and 8 a row.

    Args:
        tokens: The tokens of all rows, one after another. *Shape:* `(num_tokens,)`
        ends: Where each row ends in `tokens`. *Shape:* `(num_blocks,)`
    """

    def __init__(self, tokens: NDArray[np.int32], ends: NDArray[np.int64]) -> None:
        self._tokens = tokens
        self._ends = np.concatenate([np.zeros(1, dtype=np.int64), ends])

    @property
    def num_tokens(self) -> int:
        """Tokens of all rows."""
        return int(self._ends[-1])

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return int(np.diff(self._ends).max())

    @property
    def fingerprint(self) -> str:
        """A hexadecimal SHA-256 of tokens and rows."""
        digest = hashlib.sha256(self._ends.tobytes())
        for start in range(0, len(self._tokens), 1 << 20):
            digest.update(self._tokens[start : start + (1 << 20)].tobytes())
        return digest.hexdigest()

    def span(self, index: int) -> tuple[int, int]:
        """Return where a row starts and ends among the tokens of all rows."""
        return int(self._ends[index]), int(self._ends[index + 1])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"block {index} of a data set of {len(self)}")
        index %= len(self)
        ids = self._tokens[slice(*self.span(index))].tolist()
        return {"input_ids": ids, "attention_mask": [1] * len(ids), BLOCK_INDEX: index}


def tokenize_texts(
    texts: Iterable[str], tokenizer: Any, options: BlockOptions | None = None, file: str | Path | None = None
) -> TextBlocks:
    """Turn texts into rows of tokens, as they come.

    Args:
        texts: The texts, for example from `iter_texts`.
        tokenizer: A fast tokenizer.
        options: How; `BlockOptions()` by default.
        file: Write the tokens there and map them into memory, instead of holding them; an existing file is replaced.

    Returns:
        The rows.

    Raises:
        ConfigurationError: If the tokenizer has no [CLS] or no separator.
        DataError: If there is no text.
    """
    for name in ("cls_token_id", "sep_token_id"):
        if getattr(tokenizer, name) is None:
            raise ConfigurationError(
                f"{type(tokenizer).__name__} has no {name}; use the tokenizer of a BERT or RoBERTa shaped model"
            )
    if file is None:
        stream = io.BytesIO()
        ends = _write_blocks(texts, tokenizer, options or BlockOptions(), stream)
        tokens = np.frombuffer(stream.getbuffer(), dtype=_TOKEN)
    else:
        with open(file, "wb") as target:
            ends = _write_blocks(texts, tokenizer, options or BlockOptions(), target)
        tokens = np.memmap(file, dtype=_TOKEN, mode="r") if ends else np.empty(0, dtype=_TOKEN)
    if not ends:
        raise DataError("there is no text to distil on")
    return TextBlocks(tokens, np.array(ends, dtype=np.int64))


def _write_blocks(texts: Iterable[str], tokenizer: Any, options: BlockOptions, stream: IO[bytes]) -> list[int]:
    """Write the rows one after another; return where each ends, in tokens."""
    ends: list[int] = []
    room = options.max_length - 2
    cut = _pack if options.packing else _cut
    for row in cut(_encode(texts, tokenizer), room, tokenizer.sep_token_id):
        ids = np.array([tokenizer.cls_token_id, *row, tokenizer.sep_token_id], dtype=_TOKEN)
        stream.write(ids.tobytes())
        ends.append(len(ids) + (ends[-1] if ends else 0))
    return ends


def _encode(texts: Iterable[str], tokenizer: Any) -> Iterator[list[int]]:
    remaining = iter(texts)
    while chunk := list(islice(remaining, _CHUNK)):
        # Truncation and padding are switched off by name because tokenizer.json may carry its own.
        encoded = tokenizer(chunk, add_special_tokens=False, truncation=False, padding=False, verbose=False)
        yield from filter(None, encoded["input_ids"])


def _pack(encoded: Iterable[list[int]], room: int, separator: int) -> Iterator[list[int]]:
    pending: list[int] = []
    for ids in encoded:
        pending += [separator, *ids] if pending else ids
        start = 0
        while len(pending) - start >= room:
            yield pending[start : start + room]
            start += room
        del pending[:start]
    if pending:
        yield pending


def _cut(encoded: Iterable[list[int]], room: int, separator: int) -> Iterator[list[int]]:
    for ids in encoded:
        yield from (ids[start : start + room] for start in range(0, len(ids), room))


__all__ = ["BLOCK_INDEX", "BlockOptions", "TextBlocks", "tokenize_texts"]
