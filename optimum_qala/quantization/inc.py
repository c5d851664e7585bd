"""Quantization to int8 with Intel Neural Compressor, calibrated at several budgets and scored at all of them.

The flow is that of `neural_compressor.torch`, PT2E: export, prepare, calibrate, convert. Where its own steps lose what
they should keep (see `_convert`), the steps of torchao that they wrap are called instead.
"""

from __future__ import annotations

import copy
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoTokenizer
from transformers.utils import logging

from optimum_qala._compat import require
from optimum_qala._folders import check_output, new_folder, source_name
from optimum_qala.checkpoints import check_tokenizer, load_backbone
from optimum_qala.errors import BackendError, CheckpointError, ConfigurationError, DataError
from optimum_qala.inference.inc_graph import GRAPH_NAME, WEIGHTS_NAME, write_graph
from optimum_qala.models.configuration_quala_minilm import FULL_BUDGET, QuaLAMiniLMConfig
from optimum_qala.models.modeling_quala_minilm import QuaLAMiniLMForQuestionAnswering
from optimum_qala.quantization.accuracy import score_budgets, write_measurements
from optimum_qala.quantization.calibration import (
    calibration_budgets,
    calibration_samples,
    choose_drop_layers,
    narrow_config,
)
from optimum_qala.quantization.configuration import IR_NAME
from optimum_qala.quantization.inc_configuration import INCQuaLAConfig
from optimum_qala.quantization.inc_export import export_graph, graph_inputs, graph_outputs, quantize_embeddings
from optimum_qala.quantization.inc_qat import Learned
from optimum_qala.quantization.outliers import BRANCH_NAME, find_outlier_neurons, split_outlier_neurons
from optimum_qala.quantization.qat_record import QATRecord, warn_of_unrounded_weights
from optimum_qala.quantization.silence import Silence
from optimum_qala.quantization.stored_configuration import choose_configuration
from optimum_qala.quantization.tuning import Accuracy, rank_by_sensitivity, tune
from optimum_qala.question_answering.records import load_records
from optimum_qala.question_answering.windows import WindowOptions
from optimum_qala.version import __version__


if TYPE_CHECKING:
    from optimum_qala.inference.inc import INCQuaLAMiniLMForQuestionAnswering

__all__ = ["INCQuaLAQuantizer"]

logger = logging.get_logger(__name__)

# Windows to look for outlier neurons in: they show up in every one.
OUTLIER_SAMPLES = 64
# Windows to rank layers by, in as many passes as there are layers.
RANKING_SAMPLES = 32
RECORDED_PACKAGES = ("neural-compressor-pt", "torchao", "torch", "transformers")

# Intel Neural Compressor keeps the approach of the quantization under way in a class attribute.
_prepare_lock = threading.Lock()
# It gives an account of every step, and advice to compile.
_quiet = Silence("neural_compressor")


class INCQuaLAQuantizer:
    """Turns a trained QuaLA-MiniLM into one int8 model for torch on CPUs that serves every budget.

    Args:
        model: The trained model, or the folder or repository id of its torch checkpoint.
        tokenizer: Its tokenizer; loaded from beside the checkpoint by default.

    Raises:
        CheckpointError: If the model is of another kind, is quantized already, has no trained span head, or the
            tokenizer is another model's.
        ConfigurationError: If a model in memory comes without its tokenizer.
        MissingExtraError: If Intel Neural Compressor or torchao is not installed, or of a version that does not fit.
    """

    def __init__(self, model: str | Path | QuaLAMiniLMForQuestionAnswering, tokenizer: Any = None) -> None:
        require("neural-compressor", "int8 quantization with Intel Neural Compressor")
        if isinstance(model, QuaLAMiniLMForQuestionAnswering):
            self.model, self.name = model, model.name_or_path or type(model).__name__
            if tokenizer is None:
                raise ConfigurationError("a model in memory needs its tokenizer: INCQuaLAQuantizer(model, tokenizer)")
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
        config: INCQuaLAConfig | None = None,
        validation_records: Any = None,
        validation_name: str | None = None,
        window_options: WindowOptions | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> INCQuaLAMiniLMForQuestionAnswering:
        """Quantize the model and save it, complete or not at all.

        Args:
            records: Questions to calibrate with, of the training set: whatever `iter_records` takes.
            save_directory: New folder for the model, its tokenizer and inc_config.json.
            config: How to quantize; `INCQuaLAConfig()` by default.
            validation_records: Questions on which to score full length, every named budget and those of `config`, in
                float32 and in int8. The int8 scores replace those of the budgets in config.json, which otherwise stay
                those of the model given. Latencies of the model given are removed from config.json in any case.
            validation_name: What config.json calls these questions.
            window_options: How contexts are cut.
            progress: Called with a line of text at every step.

        Returns:
            The model, loaded from `save_directory`; its `quantization.accuracy` holds the scores.

        Raises:
            AccuracyError: If every model that was tried loses more than `tolerable_loss`; nothing is written.
            BackendError: If no layer of the model may drop tokens, or the int8 model gives all tokens the same
                logits.
            CheckpointError: If `config` says "qat", but the model was not trained so.
            ConfigurationError: If the budgets leave no layer that drops tokens, `ignored_modules` matches none,
                there is a `tolerable_loss` but there are no validation records, or `config` is of another back end.
            DataError: If there are no records, one is bad, or none to calibrate with has a context.
            LengthConfigError: If a budget does not fit the model.
            OutputExistsError: If `save_directory` is a file or not empty.
            UnknownBudgetError: If the model has no budget that `config` names.
        """
        from optimum_qala.inference.inc import INCQuaLAMiniLMForQuestionAnswering

        config = choose_configuration(INCQuaLAConfig, config)
        output = check_output(save_directory)
        trained = QATRecord.of(self.model.config, self.name) if config.approach == "qat" else None
        if trained is None:
            warn_of_unrounded_weights(self.model.config, self.name)
        budgets = calibration_budgets(self.model.config, config.budgets)
        drop_layers = choose_drop_layers(self.model.config, config.drop_layers, budgets)
        report = progress or logger.info
        if records is None or (isinstance(records, list | tuple) and not records):
            raise DataError("no calibration records were given; give some hundred questions of the training set")
        if config.tolerable_loss is not None and validation_records is None:
            raise ConfigurationError(
                f"tolerable_loss {config.tolerable_loss!r} needs validation records to be checked on; give questions "
                "with answers that are neither for calibration nor for the final test"
            )
        calibration = load_records(records)
        validation = None if validation_records is None else load_records(validation_records, require_answers=True)
        own = self.model.config
        graph_config = narrow_config(own, own.drop_layers if drop_layers is None else drop_layers)
        with new_folder(output) as folder:
            samples = calibration_samples(
                calibration,
                self.tokenizer,
                graph_config,
                budgets.values(),
                num_samples=config.num_samples,
                window_options=window_options,
                seed=config.seed,
            )
            model, applied, learned = self._rewrite(config, samples, trained)
            report("exporting")
            graph = export_graph(model, graph_config)
            ignored = _ignored_modules(model, config)
            inputs = [graph_inputs(sample, graph_config) for sample in samples]
            applied |= {
                "model": source_name(self.name),
                "budgets": {name: str(budget or FULL_BUDGET) for name, budget in budgets.items()},
                "drop_layers": list(graph_config.dropping_layers),
            }
            if learned is None:
                applied["num_samples"] = len(samples)
            self.tokenizer.save_pretrained(folder)
            report(f"quantizing with {len(samples)} windows at {len(budgets)} budgets")
            job = _Job(folder, graph, inputs, graph_config, config, applied, learned)
            if validation is None:
                record = job.make(ignored)
            else:
                layers = [name for name in _linear_layers(model) if name not in ignored]
                record = _make_accurate(
                    job,
                    {"float32": self._in_float32() if learned is None or learned.record.weight_bits == 8 else model},
                    ignored,
                    rank=lambda scored: rank_by_sensitivity(model, samples[:RANKING_SAMPLES], layers, scored),
                    num_layers=len(layers),
                    score=lambda models: score_budgets(
                        models, self.tokenizer, validation, window_options, report, config.budgets or ()
                    ),
                    report=report,
                )
            self._save_config(
                graph_config, record, validation_name or f"{len(validation or ())} validation questions", folder
            )
        return INCQuaLAMiniLMForQuestionAnswering.from_pretrained(output)

    def _in_float32(self) -> QuaLAMiniLMForQuestionAnswering:
        """Return what int8 is compared with: a copy where the model is of another type."""
        return self.model if self.model.dtype == torch.float32 else copy.deepcopy(self.model).float()

    def _save_config(
        self, graph_config: QuaLAMiniLMConfig, record: INCQuaLAConfig, validation_name: str, folder: Path
    ) -> None:
        config = copy.deepcopy(graph_config)
        write_measurements(config, record.accuracy, validation_name)
        config.save_pretrained(folder)

    def _rewrite(
        self, config: INCQuaLAConfig, samples: list[dict[str, Any]], record: QATRecord | None
    ) -> tuple[QuaLAMiniLMForQuestionAnswering, dict[str, Any], Learned | None]:
        """Copy the model in the form that is exported, and say what was done to it."""
        model = copy.deepcopy(self.model).to(device="cpu", dtype=torch.float32).eval()
        neurons: Mapping[int, list[int]] = {}
        if record is not None:
            neurons = record.outlier_neurons
        elif config.outlier_factor is not None:
            neurons = find_outlier_neurons(self.model, samples[:OUTLIER_SAMPLES], config.outlier_factor)
        layers = _linear_layers(model)
        if neurons:
            split_outlier_neurons(model, neurons)
        if config.quantize_embeddings:
            quantize_embeddings(model)
        applied: dict[str, Any] = {"outlier_neurons": {str(layer): found for layer, found in neurons.items()}}
        if record is None:
            return model, applied, None
        return (
            model,
            applied | {"weight_bits": record.weight_bits},
            Learned.round_weights(model, layers, record),
        )


@dataclass(frozen=True)
class _Job:
    """A quantization under way, and the folder in which int8 models are made, one in the place of the other."""

    folder: Path
    graph: Any
    inputs: list[dict[str, torch.Tensor]]
    graph_config: QuaLAMiniLMConfig
    config: INCQuaLAConfig
    applied: dict[str, Any]
    learned: Learned | None = None

    def make(self, in_float: list[str]) -> INCQuaLAConfig:
        """Make and write the model with these layers in float; return its record."""
        int8 = _convert(_prepare(copy.deepcopy(self.graph), self.config, in_float), self.inputs, self.learned)
        for name in (GRAPH_NAME, WEIGHTS_NAME):  # a model that was loaded from there may have the file mapped
            (self.folder / name).unlink(missing_ok=True)
        write_graph(int8, self.folder, list(self.inputs[0]), graph_outputs(self.graph_config))
        self.graph_config.save_pretrained(self.folder)
        record = replace(self.config, applied=self.applied | {"float_modules": in_float}, versions=_versions())
        record.save_pretrained(self.folder)
        return record


def _make_accurate(
    job: _Job,
    float32: dict[str, Any],
    ignored: list[str],
    *,
    rank: Callable[[Iterable[str]], list[str]],
    num_layers: int,
    score: Callable[[dict[str, Any]], Accuracy],
    report: Callable[[str], Any],
) -> INCQuaLAConfig:
    """Make models with ever more layers in float until one is accurate enough; return its record, with its scores."""
    from optimum_qala.inference.inc import INCQuaLAMiniLMForQuestionAnswering

    expected = score(float32)
    ranking: list[str] = []
    records: dict[int, INCQuaLAConfig] = {}

    def in_float(count: int) -> list[str]:
        return sorted([*ignored, *ranking[:count]])

    def attempt(count: int) -> Accuracy:
        if count and not ranking:
            report(f"ranking {num_layers} linear layers by what int8 in each of them does to the answers")
            ranking.extend(rank(expected))
        records.clear()  # of the model that is overwritten
        records[count] = job.make(in_float(count))
        int8 = score({"int8": INCQuaLAMiniLMForQuestionAnswering.from_pretrained(job.folder)})
        return {budget: {**kinds, **int8[budget]} for budget, kinds in expected.items()}

    outcome = tune(
        attempt,
        num_layers,
        tolerable_loss=job.config.tolerable_loss,
        criterion=job.config.criterion,
        max_trials=job.config.max_trials,
        report=report,
    )
    record = records.get(outcome.count) or job.make(in_float(outcome.count))
    trials = {"trials": outcome.trials} if job.config.tolerable_loss is not None else {}
    record = replace(record, applied={**record.applied, **trials}, accuracy=outcome.accuracy)
    record.save_pretrained(job.folder)
    return record


def _load_trained(path: str | Path) -> QuaLAMiniLMForQuestionAnswering:
    folder = Path(path)
    for name in (GRAPH_NAME, IR_NAME):
        if (folder / name).is_file() and not any(folder.glob("model*.safetensors*")):
            raise CheckpointError(
                f"{path} is exported already ({name}); quantize the torch checkpoint that it was made of"
            )
    model, keys = load_backbone(path)
    keys.check_heads(path)
    return model


def _linear_layers(model: QuaLAMiniLMForQuestionAnswering) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]


def _ignored_modules(model: QuaLAMiniLMForQuestionAnswering, config: INCQuaLAConfig) -> list[str]:
    """Name the linear layers that stay in float whatever they cost."""
    names = _linear_layers(model)
    ignored = {name for name in names if f".{BRANCH_NAME}." in name}
    for pattern in config.ignored_modules:
        matching = [name for name in names if re.search(pattern, name)]
        if not matching:
            raise ConfigurationError(
                f"ignored_modules holds {pattern!r}, which matches no linear layer; their names are like {names[0]!r}"
            )
        ignored.update(matching)
    return sorted(ignored)


def _prepare(graph: Any, config: INCQuaLAConfig, ignored: list[str]) -> torch.fx.GraphModule:
    """Let Intel Neural Compressor insert what watches weights and activations."""
    with _quiet:
        from neural_compressor.torch.quantization import DynamicQuantConfig, INT8StaticQuantConfig, prepare

        kind = DynamicQuantConfig if config.approach == "dynamic" else INT8StaticQuantConfig
        settings = kind(
            w_granularity=config.weight_granularity,
            act_algo=config.activation_algorithm,
            act_sym=config.activation_symmetric,
        )
        for name in ignored:  # `model` is the name of the model in the program that was exported
            settings.set_local(f"model.{name}", kind(w_dtype="fp32", act_dtype="fp32"))
        # It asks for the one and copies the other from step to step; nothing reads it.
        graph._exported, graph.dynamic_shapes = True, None
        with _prepare_lock:
            prepared: torch.fx.GraphModule = prepare(graph, settings)
        return prepared


def _convert(
    prepared: torch.fx.GraphModule, inputs: list[dict[str, torch.Tensor]], learned: Learned | None = None
) -> torch.fx.GraphModule:
    """Calibrate, or take what a training learned, and store the weights in 8 bits.

    Calibration is no choice: Intel Neural Compressor finds the scales of weights by a forward pass as well, and a
    dynamic model that never ran has weights of 0. Nor is `convert` of `neural_compressor.torch` one: it takes
    `fold_quantize`, does not pass it on, and leaves float32 weights that are rounded in every call.
    """
    from torchao.quantization.pt2e.observer import MovingAverageMinMaxObserver
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

    averages = [module for module in prepared.modules() if isinstance(module, MovingAverageMinMaxObserver)]
    with torch.no_grad(), _quiet:
        for number, sample in enumerate(inputs if learned is None else inputs[:1], start=1):
            for average in averages:  # by itself each window counts 1 % of what the windows before it do together
                average.averaging_constant = 1 / number
            prepared(sample)
        if learned is not None:
            learned.apply(prepared)
        converted: torch.fx.GraphModule = convert_pt2e(prepared, fold_quantize=True)
        logits = converted(inputs[0])
    if not any(bool((values != values[:, :1]).any()) for values in logits):
        raise BackendError(
            f"the int8 model gives all tokens the same logits, which {len(inputs)} calibration windows should have "
            "prevented; use the versions of constraints.txt"
        )
    return converted


def _versions() -> dict[str, str]:
    return {"optimum-qala": __version__} | {name: version(name) for name in RECORDED_PACKAGES}
