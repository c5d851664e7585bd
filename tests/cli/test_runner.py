"""Exit codes, streams, and one line per error."""

from __future__ import annotations

import signal
import subprocess
import sys
from argparse import Namespace
from functools import partial
from types import SimpleNamespace

import pytest

from optimum_qala.cli import runner
from optimum_qala.errors import ConfigurationError


@pytest.fixture
def execute(monkeypatch, capsys):
    """Run a function as if it were a command."""

    def run(function, **flags):
        monkeypatch.setattr(runner, "import_module", lambda name: SimpleNamespace(run=function))
        code = runner.execute("some.command", Namespace(**flags))
        return code, *capsys.readouterr()

    return run


def failing(error):
    def command(args, console):
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ConfigurationError("steps is 0;\n  raise it"), 1, "error: steps is 0; raise it\n"),
        (FileNotFoundError(2, "No such file or directory", "a.json"), 1, "error: a.json: No such file or directory\n"),
        (OSError("disk on fire"), 1, "error: disk on fire\n"),
        (KeyError("x"), 70, "internal error: KeyError: 'x'; add --debug to see where, and please report it\n"),
        (KeyboardInterrupt(), 130, "interrupted; run the same command again to go on\n"),
        (BrokenPipeError(), 141, ""),
    ],
)
def test_error_is_one_line_and_a_code(execute, error, code, message):
    assert execute(failing(error)) == (code, "", message)


def test_success_is_zero(execute):
    assert execute(lambda args, console: console.line("done")) == (0, "done\n", "")


def test_code_of_the_command_is_kept(execute):
    assert execute(lambda args, console: 3)[0] == 3


@pytest.mark.parametrize("switch", ["flag", "variable"])
def test_debug_shows_the_traceback(execute, monkeypatch, switch):
    if switch == "variable":
        monkeypatch.setenv("QALA_DEBUG", "1")
    flags = {"debug": True} if switch == "flag" else {}
    _, _, err = execute(failing(ConfigurationError("steps is 0")), **flags)
    assert "Traceback" in err
    assert err.endswith("error: steps is 0\n")


def test_debug_variable_of_zero_is_off(execute, monkeypatch):
    monkeypatch.setenv("QALA_DEBUG", "0")
    assert "Traceback" not in execute(failing(ConfigurationError("steps is 0")))[2]


def test_prints_of_libraries_go_to_standard_error(execute):
    def chatty(args, console):
        sys.stdout.write("loading ...\n")
        console.result({"f1": 1.5}, "text")

    assert execute(chatty, json=True) == (0, '{"f1": 1.5}\n', "loading ...\n")


def test_json_refuses_what_json_cannot_say(execute):
    code, out, err = execute(lambda args, console: console.json_line({"f1": float("nan")}))
    assert (code, out) == (70, "")
    assert "ValueError" in err


def test_closed_pipe_is_quiet(shell, tiny_folder, tiny_data):
    command = f"optimum-cli qala predict --model {tiny_folder} --data {tiny_data} --buffer-size 1"
    # The reader leaves at once, so that the first answer already meets a closed pipe.
    done = shell(f'{command} | true; echo "${{PIPESTATUS[0]}}"')
    assert done.stdout == "141\n"
    assert done.stderr == ""


def test_command_needs_neither_torch_nor_the_package_to_parse(shell):
    code = """
import sys
from optimum.commands.optimum_cli import main
sys.argv = ["optimum-cli", "qala", "train", "--help"]
try:
    main()
finally:
    print(sorted({"torch", "transformers", "optimum_qala"} & sys.modules.keys()), file=sys.stderr)
"""
    done = shell(f"python - <<'PYTHON'\n{code}\nPYTHON")
    assert done.returncode == 0
    assert "--validation-data" in done.stdout
    assert done.stderr == "[]\n"


def test_interrupt_is_reported(environment, tiny_folder):
    """Ctrl-C while the command waits for its next question."""
    command = ["optimum-cli", "qala", "predict", "--model", str(tiny_folder), "--data", "-", "--buffer-size", "1"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    # A shell starts what runs in its background with interrupts ignored, and so would be what the tests start there.
    listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, env=environment, text=True, preexec_fn=listen, **pipes) as process:  # noqa: PLW1509
        process.stdin.write('{"question": "where was anna born ?", "context": "anna was born in paris ."}\n')
        process.stdin.flush()
        assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "interrupted; run the same command again to go on\n")
