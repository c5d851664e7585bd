"""The file format of an int8 graph for torch: operators as JSON, tensors as safetensors.

`torch.export.save` writes archives that `torch.export.load` unpickles where the archive says so, and that no other
version of torch promises to read. A graph that was quantized has nothing in it but torch operators, numbers and
tensors, so a list of these says the same, runs nothing when it is read, and breaks only where an operator changes.
"""

from __future__ import annotations

import importlib
import json
import operator
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, fx

from optimum_qala.errors import BackendError, CheckpointError


__all__ = ["GRAPH_NAME", "WEIGHTS_NAME", "cut_graph", "read_graph", "write_graph"]

GRAPH_NAME = "inc_graph.json"
WEIGHTS_NAME = "inc_weights.safetensors"

FORMAT = 1
# Operators that compute and do nothing else: torch has others, such as one that opens files.
OPERATORS = {
    "aten": frozenset(
        "_softmax _to_copy _unsafe_view abs add addmm alias amax amin any arange argmax bitwise_and bitwise_not "
        "bitwise_or bmm cat ceil clamp clamp_max clamp_min clone constant_pad_nd contiguous cos cumsum div "
        "embedding empty eq erf exp expand expand_as flatten floor full full_like gather ge gelu gt index "
        "index_select layer_norm le linear log logical_and logical_not logical_or lt masked_fill matmul max "
        "maximum mean min minimum mm mul native_layer_norm ne neg new_zeros ones ones_like pad permute pow "
        "reciprocal relu repeat reshape round rsqrt rsub scaled_dot_product_attention scatter select sigmoid sign "
        "silu sin slice softmax sort split sqrt squeeze stack sub sum sym_numel sym_size t tanh to topk transpose "
        "type_as unbind unflatten unfold unsqueeze view view_as where zeros zeros_like".split()
    ),
    "quantized_decomposed": frozenset(
        "choose_qparams choose_qparams_symmetric dequantize_per_channel dequantize_per_tensor quantize_per_channel "
        "quantize_per_tensor".split()
    ),
}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    f"{module.__name__.lstrip('_')}.{name}": getattr(module, name)
    for module, names in (
        (operator, ("add", "sub", "mul", "floordiv", "mod", "neg", "getitem", "truediv")),
        (torch, ("sym_max", "sym_min", "sym_float", "sym_int")),
    )
    for name in names
}
# Checks of what the shapes are; whoever calls the graph checks them.
CHECKS = (
    "_assert_scalar",
    "_assert_tensor_metadata",
    "sym_constrain_range",
    "sym_constrain_range_for_size",
    "_assert",
)
DTYPES = {str(value).removeprefix("torch."): value for value in vars(torch).values() if isinstance(value, torch.dtype)}


def write_graph(graph: fx.GraphModule, folder: str | Path, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Write a graph in two files.

    Args:
        graph: The graph, of operators only.
        folder: Where to write; exists.
        inputs: Names of its inputs, in order.
        outputs: Names of its outputs, in order.

    Raises:
        BackendError: If the graph holds something that the format has no words for.
    """
    graph = fx.GraphModule(graph, _tidy(graph))
    names = {node: str(index) for index, node in enumerate(graph.graph.nodes)}
    tensors: dict[str, Tensor] = {}
    stored: dict[int, str] = {}
    nodes: list[dict[str, Any]] = []
    results: Any = None
    for node in graph.graph.nodes:
        entry: dict[str, Any] = {"id": names[node], "op": node.op}
        if node.op == "get_attr":
            tensor = _attribute(graph, str(node.target))
            key = stored.setdefault(id(tensor), str(node.target))
            tensors[key] = tensor.detach().clone().contiguous()
            entry["tensor"] = key
        elif node.op == "call_function":
            entry |= {"target": _name_target(node.target), "args": _encode(node.args, names)}
            if node.kwargs:
                entry["kwargs"] = _encode(dict(node.kwargs), names)
        elif node.op == "output":
            results = [names[value] for value in node.args[0]]
            continue
        nodes.append(entry)
    content = {
        "format": FORMAT,
        "torch": torch.__version__,
        "inputs": list(inputs),
        "outputs": dict(zip(outputs, results, strict=True)),
        "nodes": nodes,
    }
    save_file(tensors, Path(folder) / WEIGHTS_NAME)
    (Path(folder) / GRAPH_NAME).write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")


def read_graph(file: str | Path, weights: str | Path) -> fx.GraphModule:
    """Read a graph.

    Args:
        file: The JSON file.
        weights: The safetensors file.

    Returns:
        The graph; `graph.input_names` and `graph.output_names` name its inputs and outputs, which are a tuple.

    Raises:
        BackendError: If another version of torch made it, and this one lacks an operator that it needs.
        CheckpointError: If a file is damaged or not of the format.
    """
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
        tensors = load_file(weights)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{file} or its weights are damaged ({error}); download or quantize it again") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(
            f"{file} has format {found!r}, but this version of optimum-qala reads format {FORMAT}; install the "
            "version that wrote it, or quantize the model again"
        )
    try:
        # Registers the operators of quantization. torch keeps them where no public module imports them.
        importlib.import_module("torch.ao.quantization.fx._decomposed")
        return _build(content, tensors)
    except (BackendError, ImportError) as error:
        raise BackendError(
            f"{file}, which torch {content.get('torch')} wrote, does not run in torch {torch.__version__}: {error}; "
            "install that version of torch, or quantize the model again"
        ) from error
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        raise CheckpointError(f"{file} is damaged ({error!r}); download or quantize it again") from error


def cut_graph(graph: fx.GraphModule, outputs: Sequence[str]) -> fx.GraphModule:
    """Copy a graph without what some of its outputs do not need.

    Args:
        graph: A graph from `read_graph`.
        outputs: Names of the outputs to keep, in order.

    Returns:
        A graph with the same inputs, whose tensors are those of the graph given.
    """
    copy = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    results = copy.graph_copy(graph.graph, copied)
    every = dict(zip(graph.output_names, results, strict=True))  # type: ignore[arg-type]
    copy.output(tuple(every[name] for name in outputs))
    _remove_unused(copy)
    return _named(fx.GraphModule(graph, copy), graph.input_names, outputs)


def _remove_unused(graph: fx.Graph) -> None:
    # fx keeps what can draw random numbers, read or not. Attention counts as such, though it draws none without
    # dropout, so the layers after an exit would go on running.
    graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))


def _named(graph: Any, inputs: Any, outputs: Any) -> fx.GraphModule:
    graph.input_names, graph.output_names = tuple(inputs), tuple(outputs)
    return graph  # type: ignore[no-any-return]


def _tidy(graph: fx.GraphModule) -> fx.Graph:
    """Copy a graph's nodes without checks, dropout and whatever nobody reads."""
    tidy = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    results: Any = tidy.graph_copy(graph.graph, copied)
    tidy.output(results if isinstance(results, tuple) else tuple(results))
    for node in list(tidy.nodes):
        name = str(getattr(node.target, "_opname", ""))
        if node.op == "call_module" and node.users:
            raise BackendError(
                f"the graph calls the module {node.target}, for which {GRAPH_NAME} has no name; quantize the plain "
                "model"
            )
        if node.op == "call_module" or name in CHECKS:  # a module that returns nothing checks something
            tidy.erase_node(node)
        elif name in ("dropout", "detach_", "detach"):
            node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
            tidy.erase_node(node)
    _remove_unused(tidy)
    return tidy


def _attribute(graph: fx.GraphModule, name: str) -> Tensor:
    value: Any = graph
    for part in name.split("."):
        value = getattr(value, part)
    return value  # type: ignore[no-any-return]


def _name_target(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload) and target._opname in OPERATORS.get(target.namespace, ()):
        return str(target)
    for name, function in FUNCTIONS.items():
        if target is function:
            return name
    raise BackendError(f"the graph calls {target}, for which {GRAPH_NAME} has no name; quantize the plain model")


def _find_target(name: str) -> Callable[..., Any]:
    if name in FUNCTIONS:
        return FUNCTIONS[name]
    namespace, _, rest = name.partition(".")
    operator_name, _, overload = rest.partition(".")
    if operator_name not in OPERATORS.get(namespace, ()):
        raise ValueError(f"{name!r} is no operator that a graph may call")
    try:
        found = getattr(getattr(getattr(torch.ops, namespace), operator_name), overload)
    except AttributeError as error:
        raise BackendError(f"there is no operator {name}") from error
    if not isinstance(found, torch._ops.OpOverload):
        raise ValueError(f"{name!r} is no operator")
    return found


def _encode(value: Any, names: Mapping[fx.Node, str]) -> Any:
    if isinstance(value, fx.Node):
        return {"node": names[value]}
    if isinstance(value, list | tuple):
        return [_encode(item, names) for item in value]
    if isinstance(value, dict):
        return {name: _encode(item, names) for name, item in value.items()}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": value.type}
    if isinstance(value, torch.memory_format):
        return {"memory_format": str(value).removeprefix("torch.")}
    if isinstance(value, torch.layout):
        return {"layout": str(value).removeprefix("torch.")}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise BackendError(f"the graph holds the {type(value).__name__} {value!r}, which is no number")


def _decode(value: Any, nodes: Mapping[str, fx.Node]) -> Any:
    if isinstance(value, list):
        return [_decode(item, nodes) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "node":
        return nodes[content]
    if kind == "dtype":
        return DTYPES[content]
    if kind == "device":
        return torch.device("cpu")
    if kind == "memory_format":
        return {"contiguous_format": torch.contiguous_format, "preserve_format": torch.preserve_format}[content]
    return {"strided": torch.strided}[{"layout": content}[kind]]


def _build(content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> fx.GraphModule:
    root = torch.nn.Module()
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    attributes: dict[str, str] = {}
    inputs = iter(content["inputs"])
    for entry in content["nodes"]:
        if entry["op"] == "placeholder":
            node = graph.placeholder(_identifier(next(inputs)))
        elif entry["op"] == "get_attr":
            key = entry["tensor"]
            name = attributes.setdefault(key, f"tensor_{len(attributes)}")
            root.register_buffer(name, tensors[key])
            node = graph.get_attr(name)
        elif entry["op"] == "call_function":
            args = tuple(_decode(item, nodes) for item in entry["args"])
            kwargs = {_identifier(name): _decode(item, nodes) for name, item in entry.get("kwargs", {}).items()}
            node = graph.call_function(_find_target(entry["target"]), args, kwargs)
        else:
            raise ValueError(f"{entry['op']!r} is no kind of node")
        nodes[entry["id"]] = node
    graph.output(tuple(nodes[name] for name in content["outputs"].values()))
    graph.lint()
    return _named(fx.GraphModule(root, graph), content["inputs"], content["outputs"])


def _identifier(name: Any) -> str:
    # torch.fx writes names into the Python source that it runs.
    if not (isinstance(name, str) and name.isidentifier()):
        raise ValueError(f"{name!r} is no name")
    return name
