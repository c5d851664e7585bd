"""Fine-tune a BERT, RoBERTa or MiniLM checkpoint length-adaptively, in the form transformers users know.

    python examples/question_answering/run_qa.py --model_name_or_path MODEL --train_file train.json \
        --validation_file validation.json --output_dir out --do_train --do_eval --num_train_epochs 1

Run it again with the same arguments to go on after an interruption.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, HfArgumentParser, set_seed
from transformers.trainer_utils import TrainOutput, get_last_checkpoint

from optimum_qala import QuaLAMiniLMForQuestionAnswering, QuaLATrainer, QuaLATrainingArguments
from optimum_qala.checkpoints import check_same_tokens, check_tokenizer, load_backbone
from optimum_qala.errors import ConfigurationError
from optimum_qala.question_answering.answers import DecodeOptions
from optimum_qala.question_answering.features import WindowOptions
from optimum_qala.question_answering.predictor import predict
from optimum_qala.question_answering.records import QARecord, load_records
from optimum_qala.training.record import write_training_record


@dataclass
class ModelArguments:
    """What to start from."""

    model_name_or_path: str = field(metadata={"help": "Folder or repository id."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the repository."})
    teacher_name_or_path: str | None = field(
        default=None, metadata={"help": "Fine-tuned model with the same vocabulary to learn from."}
    )
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
    """What to train, evaluate and predict on, and how."""

    dataset_name: str | None = field(
        default=None, metadata={"help": "Id of a data set, whose splits stand in for files that are not given."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Its configuration."})
    train_file: str | None = field(default=None, metadata={"help": "SQuAD JSON or JSON lines."})
    validation_file: str | None = field(default=None, metadata={"help": "Likewise; evaluated by F1."})
    test_file: str | None = field(default=None, metadata={"help": "Likewise; answered with --do_predict."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on the first questions only."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate the first questions only."})
    max_predict_samples: int | None = field(default=None, metadata={"help": "Answer the first questions only."})
    max_seq_length: int = field(default=384, metadata={"help": "Tokens in a window."})
    doc_stride: int = field(default=128, metadata={"help": "Tokens that neighbouring windows share."})
    max_question_length: int | None = field(
        default=None, metadata={"help": "Tokens of a question at most; half a window or less by default."}
    )
    truncate_question: bool = field(
        default=False, metadata={"help": "Cut a longer question instead of refusing it, in training as well."}
    )
    version_2_with_negative: bool = field(
        default=False, metadata={"help": "Questions may have no answer, even if none of validation is marked so."}
    )
    null_score_diff_threshold: float = field(
        default=0.0, metadata={"help": "How far 'no answer' must exceed the best answer to win."}
    )
    n_best_size: int = field(default=20, metadata={"help": "Spans of each window that are compared."})
    max_answer_length: int = field(default=30, metadata={"help": "Tokens of an answer at most."})

    def read(self, split: str, limit: int | None, require_answers: bool = True) -> list[QARecord]:
        """Read the questions of a split.

        Args:
            split: "train", "validation" or "test".
            limit: Read at most this many.
            require_answers: Refuse questions without an answer that are not marked impossible.

        Returns:
            The questions.

        Raises:
            ConfigurationError: If neither a file nor a data set was given.
        """
        return load_records(self.source(split), require_answers=require_answers, limit=limit)

    def source(self, split: str) -> str:
        """Name the file or the data set of a split.

        Args:
            split: "train", "validation" or "test".

        Returns:
            What `load_records` reads.

        Raises:
            ConfigurationError: If neither a file nor a data set was given.
        """
        file: str | None = getattr(self, f"{split}_file")
        if file is None and self.dataset_name is None:
            raise ConfigurationError(f"no questions for {split}: give --{split}_file or --dataset_name")
        return file or ":".join(part for part in (self.dataset_name, self.dataset_config_name, split) if part)

    def window_options(self) -> WindowOptions:
        """Make the options that cut contexts and questions."""
        return WindowOptions(
            max_length=self.max_seq_length,
            doc_stride=self.doc_stride,
            max_question_length=self.max_question_length,
            truncate_question=self.truncate_question,
        )

    def decode_options(self, records: list[QARecord]) -> DecodeOptions:
        """Make the options that choose answers; some of the questions may be marked impossible."""
        return DecodeOptions(
            n_best=self.n_best_size,
            max_answer_length=self.max_answer_length,
            allow_no_answer=self.version_2_with_negative or any(record.is_impossible for record in records),
            null_threshold=self.null_score_diff_threshold,
        )


def load(model_args: ModelArguments) -> tuple[QuaLAMiniLMForQuestionAnswering, Any]:
    """Load model and tokenizer."""
    path, revision = model_args.model_name_or_path, model_args.model_revision
    tokenizer = AutoTokenizer.from_pretrained(path, revision=revision)
    model, _ = load_backbone(
        path,
        revision=revision,
        token_scoring=model_args.token_scoring,
        drop_layers=model_args.drop_layers,
        span_heads=model_args.span_heads,
        hidden_dropout_prob=model_args.dropout,
        attention_probs_dropout_prob=model_args.dropout,
        attn_implementation=model_args.attn_implementation,
    )
    check_tokenizer(model.config, tokenizer, path)
    return model, tokenizer


def load_teacher(path: str | None, tokenizer: Any) -> QuaLAMiniLMForQuestionAnswering | None:
    """Load the teacher, if there is one, and compare its tokens with the model's."""
    if path is None:
        return None
    check_same_tokens(AutoTokenizer.from_pretrained(path), tokenizer, path)
    return QuaLAMiniLMForQuestionAnswering.from_pretrained(path)


def train(trainer: QuaLATrainer) -> TrainOutput:
    """Train, from the last checkpoint if there is one, and save."""
    checkpoint = trainer.args.resume_from_checkpoint or get_last_checkpoint(trainer.args.output_dir)
    output = trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    trainer.log_metrics("train", output.metrics)
    trainer.save_metrics("train", output.metrics)
    trainer.save_state()
    return output


def name_sources(model_args: ModelArguments, data_args: DataArguments, do_eval: bool) -> dict[str, str | None]:
    """Name what the model is trained from, and on, for training.json."""
    return {
        "model": model_args.model_name_or_path,
        "data": data_args.source("train"),
        "validation_data": data_args.source("validation") if do_eval else None,
        "teacher": model_args.teacher_name_or_path,
    }


def write_predictions(trainer: QuaLATrainer, records: list[QARecord], decode_options: DecodeOptions) -> None:
    """Answer questions at full length, as {id: answer}, which the official scripts of SQuAD read."""
    answers = predict(
        trainer.model,
        trainer.processing_class,
        records,
        budget="full",
        window_options=trainer.window_options,
        decode_options=decode_options,
        batch_size=trainer.args.eval_batch_size,
    )
    texts = {record.id: best[0].text for record, best in answers}
    file = Path(trainer.args.output_dir, "predict_predictions.json")
    file.write_text(json.dumps(texts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    """Train, evaluate, predict and push, as far as the arguments say."""
    parser = HfArgumentParser((ModelArguments, DataArguments, QuaLATrainingArguments))
    if len(sys.argv) == 2 and sys.argv[1].endswith(".json"):
        model_args, data_args, args = parser.parse_json_file(sys.argv[1])
    else:
        model_args, data_args, args = parser.parse_args_into_dataclasses()
    if not (args.do_train or args.do_eval or args.do_predict):
        raise ConfigurationError("nothing to do: give --do_train, --do_eval or --do_predict")
    set_seed(args.seed)  # before the model, whose span head may be new
    train_records = data_args.read("train", data_args.max_train_samples) if args.do_train else None
    eval_records = data_args.read("validation", data_args.max_eval_samples) if args.do_eval else None
    model, tokenizer = load(model_args)
    trainer = QuaLATrainer(
        model,
        args,
        train_dataset=train_records,
        eval_dataset=eval_records,
        teacher=load_teacher(model_args.teacher_name_or_path, tokenizer),
        window_options=data_args.window_options(),
        decode_options=data_args.decode_options(eval_records or []),
        processing_class=tokenizer,
    )
    output = train(trainer) if args.do_train else None
    if args.do_eval:
        metrics = trainer.evaluate() | {"eval_samples": len(eval_records)}
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    if output is not None and trainer.is_world_process_zero():  # after the evaluation, whose scores it has
        sources = name_sources(model_args, data_args, args.do_eval)
        write_training_record(args.output_dir, trainer, output, num_questions=len(train_records), sources=sources)
    if args.do_predict and trainer.is_world_process_zero():
        test = data_args.read("test", data_args.max_predict_samples, require_answers=False)
        write_predictions(trainer, test, data_args.decode_options(test))
    if args.push_to_hub:
        trainer.push_to_hub()


if __name__ == "__main__":
    main()
