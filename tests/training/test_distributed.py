"""Two processes train what one process trains on the same global batch."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from optimum_qala import QuaLAMiniLMForQuestionAnswering
from optimum_qala.question_answering.records import QARecord
from tests.conftest import tiny_config
from tests.training.two_distillers import SETTINGS, make


SCRIPT = Path(__file__).with_name("two_processes.py")


def train(folder: Path, *launcher: str, rows: int, kind: str) -> dict[str, torch.Tensor]:
    output = folder / f"rows-{rows}"
    output.mkdir()
    command = [sys.executable, *launcher, str(SCRIPT), str(folder / "model"), str(folder / "data.jsonl"), str(output)]
    done = subprocess.run([*command, str(rows), kind], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    weights: dict[str, torch.Tensor] = torch.load(output / "weights.pt", weights_only=True)
    return weights


def read_losses(folder: Path) -> list[dict[str, float]]:
    log = json.loads((folder / "log.json").read_text())
    return [{name: value for name, value in entry.items() if name.startswith("loss")} for entry in log]


@pytest.mark.parametrize(
    ("token_scoring", "kind"), [("answer", "rounded"), ("question", "auxiliary")], ids=["rounded", "auxiliary"]
)
def test_two_processes_train_what_one_trains_on_the_global_batch(
    tmp_path: Path, tiny_tokenizer: Any, records: list[QARecord], token_scoring: str, kind: str
) -> None:
    """LayerDrop, early exits, several sub-models a step and early span heads included.

    One case has auxiliary losses and takes two batches a step (gradient accumulation) as well. The log of the first
    process is that of all.

    Rounding depends on ranges that both processes must learn alike; it makes a step of the last digit here and there.
    """
    torch.manual_seed(0)
    model = QuaLAMiniLMForQuestionAnswering(
        tiny_config(token_scoring=token_scoring, span_heads=True, drop_layers=[1, 2, 3])
    )
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    rows = [
        {
            "id": record.id,
            "question": record.question,
            "context": record.context,
            "answers": {"text": list(record.answers), "answer_start": list(record.answer_starts)},
        }
        for record in records[:16]
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    one, two = train(tmp_path, rows=4, kind=kind), train(tmp_path, *launcher, rows=2, kind=kind)
    start = model.state_dict()
    assert one.keys() == two.keys()
    assert sum("projections" in name for name in one) == (3 if kind == "auxiliary" else 0)
    moved = [name for name in one if name not in start or not torch.equal(one[name], start[name])]
    assert len(moved) > 50
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=1e-3 if kind == "rounded" else 1e-6, rtol=1e-4, msg=name)
    logged = [read_losses(tmp_path / folder) for folder in ("rows-4", "rows-2")]
    names = ("full", "random_mutual_information") if kind == "auxiliary" else ("full", "random", "smallest")
    assert {f"loss_{name}" for name in names} < logged[0][0].keys()
    for alone, together in zip(*logged, strict=True):
        assert together == pytest.approx(alone, abs=5e-2 if kind == "rounded" else 2e-4)  # it has four digits
    ranges = [path.read_text() for path in (tmp_path / "rows-2").glob("ranges-*.json")]
    assert len(ranges) == (2 if kind == "rounded" else 0)
    assert len(set(ranges)) < 2


def test_two_processes_distil_what_one_distils_on_the_global_batch(tmp_path: Path, tiny_tokenizer: Any) -> None:
    """By both methods: minilm takes two batches a step.

    With minilmv2 both share the cache of the teacher, and the second epoch reads what either wrote.
    """
    tiny_tokenizer.save_pretrained(tmp_path)
    script = Path(__file__).with_name("two_distillers.py")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    command = [sys.executable, *launcher, str(script), str(tmp_path), str(tmp_path), "2"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    for method in SETTINGS:
        one = make(method, tmp_path, tiny_tokenizer)
        start = copy.deepcopy(one.model.state_dict())
        one.train()
        two = torch.load(tmp_path / f"{method}.pt", weights_only=True)
        assert sum(not torch.equal(value, start[name]) for name, value in two.items()) > 20
        for name, value in one.model.state_dict().items():
            torch.testing.assert_close(two[name], value, atol=1e-5, rtol=1e-4, msg=f"{method}: {name}")
