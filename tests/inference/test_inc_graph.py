"""The file format of an int8 graph: it says everything, runs nothing, and names what is wrong with a file."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from torch import fx

from optimum_qala.errors import BackendError, CheckpointError
from optimum_qala.inference.inc_graph import GRAPH_NAME, WEIGHTS_NAME, cut_graph, read_graph, write_graph


INPUTS, OUTPUTS = ["values", "size"], ["sums", "shares"]


def small_graph():
    """A graph with what graphs hold: tensors, types, sizes of shapes, defaults, and checks that nobody needs."""
    root, graph, ops = torch.nn.Module(), fx.Graph(), torch.ops.aten
    root.register_buffer("table", torch.arange(12).reshape(3, 4).to(torch.int8))
    root.register_buffer("bias", torch.tensor([0.5, -float("inf"), 1.0]))
    values, size = graph.placeholder("inputs_values"), graph.placeholder("inputs_size")
    width = graph.call_function(ops.sym_size.int, (size, 0))
    graph.call_function(ops._assert_scalar.default, (width, "too wide"))
    unused = graph.call_function(ops.neg.default, (values,))
    graph.call_function(ops.exp.default, (unused,))
    weight = graph.call_function(ops.to.dtype, (graph.get_attr("table"), torch.float32))
    sums = graph.call_function(ops.linear.default, (values, weight, graph.get_attr("bias")))
    dropped = graph.call_function(ops.dropout.default, (sums, 0.1, False))
    steps = graph.call_function(
        ops.arange.default, (width,), {"dtype": torch.int64, "device": torch.device("cpu"), "pin_memory": False}
    )
    picked = graph.call_function(ops.index_select.default, (dropped, 1, steps))
    shares = graph.call_function(ops.softmax.int, (picked, -1))
    graph.output((dropped, shares))
    return fx.GraphModule(root, graph)


@pytest.fixture
def folder(tmp_path):
    write_graph(small_graph(), tmp_path, INPUTS, OUTPUTS)
    return tmp_path


def read(folder):
    return read_graph(folder / GRAPH_NAME, folder / WEIGHTS_NAME)


def test_graph_that_was_read_computes_the_same(folder):
    graph, values, size = small_graph(), torch.ones(2, 4), torch.empty(2, dtype=torch.bool)
    expected, actual = graph(values, size), read(folder)(values, size)
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one, other)
    assert actual[1].shape == (2, 2)


def test_what_nobody_reads_is_left_out(folder):
    content = json.loads((folder / GRAPH_NAME).read_text())
    targets = {node.get("target") for node in content["nodes"]}
    assert not {"aten._assert_scalar.default", "aten.neg.default", "aten.dropout.default"} & targets
    assert content["inputs"] == INPUTS
    assert list(content["outputs"]) == OUTPUTS


def test_types_of_tensors_are_kept(folder):
    assert {str(tensor.dtype) for tensor in read(folder).buffers()} == {"torch.int8", "torch.float32"}


def test_cut_graph_keeps_what_one_output_needs(folder):
    graph = read(folder)
    first = cut_graph(graph, ["sums"])
    values, size = torch.ones(2, 4), torch.empty(2, dtype=torch.bool)
    assert torch.equal(first(values, size)[0], graph(values, size)[0])
    assert len(first.graph.nodes) < len(graph.graph.nodes)
    assert first.output_names == ("sums",)
    assert len(first(values, size)) == 1
    assert len(graph(values, size)) == 2, "the graph given stays as it is"


def test_graph_with_a_module_is_refused(tmp_path):
    root, graph = torch.nn.Module(), fx.Graph()
    root.inner = torch.nn.ReLU()
    graph.output((graph.call_module("inner", (graph.placeholder("values"),)),))
    with pytest.raises(BackendError, match="the graph calls the module inner"):
        write_graph(fx.GraphModule(root, graph), tmp_path, ["values"], ["result"])


@pytest.mark.parametrize(
    ("target", "message"),
    [(torch.ops.aten.bernoulli.default, "the graph calls aten.bernoulli.default"), (print, "built-in function print")],
)
def test_graph_with_another_function_is_refused(tmp_path, target, message):
    graph = fx.Graph()
    graph.output((graph.call_function(target, (graph.placeholder("values"),)),))
    with pytest.raises(BackendError, match=message):
        write_graph(fx.GraphModule(torch.nn.Module(), graph), tmp_path, ["values"], ["result"])


def change(folder, edit):
    content = json.loads((folder / GRAPH_NAME).read_text())
    edit(content)
    (folder / GRAPH_NAME).write_text(json.dumps(content))


def rename(old, new):
    def edit(content):
        for node in content["nodes"]:
            if node.get("target") == old:
                node["target"] = new

    return edit


@pytest.mark.parametrize(
    "target",
    [
        "aten.from_file.default",
        "os.system",
        "builtins.eval",
        "aten.__class__.mro",
        "prim.Print.default",
        "operator.call",
    ],
)
def test_file_cannot_call_anything_else(folder, target):
    change(folder, rename("aten.softmax.int", target))
    with pytest.raises(CheckpointError, match=f"'{target}' is no operator that a graph may call"):
        read(folder)


@pytest.mark.parametrize("place", ["inputs", "kwargs"])
def test_name_that_is_code_is_refused(folder, place):
    """torch.fx writes names into the Python source that it runs."""

    def edit(content):
        if place == "inputs":
            content["inputs"][0] = "x=print('ran')"
        else:
            (steps,) = (node for node in content["nodes"] if node.get("target") == "aten.arange.default")
            steps["kwargs"]["dtype=print('ran'), pin_memory"] = None

    change(folder, edit)
    with pytest.raises(CheckpointError, match="is no name"):
        read(folder)


def test_operator_of_another_torch_names_both_versions(folder):
    change(folder, rename("aten.softmax.int", "aten.softmax.of_the_future"))
    change(folder, lambda content: content.update(torch="9.9.0"))
    message = rf"which torch 9.9.0 wrote, does not run in torch {torch.__version__.partition('+')[0]}.*of_the_future"
    with pytest.raises(BackendError, match=message):
        read(folder)


def test_torch_without_the_operators_of_quantization_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.ao.quantization.fx._decomposed", None)
    with pytest.raises(BackendError, match=r"which torch .* wrote, does not run in torch .*_decomposed"):
        read(folder)


@pytest.mark.parametrize("name", [GRAPH_NAME, WEIGHTS_NAME])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_truncated_file_is_named(folder, name, share):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: int(share * len(data))])
    with pytest.raises(CheckpointError, match=f"{GRAPH_NAME} or its weights are damaged .*; download or quantize"):
        read(folder)


def test_weights_of_another_graph_are_refused(folder):
    change(folder, lambda content: content["nodes"][-1].update(op="get_attr", tensor="elsewhere"))
    with pytest.raises(CheckpointError, match=r"is damaged \(KeyError\('elsewhere'\)\)"):
        read(folder)


@pytest.mark.parametrize(("content", "found"), [("[]", "'list'"), ('{"format": 2}', "2")])
def test_other_format_is_refused(folder, content, found):
    (folder / GRAPH_NAME).write_text(content)
    with pytest.raises(CheckpointError, match=f"has format {found}, but this version of optimum-qala reads format 1"):
        read(folder)
