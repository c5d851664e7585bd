"""The OpenVINO model against the torch model that it was exported from."""

from __future__ import annotations

import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForQuestionAnswering, BertModel

from optimum_qala import (
    LengthConfig,
    OVQuaLAConfig,
    OVQuaLAMiniLMForQuestionAnswering,
    QuaLAMiniLMConfig,
    QuaLAMiniLMForQuestionAnswering,
    _compat,
)
from optimum_qala.errors import (
    BackendError,
    CheckpointError,
    ConfigurationError,
    LengthConfigError,
    MissingExtraError,
    UnknownBudgetError,
)
from optimum_qala.models.budget_choice import cpu_name
from optimum_qala.question_answering.predictor import evaluate
from optimum_qala.question_answering.records import QARecord
from optimum_qala.question_answering.windows import WindowOptions
from tests.conftest import tiny_config
from tests.inference.batches import (
    assert_odd_shapes_are_refused,
    assert_threads_agree,
    distances,
    random_batch,
    random_retention,
)


TOLERANCE = 1e-4


def test_logits_equal_torch_for_every_shape_and_budget(model, torch_model):
    """The graph is traced with one example, so nothing of that example may be left in it.

    One row in a hundred may differ: two tokens whose scores differ by less than rounding may swap places.
    """
    rows = []
    for seed in range(40):
        batch = random_batch(seed, batch_size=1 + seed % 4, sequence_length=12 + 7 * (seed % 9))
        budget = None if seed % 5 == 0 else random_retention(seed, 4)
        with torch.no_grad():
            expected = torch_model(**batch, budget=budget)
        rows.append(distances(model(**batch, budget=budget), expected, batch["attention_mask"]))
    different = (torch.cat(rows) > TOLERANCE).float().mean()
    assert different <= 0.01


def test_full_budget_gives_full_length_logits(model, torch_model):
    batch = random_batch(1, 3, 40)
    with torch.no_grad():
        expected = torch_model(**batch)
    for budget in (None, "full", [1.0] * 4):
        assert distances(model(**batch, budget=budget), expected, batch["attention_mask"]).max() < TOLERANCE


@pytest.mark.parametrize("budget", ["full", "fast", "faster"])
def test_logits_do_not_depend_on_batch_and_padding(model, budget):
    batch = random_batch(3, 4, 60)
    together = model(**batch, budget=budget)
    for row, length in enumerate(batch["attention_mask"].sum(dim=1).tolist()):
        alone = model(**{name: tensor[row : row + 1, :length] for name, tensor in batch.items()}, budget=budget)
        torch.testing.assert_close(alone.start_logits[0], together.start_logits[row, :length], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(alone.end_logits[0], together.end_logits[row, :length], atol=1e-4, rtol=1e-4)


def test_set_budget_by_what_was_measured(model, monkeypatch):
    conditions = {"backend": "openvino", "cpu": cpu_name(), "batch": 1, "precision": "f32"}
    rows = [conditions | {"threads": model.threads, "median": 4.0}, conditions | {"threads": 99, "median": 1.0}]
    fast = {"retention": [1.0, 0.5, 0.5, 0.5], "f1": 70.0, "latency_ms": rows}
    slow = {"retention": [1.0] * 4, "f1": 80.0, "latency_ms": [conditions | {"threads": model.threads, "median": 8.0}]}
    monkeypatch.setattr(model.config, "budgets", {"full": slow, "fast": fast})
    monkeypatch.setattr(model, "_budget", None)
    model.set_budget(max_latency_ms=5)
    assert model.budget == model.config.resolve_budget("fast")
    model.set_budget(max_latency_ms=8)
    assert model.budget is None
    model.set_budget(max_f1_loss=0.2)
    assert model.budget == model.config.resolve_budget("fast")
    with pytest.raises(UnknownBudgetError, match="at most 2 ms on openvino and .*; measured are fast 4 ms, full 8 ms"):
        model.set_budget(max_latency_ms=2)
    with pytest.raises(ConfigurationError, match="give only one of budget and max_f1_loss"):
        model.set_budget("fast", max_f1_loss=0.2)


def test_budget_of_the_call_wins_over_set_budget(model):
    batch = random_batch(4, 2, 50)
    results = {budget: model(**batch, budget=budget).start_logits for budget in ("full", "fast", "faster")}
    assert not torch.equal(results["full"], results["fast"])
    model.set_budget("fast")
    assert model.budget == LengthConfig((1.0, 0.6, 0.6, 0.3))
    torch.testing.assert_close(model(**batch).start_logits, results["fast"])
    torch.testing.assert_close(model(**batch, budget="faster").start_logits, results["faster"])
    torch.testing.assert_close(model(**batch, budget="full").start_logits, results["full"])
    model.set_budget(None)
    assert model.budget is None
    torch.testing.assert_close(model(**batch).start_logits, results["full"])


def test_unknown_budget_is_refused(model):
    with pytest.raises(UnknownBudgetError, match="no budget 'slow'"):
        model(**random_batch(0, 1, 20), budget="slow")
    with pytest.raises(LengthConfigError, match="has 2 ratios, but the model has 4 layers"):
        model.set_budget("1,0.5")


def test_numpy_in_gives_numpy_out(model):
    batch = random_batch(5, 2, 30)
    expected = model(**batch, budget="fast")
    arrays = model(**{name: tensor.numpy() for name, tensor in batch.items()}, budget="fast")
    assert isinstance(arrays.start_logits, np.ndarray)
    np.testing.assert_array_equal(arrays.end_logits, expected.end_logits.numpy())


def test_missing_inputs_have_the_defaults_of_torch(model, torch_model):
    ids = random_batch(6, 1, 25)["input_ids"]
    with torch.no_grad():
        expected = torch_model(ids)
    torch.testing.assert_close(model(ids).start_logits, expected.start_logits, atol=TOLERANCE, rtol=TOLERANCE)
    segments = torch.ones_like(ids)
    assert not torch.allclose(model(ids, token_type_ids=segments).start_logits, expected.start_logits, atol=1e-2)


def test_result_outlives_the_next_call(model):
    """An infer request reuses its buffers, so results must be copies."""
    first = model(**random_batch(7, 2, 30)).start_logits
    kept = first.clone()
    model(**random_batch(8, 2, 30))
    torch.testing.assert_close(first, kept, atol=0, rtol=0)


def test_threads_with_different_budgets_do_not_disturb_each_other(model):
    budgets = ["full", "fast", "faster", "1,1,0.5,0.5"]
    calls = [(random_batch(seed, 1 + seed % 3, 20 + seed), budgets[seed % 4]) for seed in range(48)]
    assert_threads_agree(model, calls)


def test_threads_may_make_the_first_call(exported):
    model = OVQuaLAMiniLMForQuestionAnswering.from_pretrained(exported)
    batch = random_batch(9, 1, 20)
    with ThreadPoolExecutor(max_workers=4) as pool:
        results = list(pool.map(lambda _: model(**batch).start_logits, range(4)))
    assert all(torch.equal(result, results[0]) for result in results)


def test_graph_is_compiled_by_the_first_call(exported):
    model = OVQuaLAMiniLMForQuestionAnswering.from_pretrained(exported)
    assert model.request is None
    model(**random_batch(0, 1, 20))
    assert model.request is not None
    assert OVQuaLAMiniLMForQuestionAnswering.from_pretrained(exported, compile=True).request is not None


def test_reshape_leaves_retention_alone(model):
    batch = random_batch(10, 1, 32)
    expected = model(**batch, budget="fast").start_logits
    model.reshape(1, 32)
    shapes = {tensor.get_any_name(): str(tensor.get_partial_shape()) for tensor in model.model.inputs}
    assert shapes["input_ids"] == "[1,32]"
    assert shapes["retention"] == "[4]"
    torch.testing.assert_close(model(**batch, budget="fast").start_logits, expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_saved_model_answers_as_the_original(model, tmp_path):
    batch = random_batch(11, 3, 40)
    expected = model(**batch, budget="faster").start_logits
    model.quantization = OVQuaLAConfig(num_samples=7)
    model.save_pretrained(tmp_path / "saved")
    del model
    loaded = OVQuaLAMiniLMForQuestionAnswering.from_pretrained(tmp_path / "saved", export=False)
    assert isinstance(loaded.config, QuaLAMiniLMConfig)
    assert loaded.config.budgets["faster"]["retention"] == [0.5, 0.4, 0.3, 0.2]
    assert loaded.quantization.num_samples == 7
    torch.testing.assert_close(loaded(**batch, budget="faster").start_logits, expected, atol=0, rtol=0)


def test_saving_over_the_loaded_files_keeps_the_model_usable(exported, tmp_path):
    """OpenVINO maps the weights from the file, so the file must not be written over."""
    folder = tmp_path / "model"
    shutil.copytree(exported, folder)
    batch = random_batch(12, 1, 30)
    model = OVQuaLAMiniLMForQuestionAnswering.from_pretrained(folder)
    model.save_pretrained(folder)
    expected = model(**batch).start_logits
    again = OVQuaLAMiniLMForQuestionAnswering.from_pretrained(folder, export=False)
    torch.testing.assert_close(again(**batch).start_logits, expected, atol=0, rtol=0)
    assert {file.name for file in folder.iterdir()} == {"config.json", "openvino_model.bin", "openvino_model.xml"}


def test_export_none_prefers_the_exported_model(exported, torch_folder, tmp_path):
    folder = tmp_path / "both"
    shutil.copytree(exported, folder)
    shutil.copy(torch_folder / "model.safetensors", folder)
    assert OVQuaLAMiniLMForQuestionAnswering.from_pretrained(folder).model_save_dir == folder
    exported_anew = OVQuaLAMiniLMForQuestionAnswering.from_pretrained(folder, export=True, min_tokens=5)
    assert exported_anew.config.min_tokens == 5


def test_export_none_exports_a_torch_checkpoint_and_says_so(torch_folder, torch_model, monkeypatch):
    module = sys.modules[OVQuaLAMiniLMForQuestionAnswering.__module__]
    messages = []
    monkeypatch.setattr(module.logger, "warning", messages.append)
    model = OVQuaLAMiniLMForQuestionAnswering.from_pretrained(str(torch_folder))
    assert "holds no openvino_model.xml: exporting its torch checkpoint" in messages[0]
    batch = random_batch(13, 2, 30)
    with torch.no_grad():
        expected = torch_model(**batch, budget="fast")
    assert distances(model(**batch, budget="fast"), expected, batch["attention_mask"]).max() < TOLERANCE


def test_export_false_refuses_a_torch_checkpoint(torch_folder):
    with pytest.raises(BackendError, match=r"holds no openvino_model\.xml; pass export=True"):
        OVQuaLAMiniLMForQuestionAnswering.from_pretrained(torch_folder, export=False)


def test_plain_bert_checkpoint_is_converted(tmp_path):
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    bert = BertForQuestionAnswering(BertConfig(vocab_size=200, max_position_embeddings=64, **sizes)).eval()
    bert.save_pretrained(tmp_path)
    model = OVQuaLAMiniLMForQuestionAnswering.from_pretrained(tmp_path, export=True, sep_token_id=3)
    batch = random_batch(14, 2, 30)
    with torch.no_grad():
        expected = bert(**batch)
    assert distances(model(**batch), expected, batch["attention_mask"]).max() < TOLERANCE


def test_checkpoint_without_span_head_is_refused(tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=200, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=f"{tmp_path.name} has no trained span head"):
        OVQuaLAMiniLMForQuestionAnswering.from_pretrained(tmp_path, export=True, sep_token_id=3)


def test_exported_model_takes_no_overrides(exported):
    with pytest.raises(ConfigurationError, match=r"\['drop_layers'\] cannot change .* exported already"):
        OVQuaLAMiniLMForQuestionAnswering.from_pretrained(exported, drop_layers=[1])


def test_missing_weights_are_named(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "model")
    (tmp_path / "model" / "openvino_model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"openvino_model\.xml without its \.bin file"):
        OVQuaLAMiniLMForQuestionAnswering.from_pretrained(tmp_path / "model")


def test_damaged_graph_is_named(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "model")
    (tmp_path / "model" / "openvino_model.xml").write_text("<net", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"openvino_model\.xml is damaged or from a newer OpenVINO"):
        OVQuaLAMiniLMForQuestionAnswering.from_pretrained(tmp_path / "model")


def _plain_graph():
    import openvino
    from openvino import opset13 as ops

    ids = ops.parameter([-1, -1], np.int64, name="input_ids")
    ids.output(0).set_names({"input_ids"})
    logits = ops.convert(ids, np.float32)
    logits.output(0).set_names({"start_logits"})
    return openvino.Model([logits], [ids])


def test_graph_without_retention_is_refused(tmp_path):
    import openvino

    openvino.save_model(_plain_graph(), tmp_path / "openvino_model.xml")
    tiny_config().save_pretrained(tmp_path)
    with pytest.raises(BackendError, match=r"\['input_ids'\] but no 'retention'.*export=True"):
        OVQuaLAMiniLMForQuestionAnswering.from_pretrained(tmp_path)


def test_graph_of_another_model_kind_is_refused():
    with pytest.raises(BackendError, match="describes a 'bert' model"):
        OVQuaLAMiniLMForQuestionAnswering(_plain_graph(), BertConfig())


def test_config_of_another_export_is_refused(model):
    with pytest.raises(BackendError, match=r"takes \[4\] retention ratios, but config.json lets 2 layers drop"):
        OVQuaLAMiniLMForQuestionAnswering(model.model, tiny_config(drop_layers=[1, 3]))


def test_sequence_longer_than_the_model_is_refused(model):
    with pytest.raises(ConfigurationError, match="129 tokens exceeds the 128 positions"):
        model(torch.zeros(1, 129, dtype=torch.int64))


@pytest.mark.parametrize(("token", "span"), [(200, "from 0 to 200"), (-1, "from -1 to 0")])
def test_token_outside_the_vocabulary_is_refused(model, token, span):
    """OpenVINO would read it as zeros, without an error."""
    with pytest.raises(CheckpointError, match=f"{span}, but the model embeds tokens 0 to 199"):
        model(torch.tensor([[0, token]]))


@pytest.mark.parametrize("buckets", [False, True])
def test_odd_shapes_are_refused(exported, buckets):
    assert_odd_shapes_are_refused(OVQuaLAMiniLMForQuestionAnswering.from_pretrained(exported, buckets=buckets))


class TestPrecision:
    def test_default_is_f32(self, model):
        assert model.precision == "f32"
        model.compile()
        assert model.precision == "f32"

    def test_bf16_is_used_and_reported(self, exported):
        from optimum.intel.openvino.modeling_base import core

        if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            pytest.skip("this CPU has no bf16")
        batch = random_batch(15, 1, 30)
        exact = OVQuaLAMiniLMForQuestionAnswering.from_pretrained(exported)(**batch).start_logits
        model = OVQuaLAMiniLMForQuestionAnswering.from_pretrained(exported, precision="bf16")
        rough = model(**batch).start_logits
        assert model.precision == "bf16"
        assert not torch.equal(rough, exact)
        torch.testing.assert_close(rough, exact, atol=0.3, rtol=0.1)

    def test_ov_config_may_name_it(self, exported):
        model = OVQuaLAMiniLMForQuestionAnswering.from_pretrained(
            exported, ov_config={"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
        )
        model.compile()
        assert model.precision == "f32"
        assert model.request.get_property("INFERENCE_NUM_THREADS") == 1

    def test_contradiction_is_refused(self, exported):
        with pytest.raises(ConfigurationError, match="precision 'bf16' contradicts INFERENCE_PRECISION_HINT 'f32'"):
            OVQuaLAMiniLMForQuestionAnswering.from_pretrained(
                exported, precision="bf16", ov_config={"INFERENCE_PRECISION_HINT": "f32"}
            )

    def test_unknown_precision_is_refused(self, exported):
        with pytest.raises(ConfigurationError, match=r"precision 'f64' is not one of \['f32', 'bf16'\]"):
            OVQuaLAMiniLMForQuestionAnswering.from_pretrained(exported, precision="f64")

    def test_cpu_without_bf16_is_named(self, exported, monkeypatch):
        from optimum_qala.inference import graph

        class Core:
            @staticmethod
            def get_property(*_):
                return ["FP32", "INT8"]

        monkeypatch.setattr(graph, "_core", Core)
        with pytest.raises(BackendError, match=r"no bf16 \(OpenVINO reports FP32, INT8\)"):
            graph.choose_precision("bf16", None)


def test_int8_model_of_a_cpu_with_vnni_warns_on_one_without(exported, tmp_path, monkeypatch):
    from optimum_qala.quantization import cpu

    module = sys.modules[OVQuaLAMiniLMForQuestionAnswering.__module__]
    messages = []
    monkeypatch.setattr(module.logger, "warning", messages.append)
    shutil.copytree(exported, tmp_path / "model")
    OVQuaLAConfig(applied={"overflow_fix": "disable"}).save_pretrained(tmp_path / "model")
    monkeypatch.setattr(cpu, "read_cpu_flags", lambda: {"x86_64": True, "avx512_vnni": True})
    OVQuaLAMiniLMForQuestionAnswering.from_pretrained(tmp_path / "model")
    assert messages == []
    monkeypatch.setattr(cpu, "read_cpu_flags", lambda: {"x86_64": True, "avx2": True})
    OVQuaLAMiniLMForQuestionAnswering.from_pretrained(tmp_path / "model")
    assert "no VNNI and the model was quantized with overflow_fix 'disable'" in messages[0]


def test_predictor_runs_the_model_at_a_budget(exported, tiny_tokenizer):
    torch.manual_seed(0)
    config = tiny_config(vocab_size=len(tiny_tokenizer))
    model = OVQuaLAMiniLMForQuestionAnswering.from_model(QuaLAMiniLMForQuestionAnswering(config).eval())
    context = "anna lived in the old tower of london . maria wrote a book in paris ."
    records = [QARecord("1", "who wrote a book ?", context, ("maria",), (context.index("maria"),))]
    scores = evaluate(
        model, tiny_tokenizer, records, budget="1,0.5,0.5,0.5", window_options=WindowOptions.for_max_length(64)
    )
    assert scores["num_questions"] == 1


def test_missing_extra_names_the_command(monkeypatch):
    monkeypatch.setattr(_compat, "_is_importable", lambda module: module != "nncf")
    monkeypatch.delitem(sys.modules, "optimum_qala.inference.openvino")
    with pytest.raises(MissingExtraError, match=r'needs nncf.*pip install "optimum-qala\[openvino\]"'):
        import_module("optimum_qala.inference.openvino")


def test_from_model_leaves_the_torch_model_alone(torch_model):
    before = torch_model.config.to_dict()
    torch_model.train()
    OVQuaLAMiniLMForQuestionAnswering.from_model(torch_model)
    assert torch_model.training
    torch_model.eval()
    assert torch_model.config.to_dict() == before
