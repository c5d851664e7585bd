"""optimum-qala: length-adaptive int8 MiniLM for question answering, with a budget chosen per call.

Importing the package registers QuaLA-MiniLM with transformers' Auto classes, and the question answering pipeline that
transformers removed; it does nothing else. The model, its configuration, the pipeline and `LengthConfig` load at once;
everything else, with its dependencies, when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from optimum_qala.models.configuration_quala_minilm import QuaLAMiniLMConfig
from optimum_qala.models.length_config import LengthConfig
from optimum_qala.models.modeling_quala_minilm import QuaLAMiniLMForQuestionAnswering, QuaLAMiniLMModel
from optimum_qala.question_answering.pipeline import QuestionAnsweringPipeline
from optimum_qala.registration import register_auto_classes, register_card_writer, register_pipeline
from optimum_qala.version import __version__


# Public name -> module that defines it, loaded when the name is first used.
_LAZY = {
    "BucketOptions": "optimum_qala.inference.bucket_options",
    "INCQuaLAConfig": "optimum_qala.quantization.inc_configuration",
    "INCQuaLAMiniLMForQuestionAnswering": "optimum_qala.inference.inc",
    "INCQuaLAQuantizer": "optimum_qala.quantization.inc",
    "MiniLMDistillationArguments": "optimum_qala.training.minilm_arguments",
    "MiniLMDistillationTrainer": "optimum_qala.training.minilm_trainer",
    "OVBucketedModelForQuestionAnswering": "optimum_qala.inference.plain",
    "OVQuaLAConfig": "optimum_qala.quantization.configuration",
    "OVQuaLAMiniLMForQuestionAnswering": "optimum_qala.inference.openvino",
    "OVQuaLAQuantizer": "optimum_qala.quantization.openvino",
    "QuaLATrainer": "optimum_qala.training.trainer",
    "QuaLATrainingArguments": "optimum_qala.training.arguments",
    "shrink_model": "optimum_qala.students.shrinking",
    "trim_vocabulary": "optimum_qala.students.vocabulary",
}

__all__ = [
    "BucketOptions",
    "INCQuaLAConfig",
    "INCQuaLAMiniLMForQuestionAnswering",
    "INCQuaLAQuantizer",
    "LengthConfig",
    "MiniLMDistillationArguments",
    "MiniLMDistillationTrainer",
    "OVBucketedModelForQuestionAnswering",
    "OVQuaLAConfig",
    "OVQuaLAMiniLMForQuestionAnswering",
    "OVQuaLAQuantizer",
    "QuaLAMiniLMConfig",
    "QuaLAMiniLMForQuestionAnswering",
    "QuaLAMiniLMModel",
    "QuaLATrainer",
    "QuaLATrainingArguments",
    "QuestionAnsweringPipeline",
    "__version__",
    "shrink_model",
    "trim_vocabulary",
]

register_auto_classes()
register_pipeline()
register_card_writer()


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
