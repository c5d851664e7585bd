"""Distils tiny students for a few steps, in as many processes as torchrun starts, and saves their weights.

Usage: two_distillers.py TOKENIZER OUTPUT ROWS, where ROWS is the batch of one process.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from tests.training.distilling import make_bert, make_distiller


# By method; minilm takes two batches a step.
SETTINGS: dict[str, dict[str, Any]] = {
    "minilmv2": {"max_steps": 6},
    "minilm": {"method": "minilm", "max_steps": 2, "gradient_accumulation_steps": 2},
}


def make(method: str, folder: Path, tokenizer: Any, **settings: Any) -> Any:
    """Make a trainer with the settings of a method."""
    teacher = make_bert(num_attention_heads=2)  # as many as the student
    return make_distiller(folder, tokenizer, teacher=teacher, optim="sgd", **SETTINGS[method], **settings)


def main(tokenizer_path: str, output: str, rows: str) -> None:
    """Distil by each method and save."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_path)
    caches = {"minilmv2": {"teacher_cache": str(Path(output) / "cache")}}
    for method in SETTINGS:
        trainer = make(
            method,
            Path(output),
            tokenizer,
            per_device_train_batch_size=int(rows),
            ddp_backend="gloo",
            **caches.get(method, {}),
        )
        trainer.train()
        if trainer.is_world_process_zero():
            torch.save(trainer.model.state_dict(), Path(output) / f"{method}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
