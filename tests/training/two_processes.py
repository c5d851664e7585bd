"""Trains a tiny model for a few steps, in as many processes as torchrun starts, and saves its weights.

Usage: two_processes.py MODEL DATA OUTPUT ROWS [auxiliary|rounded], where ROWS is the batch of one process,
"auxiliary" adds a teacher of another width and every auxiliary loss, and takes two batches a step; "rounded" trains
quantization-aware. The log is saved beside the weights.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from transformers import AutoTokenizer, BertConfig, BertForQuestionAnswering

from optimum_qala import QuaLAMiniLMForQuestionAnswering, QuaLATrainer, QuaLATrainingArguments
from optimum_qala.distillation.auxiliary import AUXILIARY_LOSSES
from optimum_qala.question_answering.features import WindowOptions
from optimum_qala.question_answering.records import load_records


def make_teacher() -> BertForQuestionAnswering:
    """A teacher of another width and depth than the model."""
    torch.manual_seed(1)
    sizes = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    return BertForQuestionAnswering(BertConfig(vocab_size=200, initializer_range=0.3, **sizes))


def main(model_path: str, data: str, output: str, rows: str, kind: str = "") -> None:
    """Train and save."""
    model = QuaLAMiniLMForQuestionAnswering.from_pretrained(model_path)
    auxiliary = kind == "auxiliary"
    weights = dict.fromkeys(AUXILIARY_LOSSES, 0.01) if auxiliary else {}
    arguments = QuaLATrainingArguments(
        output_dir=str(Path(output) / "run"),
        use_cpu=True,
        per_device_train_batch_size=int(rows),
        gradient_accumulation_steps=2 if auxiliary else 1,
        max_steps=3,
        optim="sgd",
        learning_rate=0.1,
        drop_ratio_bound=0.5,
        layer_drop_prob=0.3,
        early_exit_prob=0.5 if model.config.has_span_heads else 0.0,
        num_random_sub_models=2,
        auxiliary_losses=weights,
        sub_model_auxiliary_losses={name: weight for name, weight in weights.items() if name != "embeddings"},
        mutual_information_tokens=60 if auxiliary else 512,  # fewer than a batch of both processes has
        quantization_aware=kind == "rounded",
        logging_steps=1,
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
        teacher=make_teacher() if auxiliary else None,
    )
    trainer.train()
    if trainer.fake_quantization is not None:
        (Path(output) / f"ranges-{trainer.args.process_index}.json").write_text(
            json.dumps(model.config.quantization_aware["activation_ranges"])
        )
    if trainer.is_world_process_zero():
        state = model.state_dict() | trainer.auxiliary.state_dict()
        if trainer.fake_quantization is not None:
            state["ranges"] = trainer.fake_quantization.ranges
        torch.save(state, Path(output) / "weights.pt")
        (Path(output) / "log.json").write_text(json.dumps(trainer.state.log_history))


if __name__ == "__main__":
    main(*sys.argv[1:])
