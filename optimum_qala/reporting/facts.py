"""What is known of a model folder: what its files say and were measured to say, nothing else."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimum_qala.errors import CheckpointError, DataError
from optimum_qala.inference.files import MODEL_FILES, SUBFOLDERS, model_files, total_size
from optimum_qala.models.configuration_quala_minilm import FULL_BUDGET, QuaLAMiniLMConfig
from optimum_qala.quantization.configuration import CONFIG_NAME
from optimum_qala.quantization.inc_configuration import INC_CONFIG_NAME


__all__ = ["BACKENDS", "BENCHMARK_NAME", "ModelFacts", "Variant", "budget_names", "read_facts"]

BACKENDS = {"torch": "torch", "openvino": "OpenVINO", "inc": "Intel Neural Compressor"}  # in words
PLACES = ("", *SUBFOLDERS.values())  # where in its folder a model may lie
BENCHMARK_NAME = "benchmark.json"
EMISSIONS_NAME = "emissions.csv"  # what codecarbon writes
TRAINING_NAMES = ("training.json", "trainer_state.json", "search.json")  # how a model was made
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
RECORDS = {"openvino": CONFIG_NAME, "inc": INC_CONFIG_NAME}  # of how it was quantized
# What cards and pictures show of a benchmark.
REPORT_KEYS = (
    "data",
    "date",
    "machine",
    "num_questions",
    "mean_tokens",
    "num_timed_windows",
    "reference",
    "bulk_rows",
)
ROW_KEYS = (
    *("name", "kind", "backend", "arithmetic", "precision", "threads", "batch_size", "padding", "pad_to"),
    *("median_ms", "speedup", "ratio", "f1", "exact_match", "size_mb"),
)
_RATIOS = re.compile(r"[\d.,@\s]+")
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Variant:
    """A model for one back end.

    Args:
        backend: "torch", "openvino" or "inc".
        subfolder: Where it lies in the folder; empty for the folder itself.
        config: Its config.json.
        quantization: How it was quantized; None if it was not, or that is not known.
        size_bytes: What graph and weights take on disk.
    """

    backend: str
    subfolder: str
    config: Mapping[str, Any]
    quantization: Mapping[str, Any] | None
    size_bytes: int

    @property
    def budgets(self) -> dict[str, Mapping[str, Any]]:
        """Its budgets, the one that does most work first."""
        budgets: Mapping[str, Mapping[str, Any]] = self.config.get("budgets") or {}
        return {name: budgets[name] for name in budget_names(budgets)}

    @property
    def num_layers(self) -> int:
        """Layers of the whole model."""
        return int(self.config["num_hidden_layers"])

    @property
    def applied(self) -> Mapping[str, Any]:
        """What quantization really did; empty if that is not known."""
        return (self.quantization or {}).get("applied") or {}


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a model folder.

    Args:
        folder: The folder.
        variants: Its models, at least one; torch first.
        training: training.json, or what a Trainer's trainer_state.json says in the same words.
        search: search.json.
        benchmark: results.json of a benchmark.
        emissions: Last row of the emissions.csv that codecarbon wrote.
        figures: Pictures and pages that a card can show.
        remote_code: The torch model will be pushed with its code, be it saved with it or not.
    """

    folder: Path
    variants: tuple[Variant, ...]
    training: Mapping[str, Any] | None = None
    search: Mapping[str, Any] | None = None
    benchmark: Mapping[str, Any] | None = None
    emissions: Mapping[str, str] | None = None
    figures: frozenset[str] = frozenset()
    remote_code: bool = False

    @property
    def tokenizer_subfolder(self) -> str:
        """Where the tokenizer lies; the folder itself if nowhere."""
        places = [part for part in PLACES if any((self.folder / part / name).is_file() for name in TOKENIZER_FILES)]
        return places[0] if places else ""

    @property
    def base_model(self) -> tuple[str, str] | None:
        """Repository on the Hub that the model was made of, and how: "quantized" or "finetune"."""
        is_quantized = all(variant.quantization for variant in self.variants)
        made_of = [str(variant.applied.get("model", "")) for variant in self.variants]
        if is_quantized and _REPOSITORY.fullmatch(made_of[0]):
            return made_of[0], "quantized"
        trained_from = str((self.training or {}).get("model") or "")
        return (trained_from, "finetune") if _REPOSITORY.fullmatch(trained_from) else None


def budget_names(budgets: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Name budgets, full length first and then by falling work."""

    def work(name: str) -> float:
        return float(sum(budgets[name]["retention"][: budgets[name].get("exit_layer")]))

    return sorted(budgets, key=lambda name: (name != FULL_BUDGET, -work(name), name))


def read_facts(folder: str | Path, benchmark: str | Path | None = None) -> ModelFacts:
    """Read what the files of a model folder say.

    Args:
        folder: The folder: a model, or one in its sub-folders `openvino` or `inc`.
        benchmark: results.json of a benchmark of this model; by default the benchmark.json in the folder, if any.

    Returns:
        The facts.

    Raises:
        CheckpointError: If the folder holds no QuaLA-MiniLM.
        DataError: If a file is damaged, or the benchmark is one of another model.
    """
    root = Path(folder)
    variants = tuple(variant for part in PLACES for variant in _variants(root, part))
    if not variants:
        raise CheckpointError(
            f"{folder} holds no QuaLA-MiniLM: no config.json of one beside {', '.join(sorted(_marks()))}, neither in "
            "it nor in its sub-folders openvino and inc"
        )
    file = Path(benchmark) if benchmark is not None else root / BENCHMARK_NAME
    report = _read_json(file) if benchmark is not None or file.is_file() else None
    if report is not None:
        _check_benchmark(file, report, variants)
    return ModelFacts(
        folder=root,
        variants=variants,
        training=_read_training(root),
        search=_read_if_there(root / "search.json"),
        benchmark=report,
        emissions=_read_emissions(root / EMISSIONS_NAME),
        figures=frozenset(path.name for path in root.iterdir() if path.is_file()),
    )


def _marks() -> list[str]:
    return [files[0] for files in MODEL_FILES.values()]


def _variants(root: Path, subfolder: str) -> list[Variant]:
    place = root / subfolder
    config = _read_if_there(place / "config.json")
    if config is None or config.get("model_type") != QuaLAMiniLMConfig.model_type:
        return []
    found = []
    for backend in MODEL_FILES:
        if files := model_files(place, backend):
            record = _read_if_there(place / RECORDS[backend]) if backend in RECORDS else None
            found.append(Variant(backend, subfolder, config, record, total_size(files)))
    return found


def _read_training(root: Path) -> Mapping[str, Any] | None:
    """Read training.json, or else what the Trainer of transformers keeps."""
    record = _read_if_there(root / "training.json")
    state = _read_if_there(root / "trainer_state.json")
    if record is not None or state is None:
        return record
    logged = {name: value for entry in state.get("log_history", []) for name, value in entry.items()}
    found = {"steps": state.get("global_step"), "epochs": state.get("epoch")}
    found |= {"seconds": logged.get("train_runtime"), "train_loss": logged.get("train_loss")}
    return {name: value for name, value in found.items() if value is not None}


def _read_emissions(file: Path) -> Mapping[str, str] | None:
    if not file.is_file():
        return None
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines))
        row = rows[-1] if rows else None
        float((row or {}).get("emissions") or 0)
    except ValueError as error:
        raise DataError(f"{file} is not what codecarbon writes ({error}); remove it or make it again") from error
    return row


def _check_benchmark(file: Path, report: Mapping[str, Any], variants: Sequence[Variant]) -> None:
    rows = report.get("rows")
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "budget" in row for row in rows):
        raise DataError(f"{file} is not the results.json of optimum-cli qala benchmark: it has no rows")
    missing = [name for name in REPORT_KEYS if name not in report]
    missing += [name for name in ROW_KEYS if any(name not in row for row in rows)]
    if missing:
        raise DataError(
            f"{file} is of another version of optimum-cli qala benchmark: it has no {', '.join(missing)}; measure "
            "again"
        )
    known = {FULL_BUDGET, *(name for variant in variants for name in variant.budgets)}
    for row in rows:
        if row.get("kind") == "budget" and row["budget"] not in known and not _RATIOS.fullmatch(row["budget"]):
            raise DataError(
                f"{file} measures a budget {row['budget']!r}, but the model has {sorted(known)}; give a benchmark "
                "of this model"
            )


def _read_if_there(file: Path) -> dict[str, Any] | None:
    return _read_json(file) if file.is_file() else None


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file} is not JSON ({error}); remove it or make it again") from error
    if not isinstance(content, dict):
        raise DataError(f"{file} holds a {type(content).__name__}, not an object; remove it or make it again")
    return content
