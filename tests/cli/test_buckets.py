"""The flags of buckets, and plain models of optimum-intel, in the commands that run a model."""

from __future__ import annotations

import json
import shutil
from argparse import Namespace

import pytest
import torch
from transformers import BertConfig, BertForQuestionAnswering

from optimum_qala._compat import is_available
from optimum_qala.cli.loading import load_model
from optimum_qala.cli.options import BUCKET_FLAGS, bucket_options
from optimum_qala.inference.bucket_options import BucketOptions
from tests.cli.conftest import squad, tiny_questions


needs_openvino = pytest.mark.skipif(not is_available("openvino"), reason="the openvino extra is absent")


@pytest.fixture(scope="session")
def plain_folder(tmp_path_factory, tiny_tokenizer):
    """A plain BERT as optimum-intel exports it."""
    from optimum.intel.openvino import OVModelForQuestionAnswering

    torch.manual_seed(0)
    checkpoint, folder = tmp_path_factory.mktemp("bert"), tmp_path_factory.mktemp("plain")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=200, max_position_embeddings=128, initializer_range=0.3, **sizes)
    BertForQuestionAnswering(config).save_pretrained(checkpoint)
    OVModelForQuestionAnswering.from_pretrained(checkpoint, export=True).save_pretrained(folder)
    for path in (checkpoint, folder):
        tiny_tokenizer.save_pretrained(path)
    shutil.copytree(checkpoint, folder / "torch")
    return folder


def answers(outcome):
    assert outcome.code == 0, outcome.err
    found = [json.loads(line) for line in outcome.out.splitlines()]
    return [(answer["id"], answer["start"], answer["end"]) for answer in found]


class TestOptions:
    """What the flags become."""

    def test_no_flag_is_no_buckets(self):
        assert bucket_options(Namespace(max_length=64, threads=2, batch_size=8)) is None

    @pytest.mark.parametrize(
        ("flag", "value"),
        [
            ("length_multiple", 64),
            ("batch_tokens", 512),
            ("max_graphs", 3),
            ("performance_hint", "throughput"),
            ("cache_dir", "c"),
        ],
    )
    def test_any_flag_switches_them_on(self, flag, value):
        assert bucket_options(Namespace(**{flag: value})) == BucketOptions(**{flag: value})

    def test_defaults_and_threads(self):
        assert bucket_options(Namespace(buckets=True)) == BucketOptions()
        assert bucket_options(Namespace(buckets=True, threads=2)).threads == 2

    def test_every_flag_is_one_of_the_commands(self, qala):
        for command in ("predict", "evaluate", "benchmark"):
            text = qala(command, "--help").out
            assert all(flag in text for flag in BUCKET_FLAGS.values()), command

    def test_torch_is_refused(self, qala, tiny_folder, tiny_data):
        outcome = qala("evaluate", "--model", tiny_folder, "--data", tiny_data, "--backend", "torch", "--buckets")
        assert "buckets are graphs of OpenVINO; leave --backend torch out" in outcome.error

    @pytest.mark.parametrize("flag", ["--throughput", "--buckets"])
    def test_predictions_need_no_buckets(self, qala, tiny_data, flag):
        outcome = qala("evaluate", "--predictions", "p.json", "--data", tiny_data, flag)
        assert f"{flag} needs --model" in outcome.error

    def test_illegal_number_is_refused(self, qala, tiny_folder, tiny_data):
        outcome = qala("predict", "--model", tiny_folder, "--data", tiny_data, "--length-multiple", 0)
        assert "length_multiple 0 is not a positive integer" in outcome.error


@needs_openvino
class TestAdaptiveModel:
    """A QuaLA-MiniLM in buckets."""

    def test_answers_are_those_of_torch(self, qala, tiny_folder, tiny_data, tmp_path):
        arguments = ("predict", "--model", tiny_folder, "--data", tiny_data, "--budget", "fast")
        bucketed = qala(*arguments, "--length-multiple", 16, "--cache-dir", tmp_path / "cache")
        assert answers(bucketed) == answers(qala(*arguments))
        assert list((tmp_path / "cache").iterdir())

    def test_options_reach_the_model(self, tiny_folder):
        loaded = load_model(str(tiny_folder), threads=1, buckets=BucketOptions(length_multiple=16))
        assert loaded.backend == "openvino"
        assert loaded.buckets is loaded.model.buckets
        assert loaded.model.buckets.length_multiple == 16
        assert loaded.threads == 1
        assert load_model(str(tiny_folder), "openvino").buckets is None

    def test_scores_at_every_budget(self, qala, tiny_folder, tiny_data):
        arguments = ("evaluate", "--model", tiny_folder, "--data", tiny_data, "--json")
        bucketed, plain = qala(*arguments, "--throughput").json, qala(*arguments).json
        assert bucketed["backend"] == "openvino"
        assert {name: scores["f1"] for name, scores in bucketed["budgets"].items()} == {
            name: scores["f1"] for name, scores in plain["budgets"].items()
        }


@needs_openvino
class TestPlainModel:
    """A model of optimum-intel, which drops no tokens."""

    def test_answers_do_not_depend_on_buckets(self, qala, plain_folder, tiny_data):
        arguments = ("predict", "--data", tiny_data, "--model")
        expected = answers(qala(*arguments, plain_folder))
        assert answers(qala(*arguments, plain_folder, "--buckets", "--budget", "full")) == expected
        assert answers(qala(*arguments, plain_folder / "torch", "--buckets")) == expected

    @pytest.mark.parametrize("flags", [[], ["--buckets"]])
    def test_is_scored_at_full_length(self, qala, plain_folder, tiny_data, flags):
        result = qala("evaluate", "--model", plain_folder, "--data", tiny_data, "--json", *flags).json
        assert list(result["budgets"]) == ["full"]
        assert result["budgets"]["full"]["retention"] is None

    @pytest.mark.parametrize("command", ["predict", "evaluate"])
    def test_has_no_other_budget(self, qala, plain_folder, tiny_data, command):
        outcome = qala(command, "--model", plain_folder, "--data", tiny_data, "--budget", "fast", "--buckets")
        assert "a plain 'bert' model drops no tokens, so it has no budget 'fast', only 'full'" in outcome.error

    def test_search_is_refused(self, qala, plain_folder, tiny_data, tmp_path):
        outcome = qala("search", "--model", plain_folder, "--data", tiny_data, "--output", tmp_path / "out")
        assert f"{plain_folder} is a plain 'bert' model, which drops no tokens; search the result of" in outcome.error

    def test_model_for_another_task_is_refused(self, qala, tiny_tokenizer, tiny_data, tmp_path):
        from optimum.exporters.openvino import export_from_model
        from transformers import BertConfig, BertForSequenceClassification

        sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        classifier = BertForSequenceClassification(BertConfig(vocab_size=len(tiny_tokenizer), **sizes)).eval()
        export_from_model(classifier, tmp_path, task="text-classification", stateful=False)
        tiny_tokenizer.save_pretrained(tmp_path)
        outcome = qala("predict", "--model", tmp_path, "--data", tiny_data)
        assert "so it is no question answering model of the BERT kind" in outcome.error


@needs_openvino
class TestBenchmark:
    """Rows say how a model pads, and every model has a row in buckets."""

    def run(self, qala, model, data, folder, *flags):
        size = ("--num-windows", 4, "--repeats", 1, "--warmup", 1, "--batch-size", 2)
        return qala("benchmark", "--model", model, "--data", data, "--output", folder, *size, *flags, "--json")

    def test_models_run_both_ways(self, qala, tiny_folder, plain_folder, tiny_data, tmp_path):
        in_torch = shutil.copytree(tiny_folder, tmp_path / "torch")
        peers = ("--peer", plain_folder, "--peer", in_torch, "--budget", "fast")
        outcome = self.run(qala, tiny_folder, tiny_data, tmp_path / "report", "--buckets", *peers)
        rows = {row["name"]: row["padding"] for row in outcome.json["rows"]}
        assert rows == {
            "full": "longest",
            "fast": "longest",
            "full in buckets": "multiple of 32",
            "fast in buckets": "multiple of 32",
            str(plain_folder): "longest",
            f"{plain_folder} in buckets": "multiple of 32",
            str(in_torch): "longest",
            f"{in_torch}, fast": "longest",
        }
        assert {row["name"] for row in outcome.json["rows"] if row["backend"] == "torch"} == {
            str(in_torch),
            f"{in_torch}, fast",
        }
        assert "were dropped" not in outcome.err

    def test_plain_model_is_measured(self, qala, plain_folder, tiny_data, tmp_path):
        outcome = self.run(qala, plain_folder, tiny_data, tmp_path / "report", "--buckets", "--pad-to", 40)
        assert [row["padding"] for row in outcome.json["rows"]] == [
            "longest",
            "multiple of 32",
            "fixed 40",  # in optimum-intel's class
            "multiple of 32",
        ]

    def test_dropped_graphs_are_pointed_out(self, qala, tiny_folder, tmp_path):
        questions = tiny_questions(4)
        questions[0]["context"] += " the river is old ." * 2
        (tmp_path / "data.json").write_text(json.dumps(squad(questions)), encoding="utf-8")
        options = ("--bulk", "--max-graphs", 1, "--length-multiple", 8, "--budget", "fast")
        outcome = self.run(qala, tiny_folder, tmp_path / "data.json", tmp_path / "report", *options)
        assert "compiled graphs were dropped while measuring" in outcome.err
        assert "raise --max-graphs" in outcome.err
        assert "the bulk times of full in buckets, fast in buckets include compiling graphs" in outcome.err
        assert [row["num_compiled"] > 0 for row in outcome.json["bulk_rows"]] == [False, False, True, True]
        assert [row["num_compiled"] > 0 for row in outcome.json["rows"]] == [False, False, True, True]
        text = (tmp_path / "report" / "results.md").read_text()
        assert text.count("Times include compiling graphs") == 2
        # The warm-up pass drops as many as the timed one; scoring and bulk do not count.
        timed = sum(row["num_compiled"] for row in outcome.json["rows"])
        assert timed <= outcome.json["graphs_dropped"] <= 2 * timed + 2
