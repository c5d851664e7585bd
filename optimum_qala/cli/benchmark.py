"""`optimum-cli qala benchmark`: F1 and milliseconds of a model at its budgets, beside other models if wanted."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from optimum_qala._folders import new_folder
from optimum_qala.cli.console import Console, format_table
from optimum_qala.cli.loading import LoadedModel, load_model
from optimum_qala.cli.options import bucket_options, chosen_budgets, given, window_options
from optimum_qala.cli.outputs import write_json
from optimum_qala.errors import ConfigurationError
from optimum_qala.models.configuration_quala_minilm import FULL_BUDGET
from optimum_qala.question_answering.features import make_windows
from optimum_qala.question_answering.predictor import evaluate
from optimum_qala.question_answering.records import QARecord, load_records
from optimum_qala.question_answering.windows import WindowOptions
from optimum_qala.reporting.benchmark import (
    BenchmarkOptions,
    Candidate,
    count_passes,
    describe_machine,
    measure,
)


COLUMNS = ("name", "backend", "precision", "threads", "batch_size", "padding", "f1", "median_ms", "p90_ms", "speedup")


def run(args: Namespace, console: Console) -> None:
    """Measure a model.

    Args:
        args: The parsed command line.
        console: Where to write.
    """
    options = benchmark_options(args)
    records = load_records(args.data, require_answers=True, limit=getattr(args, "limit", None))
    with new_folder(args.output) as folder:
        threads = getattr(args, "threads", None)
        buckets = bucket_options(args)
        loaded = load_model(args.model, getattr(args, "backend", None), threads=threads, buckets=buckets)
        peers = {path: load_model(path, threads=threads) for path in getattr(args, "peer", [])}
        if buckets is not None:  # a model in buckets beside one that is not would be no fair comparison
            peers |= {f"{path} in buckets": load_model(path, threads=threads, buckets=buckets) for path in peers}
        budgets = chosen_budgets(args, loaded.model.config)
        windows = window_options(args, min(one.capacity for one in (loaded, *peers.values())))
        report = {"model": args.model, "data": args.data} | benchmark(
            loaded, records, budgets, options=options, window_options=windows, peers=peers, console=console
        )
        write_json(folder / "results.json", report)
        (folder / "results.md").write_text(markdown(report), encoding="utf-8")
    console.result({"output": args.output, **report}, result_table(report))


def benchmark_options(args: Namespace) -> BenchmarkOptions:
    """Make the options of the measurement."""
    explicit = given(args, BenchmarkOptions)
    if "batch_size" in args:
        explicit["batch_sizes"] = tuple(args.batch_size)
    return BenchmarkOptions(**explicit)


def benchmark(
    loaded: LoadedModel,
    records: list[QARecord],
    budgets: list[str],
    *,
    options: BenchmarkOptions,
    window_options: WindowOptions,
    console: Console,
    peers: dict[str, LoadedModel] | None = None,
) -> dict[str, Any]:
    """Score and time a model at its budgets, and other models at full length.

    Args:
        loaded: The model.
        records: Questions with answers.
        budgets: Budgets of the model. Full length is measured in any case: speed-ups refer to it.
        options: What to time.
        window_options: How contexts are cut.
        console: Where progress goes.
        peers: Other models by name.

    Returns:
        The machine, the data, and a row per measurement.

    Raises:
        ConfigurationError: If a peer reads other tokens, so that windows cannot be shared.
    """
    peers = peers or {}
    for name, peer in peers.items():
        if peer.tokenizer.get_vocab() != loaded.tokenizer.get_vocab():
            raise ConfigurationError(f"peer {name} has another vocabulary than the model; measure it on its own")
    entries = {budget: (loaded, budget) for budget in dict.fromkeys((FULL_BUDGET, *budgets))}
    entries |= {name: (peer, FULL_BUDGET) for name, peer in peers.items()}
    f1 = {}
    for name, (model, budget) in entries.items():
        with console.progress(len(records), f"evaluate {name}", "question") as bar:
            scores = evaluate(
                model.model,
                model.tokenizer,
                records,
                budget=budget,
                window_options=window_options,
                progress=bar.update,
            )
        f1[name] = scores["f1"]
    candidates = [
        Candidate(
            name=name,
            model=model.model,
            tokenizer=model.tokenizer,
            budget=budget,
            backend=model.backend,
            precision=model.precision,
            threads=model.threads,
            baseline=FULL_BUDGET,
            padding=model.padding,
        )
        for name, (model, budget) in entries.items()
    ]
    windows = make_windows(records, loaded.tokenizer, window_options)
    dropped = _num_evictions(entries)
    with console.progress(count_passes(options), "measure", "pass") as bar:
        rows = measure(candidates, windows, options, bar.update)
    if dropped := _num_evictions(entries) - dropped:
        console.info(
            f"warning: {dropped} compiled graphs were dropped while measuring, so some times include compiling them "
            "again; raise --max-graphs"
        )
    return {
        "machine": describe_machine(),
        "num_questions": len(records),
        "num_windows": len(windows),
        "mean_tokens": sum(len(window) for window in windows) / len(windows),
        "num_timed_windows": min(options.num_windows, len(windows)),
        "repeats": options.repeats,
        "rows": [{**row.as_dict(), "f1": f1[row.name]} for row in rows],
    }


def _num_evictions(entries: dict[str, tuple[LoadedModel, str]]) -> int:
    models = {id(one.model): one.model for one, _ in entries.values() if one.padding is not None}
    return sum(model.bucket_counters.evictions for model in models.values())


def result_table(report: dict[str, Any]) -> str:
    """Lay out the rows for a terminal."""
    machine = report["machine"]
    return f"{machine['cpu']} ({' '.join(machine['flags'])})\n" + format_table(
        ([row[column] for column in COLUMNS] for row in report["rows"]), COLUMNS
    )


def markdown(report: dict[str, Any]) -> str:
    """Lay out the report as Markdown."""
    machine = report["machine"]
    cells = [[_cell(row[column]) for column in COLUMNS] for row in report["rows"]]
    lines = [" | ".join(COLUMNS), " | ".join("---" for _ in COLUMNS), *(" | ".join(row) for row in cells)]
    return (
        f"# Benchmark of {Path(report['model']).name}\n\n"
        f"{report['num_questions']} questions of {Path(report['data']).name}, {report['num_windows']} windows of "
        f"{report['mean_tokens']:.1f} tokens on average, {report['num_timed_windows']} of them timed in "
        f"{report['repeats']} interleaved passes. Milliseconds are per window; speed-up is over `{FULL_BUDGET}`.\n\n"
        f"{machine['cpu']}, {' '.join(machine['flags'])}; Python {machine['python']}, torch {machine['torch']}.\n\n"
        + "".join(f"| {line} |\n" for line in lines)
    )


def _cell(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)
