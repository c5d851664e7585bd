"""`optimum-cli qala trim-vocabulary`: only the tokens that a corpus uses."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from optimum_qala._folders import new_folder
from optimum_qala.cli.console import Console
from optimum_qala.cli.loading import load_source
from optimum_qala.students.corpus import load_texts
from optimum_qala.students.vocabulary import trim_vocabulary


def run(args: Namespace, console: Console) -> None:
    """Leave tokens out of a model and its tokenizer.

    Args:
        args: The parsed command line.
        console: Where to write.
    """
    with new_folder(args.output) as folder:
        texts = list(dict.fromkeys(text for source in args.data for text in load_texts(source)))
        model, tokenizer = load_source(args.model, getattr(args, "revision", None))
        options = {"min_frequency": args.min_frequency} if "min_frequency" in args else {}
        trimmed = trim_vocabulary(model, tokenizer, texts, **options)
        trimmed.model.save_pretrained(folder)
        trimmed.tokenizer.save_pretrained(folder)
    before, after = _sizes(model, tokenizer), _sizes(trimmed.model, trimmed.tokenizer)
    counts = {"num_texts": trimmed.num_texts, "num_changed_texts": trimmed.num_changed_texts}
    summary = {"output": args.output, **counts, "before": before, "after": after}
    text = (
        f"{after['vocab_size']} of {before['vocab_size']} tokens kept, {after['size_bytes'] / 1e6:.1f} of "
        f"{before['size_bytes'] / 1e6:.1f} MB; {trimmed.num_texts - trimmed.num_changed_texts} of "
        f"{trimmed.num_texts} texts are cut as before; model written to {args.output}"
    )
    console.result(summary, text)


def _sizes(model: Any, tokenizer: Any) -> dict[str, int]:
    return {
        "vocab_size": model.config.vocab_size,
        "parameters": model.num_parameters(),
        "size_bytes": sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()),
        "tokenizer_bytes": len(tokenizer.backend_tokenizer.to_str().encode()),
    }
