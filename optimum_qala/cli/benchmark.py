"""`optimum-cli qala benchmark`: F1 and milliseconds of a model at its budgets, beside other models if wanted."""

from __future__ import annotations

import shlex
import sys
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from optimum_qala._folders import new_folder, write_json
from optimum_qala.cli.compiling import compile_model, sources_to_compile
from optimum_qala.cli.console import Console, format_table
from optimum_qala.cli.loading import LoadedModel
from optimum_qala.cli.options import bucket_options, chosen_budgets, given, window_options
from optimum_qala.cli.peers import (
    PLAIN_INT8,
    Entry,
    ModelSource,
    budget_entries,
    check_names,
    check_vocabulary,
    depths_of,
    make_bert_base_entries,
    make_plain,
    peer_entries,
    plain_capacity,
    with_buckets,
)
from optimum_qala.errors import ConfigurationError, MissingExtraError
from optimum_qala.question_answering.features import make_windows
from optimum_qala.question_answering.predictor import evaluate
from optimum_qala.question_answering.records import QARecord, load_records
from optimum_qala.question_answering.windows import Window, WindowOptions
from optimum_qala.reporting.arithmetic import Peak, measure_int8_peak
from optimum_qala.reporting.benchmark import (
    BenchmarkOptions,
    Candidate,
    count_passes,
    measure,
)
from optimum_qala.reporting.bulk import BulkOptions, count_bulk_turns, measure_bulk
from optimum_qala.reporting.machine import describe_machine
from optimum_qala.reporting.peers import PeerOptions
from optimum_qala.reporting.plot import plot_report
from optimum_qala.reporting.tables import back_end, markdown, settings_of


COLUMNS = (
    "name",
    "backend",
    "arithmetic",
    "threads",
    "f1",
    "median_ms",
    "ratio",
    "speedup",
    "mmacs",
    "gmacs_per_s",
    "size_mb",
)
# Graphs that a model in buckets keeps while it is timed, about 40 MB each for MiniLM-L6: what is dropped would be
# compiled again within a measurement, and half a dozen budgets have up to a dozen lengths each.
TIMED_GRAPHS = 96
# Flags that time bulk prediction, by what they set.
BULK_FLAGS = {"bulk": "--bulk", "bulk_windows": "--bulk-windows", "bulk_repeats": "--bulk-repeats"}


def run(args: Namespace, console: Console) -> None:
    """Measure a model.

    Args:
        args: The parsed command line.
        console: Where to write.

    Raises:
        ConfigurationError: If flags contradict one another, or a peer reads other tokens, so that windows cannot be
            shared.
    """
    options, bulk = benchmark_options(args), bulk_options(args)
    peer_options = PeerOptions(**given(args, PeerOptions))
    if "plain" not in args:
        for name in ("calibration_data", "calibration_samples"):
            if name in args:
                raise ConfigurationError(f"--{name.replace('_', '-')} needs --plain, the model to quantize")
    records = load_records(args.data, require_answers=True, limit=getattr(args, "limit", None))
    with new_folder(args.output) as folder, tempfile.TemporaryDirectory(dir=folder, prefix=".peers-") as work:
        threads, buckets = getattr(args, "threads", None), bucket_options(args)
        if buckets is not None and "max_graphs" not in args:
            buckets = replace(buckets, max_graphs=TIMED_GRAPHS)
        # A torch checkpoint runs in OpenVINO in both rows, so that buckets are all that differs.
        backend = getattr(args, "backend", None) or (None if buckets is None else "openvino")
        source = ModelSource(args.model, backend, revision=getattr(args, "revision", None), threads=threads)
        loaded = source.load()
        depths = depths_of(args, loaded.model.config)
        entries = with_buckets(budget_entries(source, chosen_budgets(args, loaded.model.config), depths), buckets)
        peers = peer_entries(getattr(args, "peer", []), getattr(args, "budget", []), threads)
        check_names([*entries, *peers])
        to_compile = sources_to_compile(args, [*entries, *peers])
        for peer in peers:
            check_vocabulary(peer.name, peer.source.load().tokenizer, loaded.tokenizer)
        capacities = [loaded.capacity, *(peer.source.load().capacity for peer in peers)]
        if "plain" in args:
            capacities.append(plain_capacity(args.plain, loaded.tokenizer))
        cut = window_options(args, min(capacities))
        windows = make_windows(records, loaded.tokenizer, cut)
        options = _fit(options, windows, min(capacities), console)
        for one, budgets in to_compile.items():
            compile_model(args, one.load(), budgets, console)
        quantization = None
        if "plain" in args:
            made, quantization = _make_plain(args, records, Path(work), loaded.tokenizer, peer_options, cut, console)
            entries += with_buckets(made, buckets)
        entries += with_buckets(peers, buckets)
        if "bert_base" in args:
            console.info("making a model of BERT-base shape")
            entries += make_bert_base_entries(loaded, Path(work) / "bert-base", threads, peer_options)
        report = {
            "model": args.model,
            "data": args.data,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": shlex.join(["optimum-cli", *sys.argv[1:]]),
            "quantization": quantization,
        } | benchmark(
            entries,
            records,
            windows,
            options=options,
            bulk=bulk,
            window_options=cut,
            console=console,
            score="no_f1" not in args,
        )
        write_json(folder / "results.json", report)
        (folder / "results.md").write_text(markdown(report), encoding="utf-8")
        draw(report, folder / "results.png", console)
    console.result({"output": args.output, **report}, result_table(report))


def _make_plain(
    args: Namespace,
    records: list[QARecord],
    folder: Path,
    tokenizer: Any,
    options: PeerOptions,
    windows: WindowOptions,
    console: Console,
) -> tuple[list[Entry], dict[str, Any]]:
    """Make the plain models that flags ask for; return their rows and how int8 was made."""
    calibration = args.calibration_data if "calibration_data" in args else args.data
    if calibration == args.data:
        console.info(
            "warning: the plain model is calibrated with the questions that it is scored on; name others, of the "
            "training set, with --calibration-data"
        )
    made, settings = make_plain(
        args.plain,
        getattr(args, "depths", []),
        folder,
        tokenizer,
        records if calibration == args.data else load_records(calibration),
        threads=getattr(args, "threads", None),
        options=options,
        window_options=windows,
        console=console,
    )
    return made, {"data": calibration, **settings}


def benchmark_options(args: Namespace) -> BenchmarkOptions:
    """Make the options of the measurement."""
    explicit = given(args, BenchmarkOptions)
    if "batch_size" in args:
        explicit["batch_sizes"] = tuple(args.batch_size)
    return BenchmarkOptions(**explicit)


def _fit(options: BenchmarkOptions, windows: Sequence[Window], capacity: int, console: Console) -> BenchmarkOptions:
    """Check the options before anything is made or timed; say so if there are fewer windows than a batch has."""
    fitted = options.for_windows(windows, capacity)
    if max(fitted.batch_sizes) < max(options.batch_sizes):
        console.info(
            f"warning: {min(options.num_windows, len(windows))} windows are timed, so no batch is larger; raise "
            "--num-windows, or give more data, for larger ones"
        )
    return fitted


def bulk_options(args: Namespace) -> BulkOptions | None:
    """Make the options of bulk prediction; any flag of theirs switches it on."""
    if not any(hasattr(args, name) for name in BULK_FLAGS):
        return None
    return BulkOptions(**given(args, BulkOptions))


def benchmark(
    entries: Sequence[Entry],
    records: list[QARecord],
    windows: Sequence[Window],
    *,
    options: BenchmarkOptions,
    window_options: WindowOptions,
    console: Console,
    bulk: BulkOptions | None = None,
    score: bool = True,
) -> dict[str, Any]:
    """Score and time models at their budgets.

    Args:
        entries: What to measure.
        records: Questions with answers.
        windows: Their windows.
        options: What to time.
        window_options: How contexts are cut.
        console: Where progress goes.
        bulk: What to time in bulk; nothing if None.
        score: Compute F1 and exact match.

    Returns:
        The machine, the data, and a row per measurement.
    """
    names = [entry.name for entry in entries]
    reference = PLAIN_INT8 if PLAIN_INT8 in names else None
    scores, bulk_rows = _run_in_bulk(entries, records, windows, bulk, window_options, console, reference, score)
    loaded = {entry.source: entry.source.load() for entry in entries}
    candidates = [entry.candidate(loaded[entry.source]) for entry in entries]
    before = _num_evictions(candidates)
    with console.progress(count_passes(options), "measure", "pass") as bar:
        rows = [row.as_dict() for row in measure(candidates, windows, options, bar.update, reference)]
    if dropped := _num_evictions(candidates) - before:
        console.info(
            f"warning: {dropped} compiled graphs were dropped while measuring, so some times include compiling them "
            "again; raise --max-graphs"
        )
    peak = None
    if any(candidate.backend == "openvino" for candidate in candidates):
        peak = measure_int8_peak(max(candidate.threads for candidate in candidates))
    sizes = {entry.name: loaded[entry.source].size_bytes for entry in entries}
    return {
        "machine": describe_machine(),
        "int8_peak": None if peak is None else peak.as_dict(),
        "num_questions": len(records),
        "num_windows": len(windows),
        "mean_tokens": sum(len(window) for window in windows) / len(windows),
        "num_timed_windows": min(options.num_windows, len(windows)),
        "repeats": options.repeats,
        "reference": reference,
        "graphs_dropped": dropped,
        "rows": [_complete(row, scores, sizes, peak) for row in rows],
        "bulk_rows": [_complete(row, scores, sizes, peak) for row in bulk_rows],
    }


def _run_in_bulk(
    entries: Sequence[Entry],
    records: list[QARecord],
    windows: Sequence[Window],
    bulk: BulkOptions | None,
    window_options: WindowOptions,
    console: Console,
    reference: str | None,
    score: bool,
) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """Score, and time in bulk, with models whose memory stays flat; they go when this is done."""
    if bulk is None and not score:
        return {}, []
    taking_part = [entry for entry in entries if not entry.is_slow]
    loaded: dict[ModelSource, LoadedModel] = {}
    for entry in taking_part:
        if entry.source not in loaded and (bulk is not None or entry.scored_as is None):
            loaded[entry.source] = entry.source.load_for_bulk()
    scores: dict[str, dict[str, Any]] = {}
    for entry in taking_part if score else ():
        if entry.scored_as is None:
            scores[entry.name] = _score(entry, loaded[entry.source], records, window_options, console)
    scores |= {entry.name: scores[entry.scored_as] for entry in taking_part if score and entry.scored_as is not None}
    if bulk is None:
        return scores, []
    candidates = [entry.candidate(loaded[entry.source]) for entry in taking_part]
    with console.progress(count_bulk_turns(candidates, windows, bulk), "measure bulk", "turn") as bar:
        rows = measure_bulk(candidates, windows, bulk, bar.update, reference)
    if names := [row.name for row in rows if row.num_compiled]:
        console.info(
            f"warning: the bulk times of {', '.join(names)} include compiling graphs, since more are needed than are "
            "kept; raise --max-graphs"
        )
    return scores, [row.as_dict() for row in rows]


def _score(
    entry: Entry, loaded: LoadedModel, records: list[QARecord], window_options: WindowOptions, console: Console
) -> dict[str, Any]:
    with console.progress(len(records), f"evaluate {entry.name}", "question") as bar:
        return evaluate(
            loaded.model,
            loaded.tokenizer,
            records,
            budget=entry.budget,
            window_options=window_options,
            progress=bar.update,
        )


def _complete(
    row: dict[str, Any], scores: dict[str, dict[str, Any]], sizes: dict[str, int | None], peak: Peak | None
) -> dict[str, Any]:
    """Add to a measured row what is known of its model."""
    name, own = row["name"], scores.get(row["name"], {})
    is_comparable = peak is not None and row["arithmetic"] == "int8" and row["gmacs_per_s"] is not None
    size = sizes[name]
    return {
        **row,
        "f1": own.get("f1"),
        "exact_match": own.get("exact_match"),
        "peak_share": row["gmacs_per_s"] / peak.gmacs_per_s if peak is not None and is_comparable else None,
        "size_mb": None if size is None else size / 1e6,
    }


def _num_evictions(candidates: Sequence[Candidate]) -> int:
    models = {id(one.model): one.model for one in candidates if one.buckets is not None}
    return sum(model.bucket_counters.evictions for model in models.values())


def draw(report: dict[str, Any], file: Path, console: Console) -> None:
    """Draw the plot, or say why there is none.

    Args:
        report: The report.
        file: The picture.
        console: Where to say it.
    """
    try:
        if not plot_report(report, file):
            console.info(f"no {file.name}: no row has an F1")
    except MissingExtraError as error:
        console.info(f"no {file.name}: {error}")


def result_table(report: dict[str, Any]) -> str:
    """Lay out the rows for a terminal, a table for each setting."""
    machine = report["machine"]
    parts = [f"{machine['cpu']} ({' '.join(machine['flags'])})"]
    for title, rows in settings_of(report):
        parts += ["", title, format_table((_cells(row) for row in rows), COLUMNS)]
    return "\n".join(parts)


def _cells(row: dict[str, Any]) -> list[Any]:
    shown = row | {"backend": back_end(row)}
    return [shown[column] for column in COLUMNS]
