"""Budgets that stop early: graphs that are cut at an exit, and what they are fed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from optimum_qala import LengthConfig, OVQuaLAMiniLMForQuestionAnswering, QuaLAMiniLMForQuestionAnswering
from optimum_qala.errors import BackendError, LengthConfigError
from optimum_qala.inference.bucket_options import BucketOptions
from optimum_qala.inference.graph import cut_graph, retention_of
from optimum_qala.inference.sizes import plan_sizes
from tests.conftest import tiny_config
from tests.inference.batches import distances, random_batch, random_retention


TOLERANCE = 1e-4


@pytest.fixture
def model(answer_exported):
    return OVQuaLAMiniLMForQuestionAnswering.from_pretrained(answer_exported)


def parameter(graph, name):
    return next(one for one in graph.get_parameters() if name in one.output(0).get_names())


def fold(graph, **values):
    """Make inputs of a graph constants, in place."""
    from openvino import opset13 as ops

    for name, value in values.items():
        given = parameter(graph, name)
        given.output(0).replace(ops.constant(np.array(value)).output(0))
        graph.remove_parameter(given)
    graph.validate_nodes_and_infer_types()


@pytest.mark.parametrize("exit_layer", [None, 1, 2, 3])
def test_logits_equal_torch_at_every_exit(model, answer_model, exit_layer):
    """One row in a hundred may differ, where two scores differ by less than rounding."""
    rows = []
    for seed in range(20):
        batch = random_batch(seed, batch_size=1 + seed % 4, sequence_length=12 + 7 * (seed % 9))
        ratios = (1.0,) * 4 if seed % 5 == 0 else tuple(random_retention(seed, 4))
        budget = LengthConfig(ratios, exit_layer)
        with torch.no_grad():
            expected = answer_model(**batch, budget=budget)
        rows.append(distances(model(**batch, budget=budget), expected, batch["attention_mask"]))
    assert (torch.cat(rows) > TOLERANCE).float().mean() <= 0.01


def test_named_budget_stops_early(model, answer_model):
    batch = random_batch(3, 2, 40)
    with torch.no_grad():
        expected = answer_model(**batch, budget="shallow")
    assert distances(model(**batch, budget="shallow"), expected, batch["attention_mask"]).max() < TOLERANCE
    model.set_budget("shallow")
    assert model.budget.exit_layer == 2
    assert distances(model(**batch), expected, batch["attention_mask"]).max() < TOLERANCE
    assert distances(model(**batch, budget="late"), expected, batch["attention_mask"]).max() > 0.1


@pytest.mark.parametrize("exit_layer", [1, 2])
def test_exit_before_any_layer_that_drops(exit_layer):
    """Nothing reads the ratios and sizes there, which stay inputs."""
    torch.manual_seed(0)
    torch_model = QuaLAMiniLMForQuestionAnswering(tiny_config(span_heads=True, drop_layers=[3])).eval()
    model = OVQuaLAMiniLMForQuestionAnswering.from_model(torch_model)
    batch = random_batch(4, 2, 30)
    with torch.no_grad():
        expected = torch_model(**batch, budget=f"1,1,1,1@{exit_layer}")
    actual = model(**batch, budget=f"1,1,1,1@{exit_layer}")
    assert distances(actual, expected, batch["attention_mask"]).max() < TOLERANCE


@pytest.mark.parametrize(("exit_layer", "num_layers"), [(None, 4), (3, 3), (1, 1)])
def test_cut_graph_holds_the_layers_that_run(model, exit_layer, num_layers):
    graph = cut_graph(model.model, exit_layer)
    kinds = [operation.get_type_name() for operation in graph.get_ops()]
    assert kinds.count("ScaledDotProductAttention") == num_layers
    assert kinds.count("Result") == 2
    assert len(model.model.outputs) == 8
    assert {one.get_any_name() for one in graph.inputs} == {one.get_any_name() for one in model.model.inputs}


def test_each_exit_is_compiled_by_the_first_call_that_needs_it(model, monkeypatch):
    compiled, compile_model = [], model._compile_model

    def spy(graph, *args):
        compiled.append([kind.get_type_name() for kind in graph.get_ops()].count("ScaledDotProductAttention"))
        return compile_model(graph, *args)

    monkeypatch.setattr(model, "_compile_model", spy)
    batch = random_batch(5, 1, 20)
    model(**batch, budget="1,1,1,1@3")
    assert model.request is None
    assert compiled == [3]
    for budget in ("1,0.5,0.5,0.5@3", "full", "late", "1,1,1,1@1", "1,1,1,1@3"):
        model(**batch, budget=budget)
    assert compiled == [3, 4, 1]
    assert model.request is not None
    model.reshape(1, 20)
    model(**batch, budget="1,1,1,1@3")
    assert compiled == [3, 4, 1, 3]


def test_threads_may_make_the_first_calls_at_different_exits(model):
    budgets = ["full", "shallow", "late", "1,1,1,1@1", "0.9,0.5,0.5,0.5@3"]
    calls = [(seed, budgets[seed % 5]) for seed in range(40)]

    def call(seed, budget):
        return model(**random_batch(seed, 1 + seed % 3, 20 + seed), budget=budget).start_logits

    with ThreadPoolExecutor(max_workers=6) as pool:
        results = list(pool.map(call, *zip(*calls, strict=True)))
    for actual, arguments in zip(results, calls, strict=True):
        torch.testing.assert_close(actual, call(*arguments), atol=1e-5, rtol=1e-5)


def test_saved_model_keeps_its_exits(model, tmp_path):
    batch = random_batch(6, 2, 30)
    expected = model(**batch, budget="shallow").end_logits
    model.save_pretrained(tmp_path)
    del model
    loaded = OVQuaLAMiniLMForQuestionAnswering.from_pretrained(tmp_path, export=False)
    torch.testing.assert_close(loaded(**batch, budget="shallow").end_logits, expected, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("folder", "exit_layer"), [("answer_exported", None), ("answer_exported", 2), ("exported", None)]
)
@pytest.mark.parametrize("surplus", [0, 3, 99])
def test_constant_ratios_and_sizes_make_every_shape_static(request, folder, exit_layer, surplus):
    """And larger sizes give the same logits."""
    from optimum.intel.openvino.modeling_base import core

    model = OVQuaLAMiniLMForQuestionAnswering.from_pretrained(request.getfixturevalue(folder))
    batch = {name: values.numpy() for name, values in random_batch(7, 2, 40).items()}
    config, budget = model.config, LengthConfig((0.9, 0.7, 0.5, 0.3), exit_layer)
    sizes = plan_sizes(batch["input_ids"], batch["attention_mask"], config, budget)
    graph = cut_graph(model.model, exit_layer)
    fold(graph, retention=retention_of(budget, config.dropping_layers), sizes=np.minimum(sizes + surplus, 40))
    graph.reshape({name: [2, 40] for name in batch})
    assert not [
        operation.get_friendly_name()
        for operation in graph.get_ops()
        for index in range(operation.get_output_size())
        if operation.get_output_partial_shape(index).is_dynamic
    ]
    expected = model(**batch, budget=budget)
    actual = core.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).create_infer_request().infer(batch)
    for output, logits in zip(graph.outputs, (expected.start_logits, expected.end_logits), strict=True):
        deviation = np.abs(actual[output.get_any_name()] - logits) * batch["attention_mask"]
        assert deviation.max() < TOLERANCE


def test_model_without_span_heads_does_not_stop_early(exported):
    model = OVQuaLAMiniLMForQuestionAnswering.from_pretrained(exported)
    with pytest.raises(
        LengthConfigError, match="1,1,1,1@2 stops after 2 of 4 layers, but this model has no span heads"
    ):
        model(**random_batch(0, 1, 20), budget="1,1,1,1@2")


def test_graph_without_exits_is_refused_where_the_config_has_them(exported):
    graph = OVQuaLAMiniLMForQuestionAnswering.from_pretrained(exported).model
    with pytest.raises(BackendError, match="the graph has no output 'start_logits_1', which config.json"):
        OVQuaLAMiniLMForQuestionAnswering(graph, tiny_config(span_heads=True))


def test_graph_of_an_earlier_version_is_refused(model):
    graph = model.model.clone()
    fold(graph, sizes=np.array([1, 9, 9, 9, 9]))
    with pytest.raises(BackendError, match="but no 'sizes': an earlier version of optimum-qala exported it; export"):
        OVQuaLAMiniLMForQuestionAnswering(graph, model.config)


@pytest.mark.parametrize("scoring", ["answer", "question", "attention"])
@pytest.mark.parametrize(
    ("budget", "num_selections"),
    [("full", 0), ("1,1,0.5,0.5", 1), ("0.8,0.8,0.8,0.4", 2), ("0.9,0.7,0.5,0.3", 4)],
)
def test_layers_that_keep_every_token_choose_none(scoring, budget, num_selections):
    """Only the layers where the budget falls score and sort, and the logits stay those of the whole graph."""
    torch.manual_seed(0)
    torch_model = QuaLAMiniLMForQuestionAnswering(tiny_config(token_scoring=scoring)).eval()
    model = OVQuaLAMiniLMForQuestionAnswering.from_model(torch_model, buckets=BucketOptions(batch_sizes=(3,)))
    batch = random_batch(1, 3, 50)
    with torch.no_grad():
        expected = torch_model(**batch, budget=budget)
    actual = model(**batch, budget=budget)
    assert distances(actual, expected, batch["attention_mask"]).max() < TOLERANCE
    runtime = model.runner._latest.compiled.get_runtime_model()
    kinds = [operation.get_rt_info()["layerType"].astype(str) for operation in runtime.get_ops()]
    assert kinds.count("TopK") == 2 * num_selections
