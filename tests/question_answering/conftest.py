"""Tokenizers and models for the question answering tests, made in memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast


@pytest.fixture(scope="session")
def roberta_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with RoBERTa's double separator and no segment ids: one token a byte."""
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({piece: index for index, piece in enumerate(pieces)}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        cls_token="<s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=128,
    )


class FakeModel:
    """Gives 5 to the tokens `start_id` and `end_id`, `null` to [CLS], 0 to all else. Remembers its calls."""

    def __init__(self, start_id: int = -1, end_id: int = -1, null: float = 0.0) -> None:
        self.start_id, self.end_id, self.null = start_id, end_id, null
        self.calls: list[dict[str, Any]] = []

    def __call__(self, **inputs: Any) -> Any:
        self.calls.append(inputs)
        start = (inputs["input_ids"] == self.start_id).float() * 5
        end = (inputs["input_ids"] == self.end_id).float() * 5
        start[:, 0] = end[:, 0] = self.null / 2
        return SimpleNamespace(start_logits=start, end_logits=end)


@pytest.fixture(scope="session")
def fake_model() -> type[FakeModel]:
    return FakeModel
