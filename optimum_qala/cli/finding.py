"""Find out what a folder or repository holds: for which back end, and how large."""

from __future__ import annotations

from pathlib import Path

from httpx import HTTPError
from huggingface_hub import file_exists, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

from optimum_qala.errors import CheckpointError, ConfigurationError
from optimum_qala.inference.files import MODEL_FILES, SUBFOLDERS, find_graph, model_files, total_size
from optimum_qala.inference.inc_graph import GRAPH_NAME
from optimum_qala.quantization.configuration import IR_NAME


TORCH_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
GRAPHS = {backend: files[0] for backend, files in MODEL_FILES.items() if files[0] in SUBFOLDERS}


def size_on_disk(path: str | Path, backend: str) -> int | None:
    """Add up the files that hold a model.

    Args:
        path: Its folder, or a repository id.
        backend: "openvino" and "inc" count the exported graph if there is one; else the torch checkpoint counts.

    Returns:
        Bytes, or None if the path is no folder.
    """
    folder = Path(path)
    if not folder.is_dir():
        return None
    graph = find_graph(folder, GRAPHS[backend], {})[0] if backend in GRAPHS else None
    if graph is not None:
        return total_size(model_files(graph.parent, backend))
    return total_size(model_files(folder, "torch") or folder.glob("pytorch_model*.bin"))


def find_backend(path: str, revision: str | None = None) -> str:
    """Tell what runs the model of a folder or repository; the faster one if there are several."""
    return "openvino" if holds_ir(path, revision) else "inc" if _holds_graph(path, GRAPH_NAME, revision) else "torch"


def holds_ir(path: str, revision: str | None = None) -> bool:
    """Tell whether a folder, or a revision of a repository, holds a model that was exported to OpenVINO."""
    return _holds_graph(path, IR_NAME, revision)


def _holds_graph(path: str, name: str, revision: str | None = None) -> bool:
    return _holds(path, name, revision) or _holds(path, f"{SUBFOLDERS[name]}/{name}", revision)


def _holds(path: str, name: str, revision: str | None) -> bool:
    if Path(path).is_dir():
        return (Path(path) / name).is_file()
    if _looks_like_folder(path):
        return False
    try:
        return bool(file_exists(path, name, revision=revision))
    except HFValidationError:
        return False  # loading it will say what is wrong
    except (HTTPError, OfflineModeIsEnabled):
        return isinstance(try_to_load_from_cache(path, name, revision=revision), str)


def _looks_like_folder(path: str) -> bool:
    return path.startswith((".", "/", "~")) or path.count("/") > 1


def check_folder(path: str, backend: str, revision: str | None = None) -> None:
    """Raise if a path cannot be a model for a back end.

    Args:
        path: Folder or repository id; what a repository holds is not looked at.
        backend: "torch", "openvino" or "inc".
        revision: That of a repository, if one was given.

    Raises:
        CheckpointError: If the folder does not exist, or holds no such model.
        ConfigurationError: If there is a revision of a folder.
    """
    folder = Path(path)
    if folder.is_file():
        raise CheckpointError(f"model {path} is a file; give the folder that holds it")
    if not folder.is_dir():
        if _looks_like_folder(path):
            raise CheckpointError(f"model folder {path} does not exist")
        return
    if revision is not None:
        raise ConfigurationError(
            f"--revision {revision} is one of a repository on the Hub, but {path} is a folder here"
        )
    # OpenVINO runs a torch checkpoint too, in float32.
    graph = GRAPHS.get(backend)
    legal = (*(() if graph is None else (graph,)), *(() if backend == "inc" else TORCH_FILES))
    if not any((folder / name).is_file() for name in legal) and not (graph and _holds_graph(path, graph)):
        raise CheckpointError(f"{path} holds no model for --backend {backend}: it has none of {', '.join(legal)}")


def cannot_load(path: str, error: Exception) -> str:
    """Say that a folder or repository cannot be loaded, and why."""
    if not Path(path).is_dir():
        return f"model {path} is no folder here and no repository that the Hub gives out ({first_line(error)})"
    return f"model {path} cannot be loaded: {first_line(error)}"


def first_line(error: Exception) -> str:
    """Return the first line of what an error says."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
