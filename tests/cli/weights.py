"""Weights that a command wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def are_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def baseline_weights(run: Callable[..., Any], cache: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights after a command without further flags, which runs once for each cache."""
    if not cache:
        outcome, folder = run(output="baseline")
        assert outcome.code == 0, outcome.err
        cache.update(weights(folder))
    return cache
