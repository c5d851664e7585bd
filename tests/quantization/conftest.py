"""A tiny model with two layers, records for it, and what becomes of it in int8; made once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from optimum_qala import QuaLAMiniLMConfig, QuaLAMiniLMForQuestionAnswering
from optimum_qala._compat import is_available
from optimum_qala.question_answering.records import QARecord
from optimum_qala.question_answering.windows import WindowOptions
from tests.conftest import tiny_config


BUDGETS = {
    "fast": {"retention": [0.8, 0.4], "f1": 99.0, "split": "train", "macs": 5, "latency_ms": [{"median": 2.5}]},
    "late": {"retention": [1.0, 0.5]},
}
WINDOWS = WindowOptions.for_max_length(96)


def model_with_biases(config: QuaLAMiniLMConfig) -> QuaLAMiniLMForQuestionAnswering:
    """A random model; the biases of a new one are zero, which leaves bias correction nothing to do."""
    model = QuaLAMiniLMForQuestionAnswering(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.fixture(scope="session", autouse=True)
def _openvino():
    if not is_available("openvino"):
        pytest.skip("needs the extra openvino")


@pytest.fixture(scope="session")
def torch_model(tiny_tokenizer) -> QuaLAMiniLMForQuestionAnswering:
    torch.manual_seed(0)
    config = tiny_config(num_hidden_layers=2, vocab_size=len(tiny_tokenizer), budgets=BUDGETS)
    return model_with_biases(config)


@pytest.fixture(scope="session")
def records() -> list[QARecord]:
    facts = [
        ("anna", "wrote a red book in paris"),
        ("peter", "lived in the old tower of london"),
        ("maria", "built a small city on the river"),
        ("john", "found gold and stone near berlin in the year one thousand"),
    ]
    context = " . ".join(f"{name} {fact}" for name, fact in facts)
    return [
        QARecord(f"{name}-{length}", f"who {fact} ?", (context + " . ") * length, (name,), (context.index(name),))
        for name, fact in facts
        for length in (1, 2)
    ]


@pytest.fixture(scope="session")
def int8_folder(torch_model, tiny_tokenizer, records, tmp_path_factory) -> Path:
    """Folder of the quantized model, scored on its calibration records; read only."""
    from optimum_qala import OVQuaLAConfig, OVQuaLAQuantizer

    folder = tmp_path_factory.mktemp("quantized") / "int8"
    OVQuaLAQuantizer(torch_model, tiny_tokenizer).quantize(
        records,
        folder,
        config=OVQuaLAConfig(num_samples=6),
        validation_records=records,
        validation_name="eight facts",
        window_options=WINDOWS,
    )
    return folder
