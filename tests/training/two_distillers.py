"""Distils a tiny student for a few steps, in as many processes as torchrun starts, and saves its weights.

Usage: two_distillers.py TOKENIZER OUTPUT ROWS, where ROWS is the batch of one process.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import AutoTokenizer

from tests.training.distilling import make_distiller


def main(tokenizer_path: str, output: str, rows: str) -> None:
    """Distil and save."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_path)
    trainer = make_distiller(
        Path(output),
        tokenizer,
        per_device_train_batch_size=int(rows),
        max_steps=6,
        optim="sgd",
        ddp_backend="gloo",
        teacher_cache=str(Path(output) / "cache"),
    )
    trainer.train()
    if trainer.is_world_process_zero():
        torch.save(trainer.model.state_dict(), Path(output) / "weights.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
