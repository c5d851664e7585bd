"""The JSON file beside a quantized model that says how it was quantized."""

from __future__ import annotations

import json
import numbers
import re
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

from transformers.utils import logging

from optimum_qala._folders import replacing
from optimum_qala.errors import CheckpointError, ConfigurationError


__all__ = [
    "check_choices",
    "check_count",
    "check_number",
    "check_numbers",
    "check_patterns",
    "check_unchanged",
    "freeze_lists",
    "read_configuration",
    "write_configuration",
]

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
    with replacing(file) as temporary:
        temporary.write_text(json.dumps(asdict(configuration), indent=2) + "\n", encoding="utf-8")
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


def check_count(name: str, value: Any) -> None:
    """Raise unless a value counts something.

    Args:
        name: What the message calls it.
        value: The value.

    Raises:
        ConfigurationError: If it is not a positive integer.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"{name} {value!r} is not a positive integer")


def check_numbers(configuration: Any, kind: type) -> None:
    """Raise unless fields that are numbers hold numbers, and whole ones where they count.

    Args:
        configuration: A dataclass.
        kind: Its class, or the one of its parents whose own fields are looked at.

    Raises:
        ConfigurationError: If one holds something else, as text.
    """
    for name, annotation in kind.__annotations__.items():
        value = getattr(configuration, name)
        if annotation == "float":
            check_number(name, value)
        elif annotation == "int" or (annotation == "int | None" and value is not None):
            check_number(name, value, numbers.Integral)


def check_number(name: str, value: Any, kind: type = numbers.Real) -> None:
    """Raise unless a value is a number.

    Args:
        name: What the message calls it.
        value: The value.
        kind: `numbers.Integral` for a whole number.

    Raises:
        ConfigurationError: If it is none.
    """
    if isinstance(value, bool) or not isinstance(value, kind):
        whole = "whole " if kind is numbers.Integral else ""
        raise ConfigurationError(f"{name} {value!r} is not a {whole}number")


def check_patterns(configuration: Any, name: str) -> None:
    """Raise unless a field holds regular expressions.

    Args:
        configuration: The dataclass.
        name: The field.

    Raises:
        ConfigurationError: If one is none.
    """
    for pattern in getattr(configuration, name):
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            raise ConfigurationError(
                f"{name} holds {pattern!r}, which is no regular expression ({error}); a backslash takes the meaning "
                r"from a sign, as in '\['"
            ) from error


def check_unchanged(configuration: Any, names: Iterable[str], circumstance: str) -> None:
    """Raise if a field that nothing reads was changed.

    Args:
        configuration: The dataclass.
        names: The fields.
        circumstance: When it has no effect, and what to do, as the end of the message.

    Raises:
        ConfigurationError: If one is not its default.
    """
    for name in names:
        value = getattr(configuration, name)
        if value != type(configuration).__dataclass_fields__[name].default:
            raise ConfigurationError(f"{name} {value!r} has no effect {circumstance}")


def check_choices(configuration: Any, legal: dict[str, tuple[str, ...]]) -> None:
    """Raise unless fields have legal values.

    Args:
        configuration: The dataclass.
        legal: Legal values by field.

    Raises:
        ConfigurationError: If one has another.
    """
    for name, values in legal.items():
        if getattr(configuration, name) not in values:
            raise ConfigurationError(f"{name} {getattr(configuration, name)!r} is not one of {list(values)}")
