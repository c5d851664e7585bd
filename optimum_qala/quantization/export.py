"""Export to OpenVINO: one graph that serves every budget.

The retention ratios are one of its inputs, and the logits after every number of layers that a budget may stop at are
among its outputs.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from optimum_qala._compat import require
from optimum_qala.errors import BackendError, ConfigurationError
from optimum_qala.models.configuration_quala_minilm import QuaLAMiniLMConfig
from optimum_qala.models.modeling_quala_minilm import QuaLAMiniLMForQuestionAnswering, QuaLAMiniLMPreTrainedModel
from optimum_qala.quantization.calibration import narrow_config
from optimum_qala.quantization.configuration import IR_NAME, RETENTION_INPUT, SIZES_INPUT, logit_names


require("openvino", "exporting to OpenVINO")

from optimum.exporters.openvino import convert  # noqa: E402  # the message above first
from optimum.exporters.openvino.model_configs import (  # noqa: E402
    BertOpenVINOConfig,
    register_in_tasks_manager,
)
from optimum.exporters.openvino.patching_utils import ModelPatcher  # noqa: E402
from optimum.utils.input_generators import DEFAULT_DUMMY_SHAPES, DummyInputGenerator  # noqa: E402


__all__ = ["QuaLAMiniLMOpenVINOConfig", "export_model", "narrow_config", "register_export"]


class DummyBudgetGenerator(DummyInputGenerator):  # type: ignore[misc]
    """Makes the inputs that describe the budget, for the example that the model is traced with."""

    SUPPORTED_INPUT_NAMES = (RETENTION_INPUT, SIZES_INPUT)

    def __init__(
        self,
        task: str,
        normalized_config: Any,
        sequence_length: int = DEFAULT_DUMMY_SHAPES["sequence_length"],
        **_: Any,
    ) -> None:
        self.sequence_length = sequence_length
        self.num_dropping_layers = len(normalized_config.config.dropping_layers)

    def generate(
        self, input_name: str, framework: str = "pt", int_dtype: str = "int64", float_dtype: str = "fp32"
    ) -> torch.Tensor:
        """Return falling ratios, so that every layer of the example drops, or sizes that fit whatever it holds."""
        if input_name == SIZES_INPUT:
            return torch.full((1 + self.num_dropping_layers,), self.sequence_length, dtype=torch.int64)
        return torch.linspace(0.9, 0.5, self.num_dropping_layers, dtype=torch.float32)


class QuaLAMiniLMPatcher(ModelPatcher):  # type: ignore[misc]
    """Makes the forward call that is traced return every output of the graph by its name."""

    def __init__(self, config: Any, model: Any, model_kwargs: dict[str, Any] | None = None) -> None:
        super().__init__(config, model, model_kwargs)
        forward = self.orig_forward
        has_exits = model.config.has_span_heads

        @functools.wraps(forward)
        def patched_forward(*args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
            output = forward(*args, **kwargs, output_exit_logits=has_exits)
            logits = [output.start_logits, output.end_logits]
            for exit_logits in (output.exit_logits or ())[1:]:  # no budget stops before the first layer
                logits += [values.contiguous() for values in exit_logits.unbind(dim=-1)]
            return dict(zip(config.outputs, logits, strict=True))

        self.patched_forward = patched_forward


class QuaLAMiniLMOpenVINOConfig(BertOpenVINOConfig):  # type: ignore[misc]
    """How Optimum exports a QuaLA-MiniLM: as a BERT, with two inputs more, and two outputs more for every exit.

    `retention` holds the retention ratio of each layer in `config.dropping_layers`, `sizes` what `plan_sizes` counts.
    Segment ids are an input only of models that tell segments apart. Of a model with early span heads,
    `start_logits_<e>` and `end_logits_<e>` are the logits after e layers, for e from 1 to the number of layers less
    one.
    """

    DUMMY_INPUT_GENERATOR_CLASSES = (*BertOpenVINOConfig.DUMMY_INPUT_GENERATOR_CLASSES, DummyBudgetGenerator)
    _MODEL_PATCHER = QuaLAMiniLMPatcher

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        """Names of the inputs, and their dynamic axes."""
        inputs = dict(super().inputs)
        if self._config.type_vocab_size < 2:
            del inputs["token_type_ids"]
        return {**inputs, RETENTION_INPUT: {}, SIZES_INPUT: {}}

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        """Names of the outputs, and their dynamic axes."""
        exits = range(1, self._config.num_hidden_layers) if self._config.has_span_heads else ()
        names = [name for exit_layer in (None, *exits) for name in logit_names(exit_layer)]
        return {name: {0: "batch_size", 1: "sequence_length"} for name in names}


def export_model(
    model: QuaLAMiniLMForQuestionAnswering, folder: str | Path, *, drop_layers: Sequence[int] | None = None
) -> QuaLAMiniLMConfig:
    """Export a model to a folder that `OVQuaLAMiniLMForQuestionAnswering.from_pretrained` loads.

    Batch size, sequence length and token counts are dynamic. Weights are stored in float32. The model stays as it is.

    Args:
        model: The trained model.
        folder: Where to write the graph and config.json.
        drop_layers: 0-based layers that may drop in the graph; those of the model by default. Fewer layers make a
            faster graph, but budgets that drop in other layers no longer fit.

    Returns:
        The configuration that was written.

    Raises:
        BackendError: If no layer may drop, so that the graph could not take a budget.
        ConfigurationError: If `drop_layers` are not layers that may drop in the model.
        LengthConfigError: If a budget of the model drops in another layer.
    """
    if drop_layers is not None:
        unknown = sorted(set(drop_layers) - set(model.config.dropping_layers))
        if unknown:
            raise ConfigurationError(
                f"layer {unknown[0]} may not drop tokens; this model drops in layers "
                f"{list(model.config.dropping_layers)}"
            )
    config = narrow_config(model.config, model.config.drop_layers if drop_layers is None else drop_layers)
    if not config.dropping_layers:
        raise BackendError(
            "no layer of this model may drop tokens (drop_layers is []), so one graph cannot serve budgets; "
            "set drop_layers, or export the plain model with optimum-cli export openvino"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # A copy, because exporting changes the mode, the precision and the configuration of what it is given.
    traced = copy.deepcopy(model).to(device="cpu", dtype=torch.float32).eval()
    traced.set_budget(None)
    traced.config.drop_layers = config.drop_layers
    traced.config._attn_implementation = "sdpa"  # one fused operation in the graph
    export_config = QuaLAMiniLMOpenVINOConfig(traced.config, task="question-answering")
    with warnings.catch_warnings():
        # OpenVINO still traces; there is nothing that the user could do about it.
        warnings.filterwarnings("ignore", r"`torch\.jit\.trace", DeprecationWarning)
        convert.export(traced, export_config, folder / IR_NAME, stateful=False, library_name="transformers")
    config.save_pretrained(folder)
    return config


def register_export() -> None:
    """Teach Optimum's exporter to export a QuaLA-MiniLM; calling it again changes nothing.

    `export_model` does not need it. It is for `optimum-cli export openvino` and
    `optimum.exporters.openvino.main_export`.
    """
    register_in_tasks_manager(QuaLAMiniLMConfig.model_type, "question-answering", library_name="transformers")(
        QuaLAMiniLMOpenVINOConfig
    )
    infer_library = convert._infer_library_from_model_or_model_class
    if getattr(infer_library, "knows_quala", False):
        return

    # optimum-intel takes every class whose module begins with "optimum", hence ours, for a wrapper of its own.
    @functools.wraps(infer_library)
    def infer_library_or_transformers(model: Any, library_name: str | None = None) -> str:
        if isinstance(model, QuaLAMiniLMPreTrainedModel):
            return library_name or "transformers"
        return str(infer_library(model, library_name=library_name))

    infer_library_or_transformers.knows_quala = True  # type: ignore[attr-defined]
    convert._infer_library_from_model_or_model_class = infer_library_or_transformers
