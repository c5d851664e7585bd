"""`--compile`: machine code for the int8 models of Intel Neural Compressor."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence

from optimum_qala.cli.console import Console
from optimum_qala.cli.loading import LoadedModel
from optimum_qala.cli.options import bucket_options
from optimum_qala.cli.peers import Entry, ModelSource
from optimum_qala.errors import ConfigurationError


# What helps instead, by back end.
_OTHERS = {
    "openvino": "OpenVINO, which compiles by itself; leave it out, and use --buckets for fast answers",
    "torch": "torch; make such a model with quantize --backend inc, or leave it out",
}


def check_compile_flag(args: Namespace) -> None:
    """Raise if flags alone say that `--compile` cannot be: loading a model takes longer.

    Args:
        args: The parsed command line of a command that runs one model.

    Raises:
        ConfigurationError: If it was given with another back end than "inc", or with buckets.
    """
    if "compile" not in args:
        return
    if bucket_options(args) is not None:
        raise ConfigurationError(
            "buckets are graphs of OpenVINO, and --compile is for models of Intel Neural Compressor; leave out "
            "--compile, or the flags of buckets"
        )
    _refuse_others(getattr(args, "backend", "inc"))


def compile_model(args: Namespace, loaded: LoadedModel, budgets: Sequence[str | None], console: Console) -> None:
    """Compile a model for what a command runs, if `--compile` was given.

    Args:
        args: The parsed command line.
        loaded: The model.
        budgets: The budgets that the command runs; None is full length.
        console: Where to say that it takes long.

    Raises:
        BackendError: If there is no C++ compiler, or the graph cannot be compiled.
        ConfigurationError: If the model is one for another back end.
    """
    if "compile" not in args:
        return
    _refuse_others(loaded.backend)
    console.info("compiling the model, about a minute for every number of layers that is not in the cache")
    loaded.model.compile(budgets)


def sources_to_compile(args: Namespace, entries: Sequence[Entry]) -> dict[ModelSource, list[str]]:
    """List the models of a benchmark that `--compile` is for.

    Args:
        args: The parsed command line.
        entries: The rows.

    Returns:
        The budgets of their rows; nothing if the flag was not given.

    Raises:
        ConfigurationError: If it was, and no model is one of Intel Neural Compressor.
    """
    found: dict[ModelSource, list[str]] = {}
    if "compile" not in args:
        return found
    for entry in entries:
        if entry.source.load().backend == "inc":
            found.setdefault(entry.source, []).append(entry.budget)
    if not found:
        raise ConfigurationError(
            "--compile is for int8 models of Intel Neural Compressor, and none of the models is one; name one with "
            "--model or --peer, or leave it out: OpenVINO compiles by itself, and --buckets measures it at its fastest"
        )
    return found


def _refuse_others(backend: str) -> None:
    if backend != "inc":
        raise ConfigurationError(
            f"--compile is for int8 models of Intel Neural Compressor, not for {_OTHERS[backend]}"
        )
