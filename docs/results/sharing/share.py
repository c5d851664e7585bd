"""Push a model as the page of the documentation says, load it back in fresh processes, and compare their answers.

Usage: share.py WORK QUESTIONS RAW [COUNT]
WORK holds the folder searched, laid out as the page says. QUESTIONS is a file in the form of SQuAD, of which COUNT
questions, evenly spread, are asked. The results go to the folder RAW. Run from the root of the repository.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from itertools import combinations
from pathlib import Path

import numpy as np

from optimum_qala.question_answering.metrics import score_predictions
from optimum_qala.question_answering.records import load_records
from tests.hub_server import HubServer


HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
PAGE = ROOT / "docs" / "how_to" / "share_on_the_hub.md"
REPO_ID, TOKEN = "your-name/your-model", "hf_writer"
KINDS = ("torch", "without-plugin", "openvino-float", "openvino", "inc")
BUDGETS = ("full", "fastest")
LONGEST_ANSWER = 30  # tokens, as in answer.py


def run(hub: HubServer, home: Path, *arguments: str, folder: Path) -> dict[str, float]:
    """Run Python in a process of its own that knows no other Hub and shares no cache; return the seconds it took."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))
    }
    settings = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    path = os.pathsep.join([str(ROOT), kept.get("PYTHONPATH", "")])
    began, spent = time.perf_counter(), os.times()
    subprocess.run([sys.executable, *arguments], cwd=folder, env={**kept, **settings, "PYTHONPATH": path}, check=True)
    now = os.times()
    cpu = now.children_user + now.children_system - spent.children_user - spent.children_system
    return {"wall_s": time.perf_counter() - began, "cpu_s": cpu}


def pushing_code() -> str:
    """Take the Python that pushes from the page; the torch model brings its code along."""
    section = PAGE.read_text(encoding="utf-8").split("## Push every back end")[1].partition("\n## ")[0]
    code = "\n".join(re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL))
    return code.replace("private=True)", "private=True, remote_code=True)")


def without_notes(card: str) -> str:
    """Leave out the line of hashes in which a push notes what it pushed."""
    return re.sub(r"^<!-- optimum-qala: generated part .*$", "", card, flags=re.MULTILINE)


def describe(hub: HubServer, card: str) -> dict:
    """Say what the repository holds."""
    repository = hub.repositories[REPO_ID]
    commits = repository.branches["main"]
    files = {name: len(data) for name, data in sorted(commits[-1].files.items())}
    return {
        "commits": [commit.title for commit in commits],
        "private": repository.private,
        "files": files,
        "size_bytes": sum(files.values()),
        "card is the generated one": without_notes(commits[-1].files["README.md"].decode()) == without_notes(card),
    }


def gap(logits: np.ndarray) -> float:
    """Say how far the best span is above the second best; shape of the logits: (2, tokens)."""
    scores = logits[0][:, None] + logits[1][None, :]
    scores[np.tril_indices_from(scores, -1)] = -np.inf
    scores[np.triu_indices_from(scores, LONGEST_ANSWER)] = -np.inf
    second, best = np.sort(scores.ravel())[-2:]
    return float(best - second)


def median_gaps(gaps: list[float], is_equal: list[bool]) -> dict:
    """Take the median over the questions that are answered equally, and over the others."""
    parts = {
        name: [gap for gap, equal in zip(gaps, is_equal, strict=True) if equal is wanted]
        for name, wanted in (("equal answer", True), ("different answer", False))
    }
    return {name: float(np.median(part)) if part else None for name, part in parts.items()}


def compare(records: list, work: Path) -> dict:
    """Compare answers and logits of the kinds, and score them."""
    results = {kind: json.loads((work / f"{kind}.json").read_text(encoding="utf-8")) for kind in KINDS}
    logits = {kind: np.load(work / f"{kind}.npz") for kind in KINDS}
    found: dict = {"times": {kind: result["times"] for kind, result in results.items()}, "budgets": {}}
    found["classes"] = {kind: [result["class"], result["has_plugin"]] for kind, result in results.items()}
    for budget in BUDGETS:
        answers = {kind: result["answers"][budget] for kind, result in results.items()}
        scores = {}
        for kind, texts in answers.items():
            predictions = {record.id: text for record, text in zip(records, texts, strict=True)}
            scores[kind] = {name: score_predictions(records, predictions)[name] for name in ("f1", "exact_match")}
        numbers = range(len(records))
        differences = {
            kind: np.concatenate(
                [(logits[kind][f"{budget} {n}"] - logits["torch"][f"{budget} {n}"]).ravel() for n in numbers]
            )
            for kind in KINDS
        }
        found["budgets"][budget] = {
            "scores": scores,
            "equal answers": {
                f"{one} = {other}": sum(map(str.__eq__, answers[one], answers[other]))
                for one, other in combinations(KINDS, 2)
            },
            "logits against torch": {
                kind: {"root mean square": float(np.sqrt(np.mean(values**2))), "largest": float(np.abs(values).max())}
                for kind, values in differences.items()
            },
            "median gap between the two best spans of torch": {
                kind: median_gaps(
                    [gap(logits["torch"][f"{budget} {n}"]) for n in numbers],
                    [one == other for one, other in zip(answers["torch"], answers[kind], strict=True)],
                )
                for kind in KINDS
            },
            "different answers": [
                {"question": record.question, "gold": record.answers[0], **{kind: answers[kind][n] for kind in KINDS}}
                for n, record in enumerate(records)
                if len({answers[kind][n] for kind in KINDS}) > 1
            ],
        }
    return {"questions": len(records), **found}


def main() -> None:
    """Push, load, compare."""
    work, raw = Path(sys.argv[1]).resolve(), Path(sys.argv[3])
    every = load_records(sys.argv[2], require_answers=True)
    count = int(sys.argv[4]) if len(sys.argv) > 4 else 50
    records = [every[index * len(every) // count] for index in range(count)]
    questions = work / "questions.json"
    asked = [{"question": record.question, "context": record.context} for record in records]
    questions.write_text(json.dumps(asked), encoding="utf-8")
    with HubServer({TOKEN: "write"}) as hub:
        home = work / "home"
        shutil.rmtree(home, ignore_errors=True)
        pushing = run(hub, home / "pushing", "-c", pushing_code(), folder=work)
        card = (work / "searched" / "README.md").read_text(encoding="utf-8")
        repository = json.dumps({"pushing": pushing, **describe(hub, card)}, indent=1)
        (raw / "repository.json").write_text(repository + "\n", encoding="utf-8")
        for kind in KINDS:  # each downloads anew
            arguments = [kind, REPO_ID, str(questions), str(work / kind), *BUDGETS]
            run(hub, home / kind, str(HERE / "answer.py"), *arguments, folder=work)
    result = json.dumps(compare(records, work), indent=1, ensure_ascii=False)
    (raw / "answers.json").write_text(result + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
