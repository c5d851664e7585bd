"""What docs/reference/compatibility.md promises is still there; a failure here is a change that breaks users."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import optimum_qala
from optimum_qala import QuaLAMiniLMConfig, errors
from optimum_qala.cli import runner
from tests.docs.conftest import DOCS, blocks


PROMISES = json.loads(Path(__file__).with_name("promises.json").read_text(encoding="utf-8"))


def test_public_names_are_there():
    assert set(PROMISES["names"]) <= set(optimum_qala.__all__)


@pytest.mark.parametrize("name", PROMISES["errors"])
def test_errors_are_caught_as_before(name):
    bases = {base.__name__ for base in getattr(errors, name).__mro__}
    assert set(PROMISES["errors"][name]) <= bases


@pytest.mark.parametrize("command", PROMISES["flags"])
def test_flags_are_there(command, generate):
    parser = generate.commands()[command]
    assert set(PROMISES["flags"][command]) <= {flag for action in parser._actions for flag in action.option_strings}


def test_exit_codes_mean_the_same():
    assert {name: getattr(runner, name) for name in PROMISES["exit_codes"]} == PROMISES["exit_codes"]


def test_a_saved_model_means_the_same():
    """Only what differs from the defaults is saved, so another default would change every saved model."""
    config = QuaLAMiniLMConfig()
    assert {name: getattr(config, name) for name in PROMISES["config"]} == PROMISES["config"]


@pytest.mark.parametrize("name", PROMISES["keys"])
def test_keys_of_files_are_there(name):
    """The page of files is compared with real files by test_reference.py."""
    (text,) = [
        block.text for block in blocks(DOCS / "reference" / "files.md", "json") if block.note == f"example: {name}"
    ]
    assert set(PROMISES["keys"][name]) <= set(json.loads(text))
