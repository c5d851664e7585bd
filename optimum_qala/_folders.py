"""Output folders that appear when they are complete, and are never overwritten."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optimum_qala.errors import OutputExistsError


def check_output(output: str | Path) -> Path:
    """Refuse an output path that holds something.

    Args:
        output: The folder that is about to be made.

    Returns:
        The path.

    Raises:
        OutputExistsError: If it is a file or a folder that is not empty.
    """
    path = Path(output)
    if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
        return path
    if path.exists() or path.is_symlink():
        kind = "is not empty" if path.is_dir() else "is not a folder"
        raise OutputExistsError(f"output {path} exists and {kind}; nothing was written: remove it or choose another")
    return path


@contextmanager
def new_folder(output: str | Path) -> Iterator[Path]:
    """Make an output folder that appears only when it is complete.

    Args:
        output: The folder to make.

    Yields:
        A temporary folder beside it, renamed to `output` when the block ends without an error and removed otherwise.

    Raises:
        OutputExistsError: If `output` holds something, before the block or after it.
    """
    path = check_output(output)
    parent = path.resolve().parent
    parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=parent))
    try:
        yield temporary
        publish(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish(source: Path, path: Path) -> None:
    """Give a complete folder its name.

    Args:
        source: The folder, on the same file system as `path`.
        path: Its name from now on; an empty folder of that name is replaced.

    Raises:
        OutputExistsError: If `path` holds something.
    """
    # mkdtemp makes private folders; an output has the permissions of any other new folder.
    source.chmod(0o777 & ~umask())
    try:
        source.rename(path)  # replaces an empty folder, fails on any other
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise OutputExistsError(f"output {path} appeared meanwhile; nothing was overwritten") from None
        raise


def source_name(source: str | Path) -> str:
    """Name a model or data without saying where on this machine they lie.

    Args:
        source: A path, or the id of something on the Hub.

    Returns:
        The last part of a path that exists; else the id.
    """
    path = Path(source)
    return path.resolve().name if path.exists() else str(source)


def copy_records(source: str | Path, folder: str | Path, names: Iterable[str]) -> None:
    """Hand on what is known of a model to one that is made of it.

    Args:
        source: Folder of the model; an id of the Hub hands on nothing.
        folder: Folder of the new model; what it has of its own stays.
        names: Files.
    """
    for name in names:
        old, new = Path(source) / name, Path(folder) / name
        if old.is_file() and not new.exists():
            with replacing(new) as temporary:
                shutil.copyfile(old, temporary)


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Write a file that is complete or what it was before.

    Args:
        file: The file.

    Yields:
        A file beside it to write to, which takes its name when the block ends without an error.
    """
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        yield temporary
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file that is complete or absent.

    Args:
        path: The file.
        value: JSON values.
    """
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def umask() -> int:
    """Return the permissions that new files of this process do not get."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
