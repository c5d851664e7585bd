"""The sections of a model card. Each says only what is known, and is empty where nothing is."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from optimum_qala.reporting.card_usage import describe_usage
from optimum_qala.reporting.facts import BACKENDS, BENCHMARK_NAME, ModelFacts, Variant
from optimum_qala.reporting.markup import escape_markdown, key_value_table, table
from optimum_qala.reporting.tables import comparable_rows, in_buckets


__all__ = ["EXAMPLE_PAGE", "FIGURES", "describe_budget", "describe_conditions", "name_variant", "write_sections"]

# Pictures that `optimum-cli qala report` makes, by the section that shows them, and what they show.
FIGURES = {
    "budgets": ("tokens.png", "Tokens that each layer keeps, by budget"),
    "latency": ("latency.png", "F1 against milliseconds"),
    "example": ("example.png", "Which tokens of an example left at which layer"),
}
EXAMPLE_PAGE = "example.html"
IMAGE_WIDTH = 560  # pixels on a wide screen; a phone shows them as wide as it is

Section = Callable[[ModelFacts, str], Iterator[str]]


def write_sections(facts: ModelFacts, repo_id: str, base_model: tuple[str, str | None] | None) -> str:
    """Write the generated part of a model card.

    Args:
        facts: What is known.
        repo_id: What users load the model by.
        base_model: The model that it was made of, and how, if that is known.

    Returns:
        Markdown.
    """
    lines = [*_summary(facts, base_model)]
    sections: dict[str, Section] = {
        "Budgets": _budgets,
        "Benchmark": _benchmark,
        "How to use it": describe_usage,
        "What a budget drops": _example,
        "Training": _training,
        "Limits": _limits,
    }
    for title, section in sections.items():
        if body := [*section(facts, repo_id)]:
            lines += ["", f"## {title}", "", *body]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines))


def name_variant(variant: Variant) -> str:
    """Say what runs a model: "torch", "OpenVINO int8"."""
    return BACKENDS[variant.backend] + (" int8" if variant.quantization else "")


def describe_budget(budget: Mapping[str, Any], num_layers: int) -> str:
    """Say in words what runs at a budget.

    Args:
        budget: Its entry in config.json.
        num_layers: Layers of the model.

    Returns:
        For example "4 of 6 layers, 55 % of the tokens from layer 4".
    """
    layers = budget.get("exit_layer") or num_layers
    parts = [f"{layers} of {num_layers} layers" if layers < num_layers else f"{num_layers} layers"]
    previous = 1.0
    for number, ratio in enumerate(budget["retention"][:layers], start=1):
        if ratio < previous:
            parts.append(f"{100 * ratio:.3g} % of the tokens from layer {number}")
        previous = ratio
    return ", ".join(parts) if len(parts) > 1 else f"{parts[0]}, all tokens"


def describe_conditions(row: Mapping[str, Any], is_int8: bool = False) -> str:
    """Say in words what a latency depends on, as far as its row says it.

    Args:
        row: An entry of `latency_ms` in config.json.
        is_int8: What was measured is quantized.

    Returns:
        For example "OpenVINO int8 on A CPU, 2 threads, batch 1, floats in f32, padded to a multiple of 32".
    """
    engine = row.get("backend") and BACKENDS.get(row["backend"], row["backend"])
    engine = " ".join(part for part in (engine, "int8" if is_int8 else None) if part)
    padding = row.get("padding")
    padded = {None: None, "longest": "no padding" if row.get("batch") == 1 else "padded to the longest of the batch"}
    parts = [
        " on ".join(part for part in (engine, row.get("cpu")) if part) or None,
        None if row.get("threads") is None else f"{row['threads']} thread{'' if row['threads'] == 1 else 's'}",
        None if row.get("batch") is None else f"batch {row['batch']}",
        None if row.get("precision") is None else f"floats in {row['precision']}",
        padded.get(padding, f"padded to a {padding}"),
    ]
    return ", ".join(part for part in parts if part is not None)


def _image(facts: ModelFacts, kind: str) -> list[str]:
    name, text = FIGURES[kind]
    return [f'<img src="{name}" alt="{text}" width="{IMAGE_WIDTH}">', ""] if name in facts.figures else []


def _summary(facts: ModelFacts, base_model: tuple[str, str | None] | None) -> Iterator[str]:
    yield (
        "Extractive question answering: given a question and a text, the model marks the answer in the text. It runs "
        "at any of several budgets, chosen per call: with a smaller one more tokens leave on the way through the "
        "layers, or fewer layers run, which takes less time and costs some accuracy."
    )
    yield ""
    first = facts.variants[0]
    base = None
    if base_model is not None:
        name, relation = base_model
        words = {"finetune": " (fine-tuned)", "quantized": " (quantized)"}.get(relation or "", "")
        base = f"[{escape_markdown(name)}](https://huggingface.co/{name}){words}"
    sizes = ", ".join(f"{name_variant(one)} {one.size_bytes / 1e6:.1f} MB" for one in facts.variants)
    yield from key_value_table(
        [
            ("Task", "question answering"),
            ("Base model", base),
            ("Encoder", f"{first.num_layers} layers of width {first.config['hidden_size']}"),
            ("Tokens are chosen by", escape_markdown(first.config["token_scoring"])),
            ("Files", sizes),
        ]
    )


def _budgets(facts: ModelFacts, repo_id: str) -> Iterator[str]:
    rows = [] if facts.benchmark is None else facts.benchmark["rows"]
    timed = {row.get("backend") for row in rows if row.get("kind") == "budget"}
    for variant in facts.variants:
        yield from _score_table(variant, len(facts.variants) > 1, timed)
    yield from _work_tables([variant for variant in facts.variants if variant.budgets])
    if any(variant.budgets for variant in facts.variants):
        yield from _image(facts, "budgets")
        if facts.benchmark is None:
            yield from _image(facts, "latency")


def _score_table(variant: Variant, with_title: bool, timed: Collection[Any]) -> Iterator[str]:
    """Show what was measured at the budgets, but for what the benchmark timed; narrow enough for a phone."""
    budgets, is_int8 = variant.budgets, bool(variant.quantization)
    latencies = {
        name: [row for row in budget.get("latency_ms") or () if row.get("backend") not in timed]
        for name, budget in budgets.items()
    }
    conditions: list[str] = []
    for measured in latencies.values():
        for row in measured:
            if (text := describe_conditions(row, is_int8)) not in conditions:
                conditions.append(text)
    letters = [""] if len(conditions) == 1 else [f" ({chr(ord('a') + index)})" for index in range(len(conditions))]
    accuracy = (variant.quantization or {}).get("accuracy") or {}
    rows = []
    for name, budget in budgets.items():
        times = {describe_conditions(row, is_int8): row.get("median") for row in latencies[name]}
        row = {
            "budget": escape_markdown(name),
            "F1, %": budget.get("f1"),
            "F1 in float32, %": accuracy.get(name, {}).get("float32", {}).get("f1"),
            "EM, %": budget.get("em"),
        }
        rows.append(row | {f"ms{letter}": times.get(text) for letter, text in zip(letters, conditions, strict=False)})
    lines = table(rows, texts=("budget",))
    if not lines or lines[0] == "| budget |":
        return
    if with_title:
        yield from (f"### {name_variant(variant)}", "")
    yield from (*lines, "")
    notes = [*_score_notes(budgets)]
    for letter, text in zip(letters, conditions, strict=False):
        notes.append(f"ms{letter}: median milliseconds per window; {escape_markdown(text)}.")
    if notes:
        yield from (" ".join(notes), "")


def _work_tables(variants: Sequence[Variant]) -> Iterator[str]:
    """Show what the budgets run: once for all models of the same budgets."""
    shared: dict[tuple[str, ...], list[Variant]] = {}
    has_macs = False
    for variant in variants:
        rows = []
        for name, budget in variant.budgets.items():
            macs = budget.get("macs")
            has_macs = has_macs or macs is not None
            work = {"million MACs": None if macs is None else round(macs / 1e6)}
            work["what runs"] = describe_budget(budget, variant.num_layers)
            rows.append({"budget": escape_markdown(name), **work})
        shared.setdefault(tuple(table(rows, texts=("budget", "what runs"))), []).append(variant)
    for lines, of_them in shared.items():
        if len(shared) > 1:
            yield from (f"{', '.join(name_variant(variant) for variant in of_them)}:", "")
        yield from (*lines, "")
    if has_macs:
        yield from ("MACs are multiply-accumulate operations per window, padding left out.", "")


def _score_notes(budgets: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    scored = [budget for budget in budgets.values() if budget.get("f1") is not None]
    for dataset in dict.fromkeys(budget.get("dataset") for budget in scored):
        if dataset is not None:
            yield f"F1 and EM (exact match) are those of {escape_markdown(dataset)}, by the SQuAD rules."


def _benchmark(facts: ModelFacts, repo_id: str) -> Iterator[str]:
    report = facts.benchmark
    if report is None:
        return
    yield from _image(facts, "latency")
    reference = report["reference"]
    for title, rows in comparable_rows(dict(report)):
        shared, own = _split_conditions(rows)
        yield from (f"{title}{', ' if shared else ''}{escape_markdown(', '.join(shared))}:", "")
        cells = [
            {
                "": escape_markdown(row["name"]),
                "ms": row["median_ms"],
                f"times {escape_markdown(reference)}": row["ratio"],
                "F1, %": row["f1"],
                "EM, %": row["exact_match"],
                "MB": row["size_mb"],
                # Not broken into lines: on a phone, the last column of a wide table is a few letters wide.
                "runs in": escape_markdown(", ".join(parts)).replace(" ", "\N{NO-BREAK SPACE}") or None,
            }
            for row, parts in zip(rows, own, strict=True)
        ]
        yield from (*table(cells, texts=("", "runs in")), "")
    yield " ".join(_benchmark_notes(facts, report))


def _split_conditions(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Say what all rows ran in, and what each row ran in besides."""
    described = [
        [
            BACKENDS[row["backend"]],
            "compiled" if row.get("compiled") else "",
            row["arithmetic"],
            f"floats in {row['precision']}",
            f"{row['threads']} thread{'' if row['threads'] == 1 else 's'}",
            "" if row["padding"] == "longest" else f"buckets of {row['padding'].rpartition(' ')[2]}",
        ]
        for row in rows
    ]
    is_shared = [len(set(parts)) == 1 for parts in zip(*described, strict=True)]
    shared = [part for part, same in zip(described[0], is_shared, strict=True) if same and part]
    own = [[part for part, same in zip(parts, is_shared, strict=True) if not same and part] for parts in described]
    return shared, own


def _benchmark_notes(facts: ModelFacts, report: Mapping[str, Any]) -> Iterator[str]:
    cpu = f"{report['machine']['cpu']} ({' '.join(report['machine']['flags'])})"
    yield (
        f"{report['num_questions']:,} questions of {escape_markdown(Path(report['data']).name)}, "
        f"{report['mean_tokens']:.0f} tokens a window on average; median milliseconds per window of "
        f"{report['num_timed_windows']} windows, measured in turns in one process on "
        f"{escape_markdown(cpu)}, {escape_markdown(report['date'][:10])}."
    )
    if report["reference"] is not None:
        yield f'"times {escape_markdown(report["reference"])}" says how many times as fast a row is.'
    if any(in_buckets(row) for row in report["rows"]):
        yield "Buckets: windows are padded to a multiple of that many tokens, with a compiled graph for each length."
    if any(row.get("compiled") for row in report["rows"]):
        yield "Compiled: machine code that `model.compile()` makes once on a machine; the files here hold none."
    if BENCHMARK_NAME in facts.figures:
        yield f"All numbers: [{BENCHMARK_NAME}]({BENCHMARK_NAME})."


def _example(facts: ModelFacts, repo_id: str) -> Iterator[str]:
    yield from _image(facts, "example")
    if EXAMPLE_PAGE in facts.figures:
        yield f"[The same as a page]({EXAMPLE_PAGE}), to download and open."
    if EXAMPLE_PAGE in facts.figures and facts.variants[0].backend != "torch":
        yield "Made with a torch model: int8 models do not tell which tokens they drop."


def _training(facts: ModelFacts, repo_id: str) -> Iterator[str]:
    record, search = facts.training or {}, facts.search or {}
    arguments = record.get("arguments") or {}
    pairs: list[tuple[str, Any]] = [
        ("Trained from", _escaped(record.get("model"))),
        ("Training data", _escaped(record.get("data"))),
        ("Questions", record.get("num_questions")),
        ("Validation data", _escaped(record.get("validation_data"))),
        ("Steps", record.get("steps")),
        ("Epochs", record.get("epochs")),
        ("Loss", record.get("train_loss")),
        ("Sub-models a step", record.get("num_sub_models")),
        *((f"`{name}`", escape_markdown(value)) for name, value in arguments.items()),
        ("Trained on", _escaped(record.get("hardware"))),
        ("Training time", None if record.get("seconds") is None else _duration(record["seconds"])),
    ]
    if (emissions := facts.emissions) is not None and emissions.get("emissions"):
        grams = 1000 * float(emissions["emissions"])
        pairs.append(("Carbon, by codecarbon", f"{grams:.3g} g CO2-equivalent"))
    if search:
        configs = f"{search.get('num_evaluations')} configurations by {escape_markdown(search.get('method'))}"
        pairs.append(("Search of budgets", f"{configs}, to save {escape_markdown(search.get('cost'))}"))
    for variant in facts.variants:
        if (samples := variant.applied.get("num_samples")) is not None:
            pairs.append((f"{name_variant(variant)}, calibrated with", f"{samples:,} windows"))
    yield from key_value_table(pairs)


def _escaped(value: Any) -> str | None:
    return None if value is None else escape_markdown(value)


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def _limits(facts: ModelFacts, repo_id: str) -> Iterator[str]:
    config = facts.variants[0].config
    positions = int(config["max_position_embeddings"])
    if config.get("position_scheme") == "roberta":
        positions -= int(config.get("pad_token_id") or 0) + 1
    yield "- The answer is a part of the text that is given; the model does not know or write anything else."
    yield f"- Question and text share {positions} tokens; a longer text is read in overlapping windows."
    if facts.search is not None:
        yield "- Budgets were chosen by their scores in a search; on the questions of that search they look too good."
    if facts.benchmark is not None or _machines(facts.variants):
        yield "- Milliseconds hold for the machine and the conditions that are named; ratios carry over better."
    for reason in dict.fromkeys(one.applied.get("overflow_fix_reason") for one in facts.variants):
        if reason is not None:
            yield f'- int8 was made for CPUs like the one that quantized it: "{escape_markdown(reason)}".'
    if any(variant.backend == "inc" for variant in facts.variants):
        yield f"- {BACKENDS['inc']} needs a CPU with VNNI; on others its int8 sums may overflow."


def _machines(variants: Sequence[Variant]) -> bool:
    return any(budget.get("latency_ms") for variant in variants for budget in variant.budgets.values())
