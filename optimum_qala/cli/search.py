"""`optimum-cli qala search`: find the budgets of a trained model and write them into its config."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from optimum_qala._compat import require
from optimum_qala._folders import copy_records, write_json
from optimum_qala.cli.console import Console, format_table
from optimum_qala.cli.finding import holds_ir
from optimum_qala.cli.loading import LoadedModel, load_model
from optimum_qala.cli.options import given, window_options
from optimum_qala.cli.outputs import resumable_folder, run_settings
from optimum_qala.cli.stopwatch import Stopwatch
from optimum_qala.errors import BackendError
from optimum_qala.inference.bucket_options import BucketOptions
from optimum_qala.models.configuration_quala_minilm import QuaLAMiniLMConfig
from optimum_qala.models.length_config import LengthConfig
from optimum_qala.quantization.qat_record import warn_of_unrounded_weights
from optimum_qala.question_answering.features import WindowOptions, make_windows
from optimum_qala.question_answering.predictor import evaluate
from optimum_qala.question_answering.records import QARecord, load_records
from optimum_qala.search.bayesian import optimize
from optimum_qala.search.budgets import check_losses, choose_budgets
from optimum_qala.search.cost import mac_cost
from optimum_qala.search.evolution import evolve
from optimum_qala.search.finalists import FinalistOptions, choose_finalists, choose_subset
from optimum_qala.search.options import SearchOptions, SearchProgress
from optimum_qala.search.pareto import Candidate, pareto_front
from optimum_qala.search.space import SearchSpace, exits_of
from optimum_qala.search.store import EvaluationStore


TIMED_GRAPHS = 64  # enough for one length at every config that takes turns, so that none is compiled while timed
METHODS = {"evolution": evolve, "optuna": optimize}
COST_UNITS = {
    "macs": "multiply-accumulate operations per window",
    "latency": "milliseconds per window, predicted",
    "measured-latency": "milliseconds per window, measured",
}
# Flags that neither a score nor a cost depends on: a longer search goes on from what a shorter one has measured.
_SEARCH_FLAGS = (
    "method",
    "iterations",
    "population_size",
    "mutations",
    "crossovers",
    "mutation_probability",
    "merge_probability",
    "parent_loss",
    "drop_ratio_bound",
    "step",
    "exit_layers",
    "min_exit_layer",
    "max_evaluations",
    "finalists",
    "tolerance",
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
    if getattr(args, "backend", None) == "inc":
        raise BackendError(
            "--backend inc does not search in this version; search the torch checkpoint, then quantize the result"
        )
    options = given(args, SearchOptions)
    SearchOptions(**options)  # a bad option should not cost the time to load a model
    finalist_options = FinalistOptions(**given(args, FinalistOptions))
    losses = {name: getattr(args, name) for name in ("accurate_loss", "max_loss") if hasattr(args, name)}
    check_losses(**losses)
    if getattr(args, "method", None) == "optuna":
        require("optuna", "--method optuna")
    records = load_records(args.data, require_answers=True, limit=getattr(args, "limit", None))
    settings = run_settings(args, inputs=("model", "data"), without=_SEARCH_FLAGS)
    with resumable_folder(args.output, settings) as work:
        revision = getattr(args, "revision", None)
        loaded = load_model(args.model, getattr(args, "backend", None), revision=revision, bulk=True)
        if not isinstance(loaded.model.config, QuaLAMiniLMConfig):
            raise BackendError(
                f"{args.model} is a plain {loaded.model.config.model_type!r} model, which drops no tokens; search the "
                "result of optimum-cli qala train"
            )
        warn_of_unrounded_weights(loaded.model.config, args.model)
        # OpenVINO scores a torch checkpoint several times faster; the result is that checkpoint all the same.
        is_exported_here = loaded.backend == "openvino" and not holds_ir(args.model, revision)
        cost_kind = getattr(args, "cost", "macs")
        summary = search(
            loaded,
            records,
            keep=load_model(args.model, "torch", revision=revision) if is_exported_here else loaded,
            timed=None if cost_kind == "macs" else _as_served(loaded),
            store_path=work.state / "evaluations.json",
            settings=settings,
            result=work.result,
            window_options=window_options(args, loaded.capacity),
            cost_kind=cost_kind,
            method=getattr(args, "method", "evolution"),
            batch_size=getattr(args, "batch_size", 32),
            console=console,
            finalist_options=finalist_options,
            min_exit_layer=getattr(args, "min_exit_layer", None),
            losses=losses,
            **options,
        )
        copy_records(args.model, work.result, ("training.json",))
    console.result({"output": args.output, **summary}, budget_table(summary["budgets"]))


def _as_served(loaded: LoadedModel) -> LoadedModel:
    """Return the same model to be timed: one window at a time runs fastest in buckets, many windows do not."""
    return loaded.in_buckets(BucketOptions(max_graphs=TIMED_GRAPHS)) if loaded.backend == "openvino" else loaded


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
    timed: LoadedModel | None = None,
    cost_kind: str = "macs",
    method: str = "evolution",
    batch_size: int = 32,
    finalist_options: FinalistOptions | None = None,
    min_exit_layer: int | None = None,
    losses: dict[str, float] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Search, write the budgets into the model's config, and save model and tokenizer.

    Args:
        loaded: The model.
        records: Validation questions.
        store_path: File that keeps what was measured on a subset of them; what belongs to it lies beside it.
        settings: Everything that a score or a cost depends on.
        result: Folder for the model with its budgets.
        window_options: How contexts are cut.
        console: Where progress goes.
        keep: The model to save with the budgets; the searched one by default.
        timed: The model to measure latencies on; the searched one by default.
        cost_kind: One of `COST_UNITS`.
        method: One of `METHODS`.
        batch_size: Windows per call of the model.
        finalist_options: Which questions, and which configs are scored on all of them.
        min_exit_layer: See `exits_of`.
        losses: Arguments of `choose_budgets`.
        options: Fields of `SearchOptions`.

    Returns:
        The budgets and how the search went.
    """
    config, finalist_options = loaded.model.config, finalist_options or FinalistOptions()
    space_options = {"drop_layers": config.dropping_layers, "exit_layers": exits_of(config, min_exit_layer)}
    search_options = SearchOptions(**space_options | options)
    windows = make_windows(list(records), loaded.tokenizer, window_options)
    macs = mac_cost([(len(window), window.context_position) for window in windows], config.macs)
    subset = choose_subset(records, finalist_options)
    stopwatch = None if cost_kind == "macs" else Stopwatch(timed or loaded, windows, console)
    # What the stored costs are, so that a search does not go on from costs of another kind or another machine.
    fingerprint = settings | ({} if stopwatch is None else stopwatch.conditions) | {"cost_unit": COST_UNITS[cost_kind]}
    seed = finalist_options.subset_seed if len(subset) < len(records) else None
    store = EvaluationStore(store_path, fingerprint | {"subset": [len(subset), seed]})

    def scorer(questions: Sequence[QARecord], kept: EvaluationStore) -> Callable[[LengthConfig], float]:
        def score(length_config: LengthConfig) -> float:
            scores = evaluate(
                loaded.model,
                loaded.tokenizer,
                questions,
                budget=length_config,
                window_options=window_options,
                batch_size=batch_size,
            )
            kept.put(length_config, details={"em": scores["exact_match"]})
            return float(scores["f1"])

        return score

    cost: Callable[[LengthConfig], float] = macs
    if stopwatch is not None and cost_kind == "latency":
        space = SearchSpace(config.num_hidden_layers, search_options)
        cost = stopwatch.table_cost(store_path.with_name("latency.json"), space, store)
    elif stopwatch is not None:
        cost = stopwatch.direct_cost(store)
    with console.progress(search_options.evaluation_limit, "search", "config") as bar:

        def show(progress: SearchProgress) -> None:
            bar.update(progress.num_evaluations - bar.n)
            bar.set_postfix(round=progress.iteration, reused=progress.num_reused, refresh=False)

        found = METHODS[method](config.num_hidden_layers, scorer(subset, store), cost, search_options, store, show)
    finals, full = found.evaluated, found.full
    if len(subset) < len(records):
        store = EvaluationStore(store_path.with_name("finalists.json"), fingerprint)
        max_loss = {name: value for name, value in (losses or {}).items() if name == "max_loss"}
        chosen = choose_finalists(found.evaluated, found.full, finalist_options, **max_loss)
        full, *others = _score_again([found.full, *chosen], scorer(records, store), store, console)
        finals = (full, *others)

    def describe(candidate: Candidate) -> dict[str, Any]:
        return {
            **store.get_details(candidate.length_config),
            "macs": round(macs(candidate.length_config)),
            "dataset": Path(str(settings["data"]).partition(":")[0]).name,
            "split": Path(str(settings["data"]).rpartition(":")[2]).stem,
        }

    budgets = choose_budgets(finals, full, describe=describe, **(losses or {}))
    if stopwatch is not None:
        _measure(stopwatch, budgets, cost)
    config.budgets = budgets
    kept = keep or loaded
    kept.model.config.budgets = budgets
    kept.model.save_pretrained(result)
    kept.tokenizer.save_pretrained(result)
    summary = {
        "cost": cost_kind,
        "method": method,
        "num_evaluations": len(found.evaluated),
        "subset_size": len(subset),
        "num_finalists": len(finals) if len(subset) < len(records) else 0,
        "stop_reason": found.stop_reason,
        "budgets": budgets,
    }
    report = {"latency": None if stopwatch is None else stopwatch.report or None, "front": _front(finals)}
    write_json(result / "search.json", summary | report)
    return summary


def _score_again(
    candidates: Sequence[Candidate],
    score: Callable[[LengthConfig], float],
    store: EvaluationStore,
    console: Console,
) -> list[Candidate]:
    """Score candidates on all questions, those that the store does not hold."""
    again = []
    with console.progress(len(candidates), "finalists", "config") as bar:
        for candidate in candidates:
            f1 = store.get_score(candidate.length_config)
            if f1 is None:
                f1 = score(candidate.length_config)
                store.put(candidate.length_config, cost=candidate.cost, score=f1)
                store.save()
            again.append(Candidate(candidate.length_config, candidate.cost, f1))
            bar.update(1)
    return again


def _measure(
    stopwatch: Stopwatch,
    budgets: dict[str, dict[str, Any]],
    cost: Callable[[LengthConfig], float],
) -> None:
    """Measure the named budgets in turns, and write the latencies into them."""
    configs = {name: LengthConfig(tuple(one["retention"]), one.get("exit_layer")) for name, one in budgets.items()}
    measured = dict(zip(configs, stopwatch.measure(list(configs.values())), strict=True))
    for name, milliseconds in measured.items():
        budgets[name]["latency_ms"] = [stopwatch.conditions | {"median": milliseconds}]
    stopwatch.check({name: (one, cost(one)) for name, one in configs.items()}, measured)


def _front(candidates: Sequence[Candidate]) -> list[dict[str, Any]]:
    return [{**one.length_config.to_budget(), "cost": one.cost, "f1": one.score} for one in pareto_front(candidates)]


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
            budget["latency_ms"][-1]["median"] if budget.get("latency_ms") else None,
            ",".join(f"{ratio:.3g}" for ratio in budget["retention"])
            + (f"@{budget['exit_layer']}" if budget.get("exit_layer") else ""),
        )
        for name, budget in budgets.items()
    ]
    return format_table(rows, ["budget", "f1", "exact_match", "MMACs", "ms", "retention"])
