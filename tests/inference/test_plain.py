"""A plain model in buckets gives the logits of the torch model and of optimum-intel's own class."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, pipeline

from optimum_qala import BucketOptions, OVBucketedModelForQuestionAnswering
from optimum_qala.errors import BackendError, CheckpointError, ConfigurationError, UnknownBudgetError
from optimum_qala.question_answering.predictor import predict
from optimum_qala.question_answering.records import QARecord
from optimum_qala.question_answering.windows import WindowOptions
from tests.inference.batches import distances, random_batch


@pytest.fixture
def plain(plain_exported):
    return OVBucketedModelForQuestionAnswering.from_pretrained(plain_exported)


@pytest.fixture(scope="session")
def plain_checkpoint(plain_torch, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    plain_torch.save_pretrained(folder)
    return folder


def test_logits_equal_torch_and_optimum_intel(plain, plain_torch, plain_exported):
    from optimum.intel.openvino import OVModelForQuestionAnswering

    peer = OVModelForQuestionAnswering.from_pretrained(
        plain_exported, export=False, ov_config={"INFERENCE_PRECISION_HINT": "f32"}
    )
    for seed in range(6):
        batch = random_batch(seed, 1 + seed % 3, 15 + 20 * seed)
        with torch.no_grad():
            expected = plain_torch(**batch)
        found = plain(**batch, budget="full")
        assert distances(found, expected, batch["attention_mask"]).max() < 1e-4
        assert distances(found, peer(**batch), batch["attention_mask"]).max() < 1e-5


@pytest.mark.parametrize("export", [None, True])
def test_torch_checkpoint_is_exported(plain_checkpoint, plain_torch, export):
    model = OVBucketedModelForQuestionAnswering.from_pretrained(str(plain_checkpoint), export=export)
    batch = random_batch(9, 2, 40)
    with torch.no_grad():
        expected = plain_torch(**batch)
    assert distances(model(**batch), expected, batch["attention_mask"]).max() < 1e-4
    assert model.config.model_type == "bert"


def test_exported_model_is_preferred(plain_exported, plain_checkpoint, tmp_path):
    shutil.copytree(plain_exported, tmp_path, dirs_exist_ok=True)
    shutil.copy(plain_checkpoint / "model.safetensors", tmp_path)
    assert OVBucketedModelForQuestionAnswering.from_pretrained(tmp_path).model_save_dir == tmp_path


@pytest.mark.parametrize("with_config", [False, True], ids=["config-at-root", "config-beside"])
def test_graph_is_found_in_its_sub_folder(plain_exported, plain_checkpoint, tmp_path, with_config):
    inside = tmp_path / "openvino"
    shutil.copytree(plain_checkpoint, tmp_path, dirs_exist_ok=True)
    shutil.copytree(plain_exported, inside)
    if not with_config:
        (inside / "config.json").unlink()
    model = OVBucketedModelForQuestionAnswering.from_pretrained(tmp_path, export=False)
    assert model.model_save_dir == inside
    assert model.config.model_type == "bert"
    with pytest.raises(BackendError, match=r"holds no openvino_model\.xml"):
        OVBucketedModelForQuestionAnswering.from_pretrained(tmp_path, export=False, subfolder="")
    (inside / "openvino_model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"openvino_model\.xml without its \.bin file"):
        OVBucketedModelForQuestionAnswering.from_pretrained(tmp_path)


def test_saved_model_is_one_of_optimum_intel(plain, tmp_path):
    from optimum.intel.openvino import OVModelForQuestionAnswering

    batch = random_batch(3, 1, 30)
    expected = plain(**batch)
    plain.save_pretrained(tmp_path)
    for loaded in (
        OVBucketedModelForQuestionAnswering.from_pretrained(tmp_path, export=False),
        OVModelForQuestionAnswering.from_pretrained(tmp_path, ov_config={"INFERENCE_PRECISION_HINT": "f32"}),
    ):
        assert distances(loaded(**batch), expected, batch["attention_mask"]).max() < 1e-5


def test_options_reach_the_buckets(plain_exported):
    options = BucketOptions(length_multiple=16, performance_hint="throughput", threads=2)
    model = OVBucketedModelForQuestionAnswering.from_pretrained(plain_exported, buckets=options)
    assert model.threads == 2
    assert model.runner.num_streams == 2
    assert model.runner.is_static
    assert model.bucket_counters.compilations == 1
    assert model.warm_up(lengths=[10, 16, 17], batch_sizes=[1]) == 1


def test_given_configuration_and_precision_are_used(plain_exported):
    config = BertConfig(vocab_size=100)
    model = OVBucketedModelForQuestionAnswering.from_pretrained(plain_exported, config=config)
    with pytest.raises(CheckpointError, match="from 150 to 150, but the model embeds tokens 0 to 99"):
        model(torch.full((1, 5), 150))
    with pytest.raises(ConfigurationError, match=r"precision 'f64' is not one of"):
        OVBucketedModelForQuestionAnswering.from_pretrained(plain_exported, precision="f64")


class TestAnswering:
    """The predictor and the pipeline take it."""

    def test_predictor_fills_batches_and_answers_as_torch(self, plain_exported, plain_torch, tiny_tokenizer):
        model = OVBucketedModelForQuestionAnswering.from_pretrained(
            plain_exported, buckets=BucketOptions(batch_tokens=128)
        )
        context = "anna lived in the old tower of london . maria wrote a book in paris . "
        records = [QARecord(f"q{n}", "who wrote a book ?", (context * 4)[: 30 + 17 * n]) for n in range(14)]
        options = WindowOptions.for_max_length(96)
        answers, expected = (
            [found[0] for _, found in predict(one, tiny_tokenizer, records, window_options=options)]
            for one in (model, plain_torch)
        )
        assert [(one.start, one.end) for one in answers] == [(one.start, one.end) for one in expected]
        np.testing.assert_allclose([one.score for one in answers], [one.score for one in expected], atol=1e-4)

    def test_pipeline(self, plain, plain_torch, tiny_tokenizer):
        question = {"question": "where was anna born ?", "context": "anna was born in paris . the tower is old ."}
        found, expected = (
            pipeline("question-answering", model=one, tokenizer=tiny_tokenizer)(question)
            for one in (plain, plain_torch)
        )
        assert found["answer"] == expected["answer"]
        assert found["score"] == pytest.approx(expected["score"], abs=1e-4)


class TestRefusals:
    def test_budget(self, plain):
        with pytest.raises(UnknownBudgetError, match="drops no tokens, so it has no budget 'fast', only 'full'"):
            plain(**random_batch(0, 1, 20), budget="fast")

    @pytest.mark.parametrize("buckets", [False, None])
    def test_no_buckets(self, plain_exported, buckets):
        with pytest.raises(ConfigurationError, match=f"buckets={buckets}: this class runs in buckets only"):
            OVBucketedModelForQuestionAnswering.from_pretrained(plain_exported, buckets=buckets)

    def test_model_that_takes_budgets(self, exported, torch_folder):
        with pytest.raises(BackendError, match="has the input 'retention'.*OVQuaLAMiniLMForQuestionAnswering"):
            OVBucketedModelForQuestionAnswering.from_pretrained(exported)
        with pytest.raises(BackendError, match="is a 'quala_minilm' model, which takes budgets"):
            OVBucketedModelForQuestionAnswering.from_pretrained(torch_folder)

    def test_graph_of_another_kind(self, tmp_path):
        import openvino
        from openvino import opset13 as ops

        ids = ops.parameter([-1, -1], np.int64, name="input_ids")
        ids.output(0).set_names({"input_ids"})
        logits = ops.convert(ids, np.float32)
        logits.output(0).set_names({"logits"})
        openvino.save_model(openvino.Model([logits], [ids]), tmp_path / "openvino_model.xml")
        BertConfig().save_pretrained(tmp_path)
        with pytest.raises(BackendError, match=r"inputs \['input_ids'\] and the outputs \['logits'\], so it is no"):
            OVBucketedModelForQuestionAnswering.from_pretrained(tmp_path)

    def test_checkpoint_without_export(self, plain_checkpoint):
        with pytest.raises(BackendError, match=r"holds no openvino_model\.xml; pass export=True"):
            OVBucketedModelForQuestionAnswering.from_pretrained(plain_checkpoint, export=False)

    def test_checkpoint_without_span_head(self, tmp_path):
        sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
        BertModel(BertConfig(vocab_size=200, **sizes)).save_pretrained(tmp_path)
        with pytest.raises(CheckpointError, match=r"lacks qa_outputs\.bias, so its answers would be random"):
            OVBucketedModelForQuestionAnswering.from_pretrained(tmp_path)

    def test_missing_weights(self, plain_exported, tmp_path):
        shutil.copytree(plain_exported, tmp_path / "model")
        (tmp_path / "model" / "openvino_model.bin").unlink()
        with pytest.raises(CheckpointError, match=r"openvino_model\.xml without its \.bin file"):
            OVBucketedModelForQuestionAnswering.from_pretrained(tmp_path / "model")

    def test_unknown_argument(self, plain_exported):
        with pytest.raises(ConfigurationError, match="from_pretrained has no argument 'dynamic'"):
            OVBucketedModelForQuestionAnswering.from_pretrained(plain_exported, dynamic=True)
