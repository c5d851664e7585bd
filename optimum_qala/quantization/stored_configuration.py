"""The JSON file beside a quantized model that says how it was quantized."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

from transformers.utils import logging

from optimum_qala._folders import write_json
from optimum_qala.errors import CheckpointError, ConfigurationError


__all__ = ["freeze_lists", "read_configuration", "write_configuration"]

logger = logging.get_logger(__name__)

T = TypeVar("T")


def write_configuration(configuration: Any, file: Path) -> Path:
    """Write a dataclass, complete or not at all.

    Args:
        configuration: The dataclass.
        file: The file.

    Returns:
        The file.
    """
    write_json(file, asdict(configuration))
    return file


def read_configuration(kind: type[T], file: str | Path) -> T:
    """Read a dataclass. Fields that this version does not know are left out, with a warning.

    Args:
        kind: The dataclass.
        file: The file.

    Returns:
        An object of that kind.

    Raises:
        CheckpointError: If the file does not exist, is damaged or holds an illegal value.
    """
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({error.strerror}); was the model quantized?") from error
    except ValueError as error:
        raise CheckpointError(f"{file} is not JSON ({error}); quantize the model again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds a {type(content).__name__}, not an object; quantize the model again")
    known = {item.name for item in fields(kind)} & set(content)  # type: ignore[arg-type]
    if unknown := sorted(set(content) - known):  # of a newer version: no reason not to run the model
        logger.warning(f"{file} holds {unknown}, which this version of optimum-qala does not know")
    try:
        return kind(**{name: content[name] for name in known})
    except (ConfigurationError, TypeError) as error:
        raise CheckpointError(f"{file}: {error}") from error


def freeze_lists(configuration: Any, names: Iterable[str]) -> None:
    """Make tuples of a frozen dataclass's lists, in place: JSON knows no tuples.

    Args:
        configuration: The dataclass.
        names: Its fields that hold lists, or None.

    Raises:
        ConfigurationError: If one holds text instead.
    """
    for name in names:
        value = getattr(configuration, name)
        if isinstance(value, str):
            raise ConfigurationError(f"{name} {value!r} is not a list")
        object.__setattr__(configuration, name, None if value is None else tuple(value))
