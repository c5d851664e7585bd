"""`optimum-cli qala shrink`: a student of some of the layers of its teacher."""

from __future__ import annotations

from argparse import Namespace

from optimum_qala._folders import new_folder
from optimum_qala.cli.console import Console
from optimum_qala.cli.loading import load_source
from optimum_qala.students.shrinking import shrink_model


def run(args: Namespace, console: Console) -> None:
    """Copy layers of a model.

    Args:
        args: The parsed command line.
        console: Where to write.
    """
    with new_folder(args.output) as folder:
        teacher, tokenizer = load_source(args.model, getattr(args, "revision", None))
        shrunk = shrink_model(teacher, args.keep_layers if "keep_layers" in args else args.layers)
        shrunk.model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    for name, reason in shrunk.dropped_budgets.items():
        console.info(f"budget {name!r} is left out: {reason}")
    sizes = {"parameters_before": teacher.num_parameters(), "parameters": shrunk.model.num_parameters()}
    summary = {
        "output": args.output,
        "kept_layers": list(shrunk.kept_layers),
        "budgets": sorted(getattr(shrunk.model.config, "budgets", None) or {}),
        "dropped_budgets": shrunk.dropped_budgets,
        **sizes,
    }
    layers = ", ".join(map(str, shrunk.kept_layers))
    text = (
        f"student of the layers {layers} written to {args.output}: {sizes['parameters'] / 1e6:.1f} of "
        f"{sizes['parameters_before'] / 1e6:.1f} million parameters; train it before use"
    )
    console.result(summary, text)
