"""QuaLA-MiniLM in OpenVINO: one graph, any budget, chosen per call."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import AutoConfig
from transformers.utils import logging

from optimum_qala._compat import require
from optimum_qala.checkpoints import load_backbone
from optimum_qala.errors import BackendError, CheckpointError, ConfigurationError
from optimum_qala.inference.bucket_options import BucketOptions
from optimum_qala.inference.buckets import Plan
from optimum_qala.inference.files import find_file, find_graph
from optimum_qala.inference.graph import (
    PRECISION_KEY,
    check_graph,
    read_graph,
    retention_of,
)
from optimum_qala.inference.sizes import find_idle_selections, plan_sizes, round_sizes
from optimum_qala.models.budget_choice import UNPADDED, Conditions, choose_budget
from optimum_qala.models.configuration_quala_minilm import QuaLAMiniLMConfig
from optimum_qala.models.conversion import HUB_ARGUMENTS
from optimum_qala.models.hub import HubModel
from optimum_qala.models.length_config import LengthConfig
from optimum_qala.quantization.configuration import (
    CONFIG_NAME,
    IR_NAME,
    RETENTION_INPUT,
    SIZES_INPUT,
    OVQuaLAConfig,
)
from optimum_qala.quantization.cpu import describe_overflow_risk


require("openvino", "OVQuaLAMiniLMForQuestionAnswering")

from optimum_qala.inference.span_model import OVSpanModel  # noqa: E402  # the message above first
from optimum_qala.quantization.export import export_model  # noqa: E402


__all__ = ["OVQuaLAMiniLMForQuestionAnswering"]

logger = logging.get_logger(__name__)


class OVQuaLAMiniLMForQuestionAnswering(HubModel, OVSpanModel):
    """A QuaLA-MiniLM that OpenVINO runs. Calls take the same `budget` as the torch model's.

    The graph is compiled by the first call, and another one, without the layers that do not run, by the first call at
    a budget that stops early; with `buckets`, one for each bucket and budget by the first call that needs it. Threads
    may share a model: each runs infer requests of its own. A thread that needs another budget than the others names it
    in the call; `set_budget` changes it for all.

    Args:
        model: The graph, with its `retention` and `sizes` inputs.
        config: Configuration of the model.
        quantization: How the model was quantized, if it was.
        buckets: Options of the buckets, True for the defaults, False for one graph of any shape.
        precision: What float operations run in: "f32", or "bf16" where the CPU has it. Int8 operations are int8 either
            way. "f32" by default, because OpenVINO otherwise runs float models in bf16 on CPUs that have it.
        ov_config: OpenVINO's own settings, such as {"INFERENCE_NUM_THREADS": 1}.
        kwargs: Passed on to `OVModelForQuestionAnswering`: `device`, `dynamic_shapes`, `compile` (False by default).

    Raises:
        BackendError: If the graph's inputs or outputs are not those that the configuration asks for, or if the CPU
            lacks the precision.
        ConfigurationError: If `precision` is not one of `PRECISIONS`, `buckets` are no `BucketOptions`, or `ov_config`
            contradicts one of them.
    """

    def __init__(
        self,
        model: Any,
        config: QuaLAMiniLMConfig,
        *,
        quantization: OVQuaLAConfig | None = None,
        buckets: BucketOptions | bool | None = None,
        precision: str | None = None,
        ov_config: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        check_graph(model, config)
        self.quantization = quantization
        self._budget: LengthConfig | None = None
        super().__init__(model, config, buckets=buckets, precision=precision, ov_config=ov_config, **kwargs)

    @property
    def budget(self) -> LengthConfig | None:
        """LengthConfig that calls use where they name no budget; None is full length."""
        return self._budget

    def set_budget(
        self, budget: Any = None, *, max_latency_ms: float | None = None, max_f1_loss: float | None = None
    ) -> None:
        """Choose the budget of the calls that name none, by itself or by what was measured at the named ones.

        Args:
            budget: A named budget, "full", a LengthConfig, ratios such as "1,1,0.8,0.8,0.5,0.5", or "1,1,1,1,1,1@5"
                to stop after five layers, or None for full length.
            max_latency_ms: Take the most accurate budget that was measured at or under it here: `fastest_enough`.
            max_f1_loss: Take the cheapest budget that loses at most this share of the full F1: `cheapest_accurate`.

        Raises:
            UnknownBudgetError: If it is a name that the model does not carry, or no budget was measured to fit.
            LengthConfigError: If it does not fit the model.
            ConfigurationError: If more than one argument is given, or one is out of range.
        """

        def here() -> Conditions:
            padding = UNPADDED if self.buckets is None else self.buckets.padding
            return Conditions.here("openvino", self.threads, self.precision, padding)  # threads compile a graph

        self._budget = choose_budget(self.config, budget, max_latency_ms, max_f1_loss, here)

    def _resolve(self, budget: Any) -> LengthConfig | None:
        return self._budget if budget is None else self.config.resolve_budget(budget)  # type: ignore[no-any-return]

    def _constants(self, budget: LengthConfig | None) -> dict[str, NDArray[Any]]:
        return {RETENTION_INPUT: retention_of(budget, self.config.dropping_layers)}

    def _plan(self, budget: LengthConfig | None) -> Plan:
        def plan(input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
            sizes = plan_sizes(input_ids, attention_mask, self.config, budget)
            if self.buckets is not None:
                sizes = round_sizes(sizes, input_ids.shape[1], self.config, budget)
            return {SIZES_INPUT: sizes}

        return plan

    def _usual_plan(self, budget: LengthConfig | None) -> Plan:
        def plan(input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
            least = np.ones(1 + len(self.config.dropping_layers), dtype=np.int64)
            return {SIZES_INPUT: round_sizes(least, input_ids.shape[1], self.config, budget)}

        return plan

    def _idle_selections(self, constants: Mapping[str, NDArray[Any]], length: int) -> Collection[int]:
        return find_idle_selections(constants[RETENTION_INPUT], constants[SIZES_INPUT], length)

    def _exit_layer(self, budget: LengthConfig | None) -> int | None:
        return None if budget is None else budget.exit_layer

    def _reshape(self, model: Any, batch_size: int, sequence_length: int, *_: Any) -> Any:
        """Set batch size and sequence length of every input that has them."""
        shapes = {}
        for tensor in model.inputs:
            shape = tensor.get_partial_shape()
            if not tensor.get_names() & {RETENTION_INPUT, SIZES_INPUT}:
                shape[0], shape[1] = batch_size, sequence_length
            shapes[tensor] = shape
        model.reshape(shapes)
        return model

    @classmethod
    def from_pretrained(
        cls,
        model_id: str | Path,
        export: bool | None = None,
        *,
        config: QuaLAMiniLMConfig | None = None,
        buckets: BucketOptions | bool | None = None,
        precision: str | None = None,
        device: str = "CPU",
        ov_config: dict[str, Any] | None = None,
        dynamic_shapes: bool = True,
        compile: bool = False,  # noqa: A002  # upstream's name
        **kwargs: Any,
    ) -> OVQuaLAMiniLMForQuestionAnswering:
        """Load an exported model, or export a torch checkpoint and load that.

        Args:
            model_id: Folder or repository id. The graph may be in its sub-folder `openvino`.
            export: False loads `openvino_model.xml`; True exports the torch checkpoint, of a QuaLA-MiniLM or of a
                plain BERT, RoBERTa or XLM-R, even if there is an exported model; None exports if there is none.
            config: Configuration to use instead of the stored one.
            buckets: See the class.
            precision: See the class; by default that of a quantized model's `OVQuaLAConfig`.
            device: OpenVINO device.
            ov_config: See the class.
            dynamic_shapes: Accept any batch size and length.
            compile: Compile now instead of in the first call.
            kwargs: `cache_dir`, `force_download`, `local_files_only`, `token`, `revision`, `subfolder`; when
                exporting, fields of `QuaLAMiniLMConfig` too, for example `drop_layers=[1, 3, 5]`.

        Returns:
            The model.

        Raises:
            BackendError: If there is no exported model and `export` is False, or it takes no budgets.
            CheckpointError: If the files are damaged, or the checkpoint is of another kind or has no trained span
                head, or neither the Hub nor the cache tells whether there is an exported model.
            ConfigurationError: If a field of the configuration is given for a model that is exported already.
        """
        hub = {name: kwargs.pop(name) for name in HUB_ARGUMENTS if kwargs.get(name) is not None}
        options: dict[str, Any] = {
            "buckets": buckets,
            "precision": precision,
            "device": device,
            "ov_config": ov_config,
        }
        options |= {"dynamic_shapes": dynamic_shapes, "compile": compile}
        file, beside = (None, hub) if export else find_graph(model_id, IR_NAME, hub)
        if file is None and export is False:
            raise BackendError(
                f"{model_id} holds no {IR_NAME}; pass export=True to export its torch checkpoint, or quantize it first"
            )
        if file is None:
            if export is None:
                logger.warning(
                    f"{model_id} holds no {IR_NAME}: exporting its torch checkpoint. save_pretrained keeps the result."
                )
            return cls._export_and_load(model_id, config, hub, options, kwargs)
        if kwargs:
            raise ConfigurationError(
                f"{sorted(kwargs)} cannot change {model_id}, which is exported already; pass export=True to export "
                "its torch checkpoint anew"
            )
        weights = find_file(model_id, str(Path(IR_NAME).with_suffix(".bin")), beside)
        if weights is None:
            raise CheckpointError(f"{model_id} holds {IR_NAME} without its .bin file; download or export it again")
        quantization = find_file(model_id, CONFIG_NAME, beside, optional=True)
        stored = None if quantization is None else OVQuaLAConfig.from_json_file(quantization)
        if stored is not None and (risk := describe_overflow_risk(stored.applied.get("overflow_fix"))):
            logger.warning(f"{model_id}: {risk}")
        if stored is not None and precision is None and PRECISION_KEY not in (ov_config or {}):
            options["precision"] = stored.precision
        config = AutoConfig.from_pretrained(model_id, **beside) if config is None else config
        return cls(read_graph(file), config, quantization=stored, model_save_dir=file.parent, **options)

    @classmethod
    def _export_and_load(
        cls,
        model_id: str | Path,
        config: QuaLAMiniLMConfig | None,
        hub: dict[str, Any],
        options: dict[str, Any],
        overrides: dict[str, Any],
    ) -> OVQuaLAMiniLMForQuestionAnswering:
        if config is not None:
            overrides = {**overrides, "config": config}
        model, report = load_backbone(model_id, **hub, **overrides)
        report.check_heads(model_id)
        return cls.from_model(model, **options)

    @classmethod
    def from_model(cls, model: Any, **options: Any) -> OVQuaLAMiniLMForQuestionAnswering:
        """Export a torch model that is in memory.

        Args:
            model: A `QuaLAMiniLMForQuestionAnswering`.
            options: Arguments of the class.

        Returns:
            The exported model.

        Raises:
            BackendError: If no layer of the model may drop tokens.
        """
        with tempfile.TemporaryDirectory() as folder:
            config = export_model(model, folder)
            # Read into memory: the folder goes away.
            graph = read_graph(Path(folder) / IR_NAME, in_memory=True)
        return cls(graph, config, **options)

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write the graph, config.json and, for a quantized model, how it was quantized.

        Args:
            save_directory: Folder; made if it does not exist.
            push_to_hub: Upload the folder afterwards.
            kwargs: Arguments of `push_to_hub`; `repo_id` is the folder's name if not given.
        """
        import openvino

        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        # Under another name first: the graph in memory may be mapped from the very files that it replaces.
        with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as temporary:
            openvino.save_model(self.model, Path(temporary) / IR_NAME, compress_to_fp16=False)
            for file in sorted(Path(temporary).iterdir()):  # .bin first, so that an .xml never lacks its weights
                os.replace(file, folder / file.name)
        self.config.save_pretrained(folder)
        if self.quantization is not None:
            self.quantization.save_pretrained(folder)
        if push_to_hub:
            self.push_to_hub(**({"repo_id": folder.name} | kwargs))
