"""Where the files of a model are: in a folder or on the Hub, at the root or in the sub-folder of a back end."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
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
    inside = {**hub, "subfolder": SUBFOLDERS[name]}
    places = [hub] if "subfolder" in hub else [hub, inside]
    unknown = None
    for place in places:
        try:
            file = find_file(model_id, name, place)
        except CheckpointError as error:  # the other place may be in the cache, as after a download of all files
            unknown = unknown or error
            continue
        if file is not None:
            return file, place
    if unknown is not None:
        raise unknown
    return None, hub


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
    return hub if beside != hub and find_file(model_id, "config.json", beside, optional=True) is None else beside


def find_file(model_id: str | Path, name: str, hub: dict[str, Any], *, optional: bool = False) -> Path | None:
    """Find a file of a model.

    Args:
        model_id: Folder or repository id.
        name: Name of the file.
        hub: Arguments of `hf_hub_download`.
        optional: Many graphs come without it, so take it as missing where nobody tells.

    Returns:
        Its local path, or None if the folder or the repository has no such file.

    Raises:
        CheckpointError: If the Hub does not answer, or must not be asked, and the cache neither holds the file nor
            knows that there is none.
        HubError: If there is no such repository or revision, or the token does not open it.
    """
    if Path(model_id).is_dir():
        file = Path(model_id) / hub.get("subfolder", "") / name
        return file if file.is_file() else None
    try:
        with hub_errors(model_id, hub.get("revision")):
            return Path(hf_hub_download(str(model_id), name, **hub))
    except LocalEntryNotFoundError as error:
        if optional or _is_known_to_lack(str(model_id), name, hub):
            return None
        reason = str(error.__cause__ or error).strip().splitlines()[0].rstrip(".")
        raise CheckpointError(
            f"{name} of {model_id} is not in the cache, and the Hub does not tell whether there is one ({reason}); "
            "load the model once with the network, or give the folder of a download"
        ) from error
    except EntryNotFoundError:
        return None


def _is_known_to_lack(repo_id: str, name: str, hub: dict[str, Any]) -> bool:
    """Tell whether the Hub once said that a revision has no such file: other files in the cache do not tell."""
    path = f"{hub['subfolder']}/{name}" if hub.get("subfolder") else name
    found = try_to_load_from_cache(repo_id, path, cache_dir=hub.get("cache_dir"), revision=hub.get("revision"))
    return found is _CACHED_NO_EXIST
