"""Every public name resolves to the thing that its own module defines."""

from __future__ import annotations

import pytest

import optimum_qala


LAZY = set(optimum_qala._LAZY)


@pytest.mark.parametrize("name", sorted(set(optimum_qala.__all__) - {"__version__"}))
def test_public_name_resolves(name):
    value = getattr(optimum_qala, name)
    assert value.__name__ == name
    assert value.__module__.startswith("optimum_qala.")
    assert value.__doc__


def test_public_names_are_sorted_and_listed():
    assert optimum_qala.__all__ == sorted(optimum_qala.__all__)
    assert LAZY <= set(optimum_qala.__all__) <= set(dir(optimum_qala))


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'optimum_qala' has no attribute 'QuaLAMaxiLM'"):
        optimum_qala.QuaLAMaxiLM  # noqa: B018  # reading the attribute is the test


def test_version_is_readable_without_the_package():
    from optimum_qala.version import __version__

    assert optimum_qala.__version__ == __version__
    assert __version__[0].isdigit()
