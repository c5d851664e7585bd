"""Checks of options: what a field may hold, and whether anything reads it."""

from __future__ import annotations

import numbers
import re
from collections.abc import Iterable
from typing import Any

from optimum_qala.errors import ConfigurationError


__all__ = [
    "check_choices",
    "check_count",
    "check_number",
    "check_numbers",
    "check_patterns",
    "check_unchanged",
]


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
