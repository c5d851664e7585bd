"""`optimum-cli qala evaluate`: F1 and exact match of a model at its budgets, or of a file of predictions."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from optimum_qala.cli.compiling import check_compile_flag, compile_model
from optimum_qala.cli.console import Console, format_table
from optimum_qala.cli.loading import load_model
from optimum_qala.cli.options import (
    BUCKET_FLAGS,
    bucket_options,
    chosen_budgets,
    decode_options,
    measured_budget,
    resolve_budget,
    window_options,
)
from optimum_qala.errors import ConfigurationError, DataError
from optimum_qala.quantization.qat_record import warn_of_unrounded_weights
from optimum_qala.question_answering.metrics import score_predictions
from optimum_qala.question_answering.predictor import evaluate
from optimum_qala.question_answering.records import load_records


# Flags that mean nothing without a model.
_WINDOW_FLAGS = ("max_length", "doc_stride", "max_question_length", "truncate_question")
_MODEL_FLAGS = (
    "revision",
    "budget",
    "max_latency_ms",
    "max_f1_loss",
    "backend",
    "batch_size",
    "pad_to",
    "n_best",
    *_WINDOW_FLAGS,
    "compile",
)
_DECODING_FLAGS = ("max_answer_length", "allow_no_answer", "null_threshold")


def run(args: Namespace, console: Console) -> None:
    """Score a model or a file of predictions.

    Args:
        args: The parsed command line.
        console: Where to write.
    """
    result = _score_file(args) if hasattr(args, "predictions") else _score_model(args, console)
    rows = result.get("budgets", {"": result}).items()
    metrics = ["f1", "exact_match", "num_questions"]
    table = format_table(([name, *(scores[metric] for metric in metrics)] for name, scores in rows), ["", *metrics])
    console.result(result, table)


def _score_file(args: Namespace) -> dict[str, Any]:
    useless = [name for name in (*_MODEL_FLAGS, *_DECODING_FLAGS, *BUCKET_FLAGS) if hasattr(args, name)]
    if useless:
        flag = BUCKET_FLAGS.get(useless[0], f"--{useless[0].replace('_', '-')}")
        raise ConfigurationError(f"{flag} needs --model: --predictions scores texts as they are")
    records = load_records(args.data, require_answers=True, limit=getattr(args, "limit", None))
    return {
        "predictions": args.predictions,
        "data": args.data,
        **score_predictions(records, read_predictions(args.predictions)),
    }


def _score_model(args: Namespace, console: Console) -> dict[str, Any]:
    check_compile_flag(args)
    # Data first: it is read in a moment, and a mistake in it should not cost the time to load a model.
    records = load_records(args.data, require_answers=True, limit=getattr(args, "limit", None))
    loaded = load_model(
        args.model,
        getattr(args, "backend", None),
        revision=getattr(args, "revision", None),
        buckets=bucket_options(args),
        bulk=getattr(args, "batch_size", None) != 1,
    )
    warn_of_unrounded_weights(loaded.model.config, args.model)
    measured = measured_budget(args, loaded)
    budgets = chosen_budgets(args, loaded.model.config) if measured is None else [measured]
    windows, decoding = window_options(args, loaded.capacity), decode_options(args)
    compile_model(args, loaded, budgets, console)
    batching = {"batch_size": args.batch_size} if hasattr(args, "batch_size") else {}
    num_impossible = sum(record.is_impossible for record in records)
    if num_impossible and not decoding.allow_no_answer:
        console.info(
            f"warning: {num_impossible} of {len(records)} questions have no answer, so every answer to them counts as "
            "wrong; --allow-no-answer lets the model leave them open"
        )
    scores: dict[str, dict[str, Any]] = {}
    for budget in budgets:
        with console.progress(len(records), f"evaluate at {budget}", "question") as bar:
            scores[budget] = evaluate(
                loaded.model,
                loaded.tokenizer,
                records,
                budget=budget,
                window_options=windows,
                decode_options=decoding,
                pad_to_length=getattr(args, "pad_to", None),
                progress=bar.update,
                **batching,
            )
        length_config = resolve_budget(loaded.model.config, budget)
        scores[budget] |= {"retention": None} if length_config is None else length_config.to_budget()
    result: dict[str, Any] = {
        "model": args.model,
        "backend": loaded.backend,
        "compiled": loaded.compiled,
        "data": args.data,
        "budgets": scores,
    }
    if len(budgets) == 1:
        # A script that asks for one budget need not know its name again.
        result |= {name: scores[budgets[0]][name] for name in ("f1", "exact_match", "num_questions")}
    return result


def read_predictions(path: str) -> dict[str, str]:
    """Read answers by question id.

    Args:
        path: A JSON object of id -> text, or the JSON lines that `predict` writes.

    Returns:
        Texts by id.

    Raises:
        DataError: If it is neither.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"predictions {path} are not UTF-8 text (byte {error.start})") from None
    try:
        document = json.loads(text)
    except ValueError:
        return _read_lines(path, text)
    if isinstance(document, dict) and {"id", "answer"} <= document.keys():
        return _read_lines(path, text)  # a single line of `predict`
    if not isinstance(document, dict):
        raise DataError(f"predictions {path} are a JSON {type(document).__name__}; expected an object of id -> text")
    for name, value in document.items():
        if not isinstance(value, str):
            raise DataError(f"predictions {path}: the answer {value!r} of question {name!r} is not a text")
    return document


def _read_lines(path: str, text: str) -> dict[str, str]:
    predictions = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            predictions[str(entry["id"])] = str(entry["answer"])
        except (ValueError, KeyError, TypeError):
            raise DataError(
                f"predictions {path}, line {number}: expected an object of id -> text, or lines with id and answer"
            ) from None
    return predictions
