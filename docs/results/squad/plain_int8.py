"""Make the peer that users of optimum-intel have today: a plain MiniLM, exported and quantized by its own classes.

Usage: python plain_int8.py MODEL TRAIN_JSON FLOAT_OUTPUT INT8_OUTPUT.
"""

from __future__ import annotations

import sys
from pathlib import Path

from transformers import AutoTokenizer

from optimum_qala.question_answering.records import load_records
from optimum_qala.question_answering.windows import WindowOptions
from optimum_qala.reporting.peers import PeerOptions, export_plain, quantize_plain


def main() -> None:
    """Export and quantize."""
    source, train, output_float, output = sys.argv[1:]
    tokenizer = AutoTokenizer.from_pretrained(source)
    folder = export_plain(source, Path(output_float), tokenizer)
    quantize_plain(
        folder, Path(output), tokenizer, load_records(train), options=PeerOptions(), window_options=WindowOptions()
    )


if __name__ == "__main__":
    main()
