"""Registers QuaLA-MiniLM with transformers: Auto classes and the pipeline task. Never touches another's entry.

Also what writes the model card of a push, which the models themselves, without the rest of the package, cannot.
"""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig, AutoModel, AutoModelForQuestionAnswering
from transformers.pipelines import PIPELINE_REGISTRY

from optimum_qala.models.configuration_quala_minilm import QuaLAMiniLMConfig
from optimum_qala.models.hub import set_card_writer
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
    """Have a push to a repository without a card write one of what was measured."""
    set_card_writer(_write_card)


def _write_card(folder: Path, repo_id: str) -> str:
    from optimum_qala.reporting.facts import read_facts
    from optimum_qala.reporting.model_card import make_model_card

    return make_model_card(read_facts(folder), repo_id=repo_id)
