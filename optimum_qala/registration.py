"""Registers QuaLA-MiniLM with transformers: Auto classes and the pipeline task. Never touches another's entry.

Also what writes the model cards of pushes, which the models themselves, without the rest of the package, cannot.
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForQuestionAnswering
from transformers.pipelines import PIPELINE_REGISTRY

from optimum_qala.models.configuration_quala_minilm import QuaLAMiniLMConfig
from optimum_qala.models.hub_card import CardWriter, set_card_writer
from optimum_qala.models.modeling_quala_minilm import QuaLAMiniLMForQuestionAnswering, QuaLAMiniLMModel
from optimum_qala.question_answering.pipeline import TASK, QuestionAnsweringPipeline


def register_auto_classes() -> None:
    """Register configuration and models; calling it again changes nothing."""
    AutoConfig.register(QuaLAMiniLMConfig.model_type, QuaLAMiniLMConfig, exist_ok=True)
    AutoModel.register(QuaLAMiniLMConfig, QuaLAMiniLMModel, exist_ok=True)
    AutoModelForQuestionAnswering.register(QuaLAMiniLMConfig, QuaLAMiniLMForQuestionAnswering, exist_ok=True)


def register_pipeline() -> None:
    """Register `pipeline("question-answering")` unless something provides it already."""
    if TASK not in PIPELINE_REGISTRY.supported_tasks:
        PIPELINE_REGISTRY.register_pipeline(
            TASK, pipeline_class=QuestionAnsweringPipeline, pt_model=(AutoModelForQuestionAnswering,), type="text"
        )


def register_card_writer() -> None:
    """Have pushes write cards of what was measured."""
    set_card_writer(_card_writer)


def _card_writer() -> CardWriter:
    from optimum_qala.reporting.pushed_cards import MeasuredCardWriter

    return MeasuredCardWriter()
