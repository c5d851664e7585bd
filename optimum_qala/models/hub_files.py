"""What a push does to the files of a repository that it does not name."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from fnmatch import fnmatch
from pathlib import PurePosixPath

from .errors import ConfigurationError


# What tells that a folder holds a model, by back end, whose name is also that of the sub-folder for it.
MODEL_MARKS = {
    "torch": ("model*.safetensors", "pytorch_model*.bin"),
    "openvino": ("openvino_model.xml",),
    "inc": ("inc_graph.json",),
}
# What says how a graph was quantized, by the graph: a file that another graph of that name may lack.
RECORDS = {"openvino_model.xml": "openvino_quala_config.json"}
_WEIGHTS = re.compile(
    r"model(\.(?P<variant>[\w-]+?))?(-\d{5}-of-\d{5})?\.safetensors(?P<index>\.index(\.(?P<of>[\w-]+))?\.json)?"
)


def _back_ends(names: Iterable[str], place: str) -> dict[str, str]:
    """Return the file that tells of each back end's model in a folder."""
    inside = [PurePosixPath(name) for name in names]
    return {
        back_end: str(path)
        for path in inside
        for back_end, marks in MODEL_MARKS.items()
        if str(path.parent) == place and any(fnmatch(path.name, mark) for mark in marks)
    }


def check_places(repo_id: str, names: Sequence[str], stored: Collection[str]) -> None:
    """Raise if a model would replace the config.json of another back end's, hence its budgets.

    Raises:
        ConfigurationError: If so.
    """
    for place in {str(PurePosixPath(name).parent) for name in names if PurePosixPath(name).name == "config.json"}:
        pushed, there = _back_ends(names, place), _back_ends(stored, place)
        others = [file for back_end, file in there.items() if back_end not in pushed]
        if not pushed or not others:
            continue
        (back_end, *_) = pushed
        remedy = f"delete {others[0]} first, or name another repository"
        if back_end != "torch" and place == ".":
            remedy = f"pass subfolder={back_end!r}"
        raise ConfigurationError(f"{repo_id} holds {others[0]}, whose config.json this push would replace; {remedy}")


def replaced_files(names: Sequence[str], stored: Iterable[str]) -> list[str]:
    """Name the files of a repository that are of the models which are pushed, but no longer a part of them.

    transformers loads model.safetensors before weights in several files, and a graph would be described by the record
    of the one before it.
    """
    pushed = {_weights(name) for name in names} - {None}
    records = {str(path.with_name(RECORDS[path.name])) for path in map(PurePosixPath, names) if path.name in RECORDS}
    return [name for name in stored if name not in names and (name in records or _weights(name) in pushed)]


def _weights(name: str) -> tuple[str, str | None] | None:
    """Tell the folder and the variant that a file of weights is of; None for other files."""
    path = PurePosixPath(name)
    found = _WEIGHTS.fullmatch(path.name)
    return None if found is None else (str(path.parent), found["variant"] or found["of"])


__all__ = ["MODEL_MARKS", "RECORDS", "check_places", "replaced_files"]
