"""`optimum-cli qala search`: find the budgets of a trained model and write them into its config."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from optimum_qala.cli.console import Console, format_table
from optimum_qala.cli.loading import LoadedModel, holds_ir, load_model
from optimum_qala.cli.options import given, window_options
from optimum_qala.cli.outputs import resumable_folder, run_settings, write_json
from optimum_qala.errors import BackendError
from optimum_qala.models.configuration_quala_minilm import QuaLAMiniLMConfig
from optimum_qala.models.length_config import LengthConfig
from optimum_qala.question_answering.features import Window, WindowOptions, collate, make_windows
from optimum_qala.question_answering.predictor import evaluate
from optimum_qala.question_answering.records import QARecord, load_records
from optimum_qala.reporting.benchmark import describe_machine, sample_windows
from optimum_qala.search.budgets import choose_budgets
from optimum_qala.search.cost import mac_cost, measured_latency_cost
from optimum_qala.search.evolution import SearchOptions, SearchProgress, evolve
from optimum_qala.search.pareto import Candidate
from optimum_qala.search.store import EvaluationStore


# Windows that a latency is measured on, one at a time: enough to span the lengths, few enough for many configs.
LATENCY_WINDOWS = 32
COST_UNITS = {"macs": "multiply-accumulate operations per window", "latency": "milliseconds per window"}
# Flags that neither a score nor a cost depends on: a longer search goes on from what a shorter one has measured.
_SEARCH_FLAGS = (
    "iterations",
    "population_size",
    "mutations",
    "crossovers",
    "mutation_probability",
    "drop_ratio_bound",
    "step",
    "max_evaluations",
    "accurate_loss",
    "max_loss",
    "seed",
)


def run(args: Namespace, console: Console) -> None:
    """Search the budgets of a model.

    Args:
        args: The parsed command line.
        console: Where to write.
    """
    options = given(args, SearchOptions)
    SearchOptions(**options)  # a bad option should not cost the time to load a model
    records = load_records(args.data, require_answers=True, limit=getattr(args, "limit", None))
    settings = run_settings(args, inputs=("model", "data"), without=_SEARCH_FLAGS)
    with resumable_folder(args.output, settings) as work:
        # A latency is measured one window at a time, which is what the large cache is for.
        bulk = getattr(args, "cost", "macs") != "latency"
        loaded = load_model(args.model, getattr(args, "backend", None), bulk=bulk)
        if not isinstance(loaded.model.config, QuaLAMiniLMConfig):
            raise BackendError(
                f"{args.model} is a plain {loaded.model.config.model_type!r} model, which drops no tokens; search the "
                "result of optimum-cli qala train"
            )
        # OpenVINO scores a torch checkpoint several times faster; the result is that checkpoint all the same.
        is_exported_here = loaded.backend == "openvino" and not holds_ir(args.model)
        summary = search(
            loaded,
            records,
            keep=load_model(args.model, "torch") if is_exported_here else loaded,
            store_path=work.state / "evaluations.json",
            settings=settings,
            result=work.result,
            window_options=window_options(args, loaded.capacity),
            cost_kind=getattr(args, "cost", "macs"),
            batch_size=getattr(args, "batch_size", 32),
            console=console,
            losses={name: getattr(args, name) for name in ("accurate_loss", "max_loss") if hasattr(args, name)},
            **options,
        )
    console.result({"output": args.output, **summary}, budget_table(summary["budgets"]))


def search(
    loaded: LoadedModel,
    records: Sequence[QARecord],
    *,
    store_path: Path,
    settings: dict[str, Any],
    result: Path,
    window_options: WindowOptions,
    console: Console,
    keep: LoadedModel | None = None,
    cost_kind: str = "macs",
    batch_size: int = 32,
    losses: dict[str, float] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Search, write the budgets into the model's config, and save model and tokenizer.

    Args:
        loaded: The model.
        records: Validation questions.
        store_path: File that keeps what was measured.
        settings: Everything that a score or a cost depends on.
        result: Folder for the model with its budgets.
        window_options: How contexts are cut.
        console: Where progress goes.
        keep: The model to save with the budgets; the searched one by default.
        cost_kind: "macs" or "latency".
        batch_size: Windows per call of the model.
        losses: Arguments of `choose_budgets`.
        options: Fields of `SearchOptions`.

    Returns:
        The budgets and how the search went.
    """
    config = loaded.model.config
    search_options = SearchOptions(**{"drop_layers": config.dropping_layers} | options)
    windows = make_windows(list(records), loaded.tokenizer, window_options)
    macs = mac_cost([(len(window), window.context_position) for window in windows], config.macs)
    scores: dict[LengthConfig, dict[str, Any]] = {}

    def score(length_config: LengthConfig) -> dict[str, Any]:
        if length_config not in scores:
            scores[length_config] = evaluate(
                loaded.model,
                loaded.tokenizer,
                records,
                budget=length_config,
                window_options=window_options,
                batch_size=batch_size,
            )
        return scores[length_config]

    conditions: dict[str, Any] = {}
    if cost_kind == "latency":
        cpu = describe_machine()["cpu"]
        conditions = {"backend": loaded.backend, "batch": 1, "threads": loaded.threads, "cpu": cpu}
    # What the stored costs are, so that a search does not go on from costs of another kind or another machine.
    store = EvaluationStore(store_path, settings | conditions | {"cost_unit": COST_UNITS[cost_kind]})
    cost = macs
    if cost_kind == "latency":
        full = LengthConfig.full(config.num_hidden_layers)
        timed = sample_windows(windows, LATENCY_WINDOWS)
        cost = measured_latency_cost(
            _workload(loaded, timed), reference=full, reference_ms=store.get_cost(full), num_windows=len(timed)
        )
    with console.progress(search_options.evaluation_limit, "search", "config") as bar:

        def show(progress: SearchProgress) -> None:
            bar.update(progress.num_evaluations - bar.n)
            bar.set_postfix(round=progress.iteration, reused=progress.num_reused, refresh=False)

        found = evolve(
            config.num_hidden_layers,
            lambda length_config: float(score(length_config)["f1"]),
            cost,
            search_options,
            store,
            show,
        )

    def describe(candidate: Candidate) -> dict[str, Any]:
        measured = score(candidate.length_config)  # of a resumed search, only F1 is in the store
        described = {
            "em": measured["exact_match"],
            "macs": round(macs(candidate.length_config)),
            "dataset": Path(str(settings["data"]).partition(":")[0]).name,
            "split": Path(str(settings["data"]).rpartition(":")[2]).stem,
        }
        if cost_kind == "latency":
            described["latency_ms"] = [conditions | {"median": candidate.cost}]
        return described

    lost = sorted(name for name, budget in config.budgets.items() if budget.get("exit_layer") is not None)
    if lost:
        console.info(f"warning: the search proposes no early exits, and the budgets that stop early go: {lost}")
    config.budgets = choose_budgets(found.front, found.full, describe=describe, **(losses or {}))
    kept = keep or loaded
    kept.model.config.budgets = config.budgets
    kept.model.save_pretrained(result)
    kept.tokenizer.save_pretrained(result)
    summary = {
        "cost": cost_kind,
        "num_evaluations": len(found.evaluated),
        "stop_reason": found.stop_reason,
        "budgets": config.budgets,
    }
    front = [{**c.length_config.to_budget(), "cost": c.cost, "f1": c.score} for c in found.front]
    write_json(result / "search.json", summary | {"front": front})
    return summary


def budget_table(budgets: dict[str, dict[str, Any]]) -> str:
    """Lay out budgets as a table.

    Args:
        budgets: The `budgets` of a config.

    Returns:
        The lines.
    """
    rows = [
        (
            name,
            budget.get("f1"),
            budget.get("em"),
            None if "macs" not in budget else budget["macs"] / 1e6,
            ",".join(f"{ratio:.3g}" for ratio in budget["retention"])
            + (f"@{budget['exit_layer']}" if budget.get("exit_layer") else ""),
        )
        for name, budget in budgets.items()
    ]
    return format_table(rows, ["budget", "f1", "exact_match", "MMACs", "retention"])


def _workload(loaded: LoadedModel, windows: Sequence[Window]) -> Callable[[LengthConfig], None]:
    """Make the run whose time is a latency: windows one at a time, unpadded."""
    batches = [collate([window], loaded.tokenizer) for window in windows]

    def run_once(length_config: LengthConfig) -> None:
        with torch.inference_mode():
            for batch in batches:
                loaded.model(**batch, budget=length_config)

    return run_once
