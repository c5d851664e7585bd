"""A logger that says nothing while it is in somebody's way."""

from __future__ import annotations

import logging
import threading


__all__ = ["Silence"]


class Silence:
    """Context that turns a logger off. Threads may enter it at the same time; the last one out turns it on again.

    Args:
        name: The logger.
    """

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)
        self._lock = threading.Lock()
        self._num_inside = 0
        self._was_disabled = False

    def __enter__(self) -> None:
        with self._lock:
            if self._num_inside == 0:
                self._was_disabled = self._logger.disabled
            self._num_inside += 1
            self._logger.disabled = True

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._num_inside -= 1
            if self._num_inside == 0:
                self._logger.disabled = self._was_disabled
