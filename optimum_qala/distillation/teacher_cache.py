"""Hidden states of a teacher on disk, so that only the first epoch runs it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optimum_qala.errors import ConfigurationError

from .blocks import TextBlocks


_CHECKSUM = np.dtype(np.uint32)


class TeacherCache:
    """Keeps one tensor a block, written when it is first known. Memory holds nothing but the row at hand.

    Each row is stored with a checksum, so that one that an interruption left half-written counts as absent. Several
    processes may share a cache: what two of them write of a row is the same.

    Args:
        folder: Where caches lie; each key has a sub-folder of its own.
        key: JSON values that decide the states beside the blocks: teacher, layer and precision.
        blocks: The data.
        width: Numbers a token.
        dtype: Their type.

    Raises:
        ConfigurationError: If the disk has no room for the states of all blocks.
    """

    def __init__(
        self, folder: str | Path, key: Mapping[str, Any], blocks: TextBlocks, width: int, dtype: torch.dtype
    ) -> None:
        self.blocks, self.width, self.dtype = blocks, width, dtype
        self._token_bytes = width * dtype.itemsize
        described = {**key, "blocks": blocks.fingerprint, "width": width, "dtype": str(dtype)}
        name = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]
        self.path = Path(folder) / name
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "key.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
        self._states, self._checksums = (
            os.open(self.path / file, os.O_RDWR | os.O_CREAT, 0o666) for file in ("states.bin", "checksums.bin")
        )
        self._check_room()

    def _check_room(self) -> None:
        needed = self.blocks.num_tokens * self._token_bytes - os.fstat(self._states).st_blocks * 512
        free = shutil.disk_usage(self.path).free
        if needed > free:
            self.close()
            raise ConfigurationError(
                f"the teacher cache needs {needed / 1e9:.1f} GB for {self.blocks.num_tokens} tokens, but "
                f"{self.path.parent} has {free / 1e9:.1f} GB left; choose another folder, or leave the cache out"
            )

    def read(self, index: int) -> Tensor | None:
        """Return the states of a block.

        Args:
            index: The block.

        Returns:
            The states, or None if they are not there. *Shape:* `(num_tokens, width)`
        """
        stored = os.pread(self._checksums, _CHECKSUM.itemsize, index * _CHECKSUM.itemsize)
        if len(stored) < _CHECKSUM.itemsize or not any(stored):
            return None
        start, end = self.blocks.span(index)
        content = bytearray(os.pread(self._states, (end - start) * self._token_bytes, start * self._token_bytes))
        if _checksum(content) != stored:
            return None
        return torch.frombuffer(content, dtype=self.dtype).view(-1, self.width)

    def write(self, index: int, states: Tensor) -> None:
        """Store the states of a block.

        Args:
            index: The block.
            states: *Shape:* `(num_tokens, width)`
        """
        content = states.detach().to("cpu", self.dtype).contiguous().view(torch.uint8).numpy().tobytes()
        os.pwrite(self._states, content, self.blocks.span(index)[0] * self._token_bytes)
        os.pwrite(self._checksums, _checksum(content), index * _CHECKSUM.itemsize)

    def close(self) -> None:
        """Close the files; the cache stays for the next training."""
        for descriptor in (self._states, self._checksums):
            os.close(descriptor)


def _checksum(content: bytes | bytearray) -> bytes:
    """Return a checksum that is not 0, which stands for no row."""
    return np.array([zlib.crc32(content) or 1], dtype=_CHECKSUM).tobytes()


__all__ = ["TeacherCache"]
