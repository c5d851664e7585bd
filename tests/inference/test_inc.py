"""The int8 model of Intel Neural Compressor: any shape, any budget, from its files alone."""

from __future__ import annotations

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from optimum_qala import BucketOptions, INCQuaLAMiniLMForQuestionAnswering
from optimum_qala._compat import is_available
from optimum_qala.errors import (
    BackendError,
    CheckpointError,
    ConfigurationError,
    LengthConfigError,
    UnknownBudgetError,
)
from optimum_qala.inference import inc, inc_programs, int8_kernels
from optimum_qala.inference.grouping import real_lengths
from optimum_qala.inference.inc_graph import cut_graph
from optimum_qala.models.budget_choice import cpu_name
from tests.inc_models import quantize_tiny
from tests.inference.batches import assert_odd_shapes_are_refused, assert_threads_agree, distances, random_batch


pytestmark = [
    pytest.mark.skipif(not is_available("neural-compressor"), reason="needs the extra neural-compressor"),
    pytest.mark.timeout(600),
]

BUDGETS = {
    "fast": {"retention": [1.0, 0.5, 0.4], "f1": 80.0},
    "late": {"retention": [1.0, 1.0, 0.5], "f1": 90.0},
    "shallow": {"retention": [1.0, 0.6, 0.6], "exit_layer": 2},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder of the quantized model, which `torch_model` fills; read only."""
    return tmp_path_factory.mktemp("inc") / "int8"


@pytest.fixture(scope="module", autouse=True)
def torch_model(tiny_tokenizer, folder):
    return quantize_tiny(folder, tiny_tokenizer, 3, BUDGETS)


@pytest.fixture
def model(folder):
    return INCQuaLAMiniLMForQuestionAnswering.from_pretrained(folder)


@pytest.fixture(scope="module")
def in_float(folder):
    """The same model without the int8 kernels, as it runs where torch has none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(int8_kernels, "has_kernels", lambda: False)
        model = INCQuaLAMiniLMForQuestionAnswering.from_pretrained(folder)
    assert model.num_int8_layers == 0
    return model


def batch_of(seed, batch_size, length, model):
    return random_batch(seed, batch_size, length, model.config.vocab_size)


@pytest.mark.parametrize(("batch_size", "length"), [(1, 16), (1, 128), (4, 40), (3, 96)])
@pytest.mark.parametrize("budget", ["full", *BUDGETS])
def test_any_shape_runs_at_any_budget(model, in_float, torch_model, batch_size, length, budget):
    batch = batch_of(1, batch_size, length, model)
    with torch.no_grad():
        expected = torch_model(**batch, budget=budget)
    output = model(**batch, budget=budget)
    assert output.start_logits.shape == (batch_size, length)
    is_real = batch["attention_mask"] > 0
    assert (output.start_logits - expected.start_logits)[is_real].abs().median() < 0.15
    rounded = in_float(**batch, budget=budget)
    assert (output.start_logits - rounded.start_logits)[is_real].abs().median() < 1e-3


def test_budget_changes_the_logits(model):
    batch = batch_of(2, 2, 64, model)
    by_call = {budget: model(**batch, budget=budget).start_logits for budget in ("full", *BUDGETS)}
    assert not torch.equal(by_call["full"], by_call["fast"])
    assert not torch.equal(by_call["full"], by_call["shallow"])
    for budget, logits in by_call.items():
        model.set_budget(budget)
        assert torch.equal(model(**batch).start_logits, logits)


def test_all_linear_layers_run_in_int8(model, torch_model):
    num_linear = sum(isinstance(module, torch.nn.Linear) for module in torch_model.modules())
    assert model.num_int8_layers == num_linear - 1, "nobody reads the span head before the first layer"
    assert not any("linear.default" in str(node.target) for node in model.programs.cut(None).graph.nodes)


def test_exit_runs_fewer_layers(model):
    for exit_layer in (None, 2, 1):
        targets = [str(node.target) for node in model.programs.cut(exit_layer).graph.nodes]
        attention = sum("scaled_dot_product_attention" in target for target in targets)
        assert attention == (exit_layer or model.config.num_hidden_layers)


def test_logits_do_not_depend_on_padding_or_batch_mates(model):
    batch = batch_of(3, 4, 60, model)
    together = model(**batch, budget="fast")
    for row in range(4):
        alone = model(**{name: values[row : row + 1] for name, values in batch.items()}, budget="fast")
        one = {name: values[row : row + 1] for name, values in batch.items()}
        expected = type(together)(
            start_logits=together.start_logits[row : row + 1], end_logits=together.end_logits[row : row + 1]
        )
        assert distances(alone, expected, one["attention_mask"]).max() < 1e-3


def test_padding_is_left_out(model, monkeypatch):
    widths = []
    monkeypatch.setattr(inc, "graph_inputs", lambda given, config: widths.append(given["input_ids"].shape[1]))
    batch = batch_of(4, 2, 40, model)
    padded = {name: torch.nn.functional.pad(values, (0, 30)) for name, values in batch.items()}
    with pytest.raises(AttributeError):
        model(**padded)
    assert widths == [40]


def test_arrays_give_arrays(model):
    batch = batch_of(5, 2, 30, model)
    tensors = model(**batch, budget="fast")
    arrays = model(**{name: values.numpy() for name, values in batch.items()}, budget="fast")
    assert isinstance(arrays.start_logits, np.ndarray)
    np.testing.assert_array_equal(arrays.end_logits, tensors.end_logits.numpy())


def test_mask_and_segments_have_defaults(model):
    ids = batch_of(6, 1, 20, model)["input_ids"]
    ones, zeros = torch.ones_like(ids), torch.zeros_like(ids)
    assert torch.equal(model(ids).start_logits, model(ids, ones, zeros).start_logits)


def test_threads_agree(model):
    calls = [(batch_of(seed, 1 + seed % 3, 20 + 7 * seed, model), list(BUDGETS)[seed % 3]) for seed in range(12)]
    assert_threads_agree(model, calls)


def test_threads_may_make_the_first_calls_at_different_exits(model, monkeypatch):
    made = []

    def cut_slowly(graph, outputs):
        made.append(outputs[0])
        time.sleep(0.05)  # long enough for every other thread to come
        return cut_graph(graph, outputs)

    monkeypatch.setattr(inc_programs, "cut_graph", cut_slowly)
    budgets = ["full", "shallow", "1,1,1@1"]
    calls = [(batch_of(seed, 1 + seed % 3, 20 + 3 * seed, model), budgets[seed % 3]) for seed in range(12)]

    def call(batch, budget):
        return model(**batch, budget=budget).start_logits

    with ThreadPoolExecutor(max_workers=6) as pool:
        results = list(pool.map(call, *zip(*calls, strict=True)))
    assert len(made) == len(set(made)) == 3, "made anew by another thread"
    for actual, arguments in zip(results, calls, strict=True):
        torch.testing.assert_close(actual, call(*arguments), atol=1e-5, rtol=1e-5)


def test_saved_model_is_the_same_however_often_it_is_saved(model, tmp_path):
    """Intel Neural Compressor's own `save` works once: it turns the settings into text in place."""
    batch = batch_of(7, 2, 40, model)
    expected = model(**batch, budget="fast").start_logits
    for name in ("first", "second"):
        model.save_pretrained(tmp_path / name)
    again = INCQuaLAMiniLMForQuestionAnswering.from_pretrained(tmp_path / "second")
    again.save_pretrained(tmp_path / "third")
    again.save_pretrained(tmp_path / "second")  # onto itself
    for name in ("first", "second", "third"):
        loaded = INCQuaLAMiniLMForQuestionAnswering.from_pretrained(tmp_path / name)
        assert torch.equal(loaded(**batch, budget="fast").start_logits, expected)
        assert loaded.quantization == model.quantization
    assert sorted(path.name for path in (tmp_path / "third").iterdir()) == [
        *("config.json", "inc_config.json", "inc_graph.json", "inc_weights.safetensors")
    ]


def test_saving_without_the_files_says_so(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "moved")
    model = INCQuaLAMiniLMForQuestionAnswering.from_pretrained(tmp_path / "moved")
    shutil.rmtree(tmp_path / "moved")
    with pytest.raises(CheckpointError, match="inc_graph.json, which the model was loaded from, is gone"):
        model.save_pretrained(tmp_path / "saved")


def test_mode_and_device_are_those_of_a_cpu_model(model):
    """Modules that Intel Neural Compressor loads refuse `.eval()`."""
    assert model.eval() is model
    assert model.to("cpu") is model
    assert not model.can_generate()
    with pytest.raises(BackendError, match="run on CPUs, not on cuda"):
        model.to("cuda")


def test_pipeline_answers(model, tiny_tokenizer):
    from transformers import pipeline

    qa = pipeline("question-answering", model=model, tokenizer=tiny_tokenizer)
    answer = qa(question="who wrote ?", context="anna wrote a red book in paris .", budget="fast")
    assert answer["answer"] in "anna wrote a red book in paris ."


class TestBudgets:
    def test_measured_latency_chooses(self, model):
        row = {"backend": "inc", "cpu": cpu_name(), "batch": 1, "padding": "longest"}
        for name, median in (("fast", 1.0), ("late", 3.0)):
            model.config.budgets[name]["latency_ms"] = [row | {"median": median}]
        model.set_budget(max_latency_ms=2.0)
        assert model.budget == model.config.resolve_budget("fast")
        model.set_budget(max_latency_ms=5.0)
        assert model.budget == model.config.resolve_budget("late")
        model.set_budget(None)
        assert model.budget is None

    @pytest.mark.parametrize(
        ("budget", "error", "message"),
        [
            ("slow", UnknownBudgetError, "no budget 'slow'"),
            ("1,1", LengthConfigError, "2"),
            ("0.5,0.5,0.5", LengthConfigError, "layer"),
        ],
    )
    def test_budget_that_does_not_fit_is_named(self, model, budget, error, message):
        with pytest.raises(error, match=message):
            model(torch.tensor([[2, 3]]), budget=budget)
        with pytest.raises(error, match=message):
            model.set_budget(budget)

    def test_latency_that_nobody_measured_is_named(self, model):
        with pytest.raises(UnknownBudgetError, match="latency measured for inc on"):
            model.set_budget(max_latency_ms=5.0)


class TestBuckets:
    @pytest.fixture
    def shapes(self, monkeypatch):
        """Batches that the programs of any model were given."""
        seen, choose = [], inc_programs.Programs.choose

        def record(programs, *arguments):
            program = choose(programs, *arguments)
            return lambda *inputs: seen.append(tuple(inputs[0].shape)) or program(*inputs)

        monkeypatch.setattr(inc_programs.Programs, "choose", record)
        return seen

    def load(self, folder, **options):
        return INCQuaLAMiniLMForQuestionAnswering.from_pretrained(folder, buckets=BucketOptions(**options))

    @pytest.mark.parametrize("budget", ["full", *BUDGETS])
    def test_rows_run_at_about_their_own_length(self, model, folder, shapes, budget):
        batch = batch_of(8, 7, 100, model)
        padded = {name: torch.nn.functional.pad(values, (0, 20)) for name, values in batch.items()}
        expected = model(**padded, budget=budget)
        assert shapes == [(7, 100)]
        shapes.clear()
        found = self.load(folder, length_multiple=16)(**padded, budget=budget)
        assert found.start_logits.shape == (7, 120)
        assert distances(found, expected, padded["attention_mask"]).max() < 1e-3
        lengths = real_lengths(batch["attention_mask"].numpy())
        groups = {}
        for length in lengths.tolist():
            groups.setdefault(-(-length // 16), []).append(length)
        assert shapes == [(len(rows), max(rows)) for _, rows in sorted(groups.items(), reverse=True)]
        assert len(shapes) > 2
        assert (found.end_logits[padded["attention_mask"] == 0] == -1e4).any()

    def test_options_make_the_groups(self, folder, shapes, model):
        batch = batch_of(9, 5, 60, model)
        full = {name: values[:1].expand(5, -1) for name, values in batch.items()}
        for options, expected in (
            ({}, [(5, 60)]),
            ({"batch_tokens": 128}, [(2, 60), (2, 60), (1, 60)]),
            ({"batch_tokens": 120}, [(1, 60)] * 5),
            ({"batch_tokens": 120, "length_multiple": 60}, [(2, 60), (2, 60), (1, 60)]),
        ):
            shapes.clear()
            self.load(folder, **options)(**full)
            assert shapes == expected
        with pytest.raises(ConfigurationError, match="60 tokens does not fit the longest bucket of 59"):
            self.load(folder, longest_bucket=59)(**full)

    def test_arrays_give_arrays(self, model, folder):
        batch = {name: values.numpy() for name, values in batch_of(5, 3, 40, model).items()}
        bucketed = INCQuaLAMiniLMForQuestionAnswering.from_pretrained(folder, buckets=True)
        assert bucketed.buckets == BucketOptions(longest_bucket=128)
        assert isinstance(bucketed(**batch).start_logits, np.ndarray)

    def test_calls_are_filled_by_tokens(self, model, folder):
        assert model.fill_batch([90, 88, 40]) == 3
        assert self.load(folder).fill_batch([90, 88, 40]) == 2

    def test_options_without_effect_are_refused(self, folder):
        with pytest.raises(ConfigurationError, match="^max_graphs 8 has no effect on a model of Intel Neural"):
            self.load(folder, max_graphs=8)
        with pytest.raises(ConfigurationError, match="buckets 32 are neither BucketOptions nor True or False"):
            INCQuaLAMiniLMForQuestionAnswering.from_pretrained(folder, buckets=32)


class TestBadInputs:
    def test_sequence_beyond_the_positions(self, model):
        with pytest.raises(ConfigurationError, match="a sequence of 129 tokens exceeds the 128 positions"):
            model(torch.ones(1, 129, dtype=torch.int64))

    @pytest.mark.parametrize("token", [-1, 10_000])
    def test_token_outside_the_vocabulary(self, model, token):
        with pytest.raises(CheckpointError, match=f"input_ids go from .*{token}"):
            model(torch.tensor([[2, token, 3]]))

    def test_odd_shapes(self, model):
        assert_odd_shapes_are_refused(model)


class TestLoading:
    @pytest.fixture
    def copy(self, folder, tmp_path):
        shutil.copytree(folder, tmp_path / "copy")
        return tmp_path / "copy"

    def test_sub_folder_for_the_back_end_is_found(self, model, copy, tmp_path):
        (tmp_path / "all").mkdir()
        copy.rename(tmp_path / "all" / "inc")
        nested = INCQuaLAMiniLMForQuestionAnswering.from_pretrained(tmp_path / "all")
        batch = batch_of(0, 2, 20, model)
        torch.testing.assert_close(nested(**batch).start_logits, model(**batch).start_logits)
        with pytest.raises(BackendError, match="all holds no inc_graph.json"):
            INCQuaLAMiniLMForQuestionAnswering.from_pretrained(tmp_path / "all", subfolder="")

    @pytest.mark.parametrize("name", ["inc_weights.safetensors", "inc_config.json"])
    def test_missing_file_is_named(self, copy, name):
        (copy / name).unlink()
        with pytest.raises(CheckpointError, match=f"holds inc_graph.json without {name}"):
            INCQuaLAMiniLMForQuestionAnswering.from_pretrained(copy)

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("openvino_model.xml", "a model for OpenVINO, .* load it with OVQuaLAMiniLMForQuestionAnswering"),
            ("quantized_weight.pt", "which Intel Neural Compressor itself saved, .* loading it could run code"),
            ("model.safetensors", "holds no inc_graph.json; quantize the torch checkpoint with INCQuaLAQuantizer"),
        ],
    )
    def test_model_of_another_kind_is_refused(self, tmp_path, name, message):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(BackendError, match=message):
            INCQuaLAMiniLMForQuestionAnswering.from_pretrained(tmp_path)

    def test_openvino_refuses_this_one(self, folder):
        if not is_available("openvino"):
            pytest.skip("needs the extra openvino")
        from optimum_qala import OVQuaLAMiniLMForQuestionAnswering

        with pytest.raises(BackendError, match="holds no openvino_model.xml"):
            OVQuaLAMiniLMForQuestionAnswering.from_pretrained(folder, export=False)

    @pytest.mark.parametrize("field", ["drop_layers", "span_heads"])
    def test_configuration_of_another_quantization_is_refused(self, copy, field):
        content = json.loads((copy / "config.json").read_text())
        content |= {"drop_layers": [2], "budgets": {}} if field == "drop_layers" else {"num_hidden_layers": 4}
        if field == "span_heads":
            content["budgets"] = {}
        (copy / "config.json").write_text(json.dumps(content))
        with pytest.raises(BackendError, match="inc_graph.json and config.json are not of the same quantization"):
            INCQuaLAMiniLMForQuestionAnswering.from_pretrained(copy)

    def test_configuration_of_a_plain_model_is_refused(self, copy):
        (copy / "config.json").write_text(json.dumps({"model_type": "bert"}))
        with pytest.raises(BackendError, match="config.json describes a 'bert' model, not a 'quala_minilm'"):
            INCQuaLAMiniLMForQuestionAnswering.from_pretrained(copy)

    def test_damage_under_another_torch_names_both_versions(self, copy):
        (copy / "inc_graph.json").write_text("{")
        record = json.loads((copy / "inc_config.json").read_text())
        record["versions"]["torch"] = "9.9.0"
        (copy / "inc_config.json").write_text(json.dumps(record))
        with pytest.raises(CheckpointError, match=f"torch 9.9.0 made it, and this is torch {torch.__version__[:4]}"):
            INCQuaLAMiniLMForQuestionAnswering.from_pretrained(copy)

    def test_unknown_argument_is_named(self, folder):
        with pytest.raises(ConfigurationError, match="from_pretrained has no argument 'export'"):
            INCQuaLAMiniLMForQuestionAnswering.from_pretrained(folder, export=True)

    def test_extra_is_not_needed_to_run(self, folder, monkeypatch):
        monkeypatch.setattr("optimum_qala._compat._is_importable", lambda module: False)
        assert INCQuaLAMiniLMForQuestionAnswering.from_pretrained(folder).num_int8_layers

    def test_cpu_without_vnni_is_warned_of(self, folder, monkeypatch):
        messages = []
        monkeypatch.setattr(inc.logger, "warning", messages.append)
        monkeypatch.setattr(inc, "has_safe_int8", lambda flags: False)
        INCQuaLAMiniLMForQuestionAnswering.from_pretrained(folder)
        assert "no VNNI, so sums of int8 products may overflow" in messages[0]
        monkeypatch.setattr(inc, "has_kernels", lambda: False)
        INCQuaLAMiniLMForQuestionAnswering.from_pretrained(folder)
        assert "has no int8 kernels for this CPU" in messages[1]
