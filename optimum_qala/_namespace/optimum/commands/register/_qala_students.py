"""The flags of the commands that make smaller models and their data; see `_qala_flags`."""

from __future__ import annotations

import argparse

import optimum.commands.register._qala_flags as flags


def distill(parser: argparse.ArgumentParser) -> None:
    flags.describe(
        parser,
        "Distil a BERT- or RoBERTa-shaped encoder into one of any depth and width on plain text, without labels\n"
        "(MiniLMv2 or MiniLM). `train` then fine-tunes the result. An interrupted distillation goes on when the\n"
        "command is run again.",
        "  optimum-cli qala distill --teacher ./bert-base --data texts.txt --output student\n"
        "  optimum-cli qala distill --teacher ./bert-base --data texts.txt --output student \\\n"
        "      --student-layers 3 --student-hidden-size 384 --student-heads 12 --max-steps 100000 --bf16\n"
        "  optimum-cli qala distill --teacher ./bert-base --data texts.txt --output student --init-layers 1,5,9",
    )
    parser.add_argument("--teacher", required=True, metavar="MODEL", help="folder or Hub repository id to learn from")
    flags.revision(parser, "--teacher")
    flags.data(parser, flags.TEXT_HELP, items="texts")
    parser.add_argument("--validation-data", metavar="DATA", help="texts to measure the loss on after each epoch")
    flags.output(parser)
    flags.student(parser)
    flags.relations(parser)
    flags.texts(parser)
    flags.steps(parser, rows="rows", learning_rate="0.0006", weight_decay="0.01", warmup_steps="0.01")
    flags.common(parser)


def shrink(parser: argparse.ArgumentParser) -> None:
    flags.describe(
        parser,
        "Make a student of some of the layers of a teacher, with its embeddings, heads and tokenizer. It is of the\n"
        "same kind as the teacher and loses much accuracy until `train` has fine-tuned it.",
        "  optimum-cli qala shrink --model trained --layers 3 --output student\n"
        "  optimum-cli qala shrink --model trained --keep-layers 0 2 5 --output student",
    )
    flags.model(parser)
    layers = parser.add_mutually_exclusive_group(required=True)
    flags.number(layers, "--layers", int, "keep N maximally spaced layers, the first and the last among them")
    layers.add_argument("--keep-layers", nargs="+", type=int, metavar="I", help="keep these layers, from 0")
    flags.output(parser)
    flags.common(parser)


def trim_vocabulary(parser: argparse.ArgumentParser) -> None:
    flags.describe(
        parser,
        "Leave out the tokens that a corpus does not use, of the tokenizer and of the embeddings. On text of the\n"
        "corpus the model computes the same as before; other text is cut into smaller tokens where its own are gone.",
        "  optimum-cli qala trim-vocabulary --model trained --data train.json --data contexts.txt --output trimmed\n"
        "  optimum-cli qala trim-vocabulary --model trained --data train.json --min-frequency 3 --output trimmed",
    )
    flags.model(parser)
    parser.add_argument(
        "--data",
        action="append",
        required=True,
        metavar="DATA",
        help=f"corpus: .txt file, one text a line, or {flags.DATA_HELP}; may be repeated",
    )
    flags.output(parser)
    flags.number(parser, "--min-frequency", int, "leave out tokens that occur less often, too (default: 1)")
    flags.common(parser)


def pseudo_label(parser: argparse.ArgumentParser) -> None:
    flags.describe(
        parser,
        "Answer questions with a teacher and keep the answers that it is sure of, as labels to train a student on.\n"
        "Answers that the data has are not used, except to say how good the labels are.",
        "  optimum-cli qala pseudo-label --model trained --data questions.jsonl --min-margin 1 --output new.json\n"
        "  optimum-cli qala pseudo-label --model trained --data q.jsonl --second-budget fast --output new.json",
    )
    flags.model(parser)
    flags.data(parser)
    parser.add_argument(
        "--output", required=True, metavar="FILE", help="new file: SQuAD (.json) or one record a line (.jsonl)"
    )
    parser.add_argument("--budget", metavar="BUDGET", help=f"{flags.BUDGET_HELP} (default: full)")
    flags.backend(parser)
    flags.batching(parser)
    group = parser.add_argument_group("filter", "A label must pass all of it.")
    flags.number(group, "--min-margin", float, "least log p1 - log p2 of the two best answers (default: 0.0)")
    flags.number(group, "--max-entropy", float, "largest entropy of the best answers, in nats (default: inf)")
    group.add_argument("--second-model", metavar="MODEL", help="compare with the answers of this model")
    group.add_argument("--second-budget", metavar="BUDGET", help="compare with the answers at this budget")
    flags.number(group, "--min-agreement", float, "least F1 between the two, from 0 to 1 (default: 1.0)")
    flags.windows(parser)
    flags.decoding(parser)
    flags.common(parser)
