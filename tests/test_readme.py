"""The commands and the Python of README.md run as they are written. tests/docs runs those of the documentation."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import squad, tiny_questions
from tests.readme import ROOT, code_blocks, headline_commands


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, _tiny_model, tiny_tokenizer) -> Path:
    """A folder with what the README assumes: ./minilm, train.json and dev.json, here tiny."""
    folder = tmp_path_factory.mktemp("readme")
    _tiny_model.save_pretrained(folder / "minilm")
    tiny_tokenizer.save_pretrained(folder / "minilm")
    for name, count in (("train.json", 8), ("dev.json", 4)):
        (folder / name).write_text(json.dumps(squad(tiny_questions(count))), encoding="utf-8")
    return folder


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "optimum_qala" / "_namespace")]),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    return subprocess.run(command, capture_output=True, text=True, timeout=580, env=environment, cwd=folder)


pytestmark = pytest.mark.timeout(900)  # a dozen processes, one of which quantizes


@pytest.fixture(scope="module")
def after_the_readme(workplace) -> Path:
    """The folder after the README's commands, and the Python that follows them, have run."""
    (commands,) = [text for heading, text in code_blocks(ROOT / "README.md", "bash") if heading != "Quickstart"]
    done = run(["bash", "-euo", "pipefail", "-c", commands], workplace)
    assert done.returncode == 0, done.stderr
    return workplace


def test_quickstart_has_two_commands_of_one_line():
    first, second = headline_commands()
    assert first.endswith("optimum-cli qala quickstart")
    assert "\n" not in first
    assert second == ".venv/bin/python -m pytest -n logical --dist loadfile"


def test_commands_make_what_they_say(after_the_readme):
    for name in ("trained", "searched", "int8"):
        assert (after_the_readme / name / "config.json").is_file()
    answers = (after_the_readme / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["id"] for line in answers] == [f"q{index}" for index in range(4)]


def test_python_runs(after_the_readme):
    # The tiny model has four layers where the README's has six.
    code = "\n".join(text for _, text in code_blocks(ROOT / "README.md", "python")).replace("1,1,0.8", "1,0.8")
    code = code.replace("0.8,0.8,0.5,0.5", "0.8,0.5,0.5")
    done = run([sys.executable, "-c", code], after_the_readme)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "page", [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda page: page.name
)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_first_command_sets_everything_up(tmp_path):
    """The first headline command, in a copy of the tracked files, in a new environment."""
    files = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        ["bash", "-c", headline_commands()[0]],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1100,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "fast" in done.stdout
