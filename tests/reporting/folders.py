"""Model folders, made up: what a card says depends on their JSON files only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.conftest import tiny_config


LATENCY = {
    "backend": "openvino",
    "cpu": "A CPU",
    "threads": 2,
    "batch": 1,
    "precision": "f32",
    "padding": "multiple of 32",
    "median": 4.567,
}
BUDGETS = {
    "fast": {"retention": [1.0, 0.5, 0.5, 0.25], "exit_layer": 3, "f1": 71.234, "em": 60.5, "macs": 12_345_678},
    "full": {"retention": [1.0] * 4, "f1": 75.5, "em": 64.25, "macs": 23_456_789},
}
INT8 = {
    "accuracy": {},
    "applied": {"num_samples": 300, "overflow_fix_reason": "this CPU has a_flag", "model": "trained"},
}


def measured(**changes: Any) -> dict[str, dict[str, Any]]:
    """Budgets that were scored on dev.json, with changes to "fast"."""
    budgets = {name: {**budget, "dataset": "dev.json", "split": "dev"} for name, budget in BUDGETS.items()}
    return {**budgets, "fast": {**budgets["fast"], **changes}}


def write(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def make_folder(
    folder: Path,
    backend: str = "torch",
    budgets: dict[str, Any] | None = None,
    quantization: dict[str, Any] | None = None,
    **config: Any,
) -> Path:
    """Write what a model folder holds, with empty weights."""
    stored = {**tiny_config().to_dict(), **config, "budgets": measured() if budgets is None else budgets}
    write(folder / "config.json", stored)
    names = {
        "torch": ["model.safetensors"],
        "openvino": ["openvino_model.xml", "openvino_model.bin"],
        "inc": ["inc_graph.json", "inc_weights.safetensors"],
    }
    for name in names[backend]:
        write(folder / name, "x" * 1000)
    if quantization is not None:
        write(folder / {"openvino": "openvino_quala_config.json", "inc": "inc_config.json"}[backend], quantization)
    return folder
