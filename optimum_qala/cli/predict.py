"""`optimum-cli qala predict`: answers as a stream of JSON lines."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from optimum_qala.cli.compiling import check_compile_flag, compile_model
from optimum_qala.cli.console import Console
from optimum_qala.cli.loading import load_model
from optimum_qala.cli.options import bucket_options, decode_options, measured_budget, resolve_budget, window_options
from optimum_qala.cli.outputs import new_file
from optimum_qala.errors import ConfigurationError
from optimum_qala.quantization.qat_record import warn_of_unrounded_weights
from optimum_qala.question_answering.answers import Answer
from optimum_qala.question_answering.predictor import predict
from optimum_qala.question_answering.records import QARecord, iter_records


def run(args: Namespace, console: Console) -> None:
    """Answer questions as they come.

    Args:
        args: The parsed command line.
        console: Where to write.
    """
    check_compile_flag(args)
    records = _limited(iter_records(args.data), getattr(args, "limit", None))
    loaded = load_model(
        args.model,
        getattr(args, "backend", None),
        revision=getattr(args, "revision", None),
        buckets=bucket_options(args),
        bulk=1 not in (getattr(args, "batch_size", None), getattr(args, "buffer_size", None)),
    )
    warn_of_unrounded_weights(loaded.model.config, args.model)
    budget = measured_budget(args, loaded) or getattr(args, "budget", None)
    resolve_budget(loaded.model.config, budget)
    compile_model(args, loaded, [budget], console)
    explicit = {name: getattr(args, name) for name in ("batch_size", "buffer_size") if hasattr(args, name)}
    with console.progress(None, "predict", "question") as bar:
        answered = predict(
            loaded.model,
            loaded.tokenizer,
            records,
            budget=budget,
            window_options=window_options(args, loaded.capacity),
            decode_options=decode_options(args),
            progress=bar.update,
            **explicit,
        )
        lines = (_line(record, answers, "top_k" in args) for record, answers in answered)
        if not hasattr(args, "output"):
            for line in lines:
                console.json_line(line)
            return
        count = _write(args.output, lines)
    console.result({"output": args.output, "num_questions": count}, f"{count} answers written to {args.output}")


def _limited(records: Iterator[QARecord], limit: int | None) -> Iterator[QARecord]:
    if limit is not None and limit < 1:
        raise ConfigurationError(f"limit {limit} is not a positive integer; leave it out to answer every question")
    return islice(records, limit)


def _line(record: QARecord, answers: list[Answer], with_all: bool) -> dict[str, Any]:
    line: dict[str, Any] = {"id": record.id, "question": record.question, **_answer(answers[0])}
    if with_all:
        line["answers"] = [_answer(answer) for answer in answers]
    return line


def _answer(answer: Answer) -> dict[str, Any]:
    return {"answer": answer.text, "score": round(answer.score, 6), "start": answer.start, "end": answer.end}


def _write(output: str, lines: Iterable[dict[str, Any]]) -> int:
    count = 0
    with new_file(output) as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
            count += 1
    return count
