"""Static copies of an OpenVINO graph: fixed shapes, and inputs that became constants."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimum_qala.errors import BackendError


__all__ = ["input_types", "is_static", "output_names", "specialize", "unpack_tables"]


def input_types(graph: Any) -> dict[str, np.dtype[Any]]:
    """List the inputs of a graph.

    Args:
        graph: An `openvino.Model`.

    Returns:
        Element type of each input by its name, in the order of the graph.
    """
    return {_name(tensor): np.dtype(tensor.get_element_type().to_dtype()) for tensor in graph.inputs}


def output_names(graph: Any) -> tuple[str, ...]:
    """List the outputs of a graph, in its order."""
    return tuple(_name(tensor) for tensor in graph.outputs)


def unpack_tables(graph: Any, run_model: Callable[[Any], NDArray[Any]]) -> Any:
    """Copy a graph with its 8-bit embedding tables written out in float.

    Compiling would write them out too, but once for each compiled graph; as constants of this copy all share them.

    Args:
        graph: An `openvino.Model`.
        run_model: Computes the output of a model that has no inputs.

    Returns:
        The copy.
    """
    from openvino import Model, opset13

    copy = graph.clone()
    for gather in [operation for operation in copy.get_ordered_ops() if operation.get_type_name() == "Gather"]:
        table = gather.input_value(0)
        if table.get_node().get_type_name() == "Constant" or _depends_on_input(table.get_node()):
            continue
        values = opset13.constant(run_model(Model([opset13.result(table)], [], "table")))
        for target in table.get_target_inputs():
            target.replace_source_output(values.output(0))
    return copy


def _depends_on_input(node: Any) -> bool:
    """Tell whether a value depends on an input of the graph."""
    waiting, seen = [node], set()
    while waiting:
        one = waiting.pop()
        if one.get_type_name() == "Parameter":
            return True
        if one.get_name() not in seen:
            seen.add(one.get_name())
            waiting += [value.get_node() for value in one.input_values()]
    return False


def specialize(
    graph: Any,
    batch_size: int,
    length: int,
    constants: Mapping[str, NDArray[Any]] | None = None,
    outputs: Sequence[str] | None = None,
    idle_selections: Collection[int] = (),
) -> Any:
    """Copy a graph for one shape. Weights are shared with the original, which stays as it is.

    Args:
        graph: An `openvino.Model`.
        batch_size: Rows of every input that is not a constant.
        length: Columns of the same.
        constants: Values of further inputs, which the copy no longer has.
        outputs: Names of the outputs that the copy keeps, with what they need; all if None.
        idle_selections: Selections of tokens that keep every token, counted from 0 in the order in which they run.
            The copy does without scores and sorting there.

    Returns:
        The copy.

    Raises:
        BackendError: If the graph has no input or output of a name that is given, a constant has a shape that its
            input does not take, another input is not of shape (batch_size, length), or the graph cannot take the
            shape.
    """
    from openvino import PartialShape

    constants = {} if constants is None else constants
    legal = output_names(graph)
    wanted = legal if outputs is None else tuple(outputs)
    for kind, names, known in (("input", constants, tuple(input_types(graph))), ("output", wanted, legal)):
        if unknown := sorted(set(names) - set(known)):
            raise BackendError(f"the graph has no {kind} {unknown[0]!r}; it has {list(known)}")
    copy = graph.clone()
    shapes = {}
    for parameter in list(copy.get_parameters()):
        tensor = parameter.output(0)
        name, shape = _name(tensor), tensor.get_partial_shape()
        if name in constants:
            _fold(copy, parameter, np.asarray(constants[name]))
        elif shape.rank.is_static and shape.rank.get_length() != 2:
            raise BackendError(
                f"input {name!r} of the graph has shape {shape}, not (batch size, length); give it as a constant"
            )
        else:
            shapes[name] = PartialShape([batch_size, length])
    for result in list(copy.get_results()):
        if _name(result.output(0)) not in wanted:
            copy.remove_result(result)
    try:
        copy.reshape(shapes)
        copy.validate_nodes_and_infer_types()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise BackendError(f"the graph does not take {batch_size} rows of {length} tokens: {reason}") from error
    _skip_selections(copy, idle_selections)
    return copy


def is_static(graph: Any) -> bool:
    """Tell whether every shape inside a graph is known, so that nothing is left to be decided when it runs.

    Args:
        graph: An `openvino.Model`.

    Returns:
        False if a dimension is dynamic.
    """
    return not any(
        output.get_partial_shape().is_dynamic
        for operation in graph.get_ordered_ops()
        for output in operation.outputs()
    )


def _skip_selections(graph: Any, idle: Collection[int]) -> None:
    """Let selections choose all tokens in their order, which needs no scores."""
    from openvino import opset13

    # `select_survivors` ends in sorting the places of the survivors in ascending order, and nothing else does.
    sorts = [
        operation
        for operation in graph.get_ordered_ops()
        if operation.get_type_name() == "TopK" and operation.get_attributes()["mode"] == "min"
    ]
    for number, operation in enumerate(sorts):
        places = operation.output(0)
        shape = places.get_partial_shape()
        if number not in idle or shape.is_dynamic:
            continue
        everything = np.broadcast_to(np.arange(shape[1].get_length()), list(shape.to_shape()))
        constant = opset13.constant(everything.astype(places.get_element_type().to_dtype()))
        for target in places.get_target_inputs():
            target.replace_source_output(constant.output(0))


def _fold(graph: Any, parameter: Any, value: NDArray[Any]) -> None:
    from openvino import PartialShape, opset13

    tensor = parameter.output(0)
    if not tensor.get_partial_shape().compatible(PartialShape(list(value.shape))):
        raise BackendError(
            f"input {_name(tensor)!r} of the graph has shape {tensor.get_partial_shape()}, but is to be a constant of "
            f"shape {list(value.shape)}"
        )
    constant = opset13.constant(value.astype(tensor.get_element_type().to_dtype()))
    for target in tensor.get_target_inputs():
        target.replace_source_output(constant.output(0))
    graph.remove_parameter(parameter)


def _name(tensor: Any) -> str:
    # A converted graph gives some tensors a second name, the path of the operation.
    names: list[str] = sorted(tensor.get_names())
    return next((name for name in names if "/" not in name), names[0] if names else "")
