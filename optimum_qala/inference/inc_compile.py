"""Machine code of an int8 graph, made by torch's inductor ahead of time and kept for the next process.

The code is made for this CPU and this version of torch and stays in a cache of this machine: a folder or repository of
a model never holds any, so loading a model from elsewhere runs none.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from huggingface_hub import constants
from torch import Tensor, fx, nn
from transformers.utils import logging

from optimum_qala.errors import BackendError
from optimum_qala.inference.inc_graph import cut_graph
from optimum_qala.models.budget_choice import cpu_name
from optimum_qala.models.configuration_quala_minilm import QuaLAMiniLMConfig
from optimum_qala.quantization.inc_export import input_names, trace_program
from optimum_qala.version import __version__


__all__ = ["Program", "compile_program", "default_compile_cache", "load_program", "program_file", "provide_program"]

logger = logging.get_logger(__name__)

Program = Callable[..., tuple[Tensor, ...]]


class _Caller(nn.Module):
    """A graph as a module that takes its inputs by name."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__()
        self.program = graph  # torch.export would mix up a module of the name "graph" with its own

    def forward(self, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        results: tuple[Tensor, ...] = self.program(*inputs.values())
        return results


def default_compile_cache() -> Path:
    """Name the folder of compiled programs: `optimum_qala/compiled` in the cache of Hugging Face (`HF_HOME`)."""
    return Path(constants.HF_HOME) / "optimum_qala" / "compiled"


def program_file(cache: Path, files: tuple[Path, Path], exit_layer: int | None) -> Path:
    """Name the file of a program in a cache.

    Other weights or threads, another CPU, another torch or another version of this package make another file.

    Args:
        cache: The cache.
        files: The graph and its weights.
        exit_layer: Number of layers that the program runs; all if None.

    Returns:
        The file, which need not exist.
    """
    digest = hashlib.sha256()
    numbers = exit_layer, torch.get_num_threads()  # inductor writes the number of threads into its code
    versions = torch.__version__, __version__
    for text in (*versions, cpu_name(), torch.backends.cpu.get_cpu_capability(), *map(str, numbers)):
        digest.update(text.encode() + b"\0")
    for file in files:
        digest.update(file.read_bytes())
    return cache / f"{digest.hexdigest()}.pt2"


def provide_program(
    file: Path, config: QuaLAMiniLMConfig, read: Callable[[], fx.GraphModule], outputs: Sequence[str]
) -> Program:
    """Load a program from the cache. Where it is missing or does not load, compile it first.

    Args:
        file: Its file in the cache, as `program_file` names it.
        config: Configuration of the model.
        read: Reads the graph as it was stored, without the kernels of `use_int8_kernels`; called if it is compiled.
        outputs: Names of the outputs that are wanted.

    Returns:
        The program, as `load_program` gives it.

    Raises:
        BackendError: If it does not load although it was just compiled, or as in `compile_program`.
    """
    if os.path.isfile(file):  # unlike Path.is_file, no error where the folder may not be searched
        try:
            return load_program(file, config)
        except BackendError as error:
            logger.warning(f"{error}; compiling it again")
    compile_program(cut_graph(read(), outputs), config, file)
    return load_program(file, config)


def compile_program(graph: fx.GraphModule, config: QuaLAMiniLMConfig, file: Path) -> None:
    """Compile a graph, which takes about a minute, and keep it in the cache.

    Args:
        graph: The graph as it was read, without the kernels of `use_int8_kernels`, cut to the outputs that are wanted.
        config: Configuration of the model.
        file: Its file in the cache, as `program_file` names it. What is there is replaced.

    Raises:
        BackendError: If there is no C++ compiler, inductor cannot compile the graph, or the cache cannot be made or
            written.
    """
    _check_compiler()
    cache = file.parent
    try:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=cache) as folder:  # other processes may compile it, too
            package = Path(folder) / file.name
            _compile(graph, config, package)
            package.replace(file)
    except OSError as error:
        raise BackendError(
            f"{cache}, the cache of compiled programs, cannot be written ({error}); name another folder by cache_dir "
            "of compile(), or set the environment variable HF_HOME"
        ) from error


def load_program(file: Path, config: QuaLAMiniLMConfig) -> Program:
    """Load a compiled graph from the cache.

    Args:
        file: Its file, as `compile_program` wrote it. Its code is run: whoever may write it may run code.
        config: Configuration of the model.

    Returns:
        The program, which takes what the graph takes, in any shape of two tokens or more. Threads may share it.

    Raises:
        BackendError: If the file is damaged, or its code does not load here.
    """
    from torch._inductor import aoti_load_package

    try:
        program = aoti_load_package(str(file))
    except Exception as error:  # RuntimeError or what its parser of the archive raises
        reason = str(error).strip().splitlines()
        raise BackendError(
            f"{file}, a compiled program, does not load ({reason[0] if reason else type(error).__name__})"
        ) from error
    names = input_names(config)
    return lambda *inputs: tuple(program(dict(zip(names, inputs, strict=True))))


def _check_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, RuntimeError) as error:
        raise BackendError(
            "compiling needs a C++ compiler, and none was found; install g++ or name one in the environment variable "
            "CXX, or do not compile: the model then runs at once, on the int8 kernels of torch, and a little slower"
        ) from error


def _compile(graph: fx.GraphModule, config: QuaLAMiniLMConfig, file: Path) -> None:
    from torch._inductor import aoti_compile_and_package

    program = trace_program(_Caller(graph), config)
    try:
        with torch.no_grad():
            # Frozen, weights are constants, which the int8 kernels ask for.
            aoti_compile_and_package(program, package_path=str(file), inductor_configs={"freezing": True})
    except Exception as error:  # inductor raises errors of many kinds, its C++ compiler's among them
        reason = str(error).strip().splitlines()
        raise BackendError(
            f"torch {torch.__version__} cannot compile this model ({reason[0] if reason else type(error).__name__}); "
            "do not compile: it then runs on the int8 kernels of torch"
        ) from error
