"""`--compile` in the commands that run a model: what is compiled, what says so, and who has no use for it."""

from __future__ import annotations

import json

import pytest
import torch._inductor.config

from optimum_qala import INCQuaLAMiniLMForQuestionAnswering
from optimum_qala._compat import is_available
from optimum_qala.cli.benchmark import result_table
from optimum_qala.inference import inc_compile
from tests.reporting.reports import report, row


pytestmark = [
    pytest.mark.skipif(not is_available("neural-compressor"), reason="needs the extra neural-compressor"),
    pytest.mark.timeout(600),
]


@pytest.fixture
def asked_for(monkeypatch):
    """The budgets that models were to be compiled for; the command ends there."""
    calls = []

    def stop(self, budgets):
        calls.append(budgets)
        raise KeyboardInterrupt

    monkeypatch.setattr(INCQuaLAMiniLMForQuestionAnswering, "compile", stop)
    return calls


def test_models_run_compiled_and_say_so(
    qala, inc_folder, compile_cache, tiny_folder, tiny_data, tmp_path, monkeypatch
):
    monkeypatch.setattr(inc_compile.constants, "HF_HOME", str(compile_cache.parent.parent))
    called = []
    load_program = inc_compile.load_program
    monkeypatch.setattr(inc_compile, "load_program", lambda *given: _counting(load_program(*given), called))
    sizes = ("--batch-size", 1, "--repeats", 1, "--num-windows", 2, "--bulk", "--json")
    measured = qala(
        *("benchmark", "--model", inc_folder, "--peer", tiny_folder, "--data", tiny_data, "--compile"),
        *("--budget", "fast", "--output", tmp_path / "report", *sizes),
    ).json
    assert [path.suffix for path in compile_cache.iterdir()] == [".pt2"], "full depth only"
    for rows in (measured["rows"], measured["bulk_rows"]):
        found = [(row["backend"], row["budget"], row["compiled"]) for row in rows]
        assert found == [
            *(("inc", "full", True), ("inc", "fast", True)),
            *(("torch", "full", False), ("torch", "fast", False)),
        ]
    stored = json.loads((tmp_path / "report" / "results.json").read_text())
    assert stored["rows"] == measured["rows"]
    assert (tmp_path / "report" / "results.md").read_text().count("| inc, compiled |") == 4
    assert called
    called.clear()
    arguments = ("evaluate", "--model", inc_folder, "--data", tiny_data, "--budget", "fast", "--json")
    assert qala(*arguments, "--compile").json["compiled"] is True
    assert called
    called.clear()
    assert qala(*arguments).json["compiled"] is False
    assert not called


def test_terminal_says_it_too():
    one = row("fast", "budget", 8.0, 70.0, backend="inc")
    assert "inc, compiled" in result_table(report(rows=[one | {"compiled": True}]))
    assert "compiled" not in result_table(report(rows=[one | {"compiled": False}]))


def _counting(program, calls):
    def run(*inputs):
        calls.append(len(inputs))
        return program(*inputs)

    return run


@pytest.mark.parametrize(
    ("command", "budgets"),
    [
        (["predict"], [None]),
        (["predict", "--budget", "shallow"], ["shallow"]),
        (["evaluate", "--budget", "fast", "--budget", "shallow"], ["fast", "shallow"]),
        (["evaluate"], ["full", "fast", "shallow"]),
        (["benchmark", "--output", "report", "--budget", "fast"], ["full", "fast"]),
        (["benchmark", "--output", "report", "--budget", "fast", "--depths", "1"], ["full", "fast", "1,1@1"]),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_what_runs_is_compiled(qala, asked_for, inc_folder, tiny_data, tmp_path, monkeypatch, command, budgets):
    monkeypatch.chdir(tmp_path)
    outcome = qala(*command, "--model", inc_folder, "--data", tiny_data, "--compile")
    assert outcome.code == 130
    assert asked_for == [budgets]
    assert "compiling the model" in outcome.err


def test_peers_are_compiled(qala, asked_for, inc_folder, tiny_folder, tiny_data, tmp_path):
    peer = ("--peer", inc_folder, "--compile", "--output", tmp_path / "report")
    assert qala("benchmark", "--model", tiny_folder, "--data", tiny_data, *peer).code == 130
    assert asked_for == [["full"]]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "not for torch; make such a model with quantize --backend inc, or leave it out"),
        (["--backend", "torch"], "not for torch; make such a model with quantize --backend inc, or leave it out"),
        (["--backend", "openvino"], "not for OpenVINO, which compiles by itself; leave it out, and use --buckets"),
        (["--max-graphs", "2"], "leave out --compile, or the flags of buckets"),
    ],
)
@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_other_back_ends_are_refused(qala, tiny_folder, tiny_data, command, flags, message):
    outcome = qala(command, "--model", tiny_folder, "--data", tiny_data, "--compile", *flags)
    assert outcome.code == 1
    assert message in outcome.error


def test_benchmark_without_such_a_model_is_refused(qala, tiny_folder, tiny_data, tmp_path):
    outcome = qala(
        "benchmark", "--model", tiny_folder, "--data", tiny_data, "--compile", "--output", tmp_path / "report"
    )
    assert "none of the models is one; name one with --model or --peer, or leave it out" in outcome.error
    assert not (tmp_path / "report").exists()


def test_predictions_are_not_compiled(qala, tiny_data):
    outcome = qala("evaluate", "--predictions", "p.json", "--data", tiny_data, "--compile")
    assert "--compile needs --model" in outcome.error


def test_missing_compiler_is_named(qala, inc_folder, tiny_data, tmp_path, monkeypatch):
    monkeypatch.setattr(inc_compile.constants, "HF_HOME", str(tmp_path))
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}):
        outcome = qala("predict", "--model", inc_folder, "--data", tiny_data, "--compile")
    assert "compiling needs a C++ compiler, and none was found; install g++" in outcome.error
