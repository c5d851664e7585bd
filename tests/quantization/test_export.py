"""The exported graph: its inputs, that it is dynamic, and that it holds the operations that make it fast."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from optimum_qala import OVQuaLAMiniLMForQuestionAnswering, QuaLAMiniLMForQuestionAnswering
from optimum_qala.errors import BackendError, ConfigurationError, LengthConfigError
from tests.conftest import tiny_config
from tests.inference.batches import distances, random_batch, random_retention


TOLERANCE = 1e-4
ROOT = Path(__file__).resolve().parents[2]


def make_model(**overrides) -> QuaLAMiniLMForQuestionAnswering:
    torch.manual_seed(0)
    return QuaLAMiniLMForQuestionAnswering(tiny_config(**({"num_hidden_layers": 2} | overrides))).eval()


@pytest.fixture(scope="module")
def exported(torch_model, tmp_path_factory):
    from optimum_qala.quantization.export import export_model

    folder = tmp_path_factory.mktemp("exported")
    export_model(torch_model, folder)
    return OVQuaLAMiniLMForQuestionAnswering.from_pretrained(folder)


def _shapes(tensors):
    return {tensor.get_any_name(): str(tensor.get_partial_shape()) for tensor in tensors}


def test_graph_has_retention_and_dynamic_shapes(exported):
    batch = "[?,?]"
    assert _shapes(exported.model.inputs) == {
        "input_ids": batch,
        "attention_mask": batch,
        "token_type_ids": batch,
        "retention": "[2]",
        "sizes": "[3]",
    }
    assert list(_shapes(exported.model.outputs)) == ["start_logits", "end_logits"]


def test_attention_is_fused(exported):
    exported.compile()
    kinds = Counter(operation.get_type_name() for operation in exported.model.get_ops())
    assert kinds["ScaledDotProductAttention"] == 2
    executed = Counter(
        operation.get_rt_info()["layerType"].astype(str)
        for operation in exported.request.get_runtime_model().get_ops()
    )
    # Attention, and the scores of the question's rows, run inside fused subgraphs: no product of activations is left.
    assert executed["MatMul"] == 0
    assert executed["Subgraph"] >= 2 + 2


@pytest.fixture(scope="module")
def exported_answer():
    return OVQuaLAMiniLMForQuestionAnswering.from_model(make_model(token_scoring="answer", num_hidden_layers=3))


def test_attention_is_fused_in_every_layer_where_tokens_leave_before_it(exported_answer):
    exported_answer.compile()
    kinds = Counter(operation.get_type_name() for operation in exported_answer.model.get_ops())
    assert kinds["ScaledDotProductAttention"] == 3
    assert kinds["Softmax"] == 0
    executed = Counter(
        operation.get_rt_info()["layerType"].astype(str)
        for operation in exported_answer.request.get_runtime_model().get_ops()
    )
    assert executed["MatMul"] == 0
    assert executed["Softmax"] == 0


def test_graph_has_two_outputs_for_every_exit(exported_answer):
    names = ["start_logits", "end_logits", "start_logits_1", "end_logits_1", "start_logits_2", "end_logits_2"]
    assert _shapes(exported_answer.model.outputs) == dict.fromkeys(names, "[?,?]")
    assert list(_shapes(exported_answer.model.outputs)) == names
    assert _shapes(exported_answer.model.inputs)["sizes"] == "[4]"


@pytest.mark.parametrize("fixture", ["exported", "exported_answer"])
def test_hidden_states_are_gathered_by_row_and_never_scattered(fixture, request):
    """An index as wide as the hidden states, or a scatter of them, would cost more than dropping saves."""
    for operation in request.getfixturevalue(fixture).model.get_ops():
        shape = operation.get_output_partial_shape(0)
        if operation.get_type_name() == "ScatterElementsUpdate":
            assert shape[2].get_length() == 2  # the logits
        if operation.get_type_name() == "GatherElements":
            assert shape.rank.get_length() == 2


@pytest.mark.parametrize(
    "overrides",
    [
        {"token_scoring": "attention", "protected_tokens": "cls", "score_pooling": 0},
        {"position_scheme": "roberta", "type_vocab_size": 1, "pad_token_id": 1},
        {"drop_layers": [1], "min_tokens": 6},
        {"token_scoring": "answer", "protected_tokens": "cls", "score_pooling": 0},
    ],
    ids=["attention", "roberta", "one-layer", "answer"],
)
def test_variants_equal_torch(overrides):
    """At most one row in a hundred may differ, where two scores differ by less than rounding."""
    model = make_model(**overrides)
    exported = OVQuaLAMiniLMForQuestionAnswering.from_model(model)
    rows = []
    for seed in range(20):
        batch = random_batch(seed, 1 + seed % 3, 12 + 9 * (seed % 6))
        if "pad_token_id" in overrides:
            batch["input_ids"][batch["attention_mask"] == 0] = 1
            del batch["token_type_ids"]
        budget = random_retention(seed, 2)
        if "drop_layers" in overrides:
            budget[0] = 1.0
        with torch.no_grad():
            expected = model(**batch, budget=budget)
        rows.append(distances(exported(**batch, budget=budget), expected, batch["attention_mask"]))
    assert (torch.cat(rows) > TOLERANCE).float().mean() <= 0.01
    assert ("token_type_ids" in exported.input_names) == (model.config.type_vocab_size > 1)


def test_eager_half_precision_model_is_exported_fused_in_float32(torch_model):
    model = copy.deepcopy(torch_model).half()
    model.set_attn_implementation("eager")
    exported = OVQuaLAMiniLMForQuestionAnswering.from_model(model)
    kinds = Counter(operation.get_type_name() for operation in exported.model.get_ops())
    assert kinds["ScaledDotProductAttention"] == 2
    batch = random_batch(1, 2, 30, vocab_size=100)
    with torch.no_grad():
        expected = copy.deepcopy(torch_model)(**batch)
    assert distances(exported(**batch), expected, batch["attention_mask"]).max() < 0.1
    assert model.dtype == torch.float16
    assert model.config._attn_implementation == "eager"


class TestDropLayers:
    def test_graph_and_config_are_narrowed(self, tmp_path):
        from optimum_qala.quantization.export import export_model

        model = make_model(num_hidden_layers=3, budgets={"late": {"retention": [1, 0.5, 0.4]}})
        config = export_model(model, tmp_path, drop_layers=[2, 1])
        assert config.drop_layers == [1, 2]
        assert model.config.drop_layers is None
        exported = OVQuaLAMiniLMForQuestionAnswering.from_pretrained(tmp_path)
        assert _shapes(exported.model.inputs)["retention"] == "[2]"
        batch = random_batch(2, 2, 40)
        with torch.no_grad():
            expected = model(**batch, budget="late")
        assert distances(exported(**batch, budget="late"), expected, batch["attention_mask"]).max() < TOLERANCE

    def test_layer_that_may_not_drop_is_refused(self, tmp_path):
        from optimum_qala.quantization.export import export_model

        with pytest.raises(ConfigurationError, match=r"layer 0 may not drop tokens; this model drops in layers \[1\]"):
            export_model(make_model(drop_layers=[1]), tmp_path, drop_layers=[0, 1])

    def test_budget_that_no_longer_fits_is_refused(self, tmp_path):
        from optimum_qala.quantization.export import export_model

        model = make_model(budgets={"early": {"retention": [0.5, 0.5]}})
        with pytest.raises(LengthConfigError, match="drops tokens in layer 0"):
            export_model(model, tmp_path, drop_layers=[1])

    def test_model_that_drops_nowhere_is_refused(self, tmp_path):
        from optimum_qala.quantization.export import export_model

        with pytest.raises(BackendError, match=r"drop_layers is \[\]"):
            export_model(make_model(drop_layers=[]), tmp_path)


@pytest.mark.slow
def test_command_of_optimum_exports_the_same_graph(torch_model, exported, tmp_path):
    torch_model.save_pretrained(tmp_path / "torch")
    command = ["-m", "optimum.commands.optimum_cli", "export", "openvino", "--task", "question-answering"]
    path = os.pathsep.join([str(ROOT), str(ROOT / "optimum_qala" / "_namespace")])
    finished = subprocess.run(
        [sys.executable, *command, "--model", str(tmp_path / "torch"), str(tmp_path / "exported")],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    loaded = OVQuaLAMiniLMForQuestionAnswering.from_pretrained(tmp_path / "exported", export=False)
    batch = random_batch(3, 2, 30, vocab_size=100)
    actual, expected = (model(**batch, budget="fast").start_logits for model in (loaded, exported))
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    assert loaded.config.budgets["late"] == {"retention": [1.0, 0.5]}


def test_command_of_optimum_learns_the_model_first(monkeypatch):
    """Importing our commands, as every start of `optimum-cli` does, is enough."""
    import optimum.commands.register.register_qala  # noqa: F401
    from optimum.commands.export.openvino import OVExportCommand

    registered = []
    monkeypatch.setattr("optimum_qala.quantization.export.register_export", lambda: registered.append("quala"))
    with pytest.raises(AttributeError, match="args"):  # what upstream reads first
        OVExportCommand.run(SimpleNamespace())
    assert registered == ["quala"]


def test_registering_the_export_twice_changes_nothing():
    from optimum.exporters.openvino import convert
    from optimum.exporters.tasks import TasksManager

    from optimum_qala.quantization.export import QuaLAMiniLMOpenVINOConfig, register_export

    register_export()
    once = convert._infer_library_from_model_or_model_class
    register_export()
    assert convert._infer_library_from_model_or_model_class is once
    assert once(make_model()) == "transformers"
    tasks = TasksManager.get_supported_tasks_for_model_type("quala_minilm", "openvino", library_name="transformers")
    assert tasks["question-answering"].func is QuaLAMiniLMOpenVINOConfig
    assert "openvino" in TasksManager._SUPPORTED_MODEL_TYPE["bert"]


def test_export_says_nothing_about_tracing(torch_model, tmp_path):
    """In a new process: warnings of transformers come once."""
    torch_model.save_pretrained(tmp_path / "torch")
    code = (
        "from optimum_qala import QuaLAMiniLMForQuestionAnswering; "
        "from optimum_qala.quantization.export import export_model; "
        f"model = QuaLAMiniLMForQuestionAnswering.from_pretrained({str(tmp_path / 'torch')!r}); "
        f"export_model(model, {str(tmp_path / 'graph')!r})"
    )
    path = os.pathsep.join([str(ROOT), str(ROOT / "optimum_qala" / "_namespace")])
    finished = subprocess.run(
        [sys.executable, "-W", "always::DeprecationWarning:torch", "-c", code],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert "jit.trace" not in finished.stderr
    assert "loss_type" not in finished.stderr
