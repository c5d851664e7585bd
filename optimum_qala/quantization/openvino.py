"""Quantization to int8 with NNCF, calibrated at several budgets and scored at all of them."""

from __future__ import annotations

import contextlib
import copy
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoTokenizer
from transformers.utils import logging

from optimum_qala._compat import require
from optimum_qala._folders import check_output, new_folder, source_name
from optimum_qala.checkpoints import check_tokenizer, load_backbone
from optimum_qala.errors import CheckpointError, ConfigurationError, DataError
from optimum_qala.models.configuration_quala_minilm import FULL_BUDGET, QuaLAMiniLMConfig
from optimum_qala.models.modeling_quala_minilm import QuaLAMiniLMForQuestionAnswering
from optimum_qala.quantization.accuracy import score_budgets, write_measurements
from optimum_qala.quantization.calibration import (
    calibration_budgets,
    calibration_samples,
    choose_drop_layers,
    narrow_config,
)
from optimum_qala.quantization.configuration import IR_NAME, OVQuaLAConfig
from optimum_qala.quantization.cpu import choose_overflow_fix
from optimum_qala.quantization.outliers import BRANCH_NAME, find_outlier_neurons, split_outlier_neurons
from optimum_qala.quantization.qat_record import warn_of_unrounded_weights
from optimum_qala.quantization.selection import selection_operations
from optimum_qala.quantization.stored_configuration import choose_configuration
from optimum_qala.question_answering.records import load_records
from optimum_qala.question_answering.windows import WindowOptions
from optimum_qala.version import __version__


if TYPE_CHECKING:
    from optimum_qala.inference.openvino import OVQuaLAMiniLMForQuestionAnswering

__all__ = ["OVQuaLAQuantizer"]

logger = logging.get_logger(__name__)

# Windows to look for outlier neurons in: they show up in every one.
OUTLIER_SAMPLES = 64
_RECORDED_PACKAGES = ("openvino", "nncf", "torch", "transformers", "optimum", "optimum-intel")


class OVQuaLAQuantizer:
    """Turns a trained QuaLA-MiniLM into one int8 model for OpenVINO that serves every budget.

    Args:
        model: The trained model, or the folder or repository id of its torch checkpoint.
        tokenizer: Its tokenizer; loaded from beside the checkpoint by default.

    Raises:
        CheckpointError: If the model is of another kind, is exported already, has no trained span head, or the
            tokenizer is another model's.
        ConfigurationError: If a model in memory comes without its tokenizer.
        MissingExtraError: If OpenVINO, NNCF or optimum-intel is not installed, or of a version that does not fit.
    """

    def __init__(self, model: str | Path | QuaLAMiniLMForQuestionAnswering, tokenizer: Any = None) -> None:
        require("openvino", "int8 quantization with OpenVINO")
        if isinstance(model, QuaLAMiniLMForQuestionAnswering):
            self.model, self.name = model, model.name_or_path or type(model).__name__
            if tokenizer is None:
                raise ConfigurationError("a model in memory needs its tokenizer: OVQuaLAQuantizer(model, tokenizer)")
        elif isinstance(model, str | Path):
            self.model, self.name = _load_trained(model), str(model)
            tokenizer = AutoTokenizer.from_pretrained(model) if tokenizer is None else tokenizer
        else:
            raise CheckpointError(
                f"cannot quantize a {type(model).__name__}; give a QuaLAMiniLMForQuestionAnswering or the folder of "
                "its torch checkpoint"
            )
        check_tokenizer(self.model.config, tokenizer, self.name)
        self.tokenizer = tokenizer

    def quantize(
        self,
        records: Any,
        save_directory: str | Path,
        *,
        config: OVQuaLAConfig | None = None,
        validation_records: Any = None,
        validation_name: str | None = None,
        window_options: WindowOptions | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> OVQuaLAMiniLMForQuestionAnswering:
        """Quantize the model and save it, complete or not at all.

        Args:
            records: Questions to calibrate with, of the training set: whatever `iter_records` takes.
            save_directory: New folder for the model, its tokenizer and openvino_quala_config.json.
            config: How to quantize; `OVQuaLAConfig()` by default.
            validation_records: Questions on which to score full length, every named budget and those of `config`, in
                float32 and in int8. The int8 scores replace those of the budgets in config.json, which otherwise stay
                those of the model given. Latencies of the model given are removed from config.json in any case.
            validation_name: What config.json calls these questions.
            window_options: How contexts are cut.
            progress: Called with a line of text at every step.

        Returns:
            The model, loaded from `save_directory`; its `quantization.accuracy` holds the scores.

        Raises:
            ConfigurationError: If the budgets leave no layer that drops tokens, or `config` is of another back end.
            DataError: If there are no records, one is bad, or none to calibrate with has a context.
            LengthConfigError: If a budget does not fit the model.
            OutputExistsError: If `save_directory` is a file or not empty.
            UnknownBudgetError: If the model has no budget that `config` names.
        """
        config = choose_configuration(OVQuaLAConfig, config)
        output = check_output(save_directory)
        warn_of_unrounded_weights(self.model.config, self.name)
        budgets = calibration_budgets(self.model.config, config.budgets)
        drop_layers = choose_drop_layers(self.model.config, config.drop_layers, budgets)
        overflow_fix, reason = choose_overflow_fix(config.overflow_fix)
        logger.info(f"overflow_fix {overflow_fix!r}: {reason}")
        report = progress or logger.info
        if records is None or (isinstance(records, list | tuple) and not records):
            raise DataError("no calibration records were given; give some hundred questions of the training set")
        calibration = load_records(records)
        validation = None if validation_records is None else load_records(validation_records, require_answers=True)
        with new_folder(output) as folder:
            samples = calibration_samples(
                calibration,
                self.tokenizer,
                self._narrow(drop_layers),
                budgets.values(),
                num_samples=config.num_samples,
                window_options=window_options,
                seed=config.seed,
            )
            report("exporting")
            graph_config, outlier_neurons = self._export(folder, drop_layers, samples, config)
            report(f"quantizing with {len(samples)} windows at {len(budgets)} budgets")
            model, float_model, applied = self._quantize(folder, graph_config, samples, config, overflow_fix)
            applied |= {
                "overflow_fix": overflow_fix,
                "overflow_fix_reason": reason,
                "model": source_name(self.name),
                "budgets": {name: str(budget or FULL_BUDGET) for name, budget in budgets.items()},
                "num_samples": len(samples),
                "drop_layers": list(graph_config.dropping_layers),
                "outlier_neurons": {str(layer): neurons for layer, neurons in outlier_neurons.items()},
            }
            accuracy = {}
            if validation is not None:
                models = {"float32": float_model, "int8": model}
                asked = config.budgets or ()
                accuracy = score_budgets(models, self.tokenizer, validation, window_options, report, asked)
            name = validation_name or f"{len(validation or ())} validation questions"
            write_measurements(model.config, accuracy, name)
            model.quantization = replace(config, applied=applied, versions=_versions(), accuracy=accuracy)
            model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
        return type(model).from_pretrained(output, export=False, precision=config.precision)

    def _narrow(self, drop_layers: list[int] | None) -> QuaLAMiniLMConfig:
        config = self.model.config
        return narrow_config(config, config.drop_layers if drop_layers is None else drop_layers)

    def _export(
        self, folder: Path, drop_layers: list[int] | None, samples: list[dict[str, Any]], config: OVQuaLAConfig
    ) -> tuple[QuaLAMiniLMConfig, dict[int, list[int]]]:
        """Export, with the outlier neurons, which are returned too, in operations of their own."""
        from optimum_qala.quantization.export import export_model

        model, neurons = self.model, {}
        if config.outlier_factor is not None:
            neurons = find_outlier_neurons(model, samples[:OUTLIER_SAMPLES], config.outlier_factor)
        if neurons:
            model = split_outlier_neurons(copy.deepcopy(model), neurons)
        return export_model(model, folder, drop_layers=drop_layers), neurons

    def _quantize(
        self,
        folder: Path,
        graph_config: QuaLAMiniLMConfig,
        samples: list[dict[str, Any]],
        config: OVQuaLAConfig,
        overflow_fix: str,
    ) -> tuple[OVQuaLAMiniLMForQuestionAnswering, OVQuaLAMiniLMForQuestionAnswering, dict[str, Any]]:
        """Return the int8 model, the float32 model and what was done."""
        import nncf
        from nncf.quantization.advanced_parameters import (
            AdvancedQuantizationParameters,
            AdvancedSmoothQuantParameters,
            OverflowFix,
        )

        from optimum_qala.inference.openvino import OVQuaLAMiniLMForQuestionAnswering

        float_model = OVQuaLAMiniLMForQuestionAnswering.from_pretrained(folder, export=False, precision="f32")
        ignored = _ignored_operations(float_model.model, config)
        alpha = -1.0 if config.smooth_quant_alpha is None else config.smooth_quant_alpha
        with _quiet_nncf():
            graph = nncf.quantize(
                float_model.model.clone(),
                nncf.Dataset(samples),
                model_type=nncf.ModelType.TRANSFORMER,
                preset=nncf.QuantizationPreset(config.preset),
                subset_size=len(samples),
                fast_bias_correction=config.fast_bias_correction,
                ignored_scope=nncf.IgnoredScope(names=ignored, validate=False),
                advanced_parameters=AdvancedQuantizationParameters(
                    overflow_fix=OverflowFix(overflow_fix),
                    smooth_quant_alphas=AdvancedSmoothQuantParameters(matmul=alpha),
                ),
            )
        model = OVQuaLAMiniLMForQuestionAnswering(graph, float_model.config, precision=config.precision)
        return model, float_model, {"ignored_operations": len(ignored)}


def _load_trained(path: str | Path) -> QuaLAMiniLMForQuestionAnswering:
    folder = Path(path)
    if (folder / IR_NAME).is_file() and not any(folder.glob("model*.safetensors*")):
        raise CheckpointError(
            f"{path} is exported already ({IR_NAME}); quantize the torch checkpoint that it was made of"
        )
    model, keys = load_backbone(path)
    keys.check_heads(path)
    return model


def _ignored_operations(graph: Any, config: OVQuaLAConfig) -> list[str]:
    """Name the operations that stay in float."""
    names = [operation.get_friendly_name() for operation in graph.get_ops()]
    unknown = sorted(set(config.ignored_names) - set(names))
    if unknown:
        raise ConfigurationError(f"ignored_names holds {unknown[0]!r}, but the graph has no such operation")
    # NNCF 3.4 leaves the choice of tokens in float by itself; this keeps it so.
    ignored = set(config.ignored_names) | set(selection_operations(graph))
    ignored.update(name for name in names if f".{BRANCH_NAME}." in name)
    for pattern in config.ignored_patterns:
        matching = [name for name in names if re.search(pattern, name)]
        if not matching:
            raise ConfigurationError(f"ignored_patterns holds {pattern!r}, which matches no operation of the graph")
        ignored.update(matching)
    if not config.quantize_embeddings:
        ignored.update(name for name in names if "embeddings" in name)
    return sorted(ignored)


def _versions() -> dict[str, str]:
    return {"optimum-qala": __version__} | {name: version(name) for name in _RECORDED_PACKAGES}


@contextlib.contextmanager
def _quiet_nncf() -> Iterator[None]:
    """Keep NNCF's progress bars off standard output, which belongs to the caller, and its information to itself."""
    import nncf

    nncf_logger = nncf.common.logging.logger.nncf_logger
    level = nncf_logger.level
    nncf_logger.setLevel("WARNING")
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        nncf_logger.setLevel(level)
