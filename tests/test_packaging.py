"""What ships: every folder, the command-line file, the extras that the code asks for, and pins that fit them."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from optimum_qala._compat import EXTRAS
from optimum_qala.reporting import card_usage


ROOT = Path(__file__).resolve().parents[1]
REGISTER = "optimum/commands/register/register_qala.py"


def listed(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def setup_cfg() -> configparser.ConfigParser:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    return config


@pytest.fixture(scope="module")
def requirements(setup_cfg) -> dict[str, list[Requirement]]:
    """Requirements by extra; "" for those of the core. Those on our own extras are left out."""
    texts = {"": setup_cfg["options"]["install_requires"], **setup_cfg["options.extras_require"]}
    parsed = {extra: [Requirement(line) for line in listed(text)] for extra, text in texts.items()}
    return {extra: [one for one in many if one.name != "optimum-qala"] for extra, many in parsed.items()}


def test_every_folder_with_code_is_listed(setup_cfg):
    folders = {path.parent for path in (ROOT / "optimum_qala").rglob("*.py") if "_namespace" not in path.parts}
    names = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert sorted([*names, "optimum.commands.register"]) == sorted(listed(setup_cfg["options"]["packages"]))


def test_folders_of_the_shared_namespace_have_no_init():
    """With one, optimum's own commands would be hidden, and an editable install would not find ours."""
    assert not list((ROOT / "optimum_qala" / "_namespace").rglob("__init__.py"))


def test_extras_are_those_that_the_code_asks_for(requirements):
    assert set(EXTRAS) == set(requirements) - {"", "tests", "quality", "docs", "all"}
    for extra, modules in EXTRAS.items():
        names = [requirement.name.replace("_", "-") for requirement in requirements[extra]]
        for module in modules:
            wanted = module.replace(".", "-").replace("_", "-")
            assert any(name.startswith(wanted) for name in names), f"[{extra}] does not bring {module}"


def test_pages_and_cards_name_the_transformers_that_is_needed(requirements):
    (found,) = [one for one in requirements[""] if one.name == "transformers"]
    (least,) = [str(bound) for bound in found.specifier if bound.operator == ">="]
    assert card_usage.TRANSFORMERS == f"transformers{least}"
    assert f"`transformers{least}`" in (ROOT / "docs" / "how_to" / "share_on_the_hub.md").read_text(encoding="utf-8")


def test_all_is_every_extra_for_users(setup_cfg):
    (line,) = listed(setup_cfg["options.extras_require"]["all"])
    assert Requirement(line).extras == set(EXTRAS)


def test_optimum_intel_stays_below_the_release_that_was_not_tested(requirements):
    (intel,) = [one for one in requirements["openvino"] if one.name == "optimum-intel"]
    assert "2.1.0" in intel.specifier
    assert "2.2.0" not in intel.specifier


def test_constraints_pin_every_requirement_within_its_bounds(requirements):
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    )
    pins = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    for requirement in (one for many in requirements.values() for one in many):
        name = requirement.name.lower().replace("_", "-")
        assert name in pins, f"{name} is not in constraints.txt"
        assert pins[name] in requirement.specifier, f"constraints.txt pins {name} to {pins[name]}"


def test_ci_installs_the_torch_that_constraints_pin():
    pins = re.findall(r"torch==[\d.]+", (ROOT / ".ci" / "run").read_text(encoding="utf-8"))
    assert len(set(pins)) == 1
    assert pins[0] in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy of what it is built from and unpacked."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "optimum_qala", source / "optimum_qala", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(source / "dist"),
        str(source),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = (source / "dist").glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        archive.extractall(target)
    return target


def test_wheel_holds_every_file_once(wheel):
    source = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "optimum_qala").rglob("*")
        if path.is_file() and not {"_namespace", "__pycache__"} & set(path.parts)
    }
    shipped = {path.relative_to(wheel).as_posix() for path in wheel.rglob("*") if path.is_file()}
    code = {name for name in shipped if not re.match(r"[^/]+\.dist-info/", name)}
    beside = {f"optimum/commands/register/_qala_{name}.py" for name in ("flags", "reports", "students")}
    assert code == source | {REGISTER} | beside


def test_wheel_carries_the_licence(wheel):
    (licence,) = wheel.glob("*.dist-info/**/LICENSE")
    assert licence.read_text(encoding="utf-8") == (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_commands_of_the_wheel_and_of_optimum_intel_work_side_by_side(wheel, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(wheel)}
    # An editable install of this tree would show its own register file beside that of the wheel.
    code = (
        "import sys; sys.path = [entry for entry in sys.path if '__editable__' not in entry]; "
        "sys.meta_path = [finder for finder in sys.meta_path "
        "if '__editable__' not in getattr(finder, '__module__', '')]; "
        "from optimum.commands.optimum_cli import main; "
        "import optimum.commands.register.register_qala as module; print(module.__file__, file=sys.stderr); main()"
    )
    for arguments, promised in (
        ("qala predict --help", "--buffer-size"),
        ("export openvino --help", "--weight-format"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments.split()],
            capture_output=True,
            text=True,
            timeout=120,
            env=environment,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        assert promised in done.stdout
        assert str(wheel / REGISTER) in done.stderr
