"""One `except QuaLAError` catches everything that the package raises, and builtin classes catch what they should."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from optimum_qala import errors


PACKAGE = Path(__file__).resolve().parents[1] / "optimum_qala"
BUILTINS = {
    "AccuracyError": RuntimeError,
    "BackendError": RuntimeError,
    "CheckpointError": ValueError,
    "ConfigurationError": ValueError,
    "DataError": ValueError,
    "HubError": OSError,
    "LengthConfigError": ValueError,
    "MissingExtraError": ImportError,
    "OutputExistsError": FileExistsError,
    "QuestionTooLongError": ValueError,
    "SearchStoreError": ValueError,
    "UnknownBudgetError": ValueError,
}


def test_every_error_is_listed():
    defined = {
        name for name, value in vars(errors).items() if isinstance(value, type) and value.__module__ != "builtins"
    }
    assert defined == set(errors.__all__) == {*BUILTINS, "QuaLAError"}


@pytest.mark.parametrize(("name", "builtin"), BUILTINS.items(), ids=BUILTINS)
def test_error_is_ours_and_the_builtin_that_fits(name, builtin):
    with pytest.raises(errors.QuaLAError, match="what happened") as caught:
        raise getattr(errors, name)("what happened")
    assert isinstance(caught.value, builtin)
    assert str(caught.value) == "what happened"


def raised_names() -> list[tuple[str, str]]:
    """(file:line, name) of every exception that the package raises by calling its class."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                found.append((f"{path.relative_to(PACKAGE)}:{node.lineno}", ast.unparse(node.exc.func).split(".")[-1]))
    return found


def test_package_raises_its_own_errors_only():
    protocol = {"AttributeError", "IndexError"}  # what Python's own protocols ask for
    caught_where_raised = {("search/store.py", "ValueError"), ("inference/inc_graph.py", "ValueError")}
    raised = raised_names()
    assert len(raised) > 100
    assert {name for _, name in raised} >= {"CheckpointError", "ConfigurationError", "UnknownBudgetError"}
    foreign = [
        (place, name)
        for place, name in raised
        if name not in {*errors.__all__, *protocol}
        and not name.startswith("_")  # a helper that makes one of ours
        and (place.partition(":")[0], name) not in caught_where_raised
    ]
    assert foreign == []
