"""`--max-latency-ms` and `--max-f1-loss` of predict and evaluate."""

from __future__ import annotations

import json
import shutil

import pytest

from optimum_qala._compat import is_available
from optimum_qala.models.budget_choice import cpu_name


@pytest.fixture
def measured_folder(tiny_folder, tmp_path):
    """The tiny model with budgets that were measured here."""
    folder = shutil.copytree(tiny_folder, tmp_path / "measured")
    config = json.loads((folder / "config.json").read_text())

    def measured(retention, f1, median):
        row = {"backend": "torch", "batch": 1, "cpu": cpu_name(), "median": median}
        return {"retention": retention, "f1": f1, "macs": round(median * 100), "latency_ms": [row]}

    config["budgets"] = {
        "full": measured([1.0] * 4, 80.0, 8.0),
        "accurate": measured([1.0, 0.9, 0.9, 0.8], 79.5, 6.0),
        "fast": measured([0.5, 0.5, 0.25, 0.25], 60.0, 3.0),
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (["--max-latency-ms", 9], "full"),
        (["--max-latency-ms", 6], "accurate"),
        (["--max-latency-ms", 5], "fast"),
        (["--max-f1-loss", 0.01], "accurate"),
        (["--max-f1-loss", 0.5], "fast"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else value,
)
def test_budget_is_chosen_by_what_was_measured(qala, measured_folder, tiny_data, flags, name):
    arguments = ("--model", measured_folder, "--data", tiny_data)
    assert list(qala("evaluate", *arguments, *flags, "--json").json["budgets"]) == [name]
    predicted = qala("predict", *arguments, *flags)
    assert predicted.code == 0, predicted.err
    assert predicted.out == qala("predict", *arguments, "--budget", name).out


@pytest.mark.skipif(not is_available("openvino"), reason="the openvino extra is absent")
@pytest.mark.parametrize(("flags", "name"), [(["--buckets"], "full"), ([], "fast")], ids=["buckets", "any length"])
def test_budget_is_chosen_by_what_was_measured_in_the_same_buckets(qala, measured_folder, tiny_data, flags, name):
    config = json.loads((measured_folder / "config.json").read_text())
    for budget in config["budgets"].values():
        (row,) = budget["latency_ms"]
        slower = row | {"backend": "openvino", "padding": "longest", "median": 2 * row["median"]}
        budget["latency_ms"] = [slower | {"padding": "multiple of 32", "median": row["median"]}, slower]
    (measured_folder / "config.json").write_text(json.dumps(config))
    arguments = ("--model", measured_folder, "--data", tiny_data, "--limit", 1, "--backend", "openvino", *flags)
    outcome = qala("evaluate", *arguments, "--max-latency-ms", 9, "--json")
    assert list(outcome.json["budgets"]) == [name]
    assert "latencies were measured with padding" not in outcome.err


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_budget_that_was_not_measured_is_refused(qala, measured_folder, tiny_folder, tiny_data, command):
    outcome = qala(command, "--model", measured_folder, "--data", tiny_data, "--max-latency-ms", 1)
    assert "no budget of this model takes at most 1 ms" in outcome.error
    outcome = qala(command, "--model", tiny_folder, "--data", tiny_data, "--max-latency-ms", 5)
    assert "no budget of this model has both F1 and a latency measured for torch" in outcome.error


@pytest.mark.parametrize("command", ["evaluate", "predict"])
@pytest.mark.parametrize("flags", [["--max-latency-ms", 5], ["--max-f1-loss", 0.1]], ids=lambda flags: flags[0])
def test_two_ways_to_choose_a_budget_are_wrong_usage(qala, measured_folder, tiny_data, command, flags):
    outcome = qala(command, "--model", measured_folder, "--data", tiny_data, "--budget", "fast", *flags)
    assert outcome.code == 2
    assert f"argument {flags[0]}: not allowed with argument --budget" in outcome.err


def test_predictions_have_no_budget(qala, tiny_data):
    outcome = qala("evaluate", "--predictions", "p.json", "--data", tiny_data, "--max-latency-ms", 5)
    assert "--max-latency-ms needs --model" in outcome.error
