"""Checks and inputs of an exported graph."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimum_qala.errors import BackendError, CheckpointError, ConfigurationError
from optimum_qala.models.configuration_quala_minilm import QuaLAMiniLMConfig
from optimum_qala.models.length_config import LengthConfig
from optimum_qala.quantization.configuration import IR_NAME, PRECISIONS, RETENTION_INPUT, SIZES_INPUT, logit_names


__all__ = [
    "PRECISION_KEY",
    "THREADS_KEY",
    "check_graph",
    "check_plain_graph",
    "choose_precision",
    "cut_graph",
    "read_graph",
    "retention_of",
]

# Names of OpenVINO's settings.
PRECISION_KEY = "INFERENCE_PRECISION_HINT"
THREADS_KEY = "INFERENCE_NUM_THREADS"


def check_graph(graph: Any, config: Any) -> None:
    """Raise unless a graph is a QuaLA-MiniLM that takes budgets.

    Args:
        graph: The graph.
        config: Its configuration.

    Raises:
        BackendError: If it is not.
    """
    if not isinstance(config, QuaLAMiniLMConfig):
        raise BackendError(
            f"config.json describes a {getattr(config, 'model_type', None)!r} model, not a 'quala_minilm'; load an "
            "exported BERT with optimum.intel.OVModelForQuestionAnswering, or pass export=True to convert its torch "
            "checkpoint"
        )
    inputs = {name: tensor for tensor in graph.inputs for name in tensor.get_names()}
    if RETENTION_INPUT not in inputs:
        raise BackendError(
            f"the graph has the inputs {sorted(inputs)} but no {RETENTION_INPUT!r}, so it takes no budget; export "
            "the torch checkpoint again: from_pretrained(..., export=True)"
        )
    expected, shape = len(config.dropping_layers), inputs[RETENTION_INPUT].get_partial_shape()
    if str(shape) != f"[{expected}]":
        raise BackendError(
            f"the graph takes {shape} retention ratios, but config.json lets {expected} layers drop tokens "
            f"({list(config.dropping_layers)}); {IR_NAME} and config.json are not of the same export"
        )
    if SIZES_INPUT not in inputs:
        raise BackendError(
            f"the graph has the inputs {sorted(inputs)} but no {SIZES_INPUT!r}: an earlier version of optimum-qala "
            "exported it; export the torch checkpoint again: from_pretrained(..., export=True)"
        )
    outputs = {name for tensor in graph.outputs for name in tensor.get_names()}
    exits = range(1, config.num_hidden_layers) if config.has_span_heads else ()
    missing = [name for exit_layer in (None, *exits) for name in logit_names(exit_layer) if name not in outputs]
    if missing:
        raise BackendError(
            f"the graph has no output {missing[0]!r}, which config.json with its span heads promises; {IR_NAME} and "
            "config.json are not of the same export"
        )


def cut_graph(graph: Any, exit_layer: int | None) -> Any:
    """Copy a graph without what one exit does not need.

    Args:
        graph: An exported graph.
        exit_layer: Number of layers to keep; all if None.

    Returns:
        A graph with the same inputs, and the start and end logits after that many layers as its only outputs.
    """
    import openvino

    copy = graph.clone()
    return openvino.Model([copy.output(name) for name in logit_names(exit_layer)], copy.get_parameters())


def check_plain_graph(graph: Any) -> None:
    """Raise unless a graph is a question answering model that takes no budgets.

    Args:
        graph: The graph.

    Raises:
        BackendError: If it has other inputs, or gives no start and end logits.
    """
    inputs = [min(tensor.get_names(), key=len) for tensor in graph.inputs]
    if RETENTION_INPUT in inputs:
        raise BackendError(
            f"the graph has the input {RETENTION_INPUT!r}, so it takes budgets; load it with "
            "OVQuaLAMiniLMForQuestionAnswering"
        )
    legal = {"input_ids", "attention_mask", "token_type_ids"}
    outputs = {name for tensor in graph.outputs for name in tensor.get_names()}
    if not {"input_ids", "attention_mask"} <= set(inputs) <= legal or not {"start_logits", "end_logits"} <= outputs:
        raise BackendError(
            f"the graph has the inputs {sorted(inputs)} and the outputs {sorted(outputs)}, so it is no question "
            "answering model of the BERT kind; export one with optimum-cli export openvino --task question-answering"
        )


@lru_cache(maxsize=1024)
def retention_of(length_config: LengthConfig | None, dropping_layers: tuple[int, ...]) -> NDArray[np.float32]:
    """Write a budget as the graph's input.

    Args:
        length_config: The budget, or None for full length.
        dropping_layers: 0-based layers that may drop in the graph.

    Returns:
        Retention ratio of each of these layers. *Shape:* `(num_dropping_layers,)`
    """
    ratios = [1.0 if length_config is None else length_config.retention[layer] for layer in dropping_layers]
    retention = np.array(ratios, dtype=np.float32)
    retention.setflags(write=False)  # the cache hands the same array to every caller
    return retention


def choose_precision(precision: str | None, configured: Any) -> str:
    """Pick what float operations run in.

    Args:
        precision: What the caller asked for, if anything.
        configured: What OpenVINO's own settings ask for, if anything.

    Returns:
        One of `PRECISIONS`, the first by default.

    Raises:
        BackendError: If the CPU lacks it.
        ConfigurationError: If it is none of these, or both ask for different ones.
    """
    if precision is not None and configured is not None and precision != configured:
        raise ConfigurationError(f"precision {precision!r} contradicts {PRECISION_KEY} {configured!r} in ov_config")
    chosen = str(precision or configured or PRECISIONS[0])
    if chosen not in PRECISIONS:
        raise ConfigurationError(f"precision {chosen!r} is not one of {list(PRECISIONS)}")
    capabilities = _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if chosen == "bf16" and "BF16" not in capabilities:
        raise BackendError(f"this CPU has no bf16 (OpenVINO reports {', '.join(capabilities)}); use precision 'f32'")
    return chosen


def _core() -> Any:
    from optimum.intel.openvino.modeling_base import core

    return core


def read_graph(file: Path, in_memory: bool = False) -> Any:
    """Read an exported graph.

    Args:
        file: Its .xml file; the weights lie beside it.
        in_memory: Copy the weights instead of mapping the file, which may then be removed.

    Returns:
        The graph.

    Raises:
        CheckpointError: If OpenVINO cannot read it.
    """
    try:
        if in_memory:
            return _core().read_model(file.read_bytes(), file.with_suffix(".bin").read_bytes())
        return _core().read_model(file, file.with_suffix(".bin"))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise CheckpointError(
            f"{file} is damaged or from a newer OpenVINO ({reason}); export or download it again"
        ) from error
