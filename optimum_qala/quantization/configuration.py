"""How a model is quantized for OpenVINO, and what came out: the content of openvino_quala_config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from transformers.utils import logging

from optimum_qala.errors import CheckpointError, ConfigurationError


__all__ = [
    "CONFIG_NAME",
    "IR_NAME",
    "PRECISIONS",
    "RETENTION_INPUT",
    "SIZES_INPUT",
    "OVQuaLAConfig",
    "logit_names",
]

logger = logging.get_logger(__name__)

CONFIG_NAME = "openvino_quala_config.json"
IR_NAME = "openvino_model.xml"
RETENTION_INPUT = "retention"
SIZES_INPUT = "sizes"

PRECISIONS = ("f32", "bf16")
PRESETS = ("performance", "mixed")
OVERFLOW_FIXES = ("auto", "enable", "disable")
DROP_LAYERS = ("model", "budgets")
DEFAULT_SMOOTH_QUANT_ALPHA = 0.5
DEFAULT_OUTLIER_FACTOR = 2.0


def logit_names(exit_layer: int | None = None) -> tuple[str, str]:
    """Name the graph's outputs for start and end logits after `exit_layer` layers, or after all if None."""
    suffix = "" if exit_layer is None else f"_{exit_layer}"
    return f"start_logits{suffix}", f"end_logits{suffix}"


@dataclass(frozen=True)
class OVQuaLAConfig:
    """Choices of the quantization to int8, and a record of it.

    Args:
        num_samples: Windows to calibrate with.
        preset: "performance" quantizes activations symmetrically; "mixed" asymmetrically where they are not centred,
            which is more exact and about as fast.
        smooth_quant_alpha: How much of the activations' outliers moves into the weights, 0 to 1; None turns it off.
        outlier_factor: Neurons of the feed-forward layers whose activations exceed what is usual in their layer by
            this factor are computed in float beside the int8 layers; None keeps them in. See `quantization.outliers`.
        overflow_fix: "enable" gives weights 7 bits, which CPUs without VNNI need; "disable" 8 bits; "auto" looks at
            the CPU that quantizes.
        fast_bias_correction: Correct the biases layer by layer; False runs the slower, exact correction.
        budgets: Budgets to calibrate at; None takes full length and every named budget of the model.
        quantize_embeddings: Store the embedding tables in 8 bits, which halves the file of a small model.
        ignored_names: Names of operations to keep in float.
        ignored_patterns: Regular expressions of such names.
        drop_layers: "model" exports a graph in which every layer of the model's configuration may drop tokens;
            "budgets" only the layers in which its budgets do, which is faster, but takes no other budgets.
        precision: What float operations of the int8 model run in, unless `OVQuaLAMiniLMForQuestionAnswering` is told
            otherwise.
        seed: Seed of the choice of calibration windows.
        applied: Record: what was decided and done, for example the overflow fix and the CPU's reason for it.
        versions: Record: versions of the packages that did it.
        accuracy: Record: scores by budget, if there were validation records.

    Raises:
        ConfigurationError: If a value is not legal.
    """

    num_samples: int = 300
    preset: str = "mixed"
    smooth_quant_alpha: float | None = DEFAULT_SMOOTH_QUANT_ALPHA
    outlier_factor: float | None = DEFAULT_OUTLIER_FACTOR
    overflow_fix: str = "auto"
    fast_bias_correction: bool = True
    budgets: tuple[str, ...] | None = None
    quantize_embeddings: bool = True
    ignored_names: tuple[str, ...] = ()
    ignored_patterns: tuple[str, ...] = ()
    drop_layers: str = "model"
    precision: str = "f32"
    seed: int = 42
    applied: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    accuracy: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("budgets", "ignored_names", "ignored_patterns"):  # JSON knows no tuples
            value = getattr(self, name)
            if isinstance(value, str):
                raise ConfigurationError(f"{name} {value!r} is not a list")
            object.__setattr__(self, name, None if value is None else tuple(value))
        if isinstance(self.num_samples, bool) or not isinstance(self.num_samples, int) or self.num_samples < 1:
            raise ConfigurationError(f"num_samples {self.num_samples!r} is not a positive integer")
        alpha = self.smooth_quant_alpha
        if alpha is not None and not 0.0 <= alpha <= 1.0:
            raise ConfigurationError(f"smooth_quant_alpha {alpha!r} is not in [0, 1]; None turns it off")
        if self.outlier_factor is not None and not self.outlier_factor > 1.0:
            raise ConfigurationError(
                f"outlier_factor {self.outlier_factor!r} is not above 1; None keeps all neurons in int8"
            )
        if self.budgets is not None and not self.budgets:
            raise ConfigurationError("budgets is empty; name budgets to calibrate at, or leave it out for all of them")
        legal = {
            "preset": PRESETS,
            "overflow_fix": OVERFLOW_FIXES,
            "drop_layers": DROP_LAYERS,
            "precision": PRECISIONS,
        }
        for name, values in legal.items():
            if getattr(self, name) not in values:
                raise ConfigurationError(f"{name} {getattr(self, name)!r} is not one of {list(values)}")

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the file beside the model.

        Args:
            folder: The model's folder.

        Returns:
            The file.
        """
        file = Path(folder) / CONFIG_NAME
        temporary = file.with_name(f".{file.name}.tmp")
        temporary.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        temporary.replace(file)
        return file

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> OVQuaLAConfig:
        """Read the file beside a model.

        Args:
            folder: The model's folder.

        Returns:
            The configuration.

        Raises:
            CheckpointError: If there is none, or it is damaged.
        """
        return cls.from_json_file(Path(folder) / CONFIG_NAME)

    @classmethod
    def from_json_file(cls, file: str | Path) -> OVQuaLAConfig:
        """Read a file.

        Args:
            file: The file.

        Returns:
            The configuration.

        Raises:
            CheckpointError: If it does not exist, is damaged or holds an illegal value.
        """
        try:
            content = json.loads(Path(file).read_text(encoding="utf-8"))
        except OSError as error:
            raise CheckpointError(f"{file} cannot be read ({error.strerror}); was the model quantized?") from error
        except ValueError as error:
            raise CheckpointError(f"{file} is not JSON ({error}); quantize the model again") from error
        if not isinstance(content, dict):
            raise CheckpointError(f"{file} holds a {type(content).__name__}, not an object; quantize the model again")
        known = {item.name for item in fields(cls)} & set(content)
        if unknown := sorted(set(content) - known):  # of a newer version: no reason not to run the model
            logger.warning(f"{file} holds {unknown}, which this version of optimum-qala does not know")
        try:
            return cls(**{name: content[name] for name in known})
        except (ConfigurationError, TypeError) as error:
            raise CheckpointError(f"{file}: {error}") from error
