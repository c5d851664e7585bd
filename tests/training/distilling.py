"""Distillations of tiny encoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

from optimum_qala import MiniLMDistillationArguments, MiniLMDistillationTrainer
from optimum_qala.distillation.blocks import BlockOptions, TextBlocks, tokenize_texts
from optimum_qala.distillation.student import StudentOptions, make_student
from tests.training.runs import TINY_RUN


TEXTS = [  # of several lengths
    f"{person} was born in {place} {rest}"
    for person in ("anna", "peter", "maria", "john")
    for place in ("paris", "london")
    for rest in ("in the old tower of the city", ".")
]
STUDENT = StudentOptions(num_hidden_layers=2, hidden_size=24, num_attention_heads=2)
SIZES = {
    "vocab_size": 200,
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 130,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.3,
}


def make_bert(**settings: Any) -> BertModel:
    torch.manual_seed(1)
    return BertModel(BertConfig(**(SIZES | settings)), add_pooling_layer=False)


def make_roberta(**settings: Any) -> RobertaModel:
    torch.manual_seed(1)
    return RobertaModel(RobertaConfig(**(SIZES | {"pad_token_id": 0} | settings)), add_pooling_layer=False)


def make_blocks(tokenizer: Any, **options: Any) -> TextBlocks:
    return tokenize_texts(TEXTS, tokenizer, BlockOptions(**({"max_length": 16} | options)))


def make_distiller(
    tmp_path: Path, tokenizer: Any, *, teacher: Any = None, student: Any = None, blocks: Any = None, **settings: Any
) -> MiniLMDistillationTrainer:
    teacher = teacher if teacher is not None else make_bert()
    passed_on = {name: settings.pop(name) for name in ("callbacks", "eval_dataset") if name in settings}
    defaults = TINY_RUN | {"output_dir": str(tmp_path / "out")}
    return MiniLMDistillationTrainer(
        student if student is not None else make_student(teacher, STUDENT),
        MiniLMDistillationArguments(**(defaults | settings)),
        teacher,
        train_dataset=make_blocks(tokenizer, packing=False) if blocks is None else blocks,
        processing_class=tokenizer,
        **passed_on,
    )
