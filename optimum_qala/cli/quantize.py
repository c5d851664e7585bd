"""`optimum-cli qala quantize`: one int8 model for every budget."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from optimum_qala._compat import require
from optimum_qala._folders import check_output
from optimum_qala.cli.console import Console, format_table
from optimum_qala.cli.loading import LoadedModel, load_model, refuse_inc
from optimum_qala.cli.options import chosen_budgets, given, window_options
from optimum_qala.errors import BackendError
from optimum_qala.quantization.configuration import IR_NAME, OVQuaLAConfig
from optimum_qala.question_answering.records import QARecord, load_records
from optimum_qala.question_answering.windows import WindowOptions


def run(args: Namespace, console: Console) -> None:
    """Quantize a model.

    Args:
        args: The parsed command line.
        console: Where to write.
    """
    refuse_inc(args.backend)
    if args.backend != "openvino":
        raise BackendError(f"--backend {args.backend} has no int8 in this version; use --backend openvino")
    require("openvino", "int8 quantization with OpenVINO")
    check_output(args.output)
    options = given(args, OVQuaLAConfig)
    OVQuaLAConfig(**options)  # a bad option should not cost the time to load a model
    records = load_records(args.data, limit=getattr(args, "limit", None))
    validation = load_records(args.validation_data, require_answers=True) if "validation_data" in args else None
    loaded = load_model(args.model, "torch")
    if "budget" in args:
        options["budgets"] = tuple(chosen_budgets(args, loaded.model.config))
    summary = quantize(
        loaded,
        records,
        output=Path(args.output),
        validation=validation,
        validation_name=getattr(args, "validation_data", None),
        window_options=window_options(args, loaded.capacity),
        console=console,
        **options,
    )
    console.result({"output": args.output, **summary}, result_text(args.output, summary))


def quantize(
    loaded: LoadedModel,
    records: list[QARecord],
    *,
    output: Path,
    window_options: WindowOptions,
    console: Console,
    validation: list[QARecord] | None = None,
    validation_name: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Quantize a model for OpenVINO and save it.

    Args:
        loaded: The trained model, torch.
        records: Questions to calibrate with.
        output: New folder for the result.
        window_options: How contexts are cut.
        console: Where progress goes.
        validation: Questions to score every budget on, in float32 and in int8.
        validation_name: What the configuration calls them.
        options: Fields of `OVQuaLAConfig`.

    Returns:
        What was done, sizes in bytes, and the scores by budget.
    """
    from optimum_qala.quantization.openvino import OVQuaLAQuantizer

    model = OVQuaLAQuantizer(loaded.model, loaded.tokenizer).quantize(
        records,
        output,
        config=OVQuaLAConfig(**options),
        validation_records=validation,
        validation_name=None if validation_name is None else Path(validation_name).name,
        window_options=window_options,
        progress=console.info,
    )
    record = OVQuaLAConfig.from_pretrained(output)
    size = sum((output / Path(IR_NAME).with_suffix(suffix)).stat().st_size for suffix in (".xml", ".bin"))
    return {
        "backend": "openvino",
        "size_bytes": size,
        "budgets": sorted(model.config.budgets),
        "applied": dict(record.applied),
        "accuracy": dict(record.accuracy),
    }


def result_text(output: str, summary: dict[str, Any]) -> str:
    """Say what was made, and what it lost where that was measured."""
    applied = summary["applied"]
    text = (
        f"int8 model of {summary['size_bytes'] / 1e6:.1f} MB written to {output}; "
        f"overflow fix {applied['overflow_fix']}: {applied['overflow_fix_reason']}"
    )
    rows = [
        (budget, kinds["float32"]["f1"], kinds["int8"]["f1"], kinds["float32"]["em"], kinds["int8"]["em"])
        for budget, kinds in summary["accuracy"].items()
    ]
    return (
        f"{text}\n{format_table(rows, ['budget', 'F1 float32', 'F1 int8', 'EM float32', 'EM int8'])}" if rows else text
    )
