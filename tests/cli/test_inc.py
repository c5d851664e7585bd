"""`--backend inc`: quantize, then predict, evaluate and benchmark the result."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from optimum_qala._compat import is_available
from optimum_qala.quantization.inc import INCQuaLAQuantizer


pytestmark = [
    pytest.mark.skipif(not is_available("neural-compressor"), reason="needs the extra neural-compressor"),
    pytest.mark.timeout(600),
]


@pytest.fixture
def quantize(qala, tiny_folder, tiny_data, tmp_path):
    def run(*flags, output="int8"):
        arguments = ("--model", tiny_folder, "--backend", "inc", "--data", tiny_data)
        return qala("quantize", *arguments, "--output", tmp_path / output, "--num-samples", 6, *flags, "--json")

    return run


def test_int8_model_answers_at_its_budgets(quantize, qala, tiny_folder, tiny_data, tmp_path):
    summary = quantize("--validation-data", tiny_data).json
    folder = tmp_path / "int8"
    assert summary["backend"] == "inc"
    assert summary["budgets"] == ["accurate", "fast"]
    size = sum((folder / name).stat().st_size for name in ("inc_graph.json", "inc_weights.safetensors"))
    assert summary["size_bytes"] == size
    budgets = json.loads((folder / "config.json").read_text())["budgets"]
    assert budgets["fast"]["f1"] == summary["accuracy"]["fast"]["int8"]["f1"]
    for flags in ([], ["--backend", "inc"]):  # the folder says what it is
        scores = qala("evaluate", "--model", folder, "--data", tiny_data, "--budget", "fast", "--json", *flags).json
        assert scores["backend"] == "inc"
        assert scores["f1"] == pytest.approx(budgets["fast"]["f1"])
    answers = qala("predict", "--model", folder, "--data", tiny_data, "--budget", "fast")
    assert answers.out.count("\n") == 12
    report = qala(
        *("benchmark", "--model", folder, "--data", tiny_data, "--output", tmp_path / "report", "--budget", "fast"),
        *("--batch-size", 1, "--repeats", 1, "--num-windows", 2, "--threads", 1, "--json", "--peer", tiny_folder),
    ).json
    rows = [(row["backend"], row["budget"], row["precision"], row["arithmetic"]) for row in report["rows"]]
    int8 = [("inc", name, "f32", "int8") for name in ("full", "fast")]
    assert rows == [*int8, ("torch", "full", "f32", "f32"), ("torch", "fast", "f32", "f32")]
    assert {row["threads"] for row in report["rows"]} == {1}
    refused = qala("predict", "--model", folder, "--data", tiny_data, "--backend", "inc", "--buckets")
    assert "buckets are graphs of OpenVINO; leave --backend inc out" in refused.error


@pytest.mark.parametrize(
    ("flags", "field", "value"),
    [
        (["--approach", "dynamic"], "approach", "dynamic"),
        (["--approach", "qat"], "approach", "qat"),
        (["--activation-algorithm", "kl"], "activation_algorithm", "kl"),
        (["--symmetric-activations"], "activation_symmetric", True),
        (["--weight-granularity", "per_tensor"], "weight_granularity", "per_tensor"),
        (["--outlier-factor", 3.0], "outlier_factor", 3.0),
        (["--no-outlier-neurons"], "outlier_factor", None),
        (["--ignore-module", "a", "--ignore-module", "b"], "ignored_modules", ("a", "b")),
        (["--drop-layers", "budgets"], "drop_layers", "budgets"),
        (["--no-quantize-embeddings"], "quantize_embeddings", False),
        (["--tolerable-loss", 0.02], "tolerable_loss", 0.02),
        (["--criterion", "absolute", "--tolerable-loss", 2], "criterion", "absolute"),
        (["--max-trials", 3, "--tolerable-loss", 0.02], "max_trials", 3),
        (["--num-samples", 5], "num_samples", 5),
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

    monkeypatch.setattr(INCQuaLAQuantizer, "quantize", stop)
    assert quantize(*flags).code == 130
    assert seen[field] == value


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--approach", "dynamic", "--symmetric-activations"], "activation_symmetric True has no effect"),
        (["--max-trials", 3], "max_trials 3 has no effect without tolerable_loss"),
        (["--ignore-module", "["], "ignored_modules holds '[', which is no regular expression"),
        (["--tolerable-loss", 0.01], "tolerable_loss 0.01 needs validation records to be checked on"),
        (["--overflow-fix", "enable"], "--overflow-fix is for --backend openvino; --backend inc does not have it"),
        (["--exact-bias-correction"], "--exact-bias-correction is for --backend openvino"),
    ],
)
def test_mistake_is_named_and_nothing_written(quantize, tmp_path, flags, message):
    outcome = quantize(*flags)
    assert outcome.code == 1
    assert message in outcome.error
    assert list(tmp_path.iterdir()) == []


def test_missing_extra_is_named(quantize, monkeypatch):
    monkeypatch.setattr("optimum_qala._compat._is_importable", lambda module: "neural" not in module)
    assert 'pip install "optimum-qala[neural-compressor]"' in quantize().error


def test_quantization_aware_training_becomes_int8(qala, tiny_folder, tiny_data, tmp_path):
    """Train, convert, answer; a search in between hands the ranges on, and plain quantization works as ever."""
    trained, int8 = tmp_path / "trained", tmp_path / "int8"
    flags = ("--max-steps", 2, "--batch-size", 4, "--quantization-aware", "--range-averaging", 0.5)
    assert qala("train", "--model", tiny_folder, "--data", tiny_data, "--output", trained, *flags).code == 0
    assert json.loads((trained / "training.json").read_text())["arguments"]["quantization_aware"] is True
    assert "quantization_aware: true" in (trained / "recipe.yaml").read_text()
    stored = json.loads((trained / "config.json").read_text())["quantization_aware"]
    assert stored.keys() == {"weight_bits", "outlier_neurons", "activation_ranges"}
    searched = tmp_path / "searched"
    options = ("--population-size", 2, "--iterations", 1, "--max-evaluations", 3)
    assert qala("search", "--model", trained, "--data", tiny_data, "--output", searched, *options).code == 0
    assert json.loads((searched / "config.json").read_text())["quantization_aware"] == stored
    arguments = ("quantize", "--backend", "inc", "--data", tiny_data, "--approach", "qat", "--num-samples", 2)
    summary = qala(*arguments, "--model", searched, "--output", int8, "--json").json
    assert summary["applied"]["weight_bits"] == 8
    assert qala("predict", "--model", int8, "--data", tiny_data).out.count("\n") == 12
    refused = qala(*arguments, "--model", tiny_folder, "--output", tmp_path / "other").error
    assert "was not trained with quantization_aware=True, which approach 'qat' builds on; use approach" in refused
