"""A plain BERT-shaped question answering model in OpenVINO, run in buckets."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModelForQuestionAnswering

from optimum_qala._compat import require
from optimum_qala.errors import BackendError, CheckpointError, ConfigurationError, UnknownBudgetError
from optimum_qala.inference.bucket_options import BucketOptions
from optimum_qala.inference.files import find_config, find_file, find_graph
from optimum_qala.inference.graph import check_plain_graph, read_graph
from optimum_qala.models.configuration_quala_minilm import FULL_BUDGET, QuaLAMiniLMConfig
from optimum_qala.models.conversion import HUB_ARGUMENTS
from optimum_qala.quantization.configuration import IR_NAME


require("openvino", "OVBucketedModelForQuestionAnswering")

from optimum_qala.inference.span_model import OVSpanModel  # noqa: E402  # the message above first


__all__ = ["OVBucketedModelForQuestionAnswering"]


class OVBucketedModelForQuestionAnswering(OVSpanModel):
    """A question answering model that drops no tokens, run in buckets: BERT, MiniLM, RoBERTa and their like.

    It takes what optimum-intel's `OVModelForQuestionAnswering` takes and gives the same logits. Sequences are padded
    to a few lengths, each of which has a compiled graph of its own; see `BucketOptions`. A graph is compiled by the
    first call that needs it, or by `warm_up`. Threads may share a model.

    Args:
        model: The graph.
        config: Configuration of the model.
        buckets: Options of the buckets; True for the defaults.
        precision: What float operations run in: "f32", or "bf16" where the CPU has it. Int8 operations are int8 either
            way. "f32" by default, because OpenVINO otherwise runs float models in bf16 on CPUs that have it.
        ov_config: OpenVINO's own settings, such as {"INFERENCE_NUM_THREADS": 1}.
        kwargs: Passed on to `OVModelForQuestionAnswering`: `device`.

    Raises:
        BackendError: If the graph is no question answering model of the BERT kind, or the CPU lacks the precision.
        ConfigurationError: If `precision` is not one of `PRECISIONS`, `buckets` are no `BucketOptions`, or `ov_config`
            contradicts one of them.
    """

    def __init__(
        self,
        model: Any,
        config: Any,
        *,
        buckets: BucketOptions | bool = True,
        precision: str | None = None,
        ov_config: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        check_plain_graph(model)
        if not buckets:
            raise ConfigurationError(
                f"buckets={buckets!r}: this class runs in buckets only; for one graph of any shape use "
                "optimum.intel.OVModelForQuestionAnswering"
            )
        super().__init__(model, config, buckets=buckets, precision=precision, ov_config=ov_config, **kwargs)

    def _constants(self, budget: Any) -> dict[str, NDArray[Any]]:
        if budget not in (None, FULL_BUDGET):
            raise UnknownBudgetError(
                f"this model drops no tokens, so it has no budget {budget!r}, only {FULL_BUDGET!r}; train a "
                "QuaLA-MiniLM for others"
            )
        return {}

    @classmethod
    def from_pretrained(
        cls,
        model_id: str | Path,
        export: bool | None = None,
        *,
        config: Any = None,
        buckets: BucketOptions | bool = True,
        precision: str | None = None,
        device: str = "CPU",
        ov_config: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> OVBucketedModelForQuestionAnswering:
        """Load a model that optimum-intel exported, or export a torch checkpoint and load that.

        Args:
            model_id: Folder or repository id. The graph may be in its sub-folder `openvino`.
            export: False loads `openvino_model.xml`; True exports the torch checkpoint even if there is one; None
                exports if there is none.
            config: Configuration to use instead of the stored one.
            buckets: See the class.
            precision: See the class.
            device: OpenVINO device.
            ov_config: See the class.
            kwargs: `cache_dir`, `force_download`, `local_files_only`, `token`, `revision`, `subfolder`.

        Returns:
            The model.

        Raises:
            BackendError: If there is no exported model and `export` is False, or it is of another kind.
            CheckpointError: If the files are damaged, or the checkpoint has no trained span head.
            ConfigurationError: If an argument is unknown.
        """
        hub = {name: kwargs.pop(name) for name in HUB_ARGUMENTS if kwargs.get(name) is not None}
        if kwargs:
            raise ConfigurationError(f"from_pretrained has no argument {sorted(kwargs)[0]!r}")
        options: dict[str, Any] = {"buckets": buckets, "precision": precision, "device": device}
        options["ov_config"] = ov_config
        file, beside = (None, hub) if export else find_graph(model_id, IR_NAME, hub)
        if file is None and export is False:
            raise BackendError(f"{model_id} holds no {IR_NAME}; pass export=True to export its torch checkpoint")
        if file is None:
            graph, stored = _export(model_id, hub)
            return cls(graph, stored if config is None else config, **options)
        if find_file(model_id, str(Path(IR_NAME).with_suffix(".bin")), beside) is None:
            raise CheckpointError(f"{model_id} holds {IR_NAME} without its .bin file; download or export it again")
        if config is None:
            config = AutoConfig.from_pretrained(model_id, **find_config(model_id, beside, hub))
        return cls(read_graph(file), config, model_save_dir=file.parent, **options)


def _export(model_id: str | Path, hub: dict[str, Any]) -> tuple[Any, Any]:
    """Export a torch checkpoint in float32; return the graph and the configuration."""
    from optimum.exporters.openvino import export_from_model

    stored = AutoConfig.from_pretrained(model_id, **hub)
    if stored.model_type == QuaLAMiniLMConfig.model_type:
        raise BackendError(
            f"{model_id} is a {stored.model_type!r} model, which takes budgets; load it with "
            "OVQuaLAMiniLMForQuestionAnswering"
        )
    model, info = AutoModelForQuestionAnswering.from_pretrained(
        model_id, output_loading_info=True, dtype=torch.float32, **hub
    )
    if missing := sorted(info["missing_keys"]):
        raise CheckpointError(
            f"{model_id} lacks {missing[0]}, so its answers would be random; fine-tune it for question answering first"
        )
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # OpenVINO still traces; there is nothing that the user could do about it.
        warnings.filterwarnings("ignore", r"`torch\.jit\.trace", DeprecationWarning)
        config = model.config
        export_from_model(model.eval(), folder, task="question-answering", stateful=False)
        return read_graph(Path(folder) / IR_NAME, in_memory=True), config
