"""Export for Intel Neural Compressor: one graph of torch operators that serves every budget.

The retention ratios are an input of the graph. How wide its tensors are after a layer that drops tokens is one too, in
the shape of an empty tensor: a size that is read from a shape is a symbol that `torch.export` can reason about. One
that is read from a tensor's values is not, and leaves the graph full of checks that nothing can decide.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from optimum_qala.errors import BackendError
from optimum_qala.models.configuration_quala_minilm import QuaLAMiniLMConfig
from optimum_qala.models.modeling_quala_minilm import QuaLAMiniLMForQuestionAnswering
from optimum_qala.quantization.configuration import RETENTION_INPUT, SIZES_INPUT, logit_names
from optimum_qala.quantization.rounding import row_steps


__all__ = ["export_graph", "graph_inputs", "graph_outputs", "input_names", "quantize_embeddings", "trace_program"]

# No two of them alike and none below 2: `torch.export` would take equal sizes for the same one, and 0 and 1 for fixed.
_EXAMPLE_BATCH, _EXAMPLE_LENGTH, _EXAMPLE_QUESTION = 3, 47, 5


class Int8Embedding(nn.Module):
    """An embedding table in 8 bits, with a scale for each row, that gives float rows.

    Args:
        weight: The table. *Shape:* `(num_rows, hidden_size)`
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        scale = row_steps(weight).unsqueeze(1)
        # Times the reciprocal, as torch's operators do: what lies halfway goes to the same side as in training.
        self.register_buffer("table", torch.round(weight * scale.reciprocal()).to(torch.int8))
        self.register_buffer("scale", scale)
        self.table: Tensor
        self.scale: Tensor

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids of any shape to `(..., hidden_size)`."""
        flat = ids.reshape(-1)
        rows = self.table.index_select(0, flat).to(torch.float32) * self.scale.index_select(0, flat)
        return rows.reshape(*ids.shape, self.table.shape[1])


@torch.no_grad()
def quantize_embeddings(model: QuaLAMiniLMForQuestionAnswering) -> QuaLAMiniLMForQuestionAnswering:
    """Replace the embedding tables by 8-bit ones, in place.

    Args:
        model: A model that is about to be exported; it can no longer be saved as a checkpoint.

    Returns:
        The same model.
    """
    embeddings: Any = model.quala.embeddings
    for name, module in list(embeddings.named_children()):
        if isinstance(module, nn.Embedding):
            setattr(embeddings, name, Int8Embedding(module.weight.detach()))
    return model


class _Program(nn.Module):
    """The model with the graph's inputs and outputs, in their order."""

    def __init__(self, model: QuaLAMiniLMForQuestionAnswering) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        config = self.model.config
        names = _size_names(config)
        rows = [] if config.score_source == "question" else [1]
        output = self.model(
            inputs["input_ids"],
            inputs["attention_mask"],
            inputs.get("token_type_ids"),
            retention=inputs[RETENTION_INPUT],
            sizes=rows + [inputs[name].shape[0] for name in names],
            output_exit_logits=config.has_span_heads,
        )
        logits = [output.start_logits, output.end_logits]
        for exit_logits in (output.exit_logits or ())[1:]:  # no budget stops before the first layer
            logits += [values.contiguous() for values in exit_logits.unbind(dim=-1)]
        return tuple(logits)


def _size_names(config: QuaLAMiniLMConfig) -> list[str]:
    """Name the inputs whose shapes are sizes: the question's rows, where they are read, and what leaves each layer."""
    layers = [f"{SIZES_INPUT}_{layer}" for layer in config.dropping_layers]
    return [f"{SIZES_INPUT}_question", *layers] if config.score_source == "question" else layers


def _token_names(config: QuaLAMiniLMConfig) -> list[str]:
    return ["input_ids", "attention_mask", *(["token_type_ids"] if config.type_vocab_size > 1 else [])]


def input_names(config: QuaLAMiniLMConfig) -> list[str]:
    """Name the graph's inputs, in order."""
    return [*_token_names(config), RETENTION_INPUT, *_size_names(config)]


def graph_inputs(inputs: Mapping[str, Any], config: QuaLAMiniLMConfig) -> dict[str, Tensor]:
    """Write a batch, with the `retention` and `sizes` of its budget, as the graph takes it.

    Args:
        inputs: `input_ids`, `attention_mask` and, where the model tells segments apart, `token_type_ids`,
            `(batch_size, sequence_length)` each; `retention`, `(num_dropping_layers,)`; `sizes` as `plan_sizes`
            counts them, `(1 + num_dropping_layers,)`. Arrays or tensors.
        config: Configuration of the graph.

    Returns:
        Inputs by name, in the order of the graph's.
    """
    tensors = {name: torch.as_tensor(inputs[name]).to(torch.int64) for name in _token_names(config)}
    tensors[RETENTION_INPUT] = torch.tensor(np.asarray(inputs[RETENTION_INPUT]), dtype=torch.float32)
    names, sizes = _size_names(config), np.asarray(inputs[SIZES_INPUT]).tolist()
    for name, size in zip(names, sizes[-len(names) :], strict=True):  # the question's comes first, if it counts
        tensors[name] = torch.empty(size, dtype=torch.bool)
    return tensors


def graph_outputs(config: QuaLAMiniLMConfig) -> list[str]:
    """Name the graph's outputs: the logits after all layers, then those of the exits."""
    exits = range(1, config.num_hidden_layers) if config.has_span_heads else ()
    return [name for exit_layer in (None, *exits) for name in logit_names(exit_layer)]


def export_graph(model: QuaLAMiniLMForQuestionAnswering, config: QuaLAMiniLMConfig) -> torch.fx.GraphModule:
    """Export a model. Batch size, sequence length and token counts are dynamic. The model stays as it is.

    `neural_compressor.torch.export.export` does the same with `torch.export`'s default treatment of dynamic shapes,
    which turns "at most as many tokens as before" into a fixed number, and logs an error instead of raising it.

    Args:
        model: The model; its embedding tables may be `quantize_embeddings`'.
        config: Its configuration, which may let fewer layers drop tokens.

    Returns:
        The graph, which Intel Neural Compressor's quantizer takes.

    Raises:
        BackendError: If no layer may drop tokens, so that the graph could not take a budget, or the model's code
            cannot be exported.
    """
    if not config.dropping_layers:
        raise BackendError(
            "no layer of this model may drop tokens (drop_layers is []), so one graph cannot serve budgets; set "
            "drop_layers"
        )
    traced = copy.deepcopy(model).to(device="cpu", dtype=torch.float32).eval()
    traced.requires_grad_(False)
    traced.set_budget(None)
    traced.config.drop_layers = config.drop_layers
    traced.config._attn_implementation = "sdpa"  # one fused operation in the graph
    program = trace_program(_Program(traced), config)
    graph: torch.fx.GraphModule = program.module(check_guards=False)  # type: ignore[assignment]
    return graph


def trace_program(program: nn.Module, config: QuaLAMiniLMConfig) -> torch.export.ExportedProgram:
    """Export a module that takes the graph's inputs by name. Batch size, length and token counts are dynamic.

    Args:
        program: The module.
        config: Configuration of the model, which says what the inputs are.

    Returns:
        The exported program.

    Raises:
        BackendError: If its code cannot be exported.
    """
    example = graph_inputs(_example(config), config)
    shapes: dict[str, Any] = {
        name: {axis: torch.export.Dim.AUTO for axis in range(tensor.dim())} for name, tensor in example.items()
    }
    shapes[RETENTION_INPUT] = {}
    try:
        with torch.no_grad():
            return torch.export.export(
                program,
                (example,),
                dynamic_shapes=(shapes,),
                prefer_deferred_runtime_asserts_over_guards=True,
            )
    except Exception as error:  # torch.export raises errors of many kinds, depending on what it stumbles over
        reason = str(error).strip().splitlines()
        raise BackendError(
            f"torch {torch.__version__} cannot export this model ({reason[0] if reason else type(error).__name__}); "
            "use the versions of constraints.txt"
        ) from error


def _example(config: QuaLAMiniLMConfig) -> dict[str, NDArray[Any]]:
    length = min(_EXAMPLE_LENGTH, config.max_position_embeddings - (config.pad_token_id or 0) - 1)
    ids = np.full((_EXAMPLE_BATCH, length), (config.sep_token_id or 0) + 1, dtype=np.int64)
    ids[:, (_EXAMPLE_QUESTION - 1, length - 1)] = config.sep_token_id
    layers = len(config.dropping_layers)
    widths = [max(length - 2 * (index + 1), _EXAMPLE_QUESTION + 2) for index in range(layers)]
    return {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": np.zeros_like(ids),
        RETENTION_INPUT: np.linspace(0.9, 0.5, layers, dtype=np.float32),
        SIZES_INPUT: np.array([_EXAMPLE_QUESTION, *widths]),
    }
