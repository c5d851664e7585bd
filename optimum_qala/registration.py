"""Registers QuaLA-MiniLM with transformers' Auto classes. Never touches the entry of another architecture."""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForQuestionAnswering

from optimum_qala.models.configuration_quala_minilm import QuaLAMiniLMConfig
from optimum_qala.models.modeling_quala_minilm import QuaLAMiniLMForQuestionAnswering, QuaLAMiniLMModel


def register_auto_classes() -> None:
    """Register configuration and models; calling it again changes nothing."""
    AutoConfig.register(QuaLAMiniLMConfig.model_type, QuaLAMiniLMConfig, exist_ok=True)
    AutoModel.register(QuaLAMiniLMConfig, QuaLAMiniLMModel, exist_ok=True)
    AutoModelForQuestionAnswering.register(QuaLAMiniLMConfig, QuaLAMiniLMForQuestionAnswering, exist_ok=True)
