from __future__ import annotations

import re
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


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put the metadata of a package on the path, before those that are installed."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name, version, *requirements, module=None):
        folder = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        lines = [f"Requires-Dist: {line}" for line in requirements]
        (folder / "METADATA").write_text(
            "\n".join(["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *lines])
        )
        if module is not None:
            (folder / "top_level.txt").write_text(module)

    return write


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (("mind-reader", "2.9"), "needs mind-reader>=3, but mind-reader 2.9 is installed: pip"),
        (("mind-guesser", "3.1"), "needs mind-reader>=3, but mind-guesser 3.1 is installed instead: pip"),
        (None, "needs mind-reader>=3, but a copy without metadata is installed instead: pip"),
        (("mind-reader", "3.1.dev1"), None),
        (("mind-reader", "3.1"), None),
    ],
    ids=["old", "other package", "no metadata", "prerelease", "fits"],
)
def test_require_reads_the_bounds_of_the_metadata(extras, install, found, message):
    install("optimum-qala", "9", "json-lines>=9", 'mind-reader>=3; extra == "there"', 'no-such>=1; extra == "absent"')
    if found is not None:
        install(*found, module="json")
    if message is None:
        require("there", "reading minds")
    else:
        with pytest.raises(MissingExtraError, match=re.escape(message) + r' install "optimum-qala\[there\]"$'):
            require("there", "reading minds")


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
