"""The flags of the commands that make smaller models and their data; see `_qala_flags`."""

from __future__ import annotations

import argparse

import optimum.commands.register._qala_flags as flags


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
