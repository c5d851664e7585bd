"""A Hub for the session, and the processes that talk to it: one that pushes, one that loads, one that is offline."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForQuestionAnswering

from optimum_qala._compat import is_available
from optimum_qala.question_answering.records import QARecord
from optimum_qala.question_answering.windows import WindowOptions
from optimum_qala.reporting.facts import read_facts
from optimum_qala.reporting.model_card import make_model_card
from tests.conftest import tiny_config
from tests.hub.client import CONTEXT, QUESTION
from tests.hub_server import HubServer


ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "how_to" / "share_on_the_hub.md"
CARD = "---\nlicense: apache-2.0\n---\nA card.\n"
WRITER, READER, STRANGER = "hf_writer", "hf_reader", "hf_stranger"
HAS_INC = is_available("neural-compressor")
HAS_OPENVINO = all(importlib.util.find_spec(name) for name in ("openvino", "optimum.intel"))
BUDGETS = {"fast": {"retention": [1.0, 0.7, 0.5, 0.3], "macs": 12345}}
INC_BUDGETS = {"fast": {**BUDGETS["fast"], "f1": 61.0}}  # what quantizing measured

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

    def run(home: Path, *steps: Step, module: str = "client", **environment: str) -> Results:
        done = subprocess.run(
            [sys.executable, "-m", f"tests.hub.{module}"],
            input=json.dumps(steps),
            capture_output=True,
            text=True,
            timeout=500,
            cwd=ROOT,
            env={
                **inherited,
                "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "optimum_qala" / "_namespace")]),
                "HF_ENDPOINT": hub.endpoint,
                "HF_HOME": str(home),
                "HF_HUB_DISABLE_TELEMETRY": "1",
                "HF_HUB_DISABLE_XET": "1",
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


@pytest.fixture(scope="session")
def inc_folder(tmp_path_factory, _tiny_model, tiny_tokenizer) -> Path:
    """The same model in int8 by Intel Neural Compressor, with a score of its own."""
    folder = tmp_path_factory.mktemp("inc") / "int8"
    if HAS_INC:
        from optimum_qala import INCQuaLAConfig, INCQuaLAQuantizer

        record = QARecord("q", QUESTION, CONTEXT, ("anna",), (0,))
        INCQuaLAQuantizer(copy.deepcopy(_tiny_model), tiny_tokenizer).quantize(
            [record], folder, config=INCQuaLAConfig(num_samples=1), window_options=WindowOptions.for_max_length(64)
        )
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (folder / "config.json").write_text(json.dumps(config | {"budgets": INC_BUDGETS}), encoding="utf-8")
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
    hub.add("org/gated", folders["main"], gated=True)
    hub.add("org/secret", folders["main"], private=True)
    tiny_tokenizer.save_pretrained(folders["main"])
    for branch, folder in folders.items():
        hub.add("org/versions", folder, branch=branch)
    return "org/bert"


def openvino_steps(*steps: Step) -> tuple[Step, ...]:
    return steps if HAS_OPENVINO else ()


def inc_steps(*steps: Step) -> tuple[Step, ...]:
    return steps if HAS_INC else ()


@pytest.fixture(scope="session")
def pushed(tmp_path_factory, hub, client, model_folder, inc_folder) -> Results:
    """What the process that pushes reports."""
    folder = {"folder": str(model_folder)}
    torch_repository, openvino_repository = {**folder, "repo_id": "org/quala"}, {**folder, "repo_id": "org/quala-int8"}
    everything = {"token": WRITER, "with_tokenizer": True, "private": True, "readme": CARD}
    all_of_them = {"repo_id": "org/all", "token": WRITER}
    again = {**folder, "repo_id": "org/again", "token": WRITER}
    broken = {**folder, "repo_id": "org/broken", "token": WRITER, "change": 2.0}
    hub.breaks = {"PUT /org/broken/lfs/": 6, "POST /api/models/org/broken/commit/": 1}  # one try and five more
    return client(
        tmp_path_factory.mktemp("pushing"),
        ("torch", "push_torch", {**torch_repository, "token": WRITER}),
        ("in parts", "push_parts", {**folder, "repo_id": "org/parts", "token": WRITER}),
        ("no token", "push_torch", {**torch_repository, "token": False}),
        ("unknown token", "push_torch", {**torch_repository, "token": STRANGER}),
        ("read token", "push_torch", {**torch_repository, "token": READER}),
        ("all: torch", "push_torch", {**folder, **all_of_them, "private": True, "readme": CARD, "remote_code": True}),
        *openvino_steps(("all: openvino", "push_openvino", {**folder, **all_of_them, "subfolder": "openvino"})),
        *inc_steps(
            (
                "all: inc",
                "push_inc",
                {
                    "folder": str(inc_folder),
                    "tokenizer": str(model_folder),
                    **all_of_them,
                    "subfolder": "inc",
                    "commit_description": "By INC.",
                },
            ),
        ),
        *(
            [
                (
                    "page",
                    "run_page",
                    {
                        "page": str(PAGE),
                        "folder": str(tmp_path_factory.mktemp("page")),
                        "sources": {"searched": str(model_folder), "searched/inc": str(inc_folder)},
                    },
                )
            ]
            if HAS_INC and HAS_OPENVINO
            else []
        ),
        ("again, first", "push_torch", {**again, "readme": CARD}),
        ("again, the same", "push_torch", {**again, "commit_message": "Nothing new"}),
        ("again, changed", "push_torch", {**again, "change": 1.0, "tags": ["tower"]}),
        ("broken upload", "push_without_waiting", broken),
        ("broken commit", "push_without_waiting", broken),
        ("after the break", "push_without_waiting", broken),
        (
            "trained",
            "train",
            {
                **folder,
                "output": str(tmp_path_factory.mktemp("trained") / "out"),
                "repo_id": "org/trained",
                "token": WRITER,
                "revision": "runs",
            },
        ),
        (
            "trained, unknown token",
            "train",
            {
                **folder,
                "output": str(tmp_path_factory.mktemp("refused") / "out"),
                "repo_id": "org/trained",
                "token": STRANGER,
            },
        ),
        *openvino_steps(
            ("openvino", "push_openvino", {**openvino_repository, **everything}),
            (
                "openvino on a branch",
                "push_openvino",
                {
                    **torch_repository,
                    "token": WRITER,
                    "subfolder": "openvino",
                    "revision": "openvino",
                    "commit_message": "Add the graph",
                },
            ),
            (
                "openvino as a pull request",
                "push_openvino",
                {**torch_repository, "token": WRITER, "subfolder": "openvino", "create_pr": True},
            ),
            ("openvino with a read token", "push_openvino", {**openvino_repository, "token": READER}),
        ),
        HF_TOKEN=WRITER,
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
        ("all: torch", "load_torch", {"repo_id": "org/all", "token": READER, "trust_remote_code": True}),
        ("again", "load_torch", {"repo_id": "org/again"}),
        ("after the break", "load_torch", {"repo_id": "org/broken"}),
        ("trained", "load_torch", {"repo_id": "org/trained", "revision": "runs"}),
        ("gated", "load_torch", {"repo_id": "org/gated", "token": READER}),
        *inc_steps(
            ("all: inc", "load_inc", {"repo_id": "org/all", "token": READER}),
            ("inc, missing revision", "load_inc", {"repo_id": "org/quala", "revision": "v9"}),
            ("inc, none there", "load_inc", {"repo_id": "org/quala"}),
        ),
        ("missing revision", "load_torch", {"repo_id": "org/quala", "revision": "v9"}),
        ("command at main", "count_layers", {"repo_id": "org/versions"}),
        ("command at v2", "count_layers", {"repo_id": "org/versions", "revision": "v2"}),
        *inc_steps(
            ("command, inc", "load_for_command", {"repo_id": "org/quala", "backend": "inc", "revision": "v9"}),
        ),
        ("no token", "load_plain", {"repo_id": "org/secret"}),
        ("unknown token", "load_plain", {"repo_id": "org/secret", "token": STRANGER}),
        *openvino_steps(
            ("openvino", "load_openvino", {"repo_id": "org/quala-int8", "token": READER}),
            ("openvino on a branch", "load_openvino", {"repo_id": "org/quala", "revision": "openvino"}),
            ("openvino from torch", "load_openvino", {"repo_id": "org/quala"}),
            ("all: openvino", "load_openvino", {"repo_id": "org/all", "token": READER, "revision": "main"}),
            ("all: here", "load_openvino", {"repo_id": "org/all", "token": READER, "cache_dir": str(cache / "here")}),
            (
                "all: cached",
                "load_openvino",
                {"repo_id": "org/all", "cache_dir": str(cache / "here"), "local_files_only": True},
            ),
            ("all: root", "load_openvino", {"repo_id": "org/all", "token": READER, "subfolder": ""}),
            ("openvino, gated", "load_openvino", {"repo_id": "org/gated", "token": READER}),
            ("openvino, missing repository", "load_openvino", missing),
            ("openvino, unknown token", "load_openvino", {"repo_id": "org/secret", "token": STRANGER}),
            ("command", "load_for_command", {"repo_id": "org/quala"}),
            ("command on a branch", "load_for_command", {"repo_id": "org/quala", "revision": "openvino"}),
        ),
    )


@pytest.fixture(scope="session")
def offline(client, cache, loaded, model_folder) -> Results:
    """What a process that must not use the network reports, after another one has filled the cache."""
    return client(
        cache,
        ("torch", "load_torch", {"repo_id": "org/quala"}),
        ("plain", "load_plain", {"repo_id": "org/bert", "revision": "v2"}),
        ("all: torch", "load_torch", {"repo_id": "org/all"}),
        ("never loaded", "load_torch", {"repo_id": "org/secret"}),
        ("push", "push_torch", {"folder": str(model_folder), "repo_id": "org/quala", "token": WRITER}),
        *inc_steps(
            ("all: inc", "load_inc", {"repo_id": "org/all"}),
            ("inc, torch only in the cache", "load_inc", {"repo_id": "org/again"}),
        ),
        *openvino_steps(
            ("openvino", "load_openvino", {"repo_id": "org/quala-int8"}),
            ("openvino, torch only in the cache", "load_openvino", {"repo_id": "org/again"}),
            ("all: openvino", "load_openvino", {"repo_id": "org/all"}),
            ("openvino, never loaded", "load_openvino", {"repo_id": "org/secret"}),
            ("command", "load_for_command", {"repo_id": "org/quala-int8"}),
        ),
        HF_HUB_OFFLINE="1",
    )


@pytest.fixture(scope="session")
def without_package(tmp_path_factory, client, pushed, model_folder) -> Results:
    """What a process reports in which optimum_qala cannot be imported."""
    card = make_model_card(replace(read_facts(model_folder), remote_code=True), repo_id="org/all")
    *_, code = re.findall(r"```python\n(.*?)```", card, re.S)
    steps = [
        ("card", "run_card", {"code": code}),  # first: code that was trusted once is not asked for again
        ("torch", "load", {"repo_id": "org/all", "token": READER}),
        ("encoder", "load_encoder", {"repo_id": "org/all", "token": READER}),
        (
            "saved again",
            "save_and_load",
            {"repo_id": "org/all", "token": READER, "folder": str(tmp_path_factory.mktemp("saved"))},
        ),
        ("no code", "load", {"repo_id": "org/quala"}),
    ]
    return client(tmp_path_factory.mktemp("stranger"), *steps, module="stranger", HF_TOKEN=READER)
