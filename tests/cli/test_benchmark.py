from __future__ import annotations

import json
import shutil

import pytest
from transformers import BertConfig, BertForQuestionAnswering

from optimum_qala._compat import is_available


@pytest.fixture
def benchmark(qala, tiny_folder, tiny_data, tmp_path):
    def run(*flags):
        size = ("--num-windows", 4, "--repeats", 2, "--warmup", 0)
        arguments = ("--model", tiny_folder, "--data", tiny_data, "--output", tmp_path / "report")
        return qala("benchmark", *arguments, *size, *flags, "--json"), tmp_path / "report"

    return run


def test_every_budget_is_measured_at_every_batch_size(benchmark):
    outcome, folder = benchmark()
    report = outcome.json
    rows = {(row["name"], row["batch_size"]): row for row in report["rows"]}
    assert set(rows) == {(name, size) for name in ("full", "accurate", "fast") for size in (1, 32)}
    for row in rows.values():
        assert row["backend"] == "torch"
        assert row["precision"] == "f32"
        assert row["threads"] >= 1
        assert row["padding"] == "longest"
        assert 0 < row["median_ms"] <= row["p90_ms"]
    assert rows["full", 1]["speedup"] == 1.0
    assert report["machine"]["cpu"]
    assert json.loads((folder / "results.json").read_text())["rows"] == report["rows"]
    table = (folder / "results.md").read_text()
    assert table.count("| fast | torch | f32 |") == 2


def test_f1_is_that_of_evaluate(benchmark, qala, tiny_folder, tiny_data):
    row = next(row for row in benchmark("--budget", "fast")[0].json["rows"] if row["name"] == "fast")
    scores = qala("evaluate", "--model", tiny_folder, "--data", tiny_data, "--budget", "fast", "--json").json
    assert row["f1"] == scores["f1"]


def test_full_length_is_measured_beside_the_chosen_budget(benchmark):
    rows = benchmark("--budget", "fast", "--batch-size", 2)[0].json["rows"]
    assert [(row["name"], row["batch_size"]) for row in rows] == [("full", 2), ("fast", 2)]


def test_padding_and_threads_are_in_the_row(benchmark):
    rows = benchmark("--pad-to", 64, "--threads", 1, "--batch-size", 1, "--budget", "full")[0].json["rows"]
    assert [row["padding"] for row in rows] == ["longest", "fixed 64"]
    assert {row["threads"] for row in rows} == {1}
    assert rows[1]["median_ms"] > rows[0]["median_ms"] / 2


def test_peer_is_measured_against_the_same_full_length(benchmark, tiny_folder, tmp_path):
    peer = shutil.copytree(tiny_folder, tmp_path / "peer")
    rows = benchmark("--peer", peer, "--batch-size", 1, "--budget", "full")[0].json["rows"]
    assert [row["name"] for row in rows] == ["full", str(peer)]
    assert rows[0]["f1"] == rows[1]["f1"]


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
    ],
)
def test_illegal_number_is_refused(benchmark, flags, message):
    assert message in benchmark(*flags)[0].error


@pytest.mark.skipif(not is_available("openvino"), reason="the openvino extra is absent")
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
