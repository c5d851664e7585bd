"""A report of a benchmark, made up."""

from __future__ import annotations

from typing import Any


def row(name: str, kind: str, median_ms: float, f1: float | None, **changes: Any) -> dict[str, Any]:
    """A row at batch size 1 and true lengths."""
    return {
        "name": name,
        "kind": kind,
        "budget": "full",
        "backend": "openvino",
        "arithmetic": "int8",
        "precision": "f32",
        "threads": 2,
        "batch_size": 1,
        "padding": "longest",
        "pad_to": None,
        "num_windows": 64,
        "median_ms": median_ms,
        "p90_ms": 2 * median_ms,
        "speedup": 1.0 if kind == "budget" else None,
        "ratio": 10.0 / median_ms,
        "mmacs": 2000.0,
        "gmacs_per_s": 100.0,
        "f1": f1,
        "exact_match": None if f1 is None else f1 - 10,
        "peak_share": 0.25,
        "size_mb": 22.5,
        **changes,
    }


def rows() -> list[dict[str, Any]]:
    """Rows of every kind."""
    return [
        row("full", "budget", 12.0, 73.0),
        row("fast", "budget", 8.0, 70.0),
        row("slower and worse", "budget", 9.0, 69.0),
        row("full in buckets", "budget", 9.0, 73.0, padding="multiple of 32"),
        row("first 3 layers", "depth", 6.0, 60.0, speedup=2.0),
        row("plain fp32", "plain", 30.0, 73.5, arithmetic="f32", peak_share=None),
        row("plain int8", "plain", 10.0, 73.2),
        row("plain int8, 3 layers", "depth", 5.0, 20.0),
        row("BERT-base shape, torch", "bert-base", 300.0, None, arithmetic="f32", backend="torch", peak_share=None),
    ]


def report(**changes: Any) -> dict[str, Any]:
    """A report with two settings."""
    padded = [one | {"batch_size": 32, "pad_to": 200, "padding": "fixed 200"} for one in rows()]
    return {
        "model": "models/int8",
        "data": "data/dev.json",
        "date": "2026-01-02T03:04:05+00:00",
        "command": "optimum-cli qala benchmark",
        "quantization": None,
        "machine": {
            "cpu": "A CPU",
            "flags": ["avx2"],
            "torch_threads": 2,
            "system": "Linux",
            "python": "3.11.7",
            "torch": "2.13.0",
            "transformers": "5.5.4",
            "openvino": None,
            "optimum-intel": None,
        },
        "int8_peak": {"gmacs_per_s": 400.0, "shape": (512, 1024, 1024), "arithmetic": "u8", "threads": 2},
        "num_questions": 100,
        "num_windows": 110,
        "mean_tokens": 180.0,
        "num_timed_windows": 64,
        "repeats": 5,
        "reference": "plain int8",
        "rows": [*rows(), *padded],
        "bulk_rows": [],
        **changes,
    }
