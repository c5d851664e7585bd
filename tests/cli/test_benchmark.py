from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import BertConfig, BertForQuestionAnswering

from optimum_qala import QuaLAMiniLMForQuestionAnswering
from optimum_qala._compat import is_available
from optimum_qala.cli.loading import BULK_CONFIG
from optimum_qala.question_answering.predictor import evaluate
from optimum_qala.reporting.benchmark import measure
from optimum_qala.reporting.bulk import BulkOptions
from tests.cli.conftest import squad, tiny_questions
from tests.conftest import tiny_config


needs_openvino = pytest.mark.skipif(not is_available("openvino"), reason="the openvino extra is absent")


@pytest.fixture
def benchmark(qala, tiny_folder, tiny_data, tmp_path):
    def run(*flags):
        size = ("--num-windows", 4, "--repeats", 2, "--warmup", 0)
        arguments = ("--model", tiny_folder, "--data", tiny_data, "--output", tmp_path / "report")
        return qala("benchmark", *arguments, *size, *flags, "--json"), tmp_path / "report"

    return run


def test_every_budget_is_measured_at_every_batch_size(benchmark, tiny_folder):
    outcome, folder = benchmark()
    report = outcome.json
    rows = {(row["name"], row["batch_size"]): row for row in report["rows"]}
    assert set(rows) == {(name, size) for name in ("full", "accurate", "fast") for size in (1, 4)}
    assert "4 windows are timed, so no batch is larger; raise --num-windows" in outcome.err
    for row in rows.values():
        assert row["backend"] == "torch"
        assert row["precision"] == "f32"
        assert row["threads"] >= 1
        assert row["padding"] == "longest"
        assert 0 < row["median_ms"] <= row["p90_ms"]
    assert rows["full", 1]["speedup"] == 1.0
    assert rows["full", 1]["ratio"] is None
    assert rows["full", 1]["mmacs"] > rows["fast", 1]["mmacs"] > 0
    assert rows["full", 1]["size_mb"] == pytest.approx((tiny_folder / "model.safetensors").stat().st_size / 1e6)
    assert report["machine"]["cpu"]
    assert report["int8_peak"] is None
    assert report["bulk_rows"] == []
    assert report["command"].startswith("optimum-cli qala benchmark --model")
    assert report["date"].startswith("20")
    assert json.loads((folder / "results.json").read_text())["rows"] == report["rows"]
    table = (folder / "results.md").read_text()
    assert table.count("| fast | torch | f32 |") == 2


def test_f1_is_that_of_evaluate(benchmark, qala, tiny_folder, tiny_data):
    row = next(row for row in benchmark("--budget", "fast")[0].json["rows"] if row["name"] == "fast")
    scores = qala("evaluate", "--model", tiny_folder, "--data", tiny_data, "--budget", "fast", "--json").json
    assert (row["f1"], row["exact_match"]) == (scores["f1"], scores["exact_match"])


def test_f1_can_be_left_out(benchmark):
    outcome, folder = benchmark("--no-f1", "--batch-size", 1, "--bulk")
    assert {row["f1"] for row in outcome.json["rows"] + outcome.json["bulk_rows"]} == {None}
    assert "no results.png: no row has an F1" in outcome.err
    assert sorted(path.name for path in folder.iterdir()) == ["results.json", "results.md"]


@pytest.mark.skipif(not is_available("plots"), reason="the plots extra is absent")
def test_plot_is_beside_the_tables(benchmark):
    outcome, folder = benchmark("--batch-size", 1, "--budget", "full")
    assert sorted(path.name for path in folder.iterdir()) == ["results.json", "results.md", "results.png"]
    assert "results.png" not in outcome.err


def test_without_matplotlib_the_plot_is_skipped(benchmark, monkeypatch):
    monkeypatch.setattr("optimum_qala._compat._is_importable", lambda module: module != "matplotlib")
    outcome, folder = benchmark("--batch-size", 1, "--budget", "full")
    assert (
        'no results.png: results.png needs matplotlib, which is not installed: pip install "optimum-qala[plots]"'
        in (outcome.err)
    )
    assert not (folder / "results.png").exists()


def test_bulk_runs_every_window_of_the_data(benchmark):
    (row,) = benchmark("--bulk", "--batch-size", 1, "--budget", "full", "--limit", 7)[0].json["bulk_rows"]
    assert (row["name"], row["num_windows"], row["batching"]) == ("full", 7, "32 windows")
    assert row["median_ms"] > 0
    assert row["f1"] is not None


def test_bulk_windows_and_repeats_are_passed_on(benchmark, monkeypatch):
    seen = []
    monkeypatch.setattr("optimum_qala.cli.benchmark.measure_bulk", lambda *given: seen.append(given[2]) or [])
    benchmark("--bulk-windows", 3, "--bulk-repeats", 2, "--batch-size", 1, "--budget", "full")
    assert seen == [BulkOptions(bulk_windows=3, bulk_repeats=2)]


def test_full_length_is_measured_beside_the_chosen_budget(benchmark):
    rows = benchmark("--budget", "fast", "--batch-size", 2)[0].json["rows"]
    assert [(row["name"], row["batch_size"]) for row in rows] == [("full", 2), ("fast", 2)]


def test_padding_and_threads_are_in_the_row(benchmark):
    rows = benchmark("--pad-to", 64, "--threads", 1, "--batch-size", 1, "--budget", "full")[0].json["rows"]
    assert [row["padding"] for row in rows] == ["longest", "fixed 64"]
    assert {row["threads"] for row in rows} == {1}
    assert rows[1]["median_ms"] > rows[0]["median_ms"] / 2


@pytest.mark.parametrize(
    ("pad_to", "message"),
    [(8, "pad_to 8 is less than the"), (600, "pad_to 600 is more than the 128 tokens that the models take")],
)
def test_padding_that_does_not_fit_is_refused_before_anything_runs(benchmark, monkeypatch, pad_to, message):
    monkeypatch.setattr("optimum_qala.cli.benchmark.evaluate", None)  # nobody scores
    outcome, folder = benchmark("--pad-to", pad_to, "--bulk")
    assert message in outcome.error
    assert not folder.exists()


def test_peer_is_measured_against_the_same_full_length(benchmark, tiny_folder, tmp_path):
    peer = shutil.copytree(tiny_folder, tmp_path / "peer")
    rows = benchmark("--peer", peer, "--batch-size", 1, "--budget", "full")[0].json["rows"]
    assert [row["name"] for row in rows] == ["full", str(peer)]
    assert rows[0]["f1"] == rows[1]["f1"]


def test_peer_with_budgets_is_measured_at_the_same_ones(benchmark, tiny_folder, tmp_path):
    peer = shutil.copytree(tiny_folder, tmp_path / "peer")
    rows = benchmark("--peer", peer, "--batch-size", 1, "--budget", "fast")[0].json["rows"]
    assert [(row["name"], row["budget"], row["kind"]) for row in rows] == [
        ("full", "full", "budget"),
        ("fast", "fast", "budget"),
        (str(peer), "full", "peer"),
        (f"{peer}, fast", "fast", "peer"),
    ]
    for own, other in zip(rows[:2], rows[2:], strict=True):
        assert (own["f1"], own["mmacs"]) == (other["f1"], other["mmacs"])
    assert rows[2]["speedup"] == 1.0
    assert rows[3]["speedup"] > 0


def test_budget_that_a_peer_lacks_is_refused(benchmark, exit_folder):
    outcome, folder = benchmark("--peer", exit_folder, "--budget", "accurate")
    assert f"peer {exit_folder} cannot run at budget 'accurate': " in outcome.error
    assert not folder.exists()


def test_peer_with_another_vocabulary_is_refused(benchmark, tiny_folder, tmp_path):
    peer = shutil.copytree(tiny_folder, tmp_path / "peer")
    tokenizer = peer / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"river"', '"rover"'))
    outcome, folder = benchmark("--peer", peer)
    assert f"peer {peer} has another vocabulary" in outcome.error
    assert not folder.exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--repeats", 0], "repeats 0 is less than 1"),
        (["--batch-size", 0], "batch size 0 is less than 1"),
        (["--num-windows", 0], "num_windows 0 is less than 1"),
        (["--warmup", -1], "warmup -1 is less than 0"),
        (["--threads", 0], "threads 0 is less than 1"),
        (["--slow-batches", 0], "slow_batches 0 is less than 1"),
        (["--slow-repeats", 0], "slow_repeats 0 is less than 1"),
        (["--bulk-windows", 0], "bulk_windows 0 is less than 1"),
        (["--bulk-repeats", 0], "bulk_repeats 0 is less than 1"),
        (["--calibration-samples", 0], "calibration_samples 0 is less than 1"),
        (["--calibration-samples", 9], "--calibration-samples needs --plain, the model to quantize"),
        (["--calibration-data", "train.json"], "--calibration-data needs --plain, the model to quantize"),
        (["--depths", 3, 2], "--depths 3 2 needs --plain, or a model with early span heads"),
    ],
)
def test_illegal_number_is_refused(benchmark, flags, message):
    assert message in benchmark(*flags)[0].error


def test_row_names_are_unique(benchmark, tiny_folder):
    outcome = benchmark("--peer", tiny_folder, "--peer", tiny_folder)[0]
    assert f"two rows would be called {str(tiny_folder)!r}" in outcome.error


@pytest.fixture(scope="session")
def exit_folder(tmp_path_factory, tiny_tokenizer):
    """A saved tiny model with early span heads."""
    path = tmp_path_factory.mktemp("models") / "answer"
    torch.manual_seed(0)
    budgets = {"fast": {"retention": [1.0, 0.6, 0.6, 0.3]}}
    QuaLAMiniLMForQuestionAnswering(tiny_config(token_scoring="answer", budgets=budgets)).save_pretrained(path)
    tiny_tokenizer.save_pretrained(path)
    return path


class TestDepths:
    """Fewer layers of a model with early span heads."""

    def test_rows_are_those_of_early_exits(self, benchmark, exit_folder, qala, tiny_data):
        rows = benchmark("--model", exit_folder, "--depths", 3, 1, "--batch-size", 1)[0].json["rows"]
        assert [(row["name"], row["kind"]) for row in rows] == [
            ("full", "budget"),
            ("fast", "budget"),
            ("first 3 layers", "depth"),
            ("first 1 layers", "depth"),
        ]
        assert [row["budget"] for row in rows[2:]] == ["1,1,1,1@3", "1,1,1,1@1"]
        assert rows[0]["mmacs"] > rows[2]["mmacs"] > rows[3]["mmacs"]
        arguments = ("evaluate", "--model", exit_folder, "--data", tiny_data, "--budget", "1,1,1,1@3", "--json")
        assert rows[2]["f1"] == qala(*arguments).json["f1"]

    def test_depth_of_all_layers_is_refused(self, benchmark, exit_folder):
        outcome = benchmark("--model", exit_folder, "--depths", 4)[0]
        assert "depth 4 is not from 1 to 3, fewer than the 4 layers of" in outcome.error


@needs_openvino
class TestPlainPeers:
    """Models that are made on the way: plain ones as optimum-intel makes them, and BERT-base."""

    @pytest.fixture
    def train_data(self, tmp_path):
        path = tmp_path / "train.json"
        path.write_text(json.dumps(squad(tiny_questions(3))), encoding="utf-8")
        return path

    def test_everything_side_by_side(self, benchmark, plain, exit_folder, train_data, monkeypatch):
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        monkeypatch.setattr("optimum_qala.reporting.peers.BERT_BASE", sizes)
        flags = ("--plain", plain, "--calibration-data", train_data, "--depths", 1, "--bert-base", "--buckets")
        flags += ("--bulk", "--slow-batches", 2, "--slow-repeats", 1, "--pad-to", 40, "--max-graphs", 64)
        outcome, folder = benchmark("--model", exit_folder, "--batch-size", 1, *flags)
        report = outcome.json
        rows = {row["name"]: row for row in report["rows"] if row["pad_to"] is None}
        both = ["full", "fast", "first 1 layers", "plain fp32", "plain int8", "plain int8, 1 layers"]
        bert = ["BERT-base shape, torch", "BERT-base shape, OpenVINO"]
        assert set(rows) == {*both, *(f"{name} in buckets" for name in both), *bert}
        assert report["reference"] == "plain int8"
        assert rows["plain int8"]["ratio"] == 1.0
        assert all(row["ratio"] > 0 for row in rows.values())
        # Speed-ups are over full length of the same model run in the same way.
        assert rows["full"]["speedup"] == rows["full in buckets"]["speedup"] == 1.0
        assert rows["plain fp32"]["speedup"] is None
        assert [rows[name]["arithmetic"] for name in both] == ["f32", "f32", "f32", "f32", "int8", "int8"]
        assert {rows[name]["backend"] for name in both} == {"openvino"}
        assert rows["plain fp32"]["f1"] == rows["plain fp32 in buckets"]["f1"]
        # The graph itself takes most of so small a model.
        assert rows["plain fp32"]["size_mb"] != rows["plain int8"]["size_mb"] > 0
        assert rows["plain int8"]["mmacs"] > rows["plain int8, 1 layers"]["mmacs"]
        assert report["int8_peak"]["gmacs_per_s"] > 0
        assert 0 < rows["plain int8"]["peak_share"] < 1
        assert rows["plain fp32"]["peak_share"] is None
        # BERT-base runs less often, and answers nothing.
        assert [(rows[name]["num_windows"], rows[name]["f1"], rows[name]["threads"] > 0) for name in bert] == [
            (2, None, True)
        ] * 2
        padded = {row["name"]: row["padding"] for row in report["rows"] if row["pad_to"] == 40}
        assert (padded["full"], padded["full in buckets"]) == ("longest", "multiple of 32")  # which leave padding out
        assert (padded["plain int8"], padded["plain int8 in buckets"]) == ("fixed 40", "multiple of 32")
        bulk = {row["name"]: row["batching"] for row in report["bulk_rows"]}
        assert set(bulk) == set(rows) - set(bert)
        assert (bulk["plain int8"], bulk["plain int8 in buckets"]) == ("32 windows", "filled by tokens")
        assert report["quantization"]["data"] == str(train_data)
        assert report["quantization"]["num_samples"] == 3
        assert "is calibrated with the questions that it is scored on" not in outcome.err
        assert {path.name for path in folder.iterdir()} <= {"results.json", "results.md", "results.png"}

    def test_calibration_with_the_scored_questions_is_pointed_out(self, benchmark, plain):
        flags = ("--batch-size", 1, "--budget", "full", "--calibration-samples", 2, "--seed", 1)
        outcome = benchmark("--plain", plain, *flags)[0]
        assert "is calibrated with the questions that it is scored on" in outcome.err
        assert outcome.json["quantization"]["num_samples"] == 2
        assert [row["name"] for row in outcome.json["rows"]] == ["full", "plain fp32", "plain int8"]

    def test_plain_model_with_another_vocabulary_is_refused(self, benchmark, plain, tmp_path):
        other = shutil.copytree(plain, tmp_path / "other")
        tokenizer = other / "tokenizer.json"
        tokenizer.write_text(tokenizer.read_text().replace('"river"', '"rover"'))
        assert f"peer {other} has another vocabulary" in benchmark("--plain", other)[0].error

    def test_depth_of_all_layers_is_refused(self, benchmark, plain):
        outcome = benchmark("--plain", plain, "--depths", 2)[0]
        assert "depth 2 is not from 1 to 1, fewer than the 2 layers of" in outcome.error

    def test_quala_is_no_plain_model(self, benchmark, tiny_folder):
        assert "is a QuaLA-MiniLM; give the plain model" in benchmark("--plain", tiny_folder)[0].error


@needs_openvino
def test_scoring_keeps_memory_flat_and_timing_keeps_the_cache(benchmark, monkeypatch):
    """What OpenVINO keeps for each shape is bounded for many windows of ever new shapes, and only then."""
    used = []

    def score(model, *given, **options):
        used.append(("score", *(set(BULK_CONFIG) & set(model.ov_config))))
        return evaluate(model, *given, **options)

    def time(candidates, *given):
        used.extend(("time", *(set(BULK_CONFIG) & set(one.model.ov_config))) for one in candidates)
        return measure(candidates, *given)

    monkeypatch.setattr("optimum_qala.cli.benchmark.evaluate", score)
    monkeypatch.setattr("optimum_qala.cli.benchmark.measure", time)
    assert benchmark("--backend", "openvino", "--batch-size", 1, "--budget", "full")[0].code == 0
    assert used == [("score", *BULK_CONFIG), ("time",)]


@needs_openvino
def test_plain_model_of_optimum_intel_is_a_peer(benchmark, tiny_folder, tiny_tokenizer, tmp_path):
    from optimum.intel.openvino import OVModelForQuestionAnswering

    bert = BertForQuestionAnswering(
        BertConfig(vocab_size=200, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    )
    bert.save_pretrained(tmp_path / "bert")
    tiny_tokenizer.save_pretrained(tmp_path / "bert")
    peer = tmp_path / "plain"
    OVModelForQuestionAnswering.from_pretrained(tmp_path / "bert", export=True).save_pretrained(peer)
    tiny_tokenizer.save_pretrained(peer)
    outcome = benchmark("--peer", peer, "--batch-size", 1, "--budget", "full")[0]
    row = outcome.json["rows"][-1]
    assert (row["name"], row["backend"], row["precision"]) == (str(peer), "openvino", "f32")
    assert row["median_ms"] > 0
