"""What a search has measured so far, kept in a JSON file so that a killed search loses nothing."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optimum_qala.errors import ConfigurationError, LengthConfigError, SearchStoreError
from optimum_qala.models.length_config import LengthConfig


__all__ = ["EvaluationStore", "content_hash"]

FORMAT = "optimum-qala search store"
FORMAT_VERSION = 1
# Ratios that agree to this many decimals are one config: finer differences never move a token count.
KEY_DECIMALS = 6

_Key = tuple[tuple[float, ...], int | None]


@dataclass
class _Record:
    cost: float | None = None
    score: float | None = None
    details: dict[str, float] = field(default_factory=dict)


def content_hash(paths: Iterable[str | Path]) -> str:
    """Hash the content of files, to fingerprint a model or a data set by what it holds and not by where it lies.

    Args:
        paths: Files, in an order that stays the same.

    Returns:
        A hexadecimal SHA-256.
    """
    digest = hashlib.sha256()
    for path in paths:
        of_file = hashlib.sha256()
        with open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                of_file.update(chunk)
        digest.update(of_file.digest())
    return digest.hexdigest()


class EvaluationStore:
    """Costs and scores of the `LengthConfig`s that a search has measured.

    The file carries a fingerprint of everything that decides a cost or a score: the model, the data, the settings of
    the evaluation. The options of the search itself (seed, iterations) do not belong there, so a longer search or one
    with another seed reuses what an earlier one measured. Opening reads and never writes; `save` writes a temporary
    file and renames it, so the file is whole at every moment.

    Args:
        path: The JSON file. It and its folder are created by the first `save`.
        fingerprint: JSON values by name, for example {"model": ..., "data": ..., "cost": "macs"}.

    Raises:
        SearchStoreError: If the file exists and is corrupt, or was made with another fingerprint.
        ConfigurationError: If the fingerprint has no JSON form.
    """

    def __init__(self, path: str | Path, fingerprint: Mapping[str, Any]) -> None:
        self.path = Path(path)
        try:
            # Through JSON and back, so that a tuple equals the list that the file holds.
            self.fingerprint: dict[str, Any] = json.loads(json.dumps(dict(fingerprint), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"the fingerprint of a search store must be JSON values: {error}") from None
        self._records: dict[_Key, _Record] = {}
        self._is_dirty = False
        if self.path.exists():
            self._read()

    def __len__(self) -> int:
        """Count the configs that have a score."""
        return sum(record.score is not None for record in self._records.values())

    def get_cost(self, length_config: LengthConfig) -> float | None:
        """Return the stored cost of a config, or None."""
        return self._records.get(_key(length_config), _Record()).cost

    def get_score(self, length_config: LengthConfig) -> float | None:
        """Return the stored score of a config, or None."""
        return self._records.get(_key(length_config), _Record()).score

    def get_details(self, length_config: LengthConfig) -> dict[str, float]:
        """Return what else was stored of a config, empty if nothing was."""
        return dict(self._records.get(_key(length_config), _Record()).details)

    def put(
        self,
        length_config: LengthConfig,
        *,
        cost: float | None = None,
        score: float | None = None,
        details: Mapping[str, float] | None = None,
    ) -> None:
        """Remember a cost, a score or both; what is None stays as it is. Call `save` to write the file.

        Args:
            length_config: The config they belong to.
            cost: Its cost.
            score: Its score.
            details: Further numbers that came with them, by name.

        Raises:
            ConfigurationError: If a number is not finite; the file could not be read again.
        """
        for name, value in (("cost", cost), ("score", score), *(details or {}).items()):
            if value is not None and not math.isfinite(value):
                raise ConfigurationError(f"the {name} of LengthConfig {length_config} is {value}; it must be finite")
        record = self._records.setdefault(_key(length_config), _Record())
        record.cost = record.cost if cost is None else float(cost)
        record.score = record.score if score is None else float(score)
        record.details |= details or {}
        self._is_dirty = True

    def forget_costs(self) -> None:
        """Drop every cost, where they come from elsewhere than those that follow; scores stay."""
        for record in self._records.values():
            self._is_dirty |= record.cost is not None
            record.cost = None

    def save(self) -> None:
        """Write the file if something changed since it was last written or read."""
        if not self._is_dirty:
            return
        document = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "fingerprint": self.fingerprint,
            "evaluations": [
                {**LengthConfig(*key).to_budget(), **vars(record)} for key, record in self._records.items()
            ],
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # The process id keeps two searches apart that were pointed at one file by mistake.
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        try:
            with open(temporary, "w", encoding="utf-8") as file:
                json.dump(document, file, separators=(",", ":"))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        self._is_dirty = False

    def _read(self) -> None:
        try:
            document = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise self._corrupt(str(error)) from None
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise self._corrupt(f'it has no "format": "{FORMAT}"')
        if document.get("version") != FORMAT_VERSION:
            raise self._corrupt(f"its version is {document.get('version')!r}, this release reads {FORMAT_VERSION}")
        fingerprint, evaluations = document.get("fingerprint"), document.get("evaluations")
        if not isinstance(fingerprint, dict) or not isinstance(evaluations, list):
            raise self._corrupt("it needs a fingerprint and a list of evaluations")
        self._check_fingerprint(fingerprint)
        for index, entry in enumerate(evaluations):
            try:
                key = _key(LengthConfig(tuple(entry["retention"]), entry.get("exit_layer")))
                details = {str(name): float(value) for name, value in entry.get("details", {}).items()}
                record = _Record(_number(entry["cost"]), _number(entry["score"]), details)
            except (LengthConfigError, AttributeError, KeyError, TypeError, ValueError) as error:
                raise self._corrupt(f"evaluation {index}: {type(error).__name__}: {error}") from None
            if key in self._records:
                raise self._corrupt(f"evaluation {index} repeats LengthConfig {LengthConfig(*key)}")
            self._records[key] = record

    def _check_fingerprint(self, found: Mapping[str, Any]) -> None:
        wanted = self.fingerprint
        names = [name for name in sorted({*found, *wanted}) if found.get(name) != wanted.get(name)]
        if names:
            there = ", ".join(f"{name}={found.get(name)!r}" for name in names)
            here = ", ".join(f"{name}={wanted.get(name)!r}" for name in names)
            raise SearchStoreError(
                f"search store {self.path} was made with {there}, but this search has {here}; its scores would be "
                "wrong here: choose another output or move the file away"
            )

    def _corrupt(self, reason: str) -> SearchStoreError:
        return SearchStoreError(
            f"search store {self.path} cannot be read: {reason}. It was left as it is; move it away to start afresh"
        )


def _key(length_config: LengthConfig) -> _Key:
    return tuple(round(ratio, KEY_DECIMALS) for ratio in length_config.retention), length_config.exit_layer


def _number(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{value!r} is not a finite number")
    return float(value)
