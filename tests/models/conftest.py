"""Plain checkpoints on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForQuestionAnswering


@pytest.fixture
def bert_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny, seeded BERT for question answering and no tokenizer."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=200,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
    )
    BertForQuestionAnswering(config).save_pretrained(folder)
    return folder
