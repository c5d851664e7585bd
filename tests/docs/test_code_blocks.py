"""The commands and the Python of the documentation run as they are written, page by page, on tiny models."""

from __future__ import annotations

import re
import shlex

import numpy as np
import pytest
from optimum.commands.register.register_qala import QuaLACommand

from tests.docs.conftest import DOCS, ROOT, TUTORIAL, Block, blocks, run_bash


PAGES = [page for page in sorted(DOCS.rglob("*.md")) if "results" not in page.parts]
PARSED_ONLY = "parsed only: "
MADE_UP = "made-up milliseconds: "

# The first test that needs them runs all commands of the tutorial, one of which quantizes.
pytestmark = pytest.mark.timeout(900)


def pages_with(language: str) -> list:
    return [pytest.param(page, id=page.stem) for page in PAGES if blocks(page, language)]


def split_runnable(found: list[Block]) -> tuple[list[Block], list[Block]]:
    """Blocks to run, and blocks that wait for an extra."""
    found = [block for block in found if not block.note.startswith(PARSED_ONLY)]
    return [block for block in found if block.can_run], [block for block in found if not block.can_run]


def skip_if_any(left_out: list[Block]) -> None:
    if left_out:
        pytest.skip(f"an extra is not installed: the blocks in lines {[block.line for block in left_out]} did not run")


@pytest.mark.parametrize("page", pages_with("python"))
def test_python_runs(page, reader):
    """Later blocks of a page use what earlier ones made."""
    namespace = {"__name__": "docs"}
    runnable, left_out = split_runnable(blocks(page, "python"))
    for block in runnable:
        code = "\n" * (block.line - 1) + block.text  # tracebacks name the line of the page
        exec(compile(code, str(page), "exec"), namespace)
    skip_if_any(left_out)


def made_up_milliseconds(run, length_configs, num_windows, *_, **__):
    """In place of `time_in_turns`: a token that leaves a layer takes 0.01 ms."""
    return np.array([[sum(config.num_tokens(100)) / 100] * num_windows for config in length_configs])


@pytest.mark.parametrize("page", [page for page in pages_with("bash") if page.values[0] != TUTORIAL])
def test_commands_run(page, reader, monkeypatch):
    runnable, left_out = split_runnable(blocks(page, "bash"))
    for block in runnable:
        with monkeypatch.context() as patch:
            if block.note.startswith(MADE_UP):
                for module in ("optimum_qala.search.latency", "optimum_qala.cli.stopwatch"):
                    patch.setattr(f"{module}.time_in_turns", made_up_milliseconds)
            run_bash(block, reader)
    skip_if_any(left_out)


def test_tutorial_makes_what_it_says(finished):
    """Every `--output` and redirection of the tutorial is there."""
    made = []
    for block in blocks(TUTORIAL, "bash"):
        if block.can_run:
            words = shlex.split(" ".join(block.command_lines))
            made += [words[index + 1] for index, word in enumerate(words) if word in ("--output", ">")]
    assert made[:2] == ["trained", "searched"]
    assert [name for name in made if not (finished / name).exists()] == []


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.stem)
def test_flags_exist(page, generate):
    """Every command line parses, also one that does not run here."""
    for block in blocks(page, "bash"):
        for call in re.findall(r"optimum-cli qala ([^|;>&\n]*)", "\n".join(block.command_lines)):
            name, *arguments = shlex.split(call)
            generate.commands()[name].parse_args(arguments)


def test_every_command_is_in_the_docs():
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    for info in QuaLACommand.SUBCOMMANDS:
        assert f"optimum-cli qala {info.name}" in text, info.name
