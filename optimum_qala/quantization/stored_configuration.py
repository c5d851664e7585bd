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


__all__ = ["choose_configuration", "freeze_lists", "read_configuration", "write_configuration"]

logger = logging.get_logger(__name__)

T = TypeVar("T")


def choose_configuration(kind: type[T], given: Any) -> T:
    """Take what was given, or the defaults.

    Args:
        kind: The dataclass of a back end.
        given: An object of it, or None.

    Returns:
        An object of that kind.

    Raises:
        ConfigurationError: If it is something else, as the configuration of another back end.
    """
    if given is None:
        return kind()
    if not isinstance(given, kind):
        raise ConfigurationError(f"config is a {type(given).__name__}; this quantizer takes a {kind.__name__}")
    return given


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


def read_configuration(kind: type[T], file: str | Path, foreign: str) -> T:
    """Read a dataclass. Fields that this version does not know are left out, with a warning.

    Args:
        kind: The dataclass.
        file: The file.
        foreign: A field that only the configuration of another back end has.

    Returns:
        An object of that kind.

    Raises:
        CheckpointError: If the file does not exist, is damaged, holds an illegal value or is of another back end.
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
    if foreign in content:
        raise CheckpointError(
            f"{file} holds {foreign!r}, so it is of another back end; give the file that "
            f"{kind.__name__}.save_pretrained wrote"
        )
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
