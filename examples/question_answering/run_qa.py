"""Fine-tune a BERT, RoBERTa or MiniLM checkpoint length-adaptively, in the form transformers users know.

    python examples/question_answering/run_qa.py --model_name_or_path MODEL --train_file train.json \
        --validation_file validation.json --output_dir out --bf16 --use_cpu --num_train_epochs 1

Run it again with the same arguments to go on after an interruption.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import AutoTokenizer, HfArgumentParser
from transformers.trainer_utils import get_last_checkpoint

from optimum_qala import QuaLATrainer, QuaLATrainingArguments
from optimum_qala.checkpoints import check_tokenizer, load_backbone
from optimum_qala.question_answering.features import WindowOptions
from optimum_qala.question_answering.records import load_records


@dataclass
class ModelArguments:
    """What to start from."""

    model_name_or_path: str = field(metadata={"help": "Folder or repository id."})
    token_scoring: str = field(default="question", metadata={"help": "Token score: question, attention or answer."})
    span_heads: bool | None = field(
        default=None, metadata={"help": "Early span heads, to stop early; with the score answer by default."}
    )
    drop_layers: list[int] | None = field(
        default=None, metadata={"help": "0-based layers that may drop; all by default."}
    )
    dropout: float = field(default=0.0, metadata={"help": "Dropout while training."})
    attn_implementation: str = field(default="eager", metadata={"help": "eager trains fastest on CPUs, sdpa on GPUs."})


@dataclass
class DataArguments:
    """What to train on."""

    train_file: str = field(metadata={"help": "SQuAD JSON, JSONL or datasets id."})
    validation_file: str | None = field(default=None, metadata={"help": "Likewise; evaluated by F1."})
    max_length: int = field(default=384, metadata={"help": "Tokens in a window."})
    doc_stride: int = field(default=128, metadata={"help": "Tokens that neighbouring windows share."})


def main() -> None:
    """Train and save."""
    parser = HfArgumentParser((ModelArguments, DataArguments, QuaLATrainingArguments))
    model_args, data_args, training_args = parser.parse_args_into_dataclasses()
    tokenizer = AutoTokenizer.from_pretrained(model_args.model_name_or_path)
    model, _ = load_backbone(
        model_args.model_name_or_path,
        token_scoring=model_args.token_scoring,
        drop_layers=model_args.drop_layers,
        span_heads=model_args.span_heads,
        hidden_dropout_prob=model_args.dropout,
        attention_probs_dropout_prob=model_args.dropout,
        attn_implementation=model_args.attn_implementation,
    )
    check_tokenizer(model.config, tokenizer, model_args.model_name_or_path)
    trainer = QuaLATrainer(
        model,
        training_args,
        train_dataset=load_records(data_args.train_file, require_answers=True),
        eval_dataset=load_records(data_args.validation_file) if data_args.validation_file else None,
        window_options=WindowOptions(max_length=data_args.max_length, doc_stride=data_args.doc_stride),
        processing_class=tokenizer,
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(training_args.output_dir))
    trainer.save_model()
    trainer.save_state()


if __name__ == "__main__":
    main()
