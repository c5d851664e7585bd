"""What a user of the Hub does. Runs in a process of its own, for huggingface_hub reads its environment on import.

Reads steps, `[[label, function, arguments], ...]`, from standard input; writes their results by label, or the error
that one raised, as the last line of standard output. Several steps share a process, because importing is most of the
time that they take.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import shutil
import sys
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, PreTrainedModel

import optimum_qala
from optimum_qala import QuaLAMiniLMForQuestionAnswering
from optimum_qala.question_answering.predictor import predict
from optimum_qala.question_answering.records import QARecord
from optimum_qala.question_answering.windows import WindowOptions
from optimum_qala.reporting.model_card import write_model_card


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
        "module": type(model).__module__,
        "budgets": model.config.budgets,
        "logits": logits,
        "answers": answers,
    }


def push_torch(folder: str, repo_id: str, change: float = 0.0, **options: Any) -> dict[str, Any]:
    """Push a model, with a change to its weights, and its tokenizer in one go."""
    model = QuaLAMiniLMForQuestionAnswering.from_pretrained(folder)
    with torch.no_grad():
        model.qa_outputs.bias[0] += change
    commit = model.push_to_hub(repo_id, tokenizer=AutoTokenizer.from_pretrained(folder), **options)
    return {"commit": commit.oid}


def push_without_waiting(**options: Any) -> dict[str, Any]:
    """Push where the client does not wait between the tries of an upload."""
    with mock.patch("huggingface_hub.utils._http.time.sleep"):
        return push_torch(**options)


def push_parts(folder: str, repo_id: str, token: str) -> dict[str, Any]:
    """Push model and tokenizer each on its own, as transformers does."""
    PreTrainedModel.push_to_hub(QuaLAMiniLMForQuestionAnswering.from_pretrained(folder), repo_id, token=token)
    AutoTokenizer.from_pretrained(folder).push_to_hub(repo_id, token=token)
    return {}


def train(folder: str, output: str, repo_id: str, token: str, revision: str | None = None) -> dict[str, Any]:
    """Train for two steps with a checkpoint that is pushed on the way, and push the result."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    trainer = optimum_qala.QuaLATrainer(
        QuaLAMiniLMForQuestionAnswering.from_pretrained(folder),
        optimum_qala.QuaLATrainingArguments(
            output_dir=output,
            max_steps=2,
            save_steps=1,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            push_to_hub=True,
            hub_model_id=repo_id,
            hub_token=token,
            hub_revision=revision,
        ),
        train_dataset=[QARecord("q", QUESTION, CONTEXT, ("anna",), (0,))],
        window_options=WindowOptions(max_length=64, doc_stride=16, max_question_length=32),
        processing_class=tokenizer,
    )
    trainer.train()
    commit = trainer.push_to_hub(tags=["tower"])
    return {"commit": commit.oid, **describe(trainer.model.eval(), tokenizer)}


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
    return {**describe(model, load_root_tokenizer(repo_id, options)), "num_samples": samples}


def push_inc(folder: str, tokenizer: str, repo_id: str, **options: Any) -> dict[str, Any]:
    """Push a model that Intel Neural Compressor quantized."""
    model = optimum_qala.INCQuaLAMiniLMForQuestionAnswering.from_pretrained(folder)
    model.push_to_hub(repo_id, tokenizer=AutoTokenizer.from_pretrained(tokenizer), **options)
    return describe(model, AutoTokenizer.from_pretrained(tokenizer))


def load_inc(repo_id: str, **options: Any) -> dict[str, Any]:
    """Load one by repository id."""
    model = optimum_qala.INCQuaLAMiniLMForQuestionAnswering.from_pretrained(repo_id, **options)
    return describe(model, load_root_tokenizer(repo_id, options))


def load_root_tokenizer(repo_id: str, options: dict[str, Any]) -> Any:
    """Load the tokenizer, which is at the root wherever the model is."""
    return AutoTokenizer.from_pretrained(repo_id, **{**options, "subfolder": ""})


def run_page(page: str, sources: dict[str, str], folder: str) -> dict[str, Any]:
    """Run the Python of a page of the documentation in a folder as its commands leave it."""
    for name, source in sources.items():
        shutil.copytree(source, Path(folder) / name)
    export(sources["searched"]).save_pretrained(Path(folder) / "searched" / "openvino")
    write_model_card(Path(folder) / "searched", repo_id="your-name/your-model")
    namespace: dict[str, Any] = {"__name__": "docs"}
    with contextlib.chdir(folder):
        for code in re.findall(r"^```python\n(.*?)^```$", Path(page).read_text(encoding="utf-8"), re.M | re.S):
            exec(compile(code, page, "exec"), namespace)
    return {"classes": sorted({type(namespace[name]).__name__ for name in ("int8", "by_inc", "model")})}


def load_for_command(repo_id: str, **options: Any) -> dict[str, Any]:
    """Load as the commands do, which choose the back end themselves."""
    from optimum_qala.cli.loading import load_model

    return {"backend": load_model(repo_id, **options).backend}


def count_layers(repo_id: str, revision: str | None = None) -> dict[str, Any]:
    """Load a plain torch checkpoint in all the ways in which commands do."""
    from optimum_qala.cli.loading import load_model, load_plain_encoder, load_source

    model, encoder = load_model(repo_id, "torch", revision=revision).model, load_plain_encoder(repo_id, revision)
    source, tokenizer = load_source(repo_id, revision)
    layers = [one.config.num_hidden_layers for one in (model, encoder, source)]
    return {"layers": layers, "separator": tokenizer.sep_token}


STEPS = {
    function.__name__: function
    for function in (
        push_torch,
        push_without_waiting,
        push_parts,
        train,
        load_torch,
        load_plain,
        push_openvino,
        load_openvino,
        push_inc,
        load_inc,
        run_page,
        load_for_command,
        count_layers,
    )
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
