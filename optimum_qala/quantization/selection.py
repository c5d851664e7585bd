"""The part of an exported graph that chooses the surviving tokens."""

from __future__ import annotations

from typing import Any


__all__ = ["selection_operations"]


def selection_operations(graph: Any) -> list[str]:
    """Find the operations between the linear layers and the choice of the surviving tokens.

    These are the scores (queries times keys, softmax, sums, pooling), the counts and the index arithmetic. They cost
    little, and rounding them would change which tokens survive, so they stay in float.

    Args:
        graph: An exported graph.

    Returns:
        Names of the operations, sorted; without the linear layers, which other operations read too.
    """
    waiting = [operation for operation in graph.get_ops() if operation.get_type_name() == "TopK"]
    found: set[str] = set()
    while waiting:
        operation = waiting.pop()
        if operation.get_friendly_name() in found or _is_boundary(operation):
            continue
        found.add(operation.get_friendly_name())
        waiting += [operation.input_value(index).get_node() for index in range(operation.get_input_size())]
    return sorted(found)


def _is_boundary(operation: Any) -> bool:
    kind = operation.get_type_name()
    if kind == "MatMul":
        return any(_is_constant(operation.input_value(index).get_node()) for index in (0, 1))
    return kind in ("Constant", "Parameter", "ScaledDotProductAttention", "MVN")


def _is_constant(operation: Any) -> bool:
    """Tell whether an operation depends on constants alone, as quantized weights do after they were unpacked."""
    if operation.get_type_name() in ("Constant", "Parameter"):
        return bool(operation.get_type_name() == "Constant")
    inputs = range(operation.get_input_size())
    return operation.get_input_size() > 0 and all(_is_constant(operation.input_value(i).get_node()) for i in inputs)
