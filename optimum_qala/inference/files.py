"""Where the files of a model are: in a folder or on the Hub, at the root or in the sub-folder of a back end."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from optimum_qala.errors import CheckpointError
from optimum_qala.inference.inc_graph import GRAPH_NAME, WEIGHTS_NAME
from optimum_qala.models.hub import hub_errors
from optimum_qala.quantization.configuration import IR_NAME


__all__ = ["MODEL_FILES", "SUBFOLDERS", "find_config", "find_file", "find_graph", "model_files", "total_size"]

# Where a repository with several back ends keeps the graph of each; the torch model is at the root.
SUBFOLDERS = {IR_NAME: "openvino", GRAPH_NAME: "inc"}
# Files that hold a model, by back end; the first one tells that there is one.
MODEL_FILES = {
    "torch": ("model*.safetensors",),
    "openvino": (IR_NAME, Path(IR_NAME).with_suffix(".bin").name),
    "inc": (GRAPH_NAME, WEIGHTS_NAME),
}


def model_files(place: Path, backend: str) -> list[Path]:
    """List the files that hold a model.

    Args:
        place: Where it lies: a folder, or the sub-folder of a back end.
        backend: "torch", "openvino" or "inc".

    Returns:
        Those that exist; none if there is no model of that back end.
    """
    first, *others = MODEL_FILES[backend]
    found = list(place.glob(first))
    return [*found, *(file for pattern in others for file in place.glob(pattern))] if found else []


def total_size(files: Iterable[Path]) -> int:
    """Add up what files take, in bytes."""
    return sum(file.stat().st_size for file in files)


def find_graph(model_id: str | Path, name: str, hub: dict[str, Any]) -> tuple[Path | None, dict[str, Any]]:
    """Find the graph of a back end: in the folder, or else in the sub-folder for that back end.

    Args:
        model_id: Folder or repository id.
        name: Name of the graph's file, a key of `SUBFOLDERS`.
        hub: Arguments of `hf_hub_download`. Where they name a sub-folder, "" for the root, only that counts.

    Returns:
        Its local path, or None if there is none, and the arguments that find the files beside it.

    Raises:
        CheckpointError: As `find_file`.
        HubError: As `find_file`.
    """
    file = find_file(model_id, name, hub)
    if file is None and "subfolder" not in hub:
        inside = {**hub, "subfolder": SUBFOLDERS[name]}
        nested = find_file(model_id, name, inside)
        if nested is not None:
            return nested, inside
    return file, hub


def find_config(model_id: str | Path, beside: dict[str, Any], hub: dict[str, Any]) -> dict[str, Any]:
    """Find the config.json of a graph: beside it, or else at the root, where repositories of plain models have theirs.

    Args:
        model_id: Folder or repository id.
        beside: Arguments that find the files beside the graph, as `find_graph` returns them.
        hub: Arguments that were given to `find_graph`.

    Returns:
        Arguments that find it.

    Raises:
        CheckpointError: As `find_file`.
        HubError: As `find_file`.
    """
    return hub if beside != hub and find_file(model_id, "config.json", beside) is None else beside


def find_file(model_id: str | Path, name: str, hub: dict[str, Any]) -> Path | None:
    """Find a file of a model.

    Args:
        model_id: Folder or repository id.
        name: Name of the file.
        hub: Arguments of `hf_hub_download`.

    Returns:
        Its local path, or None if the folder or the repository has no such file.

    Raises:
        CheckpointError: If the Hub does not answer, or must not be asked, and the cache does not hold the repository.
        HubError: If there is no such repository or revision, or the token does not open it.
    """
    if Path(model_id).is_dir():
        file = Path(model_id) / hub.get("subfolder", "") / name
        return file if file.is_file() else None
    try:
        with hub_errors(model_id, hub.get("revision")):
            return Path(hf_hub_download(str(model_id), name, **hub))
    except LocalEntryNotFoundError as error:
        if _is_cached(str(model_id), hub):
            return None  # it was loaded before, so a file that it lacks does not exist
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise CheckpointError(
            f"{model_id} is not in the cache, and the Hub does not give it out ({reason})"
        ) from error
    except EntryNotFoundError:
        return None


def _is_cached(repo_id: str, hub: dict[str, Any]) -> bool:
    try:
        snapshot_download(repo_id, local_files_only=True, cache_dir=hub.get("cache_dir"), revision=hub.get("revision"))
    except LocalEntryNotFoundError:
        return False
    return True
