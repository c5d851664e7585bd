"""The model card: what was measured, and what its owner wrote around it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult
from huggingface_hub.repocard_data import eval_results_to_model_index

from optimum_qala._folders import replacing
from optimum_qala.models.configuration_quala_minilm import FULL_BUDGET
from optimum_qala.models.hub_card import CARD_NAME, LIBRARY_NAME
from optimum_qala.reporting.card_parts import CardParts, fingerprint, read_card
from optimum_qala.reporting.card_sections import name_variant, write_sections
from optimum_qala.reporting.facts import ModelFacts, Variant, read_facts
from optimum_qala.reporting.markup import escape_markdown


__all__ = ["CARD_NAME", "MEASURED", "make_model_card", "measurements", "write_model_card"]

TASK = "question-answering"
HINT = "<!-- Write what you like outside of the generated part: it is kept when the card is made again. -->"
MEASURED = "#measured"  # the note of what the card was made of
_DATASET_ID = re.compile(r"(?:[\w-][\w.-]*/)?[\w-]+")


def write_model_card(
    folder: str | Path,
    *,
    repo_id: str | None = None,
    base_model: str | None = None,
    benchmark: str | Path | None = None,
    existing: str | None = None,
) -> Path:
    """Write the model card of a folder, keeping what its owner wrote.

    Args:
        folder: The model, or a folder with models in its sub-folders `openvino` and `inc`.
        repo_id: What users will load the model by; the name of the folder by default.
        base_model: Repository on the Hub that the model was made of; by default what the folder's files say.
        benchmark: results.json of a benchmark of this model; by default the benchmark.json in the folder, if any.
        existing: The card to keep the text of, for example that of the repository that is pushed to; by default the
            README.md in the folder, if any.

    Returns:
        The README.md, replaced as a whole or not at all.

    Raises:
        CheckpointError: If the folder holds no QuaLA-MiniLM.
        DataError: If a file is damaged, or the benchmark is one of another model.
    """
    file = Path(folder) / CARD_NAME
    if existing is None and file.is_file():
        existing = file.read_text(encoding="utf-8")
    text = make_model_card(read_facts(folder, benchmark), repo_id=repo_id, base_model=base_model, existing=existing)
    with replacing(file) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return file


def make_model_card(
    facts: ModelFacts, *, repo_id: str | None = None, base_model: str | None = None, existing: str | None = None
) -> str:
    """Make a model card, with metadata that the Hub reads.

    Args:
        facts: What is known of the model.
        repo_id: What users will load the model by; the name of its folder by default.
        base_model: Repository on the Hub that the model was made of; by default what the facts say.
        existing: A card whose text and metadata are kept. The part that an earlier call generated is replaced.
            Metadata that its owner changed or added stay as they are; tags are joined.

    Returns:
        The card.

    Raises:
        DataError: If the metadata of `existing` cannot be read, or its generated part begins and does not end.
    """
    place = repo_id or facts.folder.resolve().name
    title = place.rpartition("/")[2]
    old = read_card(existing or "")
    owned = old.owned
    if base_model is not None:
        owned["base_model"] = base_model
        owned.pop("base_model_relation", None)
    generated = _metadata(facts, title, owned)
    tags = list(dict.fromkeys([*_as_list(owned.get("tags")), *generated["tags"]]))
    merged = {name: value for name, value in old.metadata.items() if name in owned or name in generated}
    merged |= generated | owned | {"tags": tags}
    notes: dict[str, Any] = {
        name: fingerprint(merged[name]) for name in generated if name == "tags" or name not in owned
    }
    section = f"\n{write_sections(facts, place, _base_model(merged))}\n"
    made = CardParts(merged, old.before, section, old.after, notes | {MEASURED: measurements(facts)})
    if old.generated is None:
        text = old.before.strip() or f"# {escape_markdown(title)}\n\n{HINT}"
        made = replace(made, before=f"\n{text}\n\n", after="\n")
    return str(made)


def measurements(facts: ModelFacts) -> dict[str, str]:
    """Tell what was measured apart from what else was: a hash for each model, by its folder and back end."""
    return {
        f"{variant.subfolder}/{variant.backend}": fingerprint(
            [variant.budgets, (variant.quantization or {}).get("accuracy")]
        )
        for variant in facts.variants
    }


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def _base_model(metadata: Mapping[str, Any]) -> tuple[str, str | None] | None:
    names = _as_list(metadata.get("base_model"))
    return (str(names[0]), metadata.get("base_model_relation")) if names else None


def _metadata(facts: ModelFacts, title: str, owned: Mapping[str, Any]) -> dict[str, Any]:
    """Make the metadata that are known; those that their owner wrote decide what the others say."""
    tags = ["quala-minilm", "length-adaptive"]
    tags += [variant.backend for variant in facts.variants if variant.backend == "openvino"]
    tags += ["int8"] if any(variant.quantization for variant in facts.variants) else []
    found: dict[str, Any] = {"library_name": LIBRARY_NAME, "pipeline_tag": TASK, "tags": list(dict.fromkeys(tags))}
    if "base_model" in owned:
        is_quantized = all(variant.quantization for variant in facts.variants)
        found["base_model_relation"] = "quantized" if is_quantized else "finetune"
    elif facts.base_model is not None:
        found["base_model"], found["base_model_relation"] = facts.base_model
    if dataset := _hub_dataset((facts.training or {}).get("data")):
        found["datasets"] = [dataset]
    if emissions := _emissions(facts):
        found["co2_eq_emissions"] = emissions
    if results := [*_results(facts)]:
        found["metrics"] = list(dict.fromkeys(result.metric_type for result in results))
        found["model-index"] = eval_results_to_model_index(title, results)
    return found


def _hub_dataset(data: Any) -> str | None:
    """Return the id of a data set on the Hub; a file is none, and `name:split` names one."""
    name, colon, _ = str(data or "").partition(":")
    return name if colon and _DATASET_ID.fullmatch(name) else None


def _emissions(facts: ModelFacts) -> dict[str, Any] | None:
    row = facts.emissions
    if row is None or not row.get("emissions"):
        return None
    found: dict[str, Any] = {"emissions": 1000 * float(row["emissions"]), "source": "codecarbon"}
    found |= {"training_type": "fine-tuning", "geographical_location": row.get("country_name")}
    found["hardware_used"] = row.get("gpu_model") or row.get("cpu_model")
    return {name: value for name, value in found.items() if value}


def _results(facts: ModelFacts) -> Iterator[EvalResult]:
    """Make the results that the Hub shows: those of a benchmark, whose questions chose nothing, or of the budgets."""
    if facts.benchmark is not None:
        rows = {row["budget"]: row for row in reversed(facts.benchmark["rows"]) if row.get("kind") == "budget"}
        data = Path(facts.benchmark["data"]).name
        scored = [(name, row.get("f1"), row.get("exact_match")) for name, row in reversed(rows.items())]
        results = [*_of_data(data, None, scored, "")]
        if results:
            yield from results
            return
    for variant in facts.variants:
        yield from _results_of(variant, with_name=len(facts.variants) > 1)


def _results_of(variant: Variant, with_name: bool) -> Iterator[EvalResult]:
    for name, budget in variant.budgets.items():
        if budget.get("dataset") is not None:
            scored = [(name, budget.get("f1"), budget.get("em"))]
            suffix = f", {name_variant(variant)}" if with_name else ""
            yield from _of_data(str(budget["dataset"]), budget.get("split"), scored, suffix)


def _of_data(
    data: str, split: str | None, scored: list[tuple[str, float | None, float | None]], suffix: str
) -> Iterator[EvalResult]:
    name, _, named_split = data.partition(":")
    for budget, f1, exact_match in scored:
        for kind, title, value in (("f1", "F1", f1), ("exact_match", "Exact match", exact_match)):
            if value is None:
                continue
            at = "full length" if budget == FULL_BUDGET else f"budget {budget}"
            yield EvalResult(
                task_type=TASK,
                task_name="Question Answering",
                dataset_type=name,
                dataset_name=name,
                dataset_split=split or named_split.rpartition(":")[2] or None,
                metric_type=kind,
                metric_name=f"{title}, {at}{suffix}",
                metric_value=round(value, 2),
            )
