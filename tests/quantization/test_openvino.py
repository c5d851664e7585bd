"""Quantization with the real NNCF, on a model of two layers."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections import Counter

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertModel

from optimum_qala import (
    INCQuaLAConfig,
    LengthConfig,
    OVQuaLAConfig,
    OVQuaLAMiniLMForQuestionAnswering,
    OVQuaLAQuantizer,
    QuaLAMiniLMForQuestionAnswering,
    _compat,
)
from optimum_qala.errors import (
    CheckpointError,
    ConfigurationError,
    DataError,
    LengthConfigError,
    MissingExtraError,
    OutputExistsError,
    UnknownBudgetError,
)
from optimum_qala.question_answering.predictor import evaluate
from optimum_qala.question_answering.records import load_records
from tests.conftest import tiny_config
from tests.inference.batches import random_batch
from tests.quantization.conftest import WINDOWS


@pytest.fixture
def quantizer(torch_model, tiny_tokenizer):
    return OVQuaLAQuantizer(torch_model, tiny_tokenizer)


@pytest.fixture
def int8(int8_folder):
    return OVQuaLAMiniLMForQuestionAnswering.from_pretrained(int8_folder, export=False)


@pytest.fixture(scope="module")
def exported(torch_model, tmp_path_factory):
    """The float32 graph, exported once: this saves most of the time of a quantization."""
    from optimum_qala.quantization.export import export_model

    folder = tmp_path_factory.mktemp("exported")
    return folder, export_model(torch_model, folder)


@pytest.fixture
def reuse_export(exported, monkeypatch):
    def copy_export(model, folder, drop_layers=None):
        source, config = exported
        shutil.copytree(source, folder, dirs_exist_ok=True)
        return config

    monkeypatch.setattr("optimum_qala.quantization.export.export_model", copy_export)


@pytest.fixture
def quantize(quantizer, records, tmp_path, reuse_export):
    """Quantize with some options changed; returns the model loaded from the new folder."""

    def run(**options):
        config = OVQuaLAConfig(**({"num_samples": 4} | options))
        return quantizer.quantize(records, tmp_path / "int8", config=config, window_options=WINDOWS)

    return run


@pytest.fixture(scope="module")
def plain_outputs(torch_model, tiny_tokenizer, records, tmp_path_factory):
    """Logits of the model that `quantize(overflow_fix="disable")` makes."""
    model = OVQuaLAQuantizer(torch_model, tiny_tokenizer).quantize(
        records,
        tmp_path_factory.mktemp("plain") / "int8",
        config=OVQuaLAConfig(num_samples=4, overflow_fix="disable"),
        window_options=WINDOWS,
    )
    return model(**random_batch(5, 3, 60, vocab_size=100)).start_logits


def constants(model) -> dict[str, int]:
    """Bytes of constants by type."""
    sizes = Counter()
    for operation in model.model.get_ops():
        if operation.get_type_name() == "Constant":
            sizes[operation.get_element_type().get_type_name()] += operation.get_byte_size()
    return sizes


class TestResult:
    def test_folder_holds_everything(self, int8_folder):
        names = {file.name for file in int8_folder.iterdir()}
        assert {"config.json", "openvino_model.xml", "openvino_model.bin", "openvino_quala_config.json"} <= names
        assert len(AutoTokenizer.from_pretrained(int8_folder)) > 0

    def test_weights_and_embeddings_are_8_bit(self, int8, torch_model):
        matrices = sum(weight.numel() for name, weight in torch_model.named_parameters() if weight.ndim == 2)
        assert matrices * 0.95 <= constants(int8)["i8"] + constants(int8)["u8"]

    def test_choice_of_tokens_stays_float(self, int8):
        from optimum_qala.quantization.selection import selection_operations

        quantized = {op.get_friendly_name() for op in int8.model.get_ops() if op.get_type_name() == "FakeQuantize"}
        assert quantized
        assert not quantized & set(selection_operations(int8.model))

    def test_answers_stay_close_to_float(self, int8, torch_model):
        batch = random_batch(0, 4, 60, vocab_size=100)
        with torch.no_grad():
            expected = torch_model(**batch).start_logits
        actual = int8(**batch).start_logits
        real = batch["attention_mask"].bool()
        assert torch.corrcoef(torch.stack([actual[real], expected[real]]))[0, 1] > 0.95
        assert not torch.allclose(actual[real], expected[real], atol=1e-4)

    def test_budgets_work_in_int8(self, int8):
        batch = random_batch(1, 2, 60, vocab_size=100)
        assert not torch.equal(int8(**batch, budget="fast").start_logits, int8(**batch).start_logits)

    def test_int8_does_not_depend_on_batch_and_padding(self, int8):
        """Activation ranges are static, so padding cannot change them."""
        batch = random_batch(2, 3, 50, vocab_size=100)
        together = int8(**batch, budget="late").start_logits
        for row, length in enumerate(batch["attention_mask"].sum(dim=1).tolist()):
            alone = int8(**{name: tensor[row : row + 1, :length] for name, tensor in batch.items()}, budget="late")
            torch.testing.assert_close(alone.start_logits[0], together[row, :length], atol=1e-3, rtol=1e-3)

    def test_record_says_what_was_done(self, int8):
        record = int8.quantization
        assert record.num_samples == 6
        assert record.applied["num_samples"] == 6
        assert record.applied["model"] == "QuaLAMiniLMForQuestionAnswering"
        assert record.applied["overflow_fix"] in ("enable", "disable")
        assert "CPU" in record.applied["overflow_fix_reason"]
        assert record.applied["budgets"] == {"full": "full", "fast": "0.8,0.4", "late": "1,0.5"}
        assert record.applied["drop_layers"] == [0, 1]
        assert set(record.versions) == {
            "optimum-qala", "openvino", "nncf", "torch", "transformers", "optimum", "optimum-intel",
        }  # fmt: skip

    def test_budgets_carry_the_int8_scores(self, int8, tiny_tokenizer, records):
        accuracy = int8.quantization.accuracy
        assert set(accuracy) == {"full", "fast", "late"}
        for name in ("full", "fast", "late"):
            scores = evaluate(int8, tiny_tokenizer, records, budget=name, window_options=WINDOWS)
            assert accuracy[name]["int8"] == {"f1": scores["f1"], "em": scores["exact_match"]}
            assert set(accuracy[name]["float32"]) == {"f1", "em"}
        assert int8.config.budgets["fast"] == {
            "retention": [0.8, 0.4],
            "macs": 5,
            "f1": accuracy["fast"]["int8"]["f1"],
            "em": accuracy["fast"]["int8"]["em"],
            "dataset": "eight facts",
        }

    def test_model_given_is_left_alone(self, int8_folder, torch_model):
        assert torch_model.config.budgets["fast"]["f1"] == 99.0


def test_path_is_quantized_with_the_tokenizer_beside_it(torch_model, tiny_tokenizer, records, tmp_path):
    torch_model.save_pretrained(tmp_path / "torch")
    tiny_tokenizer.save_pretrained(tmp_path / "torch")
    steps = []
    model = OVQuaLAQuantizer(tmp_path / "torch").quantize(
        iter(records),
        tmp_path / "int8",
        config=OVQuaLAConfig(num_samples=2),
        window_options=WINDOWS,
        progress=steps.append,
    )
    assert constants(model)["i8"] > 0
    assert steps == ["exporting", "quantizing with 2 windows at 3 budgets"]
    assert model.quantization.accuracy == {}
    # Scores stay those of the torch model, but its latencies say nothing about int8.
    assert model.config.budgets["fast"] == {"retention": [0.8, 0.4], "f1": 99.0, "split": "train", "macs": 5}


def test_folder_respects_the_umask(quantize, tmp_path):
    before = os.umask(0o077)
    try:
        quantize(num_samples=1)
    finally:
        os.umask(before)
    assert (tmp_path / "int8").stat().st_mode & 0o777 == 0o700


def test_nothing_is_written_to_standard_output(quantize, capsys):
    """It belongs to the command line's JSON; NNCF draws its progress there."""
    quantize(num_samples=1)
    assert capsys.readouterr().out == ""
    assert logging.getLogger("nncf").level == logging.INFO


class TestOptions:
    """Every option changes the result."""

    def test_embeddings_may_stay_float(self, int8, quantize):
        floats = quantize(quantize_embeddings=False)
        assert constants(floats)["f32"] > constants(int8)["f32"] + 4 * 32 * 128

    @pytest.mark.parametrize(
        "options",
        [
            {"preset": "performance"},
            {"smooth_quant_alpha": None},
            {"smooth_quant_alpha": 0.2},
            {"overflow_fix": "enable"},
            {"fast_bias_correction": False},
            {"budgets": ("fast",)},
            {"seed": 7},
            {"num_samples": 6},
        ],
        ids=str,
    )
    def test_option_changes_the_model(self, options, quantize, plain_outputs):
        model = quantize(**({"overflow_fix": "disable"} | options))
        assert not torch.equal(model(**random_batch(5, 3, 60, vocab_size=100)).start_logits, plain_outputs)

    def test_same_options_give_the_same_model(self, quantize, plain_outputs):
        model = quantize(overflow_fix="disable")
        assert torch.equal(model(**random_batch(5, 3, 60, vocab_size=100)).start_logits, plain_outputs)

    def test_ignored_operations_stay_float(self, int8, quantize):
        linear = next(
            operation.get_friendly_name()
            for operation in int8.model.get_ops()
            if operation.get_type_name() == "MatMul" and "layer.0.intermediate" in operation.get_friendly_name()
        )
        by_name = quantize(ignored_names=(linear,))
        assert constants(by_name)["f32"] > constants(int8)["f32"]
        assert by_name.quantization.applied["ignored_operations"] > int8.quantization.applied["ignored_operations"]

    def test_ignored_patterns_match_names(self, int8, quantize):
        by_pattern = quantize(ignored_patterns=(r"layer\.1\.output",))
        assert constants(by_pattern)["f32"] > constants(int8)["f32"]

    def test_precision_is_that_of_the_loaded_model(self, quantize):
        from optimum.intel.openvino.modeling_base import core

        if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            pytest.skip("this CPU has no bf16")
        model = quantize(precision="bf16")
        assert model.precision == "bf16"
        folder = model.model_save_dir
        assert OVQuaLAMiniLMForQuestionAnswering.from_pretrained(folder).precision == "bf16"
        assert OVQuaLAMiniLMForQuestionAnswering.from_pretrained(folder, precision="f32").precision == "f32"

    def test_drop_layers_follow_the_budgets(self, torch_model, tiny_tokenizer, records, tmp_path):
        torch_model.config.budgets, budgets = {"late": {"retention": [1.0, 0.5]}}, torch_model.config.budgets
        try:
            model = OVQuaLAQuantizer(torch_model, tiny_tokenizer).quantize(
                records,
                tmp_path / "int8",
                config=OVQuaLAConfig(num_samples=2, drop_layers="budgets"),
                window_options=WINDOWS,
            )
        finally:
            torch_model.config.budgets = budgets
        assert model.config.dropping_layers == (1,)
        assert model.config.resolve_budget("late") == LengthConfig((1.0, 0.5))
        with pytest.raises(LengthConfigError, match="drops only in layers"):
            model(**random_batch(0, 1, 20, vocab_size=100), budget="0.5,0.5")


class TestRefusals:
    def test_no_calibration_data(self, quantizer, tmp_path):
        for nothing in (None, [], ()):
            with pytest.raises(DataError, match="no calibration records were given"):
                quantizer.quantize(nothing, tmp_path / "int8")
        assert list(tmp_path.iterdir()) == []

    def test_unknown_budget(self, quantizer, records, tmp_path):
        with pytest.raises(UnknownBudgetError, match="no budget 'slow'"):
            quantizer.quantize(records, tmp_path / "int8", config=OVQuaLAConfig(budgets=("slow",)))

    def test_output_that_is_not_empty(self, quantizer, records, tmp_path):
        (tmp_path / "kept").write_text("kept", encoding="utf-8")
        with pytest.raises(OutputExistsError, match=f"{tmp_path.name} exists and is not empty; nothing was written"):
            quantizer.quantize(records, tmp_path)
        with pytest.raises(OutputExistsError, match="kept exists and is not a folder"):
            quantizer.quantize(records, tmp_path / "kept")
        assert [file.name for file in tmp_path.iterdir()] == ["kept"]

    def test_nothing_is_left_of_a_failure(self, quantizer, records, tmp_path, monkeypatch):
        def fail(*_args, **_options):
            raise DataError("stopped")

        monkeypatch.setattr("optimum_qala.quantization.openvino.calibration_samples", fail)
        with pytest.raises(DataError, match="stopped"):
            quantizer.quantize(records, tmp_path / "int8")
        assert list(tmp_path.iterdir()) == []

    def test_output_that_appears_meanwhile(self, quantizer, records, tmp_path, monkeypatch, reuse_export):
        def appear(*_args, **_options):
            (tmp_path / "int8").mkdir()
            (tmp_path / "int8" / "other").write_text("kept", encoding="utf-8")

        monkeypatch.setattr(type(quantizer.tokenizer), "save_pretrained", appear)
        with pytest.raises(OutputExistsError, match="int8 appeared meanwhile"):
            quantizer.quantize(records, tmp_path / "int8", config=OVQuaLAConfig(num_samples=1), window_options=WINDOWS)
        assert [file.name for file in tmp_path.iterdir()] == ["int8"]

    def test_budgets_without_a_drop(self, torch_model, tiny_tokenizer, records, tmp_path):
        model = QuaLAMiniLMForQuestionAnswering(tiny_config(num_hidden_layers=1, vocab_size=len(tiny_tokenizer)))
        with pytest.raises(ConfigurationError, match=r"leaves no layer that drops tokens, .* among \['full'\]"):
            OVQuaLAQuantizer(model, tiny_tokenizer).quantize(
                records, tmp_path / "int8", config=OVQuaLAConfig(drop_layers="budgets", budgets=("full",))
            )

    def test_configuration_of_the_other_back_end(self, torch_model, tiny_tokenizer):
        with pytest.raises(ConfigurationError, match="a INCQuaLAConfig; this quantizer takes a OVQuaLAConfig"):
            OVQuaLAQuantizer(torch_model, tiny_tokenizer).quantize([], "int8", config=INCQuaLAConfig())

    def test_unknown_operation(self, quantize):
        with pytest.raises(ConfigurationError, match="ignored_names holds 'layer 9', but the graph has no such"):
            quantize(ignored_names=("layer 9",))
        with pytest.raises(ConfigurationError, match="ignored_patterns holds .*layer.*9', which matches no operation"):
            quantize(ignored_patterns=(r"layer\.9",))

    def test_foreign_model(self, tiny_tokenizer):
        with pytest.raises(CheckpointError, match="cannot quantize a BertModel; give a QuaLAMiniLM"):
            OVQuaLAQuantizer(BertModel(BertConfig(hidden_size=24, num_hidden_layers=1)), tiny_tokenizer)

    def test_exported_model(self, int8_folder):
        with pytest.raises(CheckpointError, match=r"is exported already \(openvino_model\.xml\)"):
            OVQuaLAQuantizer(int8_folder)

    def test_model_without_span_head(self, tmp_path, tiny_tokenizer):
        sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
        BertModel(BertConfig(vocab_size=len(tiny_tokenizer), **sizes)).save_pretrained(tmp_path)
        tiny_tokenizer.save_pretrained(tmp_path)
        with pytest.raises(CheckpointError, match=f"{tmp_path.name} has no trained span head"):
            OVQuaLAQuantizer(tmp_path)

    def test_model_in_memory_without_tokenizer(self, torch_model):
        with pytest.raises(ConfigurationError, match=r"needs its tokenizer: OVQuaLAQuantizer\(model, tokenizer\)"):
            OVQuaLAQuantizer(torch_model)

    def test_tokenizer_of_another_model(self, tiny_tokenizer):
        model = QuaLAMiniLMForQuestionAnswering(tiny_config(num_hidden_layers=1, vocab_size=50))
        with pytest.raises(CheckpointError, match="the model embeds only 50"):
            OVQuaLAQuantizer(model, tiny_tokenizer)

    def test_missing_extra(self, torch_model, tiny_tokenizer, monkeypatch):
        monkeypatch.setattr(_compat, "_is_importable", lambda module: module != "nncf")
        with pytest.raises(MissingExtraError, match=r'int8 quantization with OpenVINO needs nncf.*qala\[openvino\]"'):
            OVQuaLAQuantizer(torch_model, tiny_tokenizer)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_int8_loses_little_on_a_real_model(shared_model, shared_data, tmp_path):
    """Within 0.5 F1 of float32 at full length, and at most 25 MB."""
    test = load_records(shared_data / "test_small.json")
    quantizer = OVQuaLAQuantizer(shared_model)
    model = quantizer.quantize(load_records(shared_data / "train.json"), tmp_path / "int8")
    size_bytes = sum(file.stat().st_size for file in (tmp_path / "int8").glob("openvino_model.*"))
    float32 = OVQuaLAMiniLMForQuestionAnswering.from_pretrained(shared_model, export=True)
    scores = {name: evaluate(m, quantizer.tokenizer, test)["f1"] for name, m in (("f32", float32), ("int8", model))}
    assert abs(scores["int8"] - scores["f32"]) <= 0.5, scores
    assert size_bytes <= 25e6
    assert json.loads((tmp_path / "int8" / "openvino_quala_config.json").read_text(encoding="utf-8"))["versions"]
