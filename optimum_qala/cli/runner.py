"""Run one command: its streams, its errors and its exit code."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from typing import TextIO

from transformers.utils.logging import disable_progress_bar

from optimum_qala.cli.console import Console, silence_broken_pipe
from optimum_qala.errors import QuaLAError


# 2 is argparse's own, for a command line that cannot be understood.
EXIT_OK = 0
EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_INTERNAL = 70
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141

DEBUG_HINT = "add --debug to see where"


def execute(implementation: str, args: Namespace) -> int:
    """Run a command and turn whatever happens into an exit code and at most one line on standard error.

    Args:
        implementation: Module of the command, which has `run(args, console)`.
        args: The parsed command line.

    Returns:
        0 if all went well, 1 for an error that the user can mend, 70 for a mistake in this program, 130 after Ctrl-C
        and 141 if the reader of standard output went away.
    """
    debug = getattr(args, "debug", False) or os.environ.get("QALA_DEBUG", "0") not in ("", "0")
    console = Console(sys.stdout, sys.stderr, json_mode=getattr(args, "json", False))
    if not console.is_interactive:
        disable_progress_bar()
    try:
        with redirect_stdout(sys.stderr), _log_to(sys.stderr):  # type: ignore[type-var]
            code = import_module(implementation).run(args, console)
        console.stdout.flush()
    except KeyboardInterrupt:
        return _report("interrupted; run the same command again to go on", EXIT_INTERRUPTED, console, debug)
    except BrokenPipeError:
        silence_broken_pipe()
        return EXIT_BROKEN_PIPE
    except (QuaLAError, OSError) as error:
        return _report(f"error: {_describe(error)}", EXIT_ERROR, console, debug)
    except Exception as error:
        message = f"internal error: {type(error).__name__}: {_describe(error)}; {DEBUG_HINT}, and please report it"
        return _report(message, EXIT_INTERNAL, console, debug)
    return int(code or EXIT_OK)


@contextmanager
def _log_to(stream: TextIO) -> Iterator[None]:
    """Show warnings of this package as lines on a stream."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    package_logger = logging.getLogger("optimum_qala")
    package_logger.addHandler(handler)
    try:
        yield
    finally:
        package_logger.removeHandler(handler)


def _describe(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


def _report(message: str, code: int, console: Console, debug: bool) -> int:
    if debug:
        traceback.print_exc(file=console.stderr)
    # Libraries write messages of several lines; scripts and logs want one.
    console.info(" ".join(message.split()))
    return code
