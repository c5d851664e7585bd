from __future__ import annotations

import sys

import pytest

from optimum_qala import _compat
from optimum_qala._compat import is_available, require
from optimum_qala.errors import MissingExtraError


@pytest.fixture
def extras(monkeypatch):
    """Extras of modules that are surely there, surely absent, or inside a package that is absent."""
    made_up = {
        "there": ("json", "importlib.util"),
        "absent": ("json", "no_such_module", "no_such_package.part"),
    }
    monkeypatch.setattr(_compat, "EXTRAS", made_up)
    return made_up


def test_is_available_needs_every_module(extras):
    assert is_available("there")
    assert not is_available("absent")


def test_require_passes_where_nothing_is_missing(extras):
    require("there", "reading JSON")


def test_require_names_what_is_missing_and_the_command(extras):
    message = (
        r"^reading minds needs no_such_module, no_such_package\.part, which is not installed: "
        r'pip install "optimum-qala\[absent\]"$'
    )
    with pytest.raises(MissingExtraError, match=message):
        require("absent", "reading minds")


def test_require_imports_nothing(extras, monkeypatch):
    monkeypatch.delitem(sys.modules, "this", raising=False)
    extras["poem"] = ("this",)
    require("poem", "a poem")
    assert "this" not in sys.modules
