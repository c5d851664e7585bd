"""Make the peer that users of optimum-intel have today: a plain MiniLM, exported by its own class, int8 by NNCF.

Usage: python plain_int8.py MODEL TRAIN_JSON FLOAT_OUTPUT INT8_OUTPUT. Calibration and settings are those of our own
quantization.
"""

from __future__ import annotations

import sys

import nncf
from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, AdvancedSmoothQuantParameters
from optimum.intel.openvino import OVModelForQuestionAnswering
from transformers import AutoTokenizer

from optimum_qala import QuaLAMiniLMConfig
from optimum_qala.quantization.calibration import calibration_samples
from optimum_qala.quantization.configuration import RETENTION_INPUT, SIZES_INPUT, OVQuaLAConfig
from optimum_qala.question_answering.records import load_records


def main() -> None:
    """Export and quantize."""
    source, train, output_float, output = sys.argv[1:]
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = OVModelForQuestionAnswering.from_pretrained(source, export=True, compile=False)
    model.save_pretrained(output_float)
    tokenizer.save_pretrained(output_float)
    settings = OVQuaLAConfig()
    samples = calibration_samples(
        load_records(train),
        tokenizer,
        QuaLAMiniLMConfig(),
        [None],
        num_samples=settings.num_samples,
        seed=settings.seed,
    )
    inputs = [
        {name: value for name, value in sample.items() if name not in (RETENTION_INPUT, SIZES_INPUT)}
        for sample in samples
    ]
    model.model = nncf.quantize(
        model.model,
        nncf.Dataset(inputs),
        model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset(settings.preset),
        subset_size=len(inputs),
        fast_bias_correction=settings.fast_bias_correction,
        advanced_parameters=AdvancedQuantizationParameters(
            smooth_quant_alphas=AdvancedSmoothQuantParameters(matmul=settings.smooth_quant_alpha)
        ),
    )
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)


if __name__ == "__main__":
    main()
