"""How a model is quantized for OpenVINO, and what came out: the content of openvino_quala_config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optimum_qala._checks import check_choices, check_count, check_patterns
from optimum_qala.errors import ConfigurationError
from optimum_qala.quantization.stored_configuration import freeze_lists, read_configuration, write_configuration


__all__ = [
    "CONFIG_NAME",
    "IR_NAME",
    "PRECISIONS",
    "RETENTION_INPUT",
    "SIZES_INPUT",
    "OVQuaLAConfig",
    "logit_names",
]

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
        budgets: Budgets to calibrate at, and to score besides full length and every named budget of the model; None
            takes these.
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
        freeze_lists(self, ("budgets", "ignored_names", "ignored_patterns"))
        check_patterns(self, "ignored_patterns")
        check_count("num_samples", self.num_samples)
        alpha = self.smooth_quant_alpha
        if alpha is not None and not 0.0 <= alpha <= 1.0:
            raise ConfigurationError(f"smooth_quant_alpha {alpha!r} is not in [0, 1]; None turns it off")
        if self.outlier_factor is not None and not self.outlier_factor > 1.0:
            raise ConfigurationError(
                f"outlier_factor {self.outlier_factor!r} is not above 1; None keeps all neurons in int8"
            )
        if self.budgets is not None and not self.budgets:
            raise ConfigurationError("budgets is empty; name budgets to calibrate at, or leave it out for all of them")
        check_choices(
            self,
            {
                "preset": PRESETS,
                "overflow_fix": OVERFLOW_FIXES,
                "drop_layers": DROP_LAYERS,
                "precision": PRECISIONS,
            },
        )

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the file beside the model.

        Args:
            folder: The model's folder.

        Returns:
            The file.
        """
        return write_configuration(self, Path(folder) / CONFIG_NAME)

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
            CheckpointError: If it does not exist, is damaged, holds an illegal value or is of another back end.
        """
        return read_configuration(cls, file, foreign="approach")
