from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from optimum_qala.cli.quantize import result_text
from optimum_qala.quantization.openvino import OVQuaLAQuantizer


@pytest.fixture
def quantize(qala, tiny_folder, tiny_data, tmp_path):
    def run(*flags, output="int8"):
        arguments = ("--model", tiny_folder, "--backend", "openvino", "--data", tiny_data)
        return qala("quantize", *arguments, "--output", tmp_path / output, "--num-samples", 6, *flags, "--json")

    return run


def test_int8_model_keeps_and_rescores_the_budgets(quantize, qala, tiny_data, tmp_path):
    summary = quantize("--validation-data", tiny_data).json
    folder = tmp_path / "int8"
    assert summary["budgets"] == ["accurate", "fast"]
    assert sorted(summary["accuracy"]) == ["accurate", "fast", "full"]
    assert 0 < summary["size_bytes"] < 1_000_000
    budgets = json.loads((folder / "config.json").read_text())["budgets"]
    assert budgets["fast"]["f1"] == summary["accuracy"]["fast"]["int8"]["f1"]
    assert budgets["fast"]["dataset"] == tiny_data.name
    scores = qala("evaluate", "--model", folder, "--data", tiny_data, "--budget", "fast", "--json").json
    assert scores["backend"] == "openvino"
    assert scores["f1"] == pytest.approx(budgets["fast"]["f1"])
    answers = qala("predict", "--model", folder, "--data", tiny_data, "--budget", "fast")
    assert answers.out.count("\n") == 12
    report = qala(
        *("benchmark", "--model", folder, "--data", tiny_data, "--output", tmp_path / "report", "--budget", "fast"),
        *("--batch-size", 1, "--repeats", 1, "--num-windows", 2, "--threads", 1, "--json"),
    ).json
    assert {(row["backend"], row["precision"], row["threads"]) for row in report["rows"]} == {("openvino", "f32", 1)}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["int8", "report"]


def test_result_is_told_in_words():
    accuracy = {"fast": {"float32": {"f1": 70.0, "em": 60.0}, "int8": {"f1": 69.5, "em": 59.5}}}
    applied = {"overflow_fix": "disable", "overflow_fix_reason": "this CPU has avx512_vnni"}
    text = result_text("int8", {"size_bytes": 23_450_000, "applied": applied, "accuracy": accuracy})
    assert text.startswith("int8 model of 23.4 MB written to int8; overflow fix disable: this CPU has avx512_vnni\n")
    assert text.splitlines()[-1].split() == ["fast", "70.00", "69.50", "60.00", "59.50"]


@pytest.mark.parametrize(
    ("flags", "field", "value"),
    [
        (["--preset", "performance"], "preset", "performance"),
        (["--smooth-quant-alpha", 0.5], "smooth_quant_alpha", 0.5),
        (["--outlier-factor", 3.0], "outlier_factor", 3.0),
        (["--no-outlier-neurons"], "outlier_factor", None),
        (["--overflow-fix", "enable"], "overflow_fix", "enable"),
        (["--drop-layers", "budgets"], "drop_layers", "budgets"),
        (["--exact-bias-correction"], "fast_bias_correction", False),
        (["--no-quantize-embeddings"], "quantize_embeddings", False),
        (["--num-samples", 5], "num_samples", 5),
        (["--precision", "bf16"], "precision", "bf16"),
        (["--seed", 3], "seed", 3),
        (["--budget", "fast"], "budgets", ("fast",)),
    ],
)
def test_option_reaches_the_quantization(quantize, monkeypatch, flags, field, value):
    """What each option does to the model is tested with the quantizer; here it stops before its work."""
    seen = {}

    def stop(self, records, save_directory, *, config, **_):
        seen.update(asdict(config))
        raise KeyboardInterrupt

    monkeypatch.setattr(OVQuaLAQuantizer, "quantize", stop)
    assert quantize(*flags).code == 130
    assert seen[field] == value


def test_limit_bounds_the_calibration(quantize, monkeypatch):
    seen = []

    def stop(self, records, save_directory, **_):
        seen.extend(records)
        raise KeyboardInterrupt

    monkeypatch.setattr(OVQuaLAQuantizer, "quantize", stop)
    assert quantize("--limit", 3).code == 130
    assert [record.id for record in seen] == ["q0", "q1", "q2"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--backend", "torch"], "--backend torch has no int8; use --backend openvino or --backend inc"),
        (["--backend", "inc", "--preset", "mixed"], "--preset is for --backend openvino; --backend inc does not"),
        (["--approach", "dynamic"], "--approach is for --backend inc; --backend openvino does not have it"),
        (["--ignore-module", "x"], "--ignore-module is for --backend inc; --backend openvino does not have it"),
        (["--num-samples", 0], "num_samples 0 is not a positive integer"),
        (["--budget", "slow"], "no budget 'slow'"),
        (["--model", "./absent"], "model folder ./absent does not exist"),
    ],
)
def test_mistake_is_named_and_nothing_written(quantize, tmp_path, flags, message):
    outcome = quantize(*flags)
    assert outcome.code == 1
    assert message in outcome.error
    assert list(tmp_path.iterdir()) == []


def test_filled_output_is_kept(quantize, tmp_path):
    (tmp_path / "int8").mkdir()
    (tmp_path / "int8" / "x").write_text("mine")
    assert "int8 exists and is not empty" in quantize().error
    assert [path.name for path in (tmp_path / "int8").iterdir()] == ["x"]


def test_empty_calibration_data_is_refused(qala, tiny_folder, tmp_path):
    (tmp_path / "empty.jsonl").touch()
    outcome = qala(
        *("quantize", "--model", tiny_folder, "--backend", "openvino", "--data", tmp_path / "empty.jsonl"),
        *("--output", tmp_path / "int8"),
    )
    assert outcome.code == 1
    assert "empty.jsonl" in outcome.error
