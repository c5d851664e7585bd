"""Output folders: complete or absent, never overwritten, and resumable where the work is long.

A command writes into a neighbour of its output folder and renames it once everything is there, so an output folder
that exists is a complete one. Long commands keep their intermediate state in `<output>.partial`, which survives an
interruption; the same command run again goes on from it, and removes it in the end. An error before there is anything
to go on from, such as a flag that does not fit the model, leaves nothing, so that the corrected command can run.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from optimum_qala._folders import check_output, publish, umask, write_json
from optimum_qala.errors import ConfigurationError, OutputExistsError
from optimum_qala.search.store import content_hash


SETTINGS_FILE = "settings.json"
PARTIAL_SUFFIX = ".partial"
# What a command goes on from, in its state: checkpoints of a training, stores of a search. The rest is made anew.
_PROGRESS = ("checkpoint-*", "*.json")


@dataclass(frozen=True)
class WorkFolder:
    """Where a resumable command works.

    Args:
        state: Folder for checkpoints and stores; kept when the command is interrupted.
        result: Folder that becomes the output when the command ends well.
        is_resumed: True if an earlier run with the same settings left its state.
    """

    state: Path
    result: Path
    is_resumed: bool


@contextmanager
def new_file(output: str | Path) -> Iterator[TextIO]:
    """Write a text file that appears only when it is complete.

    Args:
        output: The file to make.

    Yields:
        A temporary file beside it, renamed to `output` when the block ends without an error and removed otherwise.

    Raises:
        OutputExistsError: If `output` exists, before the block or after it.
    """
    path = Path(output)
    if path.exists() or path.is_symlink():
        raise OutputExistsError(f"output {path} exists; nothing was written: remove it or choose another")
    path.resolve().parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.resolve().parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            yield file
        temporary.chmod(0o666 & ~umask())
        try:
            os.link(temporary, path)  # unlike a rename, fails if somebody made the file meanwhile
        except FileExistsError:
            raise OutputExistsError(f"output {path} appeared meanwhile; nothing was overwritten") from None
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def resumable_folder(output: str | Path, settings: Mapping[str, Any]) -> Iterator[WorkFolder]:
    """Make an output folder with work that survives an interruption.

    Args:
        output: The folder to make.
        settings: Everything that decides the result, JSON values only; state left by other settings is not reused.

    Yields:
        The folders to work in. The result becomes `output` and the state is removed when the block ends without an
        error; otherwise both stay in `<output>.partial`, unless an error came before there was anything to go on from.

    Raises:
        OutputExistsError: If `output` holds something, or `<output>.partial` holds the state of other settings.
        ConfigurationError: If this is one of several processes, which would all write there.
    """
    _check_one_process()
    path = check_output(output)
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    is_resumed = _claim(partial, json.loads(json.dumps(settings)))
    work = WorkFolder(state=partial / "state", result=partial / "result", is_resumed=is_resumed)
    shutil.rmtree(work.result, ignore_errors=True)
    work.state.mkdir(exist_ok=True)
    work.result.mkdir()
    try:
        yield work
    except Exception:
        if not is_resumed and not any(next(work.state.glob(pattern), None) for pattern in _PROGRESS):
            shutil.rmtree(partial, ignore_errors=True)
        raise
    publish(work.result, path)
    shutil.rmtree(partial)


# Where a result goes and how it is shown does not change it.
_NOT_SETTINGS = {"func", "output", "json", "debug"}


def run_settings(args: Namespace, inputs: Iterable[str], without: Iterable[str] = ()) -> dict[str, Any]:
    """Describe a command line so that two runs with equal settings have equal results.

    Args:
        args: The parsed command line.
        inputs: Flags that name files or folders: their content counts too, so that state is not reused after a change.
        without: Flags that may differ between an interrupted run and the one that goes on.

    Returns:
        Flags by name, and a hash of each input that lies on this machine.
    """
    settings = {name: value for name, value in vars(args).items() if name not in {*_NOT_SETTINGS, *without}}
    for name in inputs:
        content = fingerprint(settings[name]) if name in settings else None
        if content is not None:
            settings[f"{name}_content"] = content
    return settings


def fingerprint(source: str) -> str | None:
    """Hash what a file or folder holds.

    Args:
        source: Its path, or the id of something that lies elsewhere.

    Returns:
        The hash, or None for an id.
    """
    path = Path(source)
    if path.is_dir():
        return content_hash(sorted(file for file in path.iterdir() if file.is_file()))
    return content_hash([path]) if path.is_file() else None


def _check_one_process() -> None:
    processes = os.environ.get("WORLD_SIZE") or "1"
    if processes != "1":
        raise ConfigurationError(
            f"this is one of {processes} processes (WORLD_SIZE), which would all write the same folder; optimum-cli "
            "runs in one. To train in several, start examples/question_answering/run_qa.py, or a script of your own "
            "with QuaLATrainer or MiniLMDistillationTrainer, with torchrun"
        )


def _claim(partial: Path, settings: Any) -> bool:
    """Make the folder for `settings`, or find the one that an earlier run with the same settings left."""
    file = partial / SETTINGS_FILE
    if not partial.exists() or (partial.is_dir() and not any(partial.iterdir())):
        partial.mkdir(parents=True, exist_ok=True)
        write_json(file, settings)
        return False
    try:
        earlier = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise OutputExistsError(
            f"{partial} exists and is not the work of an interrupted command; remove it or choose another output"
        ) from None
    if earlier != settings:
        changed = sorted(name for name in earlier.keys() | settings.keys() if earlier.get(name) != settings.get(name))
        raise OutputExistsError(
            f"{partial} holds an interrupted run with other settings ({', '.join(changed)}); repeat that command, "
            "remove the folder to start anew, or choose another output"
        )
    return True
