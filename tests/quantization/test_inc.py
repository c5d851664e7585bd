"""Quantization with Intel Neural Compressor: real int8, every option, and the traps of its own flow."""

from __future__ import annotations

import copy
import json
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from optimum_qala import INCQuaLAConfig, INCQuaLAMiniLMForQuestionAnswering, INCQuaLAQuantizer, OVQuaLAConfig
from optimum_qala._compat import is_available
from optimum_qala.errors import (
    AccuracyError,
    BackendError,
    CheckpointError,
    ConfigurationError,
    DataError,
    MissingExtraError,
    OutputExistsError,
)
from optimum_qala.quantization import inc
from optimum_qala.quantization.calibration import calibration_samples
from optimum_qala.quantization.inc_export import export_graph, graph_inputs
from tests.conftest import tiny_config
from tests.models.batches import make_batch
from tests.quantization.conftest import BUDGETS, WINDOWS, model_with_biases


RATIOS = "1,0.7"  # a budget without a name

pytestmark = [
    pytest.mark.skipif(not is_available("neural-compressor"), reason="needs the extra neural-compressor"),
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module")
def exported(torch_model):
    """The graph of the model, which every quantization of this file starts from; read only."""
    return export_graph(torch_model, torch_model.config)


@pytest.fixture(scope="module")
def samples(torch_model, tiny_tokenizer, records):
    budgets = [torch_model.config.resolve_budget(name) for name in ("full", *BUDGETS)]
    return calibration_samples(
        records, tiny_tokenizer, torch_model.config, budgets, num_samples=6, window_options=WINDOWS
    )


@pytest.fixture(scope="module")
def int8(torch_model, tiny_tokenizer, records, tmp_path_factory):
    """Folder of the quantized model, scored on its calibration records; read only."""
    folder = tmp_path_factory.mktemp("quantized") / "int8"
    model = INCQuaLAQuantizer(torch_model, tiny_tokenizer).quantize(
        records,
        folder,
        config=INCQuaLAConfig(num_samples=6, budgets=("full", *BUDGETS, RATIOS)),
        validation_records=records,
        validation_name="eight facts",
        window_options=WINDOWS,
    )
    assert isinstance(model, INCQuaLAMiniLMForQuestionAnswering)
    return folder


def relative_error(model, torch_model, batch, budget="full"):
    """Median and largest deviation of the logits, in standard deviations of the logits."""
    expected, actual = torch_model(**batch, budget=budget), model(**batch, budget=budget)
    is_real = batch["attention_mask"] > 0
    deviations = (actual.start_logits - expected.start_logits)[is_real].abs() / expected.start_logits[is_real].std()
    return float(deviations.median()), float(deviations.max())


@torch.no_grad()
def test_logits_are_those_of_the_model_but_for_rounding(int8, torch_model):
    model = INCQuaLAMiniLMForQuestionAnswering.from_pretrained(int8)
    batch = make_batch([60, 33, 41], vocab_size=torch_model.config.vocab_size)
    median, largest = relative_error(model, torch_model, batch)
    assert median < 0.12
    assert largest < 0.6
    for budget in BUDGETS:  # a token that just survives in float may just not survive in int8
        assert relative_error(model, torch_model, batch, budget)[0] < 0.25


def test_every_weight_and_table_is_int8_on_disk(int8, torch_model):
    """Left to itself Intel Neural Compressor stores float32 weights, and leaves embeddings alone."""
    tensors = load_file(int8 / "inc_weights.safetensors")
    num_linear = sum(isinstance(module, torch.nn.Linear) for module in torch_model.modules())
    matrices = [tensor for tensor in tensors.values() if tensor.dim() == 2 and tensor.shape[1] > 1]
    assert len(matrices) == num_linear + 3  # words, positions and segments
    assert {tensor.dtype for tensor in matrices} == {torch.int8}
    floats = sum(tensor.numel() for tensor in tensors.values() if tensor.is_floating_point())
    assert floats < 0.15 * sum(parameter.numel() for parameter in torch_model.parameters())


def test_record_says_what_was_done(int8, torch_model):
    record = INCQuaLAConfig.from_pretrained(int8)
    assert record.num_samples == 6
    assert record.applied["num_samples"] == 6
    assert record.applied["model"] == "QuaLAMiniLMForQuestionAnswering"
    assert record.applied["drop_layers"] == [0, 1]
    assert record.applied["budgets"]["fast"] == "0.8,0.4"
    assert set(record.versions) == {"optimum-qala", "neural-compressor-pt", "torchao", "torch", "transformers"}
    assert set(record.accuracy) == {"full", *BUDGETS, RATIOS}
    budgets = json.loads((int8 / "config.json").read_text())["budgets"]
    assert budgets["fast"]["f1"] == record.accuracy["fast"]["int8"]["f1"]
    assert budgets["fast"]["dataset"] == "eight facts"
    assert "latency_ms" not in budgets["fast"]
    assert torch_model.config.budgets["fast"]["latency_ms"], "the model given stays as it is"


def scores_that_fall(losses, seen):
    """Stand in for `score_budgets`: F1 of each int8 model at every budget, and the models that were scored."""
    left = list(losses)

    def score(models, *arguments):
        seen.update(models)
        (kind,) = models
        f1 = 80.0 - (left.pop(0) if kind == "int8" else 0.0)
        return {name: {kind: {"f1": f1, "em": 50.0}} for name in ("full", *BUDGETS, *arguments[-1])}

    return score


@pytest.mark.parametrize(
    ("scoring", "approach"), [("attention", "static"), ("answer", "static"), ("answer", "dynamic")]
)
@torch.no_grad()
def test_other_token_scores_quantize_too(scoring, approach, tiny_tokenizer, records, tmp_path, monkeypatch):
    """Layers of a model with span heads, which full length does not run, are among those that may fall back."""
    torch.manual_seed(0)
    config = tiny_config(num_hidden_layers=2, vocab_size=len(tiny_tokenizer), token_scoring=scoring, budgets=BUDGETS)
    model = model_with_biases(config)
    settings, validation = INCQuaLAConfig(approach, num_samples=6), None
    if (scoring, approach) == ("answer", "static"):
        monkeypatch.setattr(inc, "score_budgets", scores_that_fall([5.0, 0.5], {}))
        settings, validation = INCQuaLAConfig(num_samples=6, tolerable_loss=0.01), records
    int8 = INCQuaLAQuantizer(model, tiny_tokenizer).quantize(
        records, tmp_path / "int8", config=settings, validation_records=validation, window_options=WINDOWS
    )
    assert len(int8.quantization.applied.get("trials", [])) == (2 if validation else 0)
    batch = make_batch([60, 33], vocab_size=config.vocab_size)
    assert relative_error(int8, model, batch)[0] < 0.15
    assert relative_error(int8, model, batch, "fast")[0] < 0.3
    if scoring == "answer":
        assert relative_error(int8, model, batch, "1,0.8@1")[0] < 0.15


def quantized(exported, samples, torch_model, *, ignored=(), **options):
    """Logits of the first sample, and the graph."""
    config = INCQuaLAConfig(**options)
    prepared = inc._prepare(copy.deepcopy(exported), config, list(ignored))
    graph = inc._convert(prepared, [graph_inputs(sample, torch_model.config) for sample in samples])
    with torch.no_grad():
        return graph(graph_inputs(samples[0], torch_model.config))[0], graph


@pytest.fixture(scope="module")
def by_default(exported, samples, torch_model):
    return quantized(exported, samples, torch_model)


@pytest.fixture(scope="module")
def baseline(by_default):
    return by_default[0]


@pytest.mark.parametrize(
    "options",
    [
        {"approach": "dynamic"},
        {"activation_algorithm": "kl"},
        {"activation_symmetric": True},
        {"weight_granularity": "per_tensor"},
    ],
    ids=str,
)
def test_setting_changes_the_model(exported, samples, torch_model, baseline, options):
    logits, _ = quantized(exported, samples, torch_model, **options)
    assert torch.isfinite(logits).all()
    assert not torch.equal(logits, baseline)


def test_every_window_counts_alike(exported, samples, torch_model, by_default):
    """A range is the mean of the windows' extremes, whichever comes first; that of torchao leans to the first."""
    rounded = torch.ops.quantized_decomposed.quantize_per_tensor.default
    steps = [
        torch.tensor([node.args[1] for node in graph.graph.nodes if node.target is rounded])
        for _, graph in (by_default, quantized(exported, samples[::-1], torch_model))
    ]
    assert len(steps[0]) > 4
    torch.testing.assert_close(*steps, rtol=1e-4, atol=0.0)


def test_ignored_module_stays_in_float(exported, samples, torch_model, baseline):
    logits, graph = quantized(exported, samples, torch_model, ignored=["quala.encoder.layer.0.output.dense"])
    assert not torch.equal(logits, baseline)
    linear = torch.ops.aten.linear.default
    in_float = [node for node in graph.graph.nodes if node.target is linear and node.args[1].op == "get_attr"]
    assert [node.args[1].target for node in in_float] == ["model.quala.encoder.layer.0.output.dense.weight"]


def test_dynamic_model_that_never_ran_is_refused(exported, samples, torch_model):
    """Without a forward pass before `convert` all scales are 1, and weights, which are small, become 0."""

    class NeverRun(list):
        def __iter__(self):
            return iter(())

    graph = copy.deepcopy(exported)
    with torch.no_grad():
        for parameter in graph.parameters():
            parameter.mul_(0.1 if parameter.dim() == 2 else 1.0)
    config, inputs = INCQuaLAConfig(approach="dynamic"), [graph_inputs(samples[0], torch_model.config)]
    inc._convert(inc._prepare(copy.deepcopy(graph), config, []), inputs)
    with pytest.raises(BackendError, match="all tokens the same logits, which 1 calibration windows should have"):
        inc._convert(inc._prepare(graph, config, []), NeverRun(inputs))


def test_model_that_gives_zeros_is_refused(samples, torch_model):
    class Zeros(torch.nn.Module):
        def forward(self, inputs):
            return (torch.zeros(1, 4), torch.zeros(1, 4))

    import torchao.quantization.pt2e.quantize_pt2e as pt2e

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pt2e, "convert_pt2e", lambda graph, **_: graph)
        with pytest.raises(
            BackendError, match="the int8 model gives all tokens the same logits, which 1 calibration windows"
        ):
            inc._convert(Zeros(), [{}])


def test_selection_of_tokens_stays_in_float(exported, samples, torch_model):
    """Only linear layers read 8-bit values: rounded scores would tie."""
    _, graph = quantized(exported, samples, torch_model)
    readers = {
        str(user.target)
        for node in graph.graph.nodes
        if "dequantize_per_tensor" in str(node.target)
        for user in node.users
    }
    assert readers == {"aten.linear.default"}


class TestQuantizerOptions:
    """Options that act before Intel Neural Compressor does; the exported graph says whether they did."""

    @pytest.fixture
    def quantize(self, torch_model, tiny_tokenizer, records, tmp_path, monkeypatch):
        seen = {}

        def stop(model, config):
            seen.update(model=model, config=config)
            raise KeyboardInterrupt

        def spy(*arguments, **options):
            seen["samples"] = calibration_samples(*arguments, **options)
            return seen["samples"]

        def run(**options):
            monkeypatch.setattr(inc, "export_graph", stop)
            monkeypatch.setattr(inc, "calibration_samples", spy)
            config = INCQuaLAConfig(**({"num_samples": 6} | options))
            with pytest.raises(KeyboardInterrupt):
                INCQuaLAQuantizer(torch_model, tiny_tokenizer).quantize(
                    records, tmp_path / "int8", config=config, window_options=WINDOWS
                )
            assert list(tmp_path.iterdir()) == []
            return dict(seen)

        return run

    def test_embeddings(self, quantize):
        for setting in (True, False):
            embeddings = quantize(quantize_embeddings=setting)["model"].quala.embeddings
            assert hasattr(embeddings.word_embeddings, "table") is setting

    def test_outlier_factor(self, quantize):
        def branches(model):
            return [name for name, _ in model.named_modules() if name.endswith("outlier_neurons")]

        assert branches(quantize(outlier_factor=1.01)["model"])
        assert not branches(quantize(outlier_factor=None)["model"])

    def test_drop_layers(self, quantize):
        assert quantize(drop_layers="model")["config"].dropping_layers == (0, 1)

    def test_num_samples_seed_and_budgets(self, quantize):
        assert len(quantize(num_samples=3)["samples"]) == 3
        first, second = (quantize(seed=seed)["samples"][0]["input_ids"] for seed in (1, 2))
        assert first.shape != second.shape or not np.array_equal(first, second)
        at_full = quantize(budgets=("full",))["samples"]
        assert {float(sample["retention"].min()) for sample in at_full} == {1.0}


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda model, _: INCQuaLAQuantizer(model), ConfigurationError, "a model in memory needs its tokenizer"),
        (lambda *_: INCQuaLAQuantizer(3), CheckpointError, "cannot quantize a int"),
        (
            lambda *both: INCQuaLAQuantizer(*both).quantize([], "int8", config=OVQuaLAConfig()),
            ConfigurationError,
            "config is a OVQuaLAConfig; this quantizer takes a INCQuaLAConfig",
        ),
    ],
)
def test_what_cannot_be_quantized_is_refused(torch_model, tiny_tokenizer, make, error, message):
    with pytest.raises(error, match=message):
        make(torch_model, tiny_tokenizer)


def test_quantized_folder_is_refused(int8):
    with pytest.raises(
        CheckpointError, match=r"is exported already \(inc_graph.json\); quantize the torch checkpoint"
    ):
        INCQuaLAQuantizer(int8)


def test_missing_extra_is_named(torch_model, tiny_tokenizer, monkeypatch):
    monkeypatch.setattr("optimum_qala._compat._is_importable", lambda module: False)
    with pytest.raises(ImportError, match=re.escape('pip install "optimum-qala[neural-compressor]"')):
        INCQuaLAQuantizer(torch_model, tiny_tokenizer)


def test_old_version_is_named(torch_model, tiny_tokenizer, tmp_path, monkeypatch):
    (tmp_path / "torchao-0.10.0.dist-info").mkdir()
    (tmp_path / "torchao-0.10.0.dist-info" / "METADATA").write_text("Name: torchao\nVersion: 0.10.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    message = "Intel Neural Compressor needs torchao>=0.18, but torchao 0.10.0 is installed: pip install"
    with pytest.raises(MissingExtraError, match=message):
        INCQuaLAQuantizer(torch_model, tiny_tokenizer)


def test_mistakes_leave_nothing_behind(torch_model, tiny_tokenizer, records, tmp_path, exported, monkeypatch):
    monkeypatch.setattr(inc, "export_graph", lambda *_: copy.deepcopy(exported))
    quantizer = INCQuaLAQuantizer(torch_model, tiny_tokenizer)
    with pytest.raises(DataError, match="no calibration records were given"):
        quantizer.quantize([], tmp_path / "int8")
    config = INCQuaLAConfig(ignored_modules=("encoder.layer.9",), num_samples=2)
    with pytest.raises(ConfigurationError, match="ignored_modules holds 'encoder.layer.9', which matches no linear"):
        quantizer.quantize(records, tmp_path / "int8", config=config, window_options=WINDOWS)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "full").write_text("x")
    with pytest.raises(OutputExistsError, match="full exists and is not a folder"):
        quantizer.quantize(records, tmp_path / "full")


class TestTolerableLoss:
    """Which layers fall back is the model's affair; here the scores say how many must."""

    @pytest.fixture
    def scored(self):
        """The models that were scored, by kind."""
        return {}

    @pytest.fixture
    def quantize(self, torch_model, tiny_tokenizer, records, tmp_path, exported, scored, monkeypatch):
        def run(*losses, model=torch_model, **options):
            monkeypatch.setattr(inc, "export_graph", lambda *_: copy.deepcopy(exported))
            monkeypatch.setattr(inc, "score_budgets", scores_that_fall(losses, scored))
            config = INCQuaLAConfig(num_samples=3, outlier_factor=None, quantize_embeddings=False, **options)
            return INCQuaLAQuantizer(model, tiny_tokenizer).quantize(
                records, tmp_path / "int8", config=config, validation_records=records, window_options=WINDOWS
            )

        return run

    def test_layers_fall_back_until_it_is_met(self, quantize, tmp_path):
        model = quantize(5.0, 4.0, 0.5, tolerable_loss=0.01)
        record = model.quantization
        assert [trial["num_float"] for trial in record.applied["trials"]] == [0, 1, 2]
        assert len(record.applied["float_modules"]) == 2
        graph = json.loads((tmp_path / "int8" / "inc_graph.json").read_text())
        in_float = {node["tensor"].removeprefix("model.") for node in graph["nodes"] if node["op"] == "get_attr"}
        assert {f"{name}.weight" for name in record.applied["float_modules"]} <= in_float
        assert record.accuracy["full"] == {"float32": {"f1": 80.0, "em": 50.0}, "int8": {"f1": 79.5, "em": 50.0}}

    def test_model_that_was_overwritten_is_made_again(self, quantize):
        record = quantize(5.0, 4.0, 3.0, 0.5, 2.0, tolerable_loss=1.0, criterion="absolute").quantization
        assert [trial["num_float"] for trial in record.applied["trials"]] == [0, 1, 2, 4, 3]
        assert len(record.applied["float_modules"]) == 4
        assert record.accuracy["full"]["int8"]["f1"] == 79.5

    def test_failure_leaves_nothing_behind(self, quantize, tmp_path, monkeypatch):
        """Neither does it stop before layers were ranked, at every budget that was scored."""
        ranked = []

        def rank(model, samples, names, budgets):
            ranked.extend(budgets)
            return names

        monkeypatch.setattr(inc, "rank_by_sensitivity", rank)
        with pytest.raises(AccuracyError, match="of 2 int8 models none loses at most 1.00 % of F1; the best, with 1"):
            quantize(5.0, 4.0, tolerable_loss=0.01, max_trials=2, budgets=("fast", RATIOS))
        assert list(tmp_path.iterdir()) == []
        assert ranked == ["full", *BUDGETS, RATIOS]

    def test_float32_is_float32_whatever_the_model_is(self, quantize, torch_model, scored):
        model = copy.deepcopy(torch_model).bfloat16()
        quantize(0.0, model=model)
        assert {parameter.dtype for parameter in scored["float32"].parameters()} == {torch.float32}
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}

    def test_questions_to_score_are_needed(self, torch_model, tiny_tokenizer, records, tmp_path):
        with pytest.raises(ConfigurationError, match="tolerable_loss 0.01 needs validation records to be checked on"):
            INCQuaLAQuantizer(torch_model, tiny_tokenizer).quantize(
                records, tmp_path / "int8", config=INCQuaLAConfig(tolerable_loss=0.01)
            )
