"""`optimum-cli qala pseudo-label`: a teacher's answers as labels."""

from __future__ import annotations

import json
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from optimum_qala.cli.console import Console
from optimum_qala.cli.loading import LoadedModel, load_model
from optimum_qala.cli.options import decode_options, given, resolve_budget, window_options
from optimum_qala.cli.outputs import new_file
from optimum_qala.errors import ConfigurationError, DataError
from optimum_qala.question_answering.metrics import score_question
from optimum_qala.question_answering.predictor import predict
from optimum_qala.question_answering.pseudo_labels import REASONS, LabelFilter, PseudoLabel, pseudo_label
from optimum_qala.question_answering.records import QARecord, load_records, record_to_json, records_to_squad


def run(args: Namespace, console: Console) -> None:
    """Label questions.

    Args:
        args: The parsed command line.
        console: Where to write.
    """
    write = _writer(args.output)
    label_filter = LabelFilter(**given(args, LabelFilter))
    has_opinion = bool({"second_model", "second_budget"} & vars(args).keys())
    if "min_agreement" in args and not has_opinion:
        raise ConfigurationError(
            "--min-agreement compares with a second opinion; give --second-model or --second-budget too"
        )
    if label_filter.compares_candidates and decode_options(args).n_best == 1:
        raise ConfigurationError(
            "--n-best 1 leaves one answer, and --min-margin and --max-entropy compare several; give --n-best 2 or more"
        )
    with new_file(args.output) as file:
        records = load_records(args.data, limit=getattr(args, "limit", None))
        teacher = load_model(
            args.model, getattr(args, "backend", None), revision=getattr(args, "revision", None), bulk=True
        )
        second = load_model(args.second_model, bulk=True) if "second_model" in args else teacher
        with console.progress(len(records), "label", "question") as bar:
            labels = list(
                pseudo_label(
                    _answers(args, teacher, records, getattr(args, "budget", None), bar.update),
                    label_filter,
                    _answers(args, second, records, getattr(args, "second_budget", None)) if has_opinion else None,
                    allow_no_answer=decode_options(args).allow_no_answer,
                )
            )
        kept = [label.record for label in labels if label.reason is None]
        summary = _summarize(records, labels)
        if not kept:
            raise DataError(f"no label of {len(records)} passed the filter ({_list(summary['dropped'])}); loosen it")
        write(kept, file)
    gold = summary["gold"]
    scored = f"; F1 {gold['f1']:.2f} against the {gold['num_questions']} gold answers among them" if gold else ""
    text = (
        f"{len(kept)} of {len(records)} labels written to {args.output}; dropped: {_list(summary['dropped'])}{scored}"
    )
    console.result({"output": args.output, **summary}, text)


def _writer(output: str) -> Callable[[Sequence[QARecord], TextIO], None]:
    """Choose the form of the output by its name."""
    writers = {".json": _write_squad, ".jsonl": _write_lines}
    suffix = Path(output).suffix
    if suffix not in writers:
        raise ConfigurationError(f"--output {output} ends in neither of {sorted(writers)}, which name its form")
    return writers[suffix]


def _write_squad(records: Sequence[QARecord], file: TextIO) -> None:
    json.dump(records_to_squad(records), file, ensure_ascii=False)
    file.write("\n")


def _write_lines(records: Sequence[QARecord], file: TextIO) -> None:
    file.writelines(json.dumps(record_to_json(record), ensure_ascii=False) + "\n" for record in records)


def _answers(
    args: Namespace,
    loaded: LoadedModel,
    records: Sequence[QARecord],
    budget: Any,
    progress: Callable[[int], None] | None = None,
) -> Iterator[tuple[QARecord, list[Any]]]:
    resolve_budget(loaded.model.config, budget)
    options = decode_options(args)
    return predict(
        loaded.model,
        loaded.tokenizer,
        records,
        budget=budget,
        window_options=window_options(args, loaded.capacity),
        decode_options=replace(options, top_k=options.n_best),  # margin and entropy compare them
        progress=progress,
        **({"batch_size": args.batch_size} if "batch_size" in args else {}),
    )


def _summarize(records: Sequence[QARecord], labels: Sequence[PseudoLabel]) -> dict[str, Any]:
    """Count labels, and score those that are kept where the data had answers."""
    counts = Counter(label.reason for label in labels)
    kept = [(record, label.record) for record, label in zip(records, labels, strict=True) if label.reason is None]
    scores = [
        score_question(record, "".join(label.answers))
        for record, label in kept
        if record.answers or record.is_impossible
    ]
    gold = {name: 100.0 * sum(getattr(score, name) for score in scores) / len(scores) for name in _SCORES if scores}
    return {
        "num_questions": len(records),
        "num_kept": counts[None],
        "num_without_answer": sum(label.is_impossible for _, label in kept),
        "dropped": {reason: counts[reason] for reason in REASONS},
        "gold": {"num_questions": len(scores), **gold} if scores else None,
    }


_SCORES = ("f1", "exact_match")


def _list(dropped: dict[str, int]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in dropped.items() if count) or "none"
