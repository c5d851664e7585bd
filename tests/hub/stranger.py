"""What a user does who has transformers and not optimum-qala. Runs in a process of its own, as client.py does."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock


class Absent:
    """An import hook that makes a package look as if it were not installed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] == "optimum_qala":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Absent())  # before anything else is imported

import torch  # noqa: E402
from transformers import AutoModel, AutoModelForQuestionAnswering, AutoTokenizer  # noqa: E402


QUESTION, CONTEXT = "who built the old tower in paris ?", "anna built the old tower in paris . peter lived in rome ."


def load(repo_id: str, **options: Any) -> dict[str, Any]:
    """Load by the code in the repository."""
    model = AutoModelForQuestionAnswering.from_pretrained(repo_id, trust_remote_code=True, **options)
    inputs = AutoTokenizer.from_pretrained(repo_id, **options)(QUESTION, CONTEXT, return_tensors="pt")
    logits = {}
    for budget in ("full", "fast"):
        with torch.no_grad():
            output = model(**inputs, budget=budget)
        logits[budget] = [output.start_logits.tolist(), output.end_logits.tolist()]
    return {"module": type(model).__module__, "budgets": model.config.budgets, "logits": logits}


def load_encoder(repo_id: str, **options: Any) -> dict[str, Any]:
    """Load the encoder alone."""
    model = AutoModel.from_pretrained(repo_id, trust_remote_code=True, **options)
    return {"class": type(model).__name__}


def save_and_load(repo_id: str, folder: str, **options: Any) -> dict[str, Any]:
    """Load, save, and load what was saved."""
    AutoModelForQuestionAnswering.from_pretrained(repo_id, trust_remote_code=True, **options).save_pretrained(folder)
    AutoTokenizer.from_pretrained(repo_id, **options).save_pretrained(folder)
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    return {**load(folder), "auto_map": config["auto_map"]}


def run_card(code: str) -> dict[str, Any]:
    """Run what a model card says, and count the questions that the user is asked: "no" is not always an error."""
    names: dict[str, Any] = {"__name__": "card"}
    with mock.patch("builtins.input", return_value="n") as asked:
        exec(compile(code, "card", "exec"), names)
    module, scores = type(names["model"]).__module__, names["output"].start_logits
    return {"module": module, "num_scores": scores.numel(), "num_questions": asked.call_count}


def main() -> None:
    """Run the steps."""
    results: dict[str, Any] = {}
    steps = {function.__name__: function for function in (load, load_encoder, save_and_load, run_card)}
    for label, step, arguments in json.load(sys.stdin):
        try:
            results[label] = steps[step](**arguments)
        except Exception as error:  # the test says which one it expects
            results[label] = {"error": [kind.__name__ for kind in type(error).__mro__], "message": str(error)}
    results["imported"] = {"modules": [name for name in sys.modules if name.startswith("optimum_qala")]}
    sys.stdout.write("\n" + json.dumps(results) + "\n")


if __name__ == "__main__":
    main()
