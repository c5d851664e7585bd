"""The models to compare with are those that users of optimum-intel have."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoConfig, BertConfig, BertForQuestionAnswering, BertModel

from optimum_qala._compat import is_available
from optimum_qala.errors import CheckpointError, ConfigurationError, MissingExtraError
from optimum_qala.question_answering.records import load_records
from optimum_qala.question_answering.windows import Window, WindowOptions
from optimum_qala.reporting import peers
from optimum_qala.reporting.peers import (
    PeerOptions,
    export_plain,
    load_plain_config,
    make_bert_base,
    plain_macs,
    quantize_plain,
)
from tests.cli.conftest import squad, tiny_questions


needs_openvino = pytest.mark.skipif(not is_available("openvino"), reason="the openvino extra is absent")
WINDOWS = WindowOptions.for_max_length(64)
INPUTS = {"input_ids": torch.tensor([[2, 10, 11, 3, 12, 13, 14, 3]]), "attention_mask": torch.ones(1, 8).long()}


@pytest.fixture(scope="module")
def plain(tmp_path_factory, tiny_tokenizer):
    """A checkpoint in half precision, as they are often stored."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(vocab_size=200, max_position_embeddings=128, initializer_range=0.3, **sizes)
    folder = tmp_path_factory.mktemp("plain")
    BertForQuestionAnswering(config).half().save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def load(folder):
    from optimum.intel.openvino import OVModelForQuestionAnswering

    return OVModelForQuestionAnswering.from_pretrained(str(folder), ov_config={"INFERENCE_PRECISION_HINT": "f32"})


@pytest.fixture(scope="module")
def exported(plain, tmp_path_factory, tiny_tokenizer):
    return export_plain(plain, tmp_path_factory.mktemp("exported") / "fp32", tiny_tokenizer)


@needs_openvino
class TestExport:
    def test_logits_are_those_of_torch_and_weights_are_float32(self, plain, exported):
        model = BertForQuestionAnswering.from_pretrained(plain, dtype=torch.float32).eval()
        with torch.no_grad():
            expected = model(**INPUTS)
        found = load(exported)(**INPUTS)
        assert torch.allclose(found.start_logits, expected.start_logits, atol=1e-4)
        weights = sum(parameter.numel() for parameter in model.parameters())
        assert (exported / "openvino_model.bin").stat().st_size > 3.9 * weights
        assert not (exported / "torch").exists()
        assert (exported / "tokenizer.json").is_file()

    def test_first_layers_keep_their_weights_and_the_head(self, plain, tmp_path, tiny_tokenizer):
        folder = export_plain(plain, tmp_path / "cut", tiny_tokenizer, num_layers=2)
        model = BertForQuestionAnswering.from_pretrained(plain, dtype=torch.float32).eval()
        model.bert.encoder.layer = model.bert.encoder.layer[:2]
        with torch.no_grad():
            expected = model(**INPUTS)
        assert torch.allclose(load(folder)(**INPUTS).end_logits, expected.end_logits, atol=1e-4)
        assert AutoConfig.from_pretrained(folder).num_hidden_layers == 2

    @pytest.mark.parametrize("depth", [0, 3])
    def test_depth_out_of_range_is_refused(self, plain, tmp_path, tiny_tokenizer, depth):
        with pytest.raises(ConfigurationError, match=f"depth {depth} is not from 1 to 2, fewer than the 3 layers of"):
            export_plain(plain, tmp_path / "cut", tiny_tokenizer, num_layers=depth)

    def test_model_without_a_head_is_refused(self, tmp_path, tiny_tokenizer):
        sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        BertModel(BertConfig(vocab_size=200, **sizes)).save_pretrained(tmp_path / "bare")
        with pytest.raises(CheckpointError, match="bare has no trained span head, so its answers would be random"):
            export_plain(tmp_path / "bare", tmp_path / "out", tiny_tokenizer)

    def test_damaged_weights_are_reported(self, plain, tmp_path, tiny_tokenizer):
        (tmp_path / "config.json").write_bytes((plain / "config.json").read_bytes())
        with pytest.raises(CheckpointError, match="cannot be loaded: "):
            export_plain(tmp_path, tmp_path / "out", tiny_tokenizer)


def test_quala_is_no_plain_model(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path / "quala")
    with pytest.raises(CheckpointError, match="quala is a QuaLA-MiniLM; give the plain model"):
        load_plain_config(tmp_path / "quala")


def test_absent_model_is_reported(tmp_path):
    with pytest.raises(CheckpointError, match="plain model .*nothing cannot be loaded: "):
        load_plain_config(tmp_path / "nothing")


@needs_openvino
class TestQuantize:
    @pytest.fixture
    def quantize(self, exported, tmp_path, tiny_tokenizer):
        records = load_records(squad(tiny_questions(12)))

        def run(name, **options):
            settings = quantize_plain(
                exported,
                tmp_path / name,
                tiny_tokenizer,
                records,
                options=PeerOptions(**options),
                window_options=WINDOWS,
            )
            return settings, load(tmp_path / name)

        return run

    def test_graph_is_int8_and_answers_are_close(self, quantize, exported, tmp_path):
        settings, model = quantize("int8")
        assert settings["num_samples"] == 12
        assert any(operation.get_type_name() == "FakeQuantize" for operation in model.model.get_ops())
        expected, found = load(exported)(**INPUTS).start_logits, model(**INPUTS).start_logits
        assert 0 < (expected - found).abs().max() < 0.5 * expected.abs().max()
        sizes = [(folder / "openvino_model.bin").stat().st_size for folder in (exported, tmp_path / "int8")]
        assert sizes[1] < 0.5 * sizes[0]
        assert (tmp_path / "int8" / "tokenizer.json").is_file()

    def test_samples_and_seed_change_the_calibration(self, quantize):
        all_of_them, few, others = (
            quantize(name, **options)
            for name, options in (
                ("a", {}),
                ("b", {"calibration_samples": 1}),
                ("c", {"calibration_samples": 1, "seed": 1}),
            )
        )
        assert [settings["num_samples"] for settings, _ in (all_of_them, few, others)] == [12, 1, 1]
        logits = [model(**INPUTS).start_logits for _, model in (all_of_them, few, others)]
        assert not torch.equal(logits[0], logits[1])
        assert not torch.equal(logits[1], logits[2])


@needs_openvino
class TestBertBase:
    @pytest.fixture(autouse=True)
    def _small(self, monkeypatch):
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        monkeypatch.setattr(peers, "BERT_BASE", sizes)

    def test_both_forms_are_the_same_random_model(self, tmp_path, tiny_tokenizer):
        state = torch.get_rng_state()
        model, folder = make_bert_base(tmp_path / "bert", tiny_tokenizer, 128, PeerOptions())
        assert torch.equal(torch.get_rng_state(), state)
        with torch.no_grad():
            expected = model(**INPUTS)
        assert torch.allclose(load(folder)(**INPUTS).start_logits, expected.start_logits, atol=1e-4)
        assert not model.training
        again, _ = make_bert_base(tmp_path / "again", tiny_tokenizer, 128, PeerOptions())
        other, _ = make_bert_base(tmp_path / "other", tiny_tokenizer, 128, PeerOptions(seed=1))
        weights = [one.qa_outputs.weight for one in (model, again, other)]
        assert torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[0], weights[2])

    @pytest.mark.parametrize(("positions", "expected"), [(64, 512), (600, 600)])
    def test_every_window_fits(self, tmp_path, tiny_tokenizer, positions, expected):
        config = make_bert_base(tmp_path / "bert", tiny_tokenizer, positions, PeerOptions())[0].config
        assert config.max_position_embeddings == expected
        assert config.vocab_size == 30522 >= len(tiny_tokenizer)


def test_shape_is_that_of_bert_base():
    config = BertConfig()
    assert {name: getattr(config, name) for name in peers.BERT_BASE} == peers.BERT_BASE


def test_macs_are_those_of_full_length(tiny_model):
    window = Window(0, [1] * 20, None, 0, 5, 0, np.zeros((0, 2), dtype=np.int64))
    assert plain_macs(tiny_model.config, window) == tiny_model.config.macs(None, 20, 5)
    shallow = SimpleNamespace(num_hidden_layers=1, hidden_size=32, intermediate_size=64)
    by_hand = 20 * 32 + 4 * 20 * 32 * 32 + 2 * 20 * 20 * 32 + 2 * 20 * 32 + 2 * 20 * 32 * 64 + 2 * 20 * 32
    assert plain_macs(shallow, window) == by_hand


def test_no_calibration_samples_are_refused():
    with pytest.raises(ConfigurationError, match="calibration_samples 0 is less than 1"):
        PeerOptions(calibration_samples=0)


@pytest.mark.parametrize(
    ("make", "purpose"),
    [
        (lambda folder, tokenizer: export_plain("m", folder, tokenizer), "a plain model to compare with"),
        (
            lambda folder, tokenizer: make_bert_base(folder, tokenizer, 64, PeerOptions()),
            "the shape of BERT-base in OpenVINO",
        ),
    ],
)
def test_missing_extra_is_named(monkeypatch, tmp_path, tiny_tokenizer, make, purpose):
    monkeypatch.setattr("optimum_qala._compat._is_importable", lambda module: False)
    with pytest.raises(MissingExtraError, match=f"{purpose} needs "):
        make(tmp_path / "out", tiny_tokenizer)
