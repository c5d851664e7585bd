"""What a measurement was taken on."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from optimum_qala.models.budget_choice import cpu_name
from optimum_qala.quantization.cpu import read_cpu_flags


__all__ = ["REPORTED_PACKAGES", "describe_machine"]

# The flags that decide how fast int8 and bfloat16 run.
REPORTED_FLAGS = ("avx2", "avx512_f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
REPORTED_PACKAGES = ("torch", "transformers", "openvino", "optimum-intel", "neural-compressor-pt", "torchao")


def describe_machine() -> dict[str, Any]:
    """Say what the measurements were taken on.

    Returns:
        Name of the CPU, its flags that matter, torch threads, and versions; None for a package that is not installed.
    """
    flags = read_cpu_flags()
    return {
        "cpu": cpu_name(),
        "flags": [name for name in REPORTED_FLAGS if flags.get(name)],
        "torch_threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: _version(name) for name in REPORTED_PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
