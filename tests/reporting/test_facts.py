from __future__ import annotations

import pytest

from optimum_qala.errors import CheckpointError, DataError
from optimum_qala.reporting.card_sections import write_sections
from optimum_qala.reporting.facts import REPORT_KEYS, ROW_KEYS, read_facts
from optimum_qala.reporting.figures import draw_figures
from tests.reporting.folders import INT8, make_folder, write
from tests.reporting.reports import report, row


def test_models_of_all_back_ends_are_found(tmp_path):
    make_folder(tmp_path)
    make_folder(tmp_path / "openvino", "openvino", quantization=INT8)
    make_folder(tmp_path / "inc", "inc", quantization=INT8)
    variants = read_facts(tmp_path).variants
    assert [(one.backend, one.subfolder) for one in variants] == [
        ("torch", ""),
        ("openvino", "openvino"),
        ("inc", "inc"),
    ]
    assert [one.size_bytes for one in variants] == [1000, 2000, 2000]
    assert [one.applied.get("num_samples") for one in variants] == [None, 300, 300]
    assert list(variants[0].budgets) == ["full", "fast"]


def test_a_folder_may_hold_several_models_side_by_side(tmp_path):
    make_folder(tmp_path)
    make_folder(tmp_path, "openvino", quantization=INT8)
    assert [one.backend for one in read_facts(tmp_path).variants] == ["torch", "openvino"]


@pytest.mark.parametrize("model_type", [None, "bert"])
def test_other_folders_are_refused(tmp_path, model_type):
    if model_type is not None:
        make_folder(tmp_path, model_type=model_type)
    with pytest.raises(CheckpointError, match=r"holds no QuaLA-MiniLM: no config.json.*inc_graph.json"):
        read_facts(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"), [("{", "training.json is not JSON"), ("[]", "training.json holds a list, not an object")]
)
def test_damaged_files_are_named(tmp_path, content, message):
    write(make_folder(tmp_path) / "training.json", content)
    with pytest.raises(DataError, match=message):
        read_facts(tmp_path)


def test_benchmark_lies_in_the_folder_or_is_named(tmp_path):
    folder = make_folder(tmp_path / "model")
    assert read_facts(folder).benchmark is None
    write(tmp_path / "results.json", report(date="2026-02-02"))
    assert read_facts(folder, tmp_path / "results.json").benchmark["date"] == "2026-02-02"
    write(folder / "benchmark.json", report())
    assert read_facts(folder).benchmark["date"].startswith("2026-01-02")
    assert read_facts(folder, tmp_path / "results.json").benchmark["date"] == "2026-02-02"


def test_benchmark_of_another_model_is_refused(tmp_path):
    write(make_folder(tmp_path) / "benchmark.json", report(rows=[row("slow", "budget", 1.0, 2.0, budget="slow")]))
    with pytest.raises(DataError, match=r"a budget 'slow', but the model has \['fast', 'full'\]; give a benchmark of"):
        read_facts(tmp_path)
    ratios = row("r", "budget", 1.0, 2.0, budget="1,1,0.5,0.5@3")
    write(tmp_path / "benchmark.json", report(rows=[ratios, row("p", "plain", 1.0, 2.0, budget="other")]))
    assert read_facts(tmp_path).benchmark is not None


def test_something_else_than_a_benchmark_is_refused(tmp_path):
    write(make_folder(tmp_path) / "benchmark.json", {"rows": 3})
    with pytest.raises(DataError, match=r"is not the results.json of optimum-cli qala benchmark"):
        read_facts(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("reference"), "has no reference; measure again"),
        (lambda content: [one.pop("padding") for one in content["rows"]], "has no padding; measure again"),
    ],
    ids=["report", "rows"],
)
def test_benchmark_of_another_version_is_refused(tmp_path, change, message):
    content = report()
    change(content)
    write(make_folder(tmp_path) / "benchmark.json", content)
    with pytest.raises(DataError, match=f"benchmark.json is of another version of optimum-cli.*{message}"):
        read_facts(tmp_path)


def test_keys_of_a_benchmark_are_all_that_a_card_needs(tmp_path):
    """A report of nothing else makes card and pictures."""
    content = {name: value for name, value in report().items() if name in (*REPORT_KEYS, "rows")}
    content["rows"] = [{name: one[name] for name in (*ROW_KEYS, "budget")} for one in content["rows"]]
    write(make_folder(tmp_path) / "benchmark.json", content)
    facts = read_facts(tmp_path)
    assert "## Benchmark" in write_sections(facts, "org/name", None)
    draw_figures(facts, tmp_path)


def test_state_of_a_trainer_stands_in_for_training_json(tmp_path):
    log = [{"loss": 2.0, "step": 1}, {"train_runtime": 12.5, "train_loss": 1.5, "step": 2}]
    write(make_folder(tmp_path) / "trainer_state.json", {"global_step": 2, "epoch": 1.0, "log_history": log})
    assert read_facts(tmp_path).training == {"steps": 2, "epochs": 1.0, "seconds": 12.5, "train_loss": 1.5}
    write(tmp_path / "training.json", {"steps": 7})
    assert read_facts(tmp_path).training == {"steps": 7}


def test_last_row_of_emissions_counts(tmp_path):
    write(make_folder(tmp_path) / "emissions.csv", "emissions,cpu_model\n0.1,A\n0.2,B\n")
    assert read_facts(tmp_path).emissions == {"emissions": "0.2", "cpu_model": "B"}
    write(tmp_path / "emissions.csv", "emissions,cpu_model\n")
    assert read_facts(tmp_path).emissions is None


@pytest.mark.parametrize("content", [b"emissions\nmuch\n", b"emissions\n\xff\n"], ids=["text", "bytes"])
def test_emissions_that_are_no_number_are_refused(tmp_path, content):
    (make_folder(tmp_path) / "emissions.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"emissions.csv is not what codecarbon writes \("):
        read_facts(tmp_path)


def test_base_model_is_a_repository(tmp_path):
    write(make_folder(tmp_path) / "training.json", {"model": "minilm"})
    assert read_facts(tmp_path).base_model is None
    write(tmp_path / "training.json", {"model": "org/minilm"})
    assert read_facts(tmp_path).base_model == ("org/minilm", "finetune")


def test_an_int8_model_is_a_quantized_one(tmp_path):
    made_of = {**INT8, "applied": {"model": "org/quala"}}
    write(make_folder(tmp_path, "openvino", quantization=made_of) / "training.json", {"model": "org/minilm"})
    assert read_facts(tmp_path).base_model == ("org/quala", "quantized")
    make_folder(tmp_path)  # beside the float model it is not the only one
    assert read_facts(tmp_path).base_model == ("org/minilm", "finetune")


def test_tokenizer_is_found(tmp_path):
    make_folder(tmp_path)
    make_folder(tmp_path / "openvino", "openvino")
    assert read_facts(tmp_path).tokenizer_subfolder == ""
    write(tmp_path / "openvino" / "tokenizer.json", {})
    assert read_facts(tmp_path).tokenizer_subfolder == "openvino"
    write(tmp_path / "tokenizer_config.json", {})
    assert read_facts(tmp_path).tokenizer_subfolder == ""
