"""Imports go one way: a module may import only from lower levels, or from its own folder.

Guards the layering: models that travel to the Hub alone, a core that needs no back end, and no import cycles.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest


PACKAGE = "optimum_qala"
ROOT = Path(__file__).parent.parent
# From low to high. A name that ends in "." stands for every module of a folder that no other entry names.
LEVELS = (
    ("models.errors",),
    ("version", "errors"),
    ("_checks", "_compat", "_folders", "models.length_config"),
    (
        "models.",
        "question_answering.records",
        "question_answering.synthetic",
        "question_answering.windows",
        "question_answering.features",
        "question_answering.answers",
        "question_answering.metrics",
        "question_answering.predictor",
        "question_answering.pseudo_labels",
        "search.pareto",
        "search.store",
        "training.sampling",
        "quantization.configuration",
        "quantization.inc_configuration",
        "quantization.stored_configuration",
    ),
    ("distillation.", "inference.graph", "inference.sizes"),
    (
        "quantization.calibration",
        "quantization.fake_quantization",
        "quantization.outliers",
        "quantization.qat_record",
        "quantization.rounding",
    ),
    (
        "training.",
        "search.",
        "checkpoints",
        "quantization.cpu",
        "quantization.export",
        "quantization.inc_export",
        "quantization.tuning",
    ),
    ("inference.", "question_answering.pipeline", "students."),
    ("quantization.", "reporting."),
    ("registration",),
    ("cli.",),
)
# What the core may import at the top of a module besides the standard library; anything else is imported where it is
# used, so that the core works without the extras.
CORE_DEPENDENCIES = {
    "accelerate",
    "httpx",
    "huggingface_hub",
    "numpy",
    "packaging",
    "safetensors",
    "torch",
    "tqdm",
    "transformers",
    "yaml",
}
MODEL_DEPENDENCIES = {"torch", "transformers", "huggingface_hub", "httpx"}  # the last two come with transformers
# Modules that define subclasses of a back end's classes, hence import it at the top. They check that it is installed
# before, and nothing imports them before they are used.
BACKEND_DEPENDENCIES = {"inference.span_model": {"optimum"}, "quantization.export": {"optimum"}}


@dataclass(frozen=True)
class Import:
    target: str
    line: int
    is_top_level: bool


def level_of(module: str) -> int:
    """Level of a module of the package, given without the package's name."""
    for names in (lambda name: name == module, lambda name: name.endswith(".") and module.startswith(name)):
        for level, entries in enumerate(LEVELS):
            if any(names(entry) for entry in entries):
                return level
    # A folder's __init__ re-exports: it is as high as the folder's highest module.
    levels = [level for level, entries in enumerate(LEVELS) for entry in entries if entry.startswith(f"{module}.")]
    if not levels:
        raise AssertionError(f"{module} has no level: add it to LEVELS")
    return max(levels)


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports_of(source: str, module: str, is_package: bool) -> Iterator[Import]:
    """Imports that run, with their absolute names; those for type checkers only are left out."""

    def walk(node: ast.AST, is_top_level: bool) -> Iterator[Import]:
        if _is_type_checking(node):
            return
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, is_top_level)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".") if is_package else module.split(".")[:-1]
                parents = parents[: len(parents) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            for alias in node.names:
                name = f"{base}.{alias.name}"
                yield Import(name if _is_module(name) else base, node.lineno, is_top_level)
        inner = is_top_level and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, inner)

    return walk(ast.parse(source), True)


def _is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").is_file()


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """What a module imports against the rules; `module` is its full name."""
    own = module.removeprefix(PACKAGE).removeprefix(".")
    folder = own if is_package else own.rpartition(".")[0]
    found = []
    for entry in imports_of(source, module, is_package):
        top = entry.target.partition(".")[0]
        where = f"{module}:{entry.line} imports {entry.target}"
        if top == PACKAGE:
            target = entry.target.removeprefix(PACKAGE).removeprefix(".")
            if not own:
                continue  # the package's __init__ re-exports everything
            if not target:
                found.append(f"{where}: name the module, not the package")
                continue
            is_sibling = folder and (target == folder or target.startswith(f"{folder}."))
            allowed = level_of(own) if is_sibling else level_of(own) - 1
            if own.startswith("models.") and not is_sibling:
                found.append(f"{where}: models travel to the Hub, so they import their siblings only")
            elif level_of(target) > allowed:
                found.append(f"{where}: level {level_of(target)} from level {level_of(own)}")
        elif entry.is_top_level and top not in sys.stdlib_module_names:
            legal = MODEL_DEPENDENCIES if own.startswith("models.") else CORE_DEPENDENCIES
            legal = legal | BACKEND_DEPENDENCIES.get(own, set())
            if top not in legal:
                found.append(f"{where}: import it where it is used; legal here are {sorted(legal)}")
    return found


def package_modules() -> list[tuple[str, Path]]:
    files = (path for path in (ROOT / PACKAGE).rglob("*.py") if "_namespace" not in path.parts)
    return [
        (".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), path)
        for path in sorted(files)
    ]


@pytest.mark.parametrize(("module", "path"), package_modules(), ids=[name for name, _ in package_modules()])
def test_module_imports_only_downwards(module, path):
    assert violations(path.read_text(encoding="utf-8"), module, path.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("optimum_qala.search.pareto", "from optimum_qala.cli.train import run", "level 10 from level 3"),
        ("optimum_qala.search.evolution", "import optimum_qala.inference.openvino", "level 7 from level 6"),
        ("optimum_qala.question_answering.records", "from .pipeline import x", "level 7 from level 3"),
        (
            "optimum_qala.training.trainer",
            "def f():\n    from optimum_qala.checkpoints import g",
            "level 6 from level 6",
        ),
        ("optimum_qala.models.modeling_quala_minilm", "from optimum_qala.training.sampling import x", "siblings only"),
        ("optimum_qala.models.token_selection", "import datasets", "import it where it is used"),
        ("optimum_qala.quantization.calibration", "import openvino as ov", "import it where it is used"),
        ("optimum_qala.quantization.openvino", "import optimum.intel", "import it where it is used"),
        ("optimum_qala.cli.train", "from optimum_qala import QuaLATrainer", "name the module"),
    ],
)
def test_violation_is_found(module, source, expected):
    assert [text for text in violations(source, module) if expected in text]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("optimum_qala.search.evolution", "from optimum_qala.models.length_config import LengthConfig"),
        ("optimum_qala.inference.span_model", "from optimum.intel.openvino.modeling import OVModel"),
        ("optimum_qala.training.trainer", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import datasets"),
        ("optimum_qala.models.modeling_quala_minilm", "from .errors import ConfigurationError"),
    ],
)
def test_legal_import_is_accepted(module, source):
    assert violations(source, module) == []


def test_module_without_a_level_is_reported():
    with pytest.raises(AssertionError, match="extras has no level"):
        level_of("extras")
