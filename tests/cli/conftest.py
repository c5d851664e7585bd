"""A command runner, and tiny models and data on disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from optimum.commands.optimum_cli import main
from transformers import BertConfig, BertForQuestionAnswering


ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON object on standard output."""
        assert self.code == 0, self.err
        assert self.out.count("\n") == 1, self.out
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one line on standard error that says what went wrong."""
        lines = [line for line in self.err.splitlines() if line.startswith(("error:", "internal error:"))]
        assert len(lines) == 1, self.err
        return lines[0]


@pytest.fixture
def qala(monkeypatch, capsys) -> Callable[..., Outcome]:
    """Run `optimum-cli qala` in this process."""

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["optimum-cli", "qala", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capsys.readouterr()
        return Outcome(caught.value.code or 0, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """Environment in which `optimum-cli` of this source tree runs."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "optimum_qala" / "_namespace")])
    return {**os.environ, "PYTHONPATH": path, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


@pytest.fixture
def shell(tmp_path, environment) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """Run a bash command in a new process."""

    def run(command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", command], capture_output=True, text=True, timeout=240, env=environment, cwd=tmp_path
        )

    return run


def squad(questions: list[dict[str, Any]]) -> dict[str, Any]:
    paragraphs = []
    for question in questions:
        start = question["context"].index(question["answer"])
        answers = [{"text": question["answer"], "answer_start": start}]
        qas = [{"id": question["id"], "question": question["question"], "answers": answers}]
        paragraphs.append({"context": question["context"], "qas": qas})
    return {"version": "1.1", "data": [{"title": "tiny", "paragraphs": paragraphs}]}


PEOPLE, PLACES = ("anna", "peter", "maria", "john"), ("paris", "london", "rome", "berlin")


def tiny_questions(count: int) -> list[dict[str, Any]]:
    """Questions whose words the tiny tokenizer knows."""
    questions = []
    for index in range(count):
        person, place = PEOPLE[index % 4], PLACES[(index // 4) % 4]
        questions.append(
            {
                "id": f"q{index}",
                "question": f"where was {person} born ?",
                "context": f"{person} was born in {place} . the old tower of the city is large and red .",
                "answer": place,
            }
        )
    return questions


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    """Twelve questions as SQuAD JSON."""
    path = tmp_path_factory.mktemp("data") / "tiny.json"
    path.write_text(json.dumps(squad(tiny_questions(12))), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory, _tiny_model, tiny_tokenizer) -> Path:
    """A saved tiny model with two budgets."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    _tiny_model.save_pretrained(path)
    tiny_tokenizer.save_pretrained(path)
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    config["budgets"] = {
        "fast": {"retention": [0.5, 0.5, 0.25, 0.25]},
        "accurate": {"retention": [1.0, 0.9, 0.9, 0.8]},
    }
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def baseline_cache():
    """Holds `baseline_weights` for the tests of a module."""
    return {}


@pytest.fixture(scope="session")
def plain(tmp_path_factory, tiny_tokenizer):
    """A plain torch checkpoint."""
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=200, max_position_embeddings=128, initializer_range=0.3, **sizes)
    folder = tmp_path_factory.mktemp("plain")
    BertForQuestionAnswering(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder
