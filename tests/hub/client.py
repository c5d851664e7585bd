"""What a user of the Hub does. Runs in a process of its own, for huggingface_hub reads its environment on import.

Reads steps, `[[label, function, arguments], ...]`, from standard input; writes their results by label, or the error
that one raised, as the last line of standard output. Several steps share a process, because importing is most of the
time that they take.
"""

from __future__ import annotations

import io
import json
import logging
import sys
from functools import cache
from typing import Any

import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

import optimum_qala
from optimum_qala import QuaLAMiniLMForQuestionAnswering
from optimum_qala.question_answering.predictor import predict
from optimum_qala.question_answering.records import QARecord
from optimum_qala.question_answering.windows import WindowOptions


QUESTION, CONTEXT = "who built the old tower in paris ?", "anna built the old tower in paris . peter lived in rome ."
BUDGETS = ("full", "fast")


def describe(model: Any, tokenizer: Any) -> dict[str, Any]:
    """Everything that a model must not lose on its way."""
    inputs = tokenizer(QUESTION, CONTEXT, return_tensors="pt")
    record = QARecord("q", QUESTION, CONTEXT)
    answers, logits = {}, {}
    for budget in BUDGETS:
        with torch.no_grad():
            output = model(**inputs, budget=budget)
        logits[budget] = [output.start_logits.tolist(), output.end_logits.tolist()]
        options = WindowOptions(max_length=64, doc_stride=16, max_question_length=32)
        ((_, (answer, *_)),) = predict(model, tokenizer, [record], budget=budget, window_options=options)
        answers[budget] = answer.text
    return {
        "class": type(model).__name__,
        "budgets": model.config.budgets,
        "logits": logits,
        "answers": answers,
    }


def push_torch(folder: str, repo_id: str, **options: Any) -> dict[str, Any]:
    """Push a model and its tokenizer as transformers does."""
    QuaLAMiniLMForQuestionAnswering.from_pretrained(folder).push_to_hub(repo_id, **options)
    AutoTokenizer.from_pretrained(folder).push_to_hub(repo_id, **options)
    return {}


def load_torch(repo_id: str, **options: Any) -> dict[str, Any]:
    """Load by repository id through the Auto classes."""
    model = AutoModelForQuestionAnswering.from_pretrained(repo_id, **options)
    return describe(model, AutoTokenizer.from_pretrained(repo_id, **options))


def load_plain(repo_id: str, **options: Any) -> dict[str, Any]:
    """Load a plain BERT by repository id, which converts it."""
    warnings = io.StringIO()
    handler = logging.StreamHandler(warnings)
    logging.getLogger("optimum_qala").addHandler(handler)
    try:
        model = QuaLAMiniLMForQuestionAnswering.from_pretrained(repo_id, **options)
    finally:
        logging.getLogger("optimum_qala").removeHandler(handler)
    config = model.config
    inputs = torch.arange(4, 24).reshape(1, 20)
    with torch.no_grad():
        logits = model(inputs).start_logits.tolist()
    return {
        "class": type(model).__name__,
        "sep_token_id": config.sep_token_id,
        "num_hidden_layers": config.num_hidden_layers,
        "logits": logits,
        "warnings": warnings.getvalue(),
    }


@cache
def export(folder: str) -> Any:
    """Export a model and note how it was quantized."""
    model = optimum_qala.OVQuaLAMiniLMForQuestionAnswering.from_pretrained(folder, export=True)
    model.quantization = optimum_qala.OVQuaLAConfig(num_samples=7)
    return model


def push_openvino(folder: str, repo_id: str, with_tokenizer: bool = False, **options: Any) -> dict[str, Any]:
    """Push an exported model in one go."""
    model, tokenizer = export(folder), AutoTokenizer.from_pretrained(folder)
    commit = model.push_to_hub(repo_id, tokenizer=tokenizer if with_tokenizer else None, **options)
    return {**describe(model, tokenizer), "commit": commit.oid, "pull_request": commit.pr_url}


def load_openvino(repo_id: str, **options: Any) -> dict[str, Any]:
    """Load an exported model by repository id."""
    model = optimum_qala.OVQuaLAMiniLMForQuestionAnswering.from_pretrained(repo_id, **options)
    samples = None if model.quantization is None else model.quantization.num_samples
    return {**describe(model, AutoTokenizer.from_pretrained(repo_id, **options)), "num_samples": samples}


def load_for_command(repo_id: str) -> dict[str, Any]:
    """Load as the commands do, which choose the back end themselves."""
    from optimum_qala.cli.loading import load_model

    return {"backend": load_model(repo_id).backend}


STEPS = {
    function.__name__: function
    for function in (push_torch, load_torch, load_plain, push_openvino, load_openvino, load_for_command)
}


def main() -> None:
    """Run the steps."""
    results: dict[str, Any] = {}
    for label, step, arguments in json.load(sys.stdin):
        try:
            results[label] = STEPS[step](**arguments)
        except Exception as error:  # the test says which one it expects
            logging.getLogger(__name__).warning("step %s", label, exc_info=True)
            results[label] = {"error": [kind.__name__ for kind in type(error).__mro__], "message": str(error)}
    sys.stdout.write("\n" + json.dumps(results) + "\n")


if __name__ == "__main__":
    main()
