"""Tiny int8 models of Intel Neural Compressor, made as users make them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from optimum_qala import INCQuaLAConfig, INCQuaLAQuantizer, QuaLAMiniLMForQuestionAnswering
from optimum_qala.question_answering.records import QARecord
from optimum_qala.question_answering.windows import WindowOptions
from tests.conftest import tiny_config
from tests.quantization.conftest import model_with_biases


def quantize_tiny(
    folder: Path, tokenizer: Any, num_layers: int, budgets: dict[str, Any]
) -> QuaLAMiniLMForQuestionAnswering:
    """Write an int8 model, all of whose layers but the first may drop, and its tokenizer; return the float model."""
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": num_layers, "vocab_size": len(tokenizer), "drop_layers": [*range(1, num_layers)]}
    model = model_with_biases(tiny_config(token_scoring="answer", budgets=budgets, **sizes))
    context = "anna wrote a red book in paris . peter lived in the old tower of london . " * 2
    records = [
        QARecord(str(index), question, context, (answer,), (context.index(answer),))
        for index, (question, answer) in enumerate([("who wrote ?", "anna"), ("where lived peter ?", "london")] * 3)
    ]
    INCQuaLAQuantizer(model, tokenizer).quantize(
        records, folder, config=INCQuaLAConfig(num_samples=6), window_options=WindowOptions.for_max_length(96)
    )
    tokenizer.save_pretrained(folder)
    return model
