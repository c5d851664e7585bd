"""A Hub for the session, and the processes that talk to it: one that pushes, one that loads, one that is offline."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForQuestionAnswering

from tests.conftest import tiny_config
from tests.hub_server import HubServer


ROOT = Path(__file__).resolve().parents[2]
CARD = "---\nlicense: apache-2.0\n---\nA card.\n"
WRITER, READER, STRANGER = "hf_writer", "hf_reader", "hf_stranger"
HAS_OPENVINO = all(importlib.util.find_spec(name) for name in ("openvino", "optimum.intel"))
BUDGETS = {"fast": {"retention": [1.0, 0.7, 0.5, 0.3], "macs": 12345}}

Step = tuple[str, str, dict[str, Any]]  # label, function of client.py, arguments
Results = dict[str, dict[str, Any]]


@pytest.fixture(scope="session")
def hub() -> Iterator[HubServer]:
    with HubServer({WRITER: "write", READER: "read"}) as server:
        yield server


@pytest.fixture(scope="session")
def client(hub) -> Callable[..., Results]:
    """Run steps of client.py in a fresh process, which knows no token but those that its steps pass."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HF_", "HUGGING", "TRANSFORMERS_")) and not name.lower().endswith("_proxy")
    }

    def run(home: Path, *steps: Step, **environment: str) -> Results:
        done = subprocess.run(
            [sys.executable, "-m", "tests.hub.client"],
            input=json.dumps(steps),
            capture_output=True,
            text=True,
            timeout=240,
            cwd=ROOT,
            env={
                **inherited,
                "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "optimum_qala" / "_namespace")]),
                "HF_ENDPOINT": hub.endpoint,
                "HF_HOME": str(home),
                "HF_HUB_DISABLE_TELEMETRY": "1",
                "HF_HUB_DISABLE_PROGRESS_BARS": "1",
                "OMP_NUM_THREADS": "1",
                **environment,
            },
        )
        assert done.returncode == 0, done.stderr
        results = json.loads(done.stdout.splitlines()[-1])
        sys.stderr.write(done.stderr)  # pytest shows it where a test fails
        return results

    return run


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory, _tiny_model, tiny_tokenizer) -> Path:
    """A QuaLA-MiniLM with a named budget, and its tokenizer."""
    folder = tmp_path_factory.mktemp("quala")
    _tiny_model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"budgets": BUDGETS}), encoding="utf-8")
    return folder


def plain_bert(num_hidden_layers: int) -> BertForQuestionAnswering:
    sizes = tiny_config(num_hidden_layers=num_hidden_layers).to_dict()
    fields = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    torch.manual_seed(1)
    return BertForQuestionAnswering(BertConfig(**{name: sizes[name] for name in fields}, initializer_range=0.3)).eval()


@pytest.fixture(scope="session")
def bert() -> BertForQuestionAnswering:
    """What the branch v2 of org/bert holds."""
    return plain_bert(2)


@pytest.fixture(scope="session")
def bert_repository(tmp_path_factory, hub, bert, tiny_tokenizer) -> str:
    """A private, plain BERT whose branch v2 differs from main in depth and weights, and has a tokenizer."""
    folders = {"main": tmp_path_factory.mktemp("main"), "v2": tmp_path_factory.mktemp("v2")}
    plain_bert(1).save_pretrained(folders["main"])
    bert.save_pretrained(folders["v2"])
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.sep_token = "."  # what transformers makes up where there is no tokenizer has the tiny one's separator
    tokenizer.save_pretrained(folders["v2"])
    for branch, folder in folders.items():
        hub.add("org/bert", folder, branch=branch, private=True)
    hub.add("org/secret", folders["main"], private=True)
    return "org/bert"


def openvino_steps(*steps: Step) -> tuple[Step, ...]:
    return steps if HAS_OPENVINO else ()


@pytest.fixture(scope="session")
def pushed(tmp_path_factory, client, model_folder) -> Results:
    """What the process that pushes reports."""
    folder = {"folder": str(model_folder)}
    torch_repository, openvino_repository = {**folder, "repo_id": "org/quala"}, {**folder, "repo_id": "org/quala-int8"}
    everything = {"token": WRITER, "with_tokenizer": True, "private": True, "readme": CARD}
    return client(
        tmp_path_factory.mktemp("pushing"),
        ("torch", "push_torch", {**torch_repository, "token": WRITER}),
        ("no token", "push_torch", {**torch_repository, "token": False}),
        ("unknown token", "push_torch", {**torch_repository, "token": STRANGER}),
        ("read token", "push_torch", {**torch_repository, "token": READER}),
        *openvino_steps(
            ("openvino", "push_openvino", {**openvino_repository, **everything}),
            (
                "openvino on a branch",
                "push_openvino",
                {**torch_repository, "token": WRITER, "revision": "openvino", "commit_message": "Add the graph"},
            ),
            ("openvino as a pull request", "push_openvino", {**torch_repository, "token": WRITER, "create_pr": True}),
            ("openvino with a read token", "push_openvino", {**torch_repository, "token": READER}),
        ),
    )


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    """HF_HOME of the processes that load."""
    return tmp_path_factory.mktemp("loading")


@pytest.fixture(scope="session")
def loaded(client, cache, pushed, bert_repository) -> Results:
    """What a process that loads what the other one pushed reports."""
    missing = {"repo_id": "org/none", "token": READER}
    return client(
        cache,
        ("torch", "load_torch", {"repo_id": "org/quala"}),
        ("plain", "load_plain", {"repo_id": bert_repository, "revision": "v2", "token": READER}),
        ("plain, missing tokenizer", "load_plain", {"repo_id": bert_repository, "token": READER}),
        ("missing repository", "load_torch", missing),
        ("missing revision", "load_torch", {"repo_id": "org/quala", "revision": "v9"}),
        ("no token", "load_plain", {"repo_id": "org/secret"}),
        ("unknown token", "load_plain", {"repo_id": "org/secret", "token": STRANGER}),
        *openvino_steps(
            ("openvino", "load_openvino", {"repo_id": "org/quala-int8", "token": READER}),
            ("openvino on a branch", "load_openvino", {"repo_id": "org/quala", "revision": "openvino"}),
            ("openvino from torch", "load_openvino", {"repo_id": "org/quala"}),
            ("openvino, missing repository", "load_openvino", missing),
            ("openvino, unknown token", "load_openvino", {"repo_id": "org/secret", "token": STRANGER}),
            ("command", "load_for_command", {"repo_id": "org/quala"}),
        ),
    )


@pytest.fixture(scope="session")
def offline(client, cache, hub, loaded) -> Results:
    """What a process that must not use the network reports, after another one has filled the cache."""
    return client(
        cache,
        ("torch", "load_torch", {"repo_id": "org/quala"}),
        ("plain", "load_plain", {"repo_id": "org/bert", "revision": "v2"}),
        ("never loaded", "load_torch", {"repo_id": "org/secret"}),
        *openvino_steps(
            ("openvino", "load_openvino", {"repo_id": "org/quala-int8"}),
            ("openvino, never loaded", "load_openvino", {"repo_id": "org/secret"}),
            ("command", "load_for_command", {"repo_id": "org/quala-int8"}),
        ),
        HF_HUB_OFFLINE="1",
    )
