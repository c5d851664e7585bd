"""`optimum-cli qala quantize`: one int8 model for every budget."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import fields
from pathlib import Path
from typing import Any

from optimum_qala._compat import require
from optimum_qala._folders import check_output, copy_records
from optimum_qala.cli.console import Console, format_table
from optimum_qala.cli.finding import size_on_disk
from optimum_qala.cli.loading import LoadedModel, load_model
from optimum_qala.cli.options import chosen_budgets, given, window_options
from optimum_qala.errors import BackendError, ConfigurationError
from optimum_qala.quantization.configuration import OVQuaLAConfig
from optimum_qala.quantization.inc_configuration import INCQuaLAConfig
from optimum_qala.question_answering.records import QARecord, load_records
from optimum_qala.question_answering.windows import WindowOptions


CONFIGS: dict[str, type[OVQuaLAConfig] | type[INCQuaLAConfig]] = {"openvino": OVQuaLAConfig, "inc": INCQuaLAConfig}
EXTRAS = {"openvino": "openvino", "inc": "neural-compressor"}
# Flags that are not called after the field that they set.
FLAGS = {
    "activation_symmetric": "--symmetric-activations",
    "fast_bias_correction": "--exact-bias-correction",
    "ignored_modules": "--ignore-module",
}


def run(args: Namespace, console: Console) -> None:
    """Quantize a model.

    Args:
        args: The parsed command line.
        console: Where to write.
    """
    if args.backend not in CONFIGS:
        raise BackendError(f"--backend {args.backend} has no int8; use --backend openvino or --backend inc")
    require(EXTRAS[args.backend], f"quantize --backend {args.backend}")
    check_output(args.output)
    _refuse_flags_of_others(args)
    options = given(args, CONFIGS[args.backend])
    CONFIGS[args.backend](**options)  # a bad option should not cost the time to load a model
    records = load_records(args.data, limit=getattr(args, "limit", None))
    validation = load_records(args.validation_data, require_answers=True) if "validation_data" in args else None
    loaded = load_model(args.model, "torch", revision=getattr(args, "revision", None))
    if "budget" in args:
        options["budgets"] = tuple(chosen_budgets(args, loaded.model.config))
    summary = quantize(
        loaded,
        records,
        backend=args.backend,
        output=Path(args.output),
        validation=validation,
        validation_name=getattr(args, "validation_data", None),
        window_options=window_options(args, loaded.capacity),
        console=console,
        **options,
    )
    copy_records(args.model, args.output, ("training.json", "search.json"))
    console.result({"output": args.output, **summary}, result_text(args.output, summary))


def _refuse_flags_of_others(args: Namespace) -> None:
    """Raise if a flag was given that the back end has no use for."""
    own = {field.name for field in fields(CONFIGS[args.backend])}
    for backend, config in CONFIGS.items():
        for name in given(args, config):
            if name not in own:
                flag = FLAGS.get(name, f"--{name.replace('_', '-')}")
                raise ConfigurationError(
                    f"{flag} is for --backend {backend}; --backend {args.backend} does not have it"
                )


def _quantizer(backend: str, loaded: LoadedModel) -> Any:
    if backend == "inc":
        from optimum_qala.quantization.inc import INCQuaLAQuantizer

        return INCQuaLAQuantizer(loaded.model, loaded.tokenizer)
    from optimum_qala.quantization.openvino import OVQuaLAQuantizer

    return OVQuaLAQuantizer(loaded.model, loaded.tokenizer)


def quantize(
    loaded: LoadedModel,
    records: list[QARecord],
    *,
    backend: str = "openvino",
    output: Path,
    window_options: WindowOptions,
    console: Console,
    validation: list[QARecord] | None = None,
    validation_name: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Quantize a model and save it.

    Args:
        loaded: The trained model, torch.
        records: Questions to calibrate with.
        backend: What will run it, "openvino" or "inc".
        output: New folder for the result.
        window_options: How contexts are cut.
        console: Where progress goes.
        validation: Questions to score every budget on, in float32 and in int8.
        validation_name: What the configuration calls them.
        options: Fields of the back end's entry in `CONFIGS`.

    Returns:
        What was done, sizes in bytes, and the scores by budget.
    """
    config = CONFIGS[backend](**options)
    model = _quantizer(backend, loaded).quantize(
        records,
        output,
        config=config,
        validation_records=validation,
        validation_name=None if validation_name is None else Path(validation_name).name,
        window_options=window_options,
        progress=console.info,
    )
    record = type(config).from_pretrained(output)
    return {
        "backend": backend,
        "size_bytes": size_on_disk(output, backend),
        "budgets": sorted(model.config.budgets),
        "applied": dict(record.applied),
        "accuracy": dict(record.accuracy),
    }


def result_text(output: str, summary: dict[str, Any]) -> str:
    """Say what was made, and what it lost where that was measured."""
    applied = summary["applied"]
    text = f"int8 model of {summary['size_bytes'] / 1e6:.1f} MB written to {output}"
    if "overflow_fix" in applied:  # which OpenVINO's has
        text += f"; overflow fix {applied['overflow_fix']}: {applied['overflow_fix_reason']}"
    rows = [
        (budget, kinds["float32"]["f1"], kinds["int8"]["f1"], kinds["float32"]["em"], kinds["int8"]["em"])
        for budget, kinds in summary["accuracy"].items()
    ]
    return (
        f"{text}\n{format_table(rows, ['budget', 'F1 float32', 'F1 int8', 'EM float32', 'EM int8'])}" if rows else text
    )
