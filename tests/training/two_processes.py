"""Trains a tiny model for a few steps, in as many processes as torchrun starts, and saves its weights.

Usage: two_processes.py MODEL DATA OUTPUT ROWS, where ROWS is the batch of one process.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from transformers import AutoTokenizer

from optimum_qala import QuaLAMiniLMForQuestionAnswering, QuaLATrainer, QuaLATrainingArguments
from optimum_qala.question_answering.features import WindowOptions
from optimum_qala.question_answering.records import load_records


def main(model_path: str, data: str, output: str, rows: str) -> None:
    """Train and save."""
    model = QuaLAMiniLMForQuestionAnswering.from_pretrained(model_path)
    arguments = QuaLATrainingArguments(
        output_dir=str(Path(output) / "run"),
        use_cpu=True,
        per_device_train_batch_size=int(rows),
        max_steps=3,
        optim="sgd",
        learning_rate=0.1,
        drop_ratio_bound=0.5,
        layer_drop_prob=0.3,
        early_exit_prob=0.5,
        num_random_sub_models=2,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        ddp_backend="gloo" if "WORLD_SIZE" in os.environ else None,
    )
    trainer = QuaLATrainer(
        model,
        arguments,
        train_dataset=load_records(data),
        window_options=WindowOptions(max_length=48, doc_stride=8, max_question_length=16),
        processing_class=AutoTokenizer.from_pretrained(model_path),
    )
    trainer.train()
    if trainer.is_world_process_zero():
        torch.save(model.state_dict(), Path(output) / "weights.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
