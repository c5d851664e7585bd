"""A folder in which the code of the documentation runs: tiny models and data under the names that the pages use."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch
from optimum.commands.optimum_cli import main
from transformers import BertConfig, BertForQuestionAnswering

from optimum_qala import QuaLAMiniLMForQuestionAnswering
from optimum_qala._compat import is_available
from tests.cli.conftest import squad, tiny_questions
from tests.conftest import tiny_config


ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
TUTORIAL = DOCS / "tutorials" / "first_model.md"

_BLOCK = re.compile(r"(?:<!-- (?P<note>[^\n]*?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A code block of a page, and the comment in the line above it."""

    language: str
    text: str
    note: str
    line: int

    @property
    def can_run(self) -> bool:
        """False if the block needs an extra that is not installed."""
        needs = re.findall(r"needs: ([\w-]+)", self.note)
        if self.language == "bash" and re.search("int8|openvino", self.text):
            needs.append("openvino")
        return all(is_available(extra) for extra in needs)

    @property
    def command_lines(self) -> list[str]:
        """Lines of a shell block, continued ones joined."""
        return self.text.replace("\\\n", " ").strip().split("\n")


def blocks(page: Path, language: str) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(match["language"], match["text"], match["note"] or "", text.count("\n", 0, match.start("text")) + 1)
        for match in _BLOCK.finditer(text)
        if match["language"] == language
    ]


def qala(command: str, folder: Path) -> None:
    """Run one `optimum-cli qala` command line in this process, which saves the time to import torch."""
    words = shlex.split(command)
    output = words[words.index(">") + 1] if ">" in words else None
    words = words[: words.index(">")] if output else words
    before, argv = Path.cwd(), sys.argv
    with contextlib.ExitStack() as stack:
        os.chdir(folder)
        stack.callback(os.chdir, before)
        stack.callback(setattr, sys, "argv", argv)
        sys.argv = words
        stream = stack.enter_context(open(output or os.devnull, "w", encoding="utf-8"))
        stack.enter_context(contextlib.redirect_stdout(stream))
        with pytest.raises(SystemExit) as caught:
            main()
    assert not caught.value.code, command


def run_bash(block: Block, folder: Path) -> None:
    """Run a block: plain commands of ours in this process, anything else in a shell."""
    if all(line.startswith("optimum-cli qala ") and "|" not in line for line in block.command_lines):
        for line in block.command_lines:
            qala(line, folder)
        return
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "optimum_qala" / "_namespace")]),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.text],
        capture_output=True,
        text=True,
        timeout=800,
        env=environment,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def generate() -> ModuleType:
    """docs/reference/generate.py."""
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "reference" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def workplace(tmp_path_factory, tiny_tokenizer) -> Path:
    """What a reader is asked to have: backbones of six layers, as in the pages, and files of questions and text."""
    folder = tmp_path_factory.mktemp("docs")
    torch.manual_seed(0)
    model = QuaLAMiniLMForQuestionAnswering(tiny_config(num_hidden_layers=6, max_position_embeddings=512))
    sizes = {"vocab_size": 200, "hidden_size": 32, "num_hidden_layers": 6, "num_attention_heads": 2}
    plain = BertForQuestionAnswering(BertConfig(**sizes, intermediate_size=64))
    for name, saved in (("minilm", model), ("plain-bert", plain)):
        saved.save_pretrained(folder / name)
        tiny_tokenizer.save_pretrained(folder / name)
    for name, count in (("train.json", 8), ("dev.json", 4), ("test.json", 4)):
        (folder / name).write_text(json.dumps(squad(tiny_questions(count))), encoding="utf-8")
    contexts = [question["context"] for question in tiny_questions(16)]
    (folder / "texts.txt").write_text("\n".join(contexts), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def finished(workplace) -> Path:
    """The folder after the commands of the tutorial."""
    for block in blocks(TUTORIAL, "bash"):
        if block.can_run:
            run_bash(block, workplace)
    return workplace


@pytest.fixture
def reader(finished, tmp_path, monkeypatch) -> Path:
    """A copy of that folder, which is the working directory."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path
