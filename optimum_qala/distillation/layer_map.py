"""Which layer of the teacher each layer of the student learns from."""

from __future__ import annotations

from collections.abc import Sequence

from optimum_qala.errors import ConfigurationError


def uniform_layer_map(num_student_layers: int, num_teacher_layers: int) -> tuple[int, ...]:
    """Spread the student's layers evenly over the teacher's: g(m) = m N / M (TinyBERT, arXiv 1909.10351, section 3.1).

    Args:
        num_student_layers: M.
        num_teacher_layers: N. Where M does not divide it, the next higher layer teaches.

    Returns:
        The teacher's layer for each layer of the student, both from 0: (i + 1) N / M - 1. The last layer learns from
        the last.
    """
    return tuple(-(-(layer + 1) * num_teacher_layers // num_student_layers) - 1 for layer in range(num_student_layers))


def check_layer_map(layer_map: Sequence[int], num_student_layers: int, num_teacher_layers: int) -> tuple[int, ...]:
    """Check a layer map that a user gave.

    Args:
        layer_map: The teacher's layer, from 0, for each layer of the student.
        num_student_layers: Layers of the student.
        num_teacher_layers: Layers of the teacher.

    Returns:
        The same map.

    Raises:
        ConfigurationError: If it is no list, has not one entry for each layer of the student, or names a layer that
            the teacher does not have.
    """
    if isinstance(layer_map, str) or not isinstance(layer_map, Sequence):
        raise ConfigurationError(f"teacher_layers {layer_map!r} is not a list of layers")
    if len(layer_map) != num_student_layers:
        raise ConfigurationError(
            f"teacher_layers {list(layer_map)} has {len(layer_map)} entries, but the student has "
            f"{num_student_layers} layers: name one layer of the teacher for each"
        )
    if illegal := [layer for layer in layer_map if layer not in range(num_teacher_layers) or type(layer) is not int]:
        raise ConfigurationError(
            f"teacher_layers names layer {illegal[0]!r}, but the teacher has layers 0 to {num_teacher_layers - 1}"
        )
    return tuple(layer_map)


__all__ = ["check_layer_map", "uniform_layer_map"]
