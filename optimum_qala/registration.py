"""Registers QuaLA-MiniLM with transformers' Auto classes and Optimum. Never touches the entry of another architecture."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, AutoModel, AutoModelForQuestionAnswering

from optimum_qala.models.configuration_quala_minilm import QuaLAMiniLMConfig
from optimum_qala.models.modeling_quala_minilm import QuaLAMiniLMForQuestionAnswering, QuaLAMiniLMModel


def register_auto_classes() -> None:
    """Register configuration and models; calling it again changes nothing."""
    AutoConfig.register(QuaLAMiniLMConfig.model_type, QuaLAMiniLMConfig, exist_ok=True)
    AutoModel.register(QuaLAMiniLMConfig, QuaLAMiniLMModel, exist_ok=True)
    AutoModelForQuestionAnswering.register(QuaLAMiniLMConfig, QuaLAMiniLMForQuestionAnswering, exist_ok=True)


def register_openvino_export() -> None:
    """Tell Optimum how to export the model to OpenVINO; calling it again changes nothing.

    OpenVINO itself is not imported before an export starts.
    """
    try:
        from optimum.exporters.tasks import TasksManager
    except ImportError:  # the model works without Optimum
        return
    register = TasksManager.create_register("openvino", overwrite_existing=True)
    register(QuaLAMiniLMConfig.model_type, "question-answering")(_make_openvino_config)


def _make_openvino_config(*args: Any, **kwargs: Any) -> Any:
    from optimum_qala.quantization.export import QuaLAMiniLMOpenVINOConfig

    return QuaLAMiniLMOpenVINOConfig(*args, **kwargs)
