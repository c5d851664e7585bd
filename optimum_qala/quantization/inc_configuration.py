"""How a model is quantized with Intel Neural Compressor, and what came out: the content of inc_config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optimum_qala._checks import check_choices, check_count, check_patterns, check_unchanged
from optimum_qala.errors import ConfigurationError
from optimum_qala.quantization.configuration import DEFAULT_OUTLIER_FACTOR, DROP_LAYERS
from optimum_qala.quantization.stored_configuration import freeze_lists, read_configuration, write_configuration


__all__ = ["APPROACHES", "INC_CONFIG_NAME", "INCQuaLAConfig"]

INC_CONFIG_NAME = "inc_config.json"

APPROACHES = ("static", "dynamic", "qat")
ACTIVATION_ALGORITHMS = ("minmax", "kl")
WEIGHT_GRANULARITIES = ("per_channel", "per_tensor")
CRITERIA = ("relative", "absolute")
# Settings that an approach has no use for.
_SETTLED = {
    "dynamic": ("activation_algorithm", "activation_symmetric"),
    "qat": (
        "activation_algorithm",
        "activation_symmetric",
        "weight_granularity",
        "outlier_factor",
        "quantize_embeddings",
    ),
}


@dataclass(frozen=True)
class INCQuaLAConfig:
    r"""Choices of the quantization to int8 with Intel Neural Compressor, and a record of it.

    Only settings are offered that the PT2E flow of neural-compressor-pt 3.10 obeys. Of its own, it ignores
    `white_list` and the types of operators; makes weights with a zero point scalars without saying so; and has
    settings of the activations' type that no int8 kernel for x86 runs.

    Args:
        approach: "static" fixes the range of every activation with calibration windows; "dynamic" finds it anew in
            every call, which needs no representative windows, is slower, and lets rows of a batch touch each other;
            "qat" takes the ranges and outlier neurons of a training with `quantization_aware=True`. Weights that were
            trained in 4 bits or ternary become 8-bit numbers of the same values, as large and as fast as others.
        num_samples: Windows to calibrate with; for "qat" one would do, but layers are ranked with them.
        activation_algorithm: How static ranges are found: "minmax" averages the extremes of the windows; "kl" searches
            a histogram for the range that loses least.
        activation_symmetric: Centre static ranges on zero, which wastes some of them.
        weight_granularity: "per_channel" scales each row of a weight; "per_tensor" the whole weight at once.
        outlier_factor: Neurons of the feed-forward layers whose activations exceed what is usual in their layer by
            this factor are computed in float beside the int8 layers; None keeps them in. See `quantization.outliers`.
        ignored_modules: Regular expressions of names of linear layers to keep in float, as in
            `model.named_modules()`, for example r"layer\.0\.output\.dense".
        quantize_embeddings: Store the embedding tables in 8 bits, a scale for each row, which halves the file of a
            small model. Intel Neural Compressor leaves them in float; this package does it.
        budgets: Budgets to calibrate at, and to score besides full length and every named budget of the model; None
            takes these.
        drop_layers: "model" exports a graph in which every layer of the model's configuration may drop tokens;
            "budgets" only the layers in which its budgets do, which is faster, but takes no other budgets.
        tolerable_loss: How much F1 int8 may lose on the validation questions against float32, at full length, at
            every named budget and at those of `budgets`. If it loses more, linear layers fall back to float, the most
            sensitive at these budgets first, until it does not. None takes the first model as it comes.
        criterion: What `tolerable_loss` is: "relative", a share of float32's F1 at the same budget (0.01 is 1 %), or
            "absolute", points of F1.
        max_trials: At most so many models are made and scored.
        seed: Seed of the choice of calibration windows.
        applied: Record: what was decided and done.
        versions: Record: versions of the packages that did it.
        accuracy: Record: scores by budget, if there were validation records.

    Raises:
        ConfigurationError: If a value is not legal.
    """

    approach: str = "static"
    num_samples: int = 300
    activation_algorithm: str = "minmax"
    activation_symmetric: bool = False
    weight_granularity: str = "per_channel"
    outlier_factor: float | None = DEFAULT_OUTLIER_FACTOR
    ignored_modules: tuple[str, ...] = ()
    quantize_embeddings: bool = True
    budgets: tuple[str, ...] | None = None
    drop_layers: str = "model"
    tolerable_loss: float | None = None
    criterion: str = "relative"
    max_trials: int = 10
    seed: int = 42
    applied: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    accuracy: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        freeze_lists(self, ("budgets", "ignored_modules"))
        check_patterns(self, "ignored_modules")
        check_count("num_samples", self.num_samples)
        check_count("max_trials", self.max_trials)
        check_choices(
            self,
            {
                "approach": APPROACHES,
                "activation_algorithm": ACTIVATION_ALGORITHMS,
                "weight_granularity": WEIGHT_GRANULARITIES,
                "drop_layers": DROP_LAYERS,
                "criterion": CRITERIA,
            },
        )
        most = 1.0 if self.criterion == "relative" else 100.0
        if self.tolerable_loss is not None and not 0.0 <= self.tolerable_loss < most:
            unit = "a share of F1" if self.criterion == "relative" else "points of F1"
            raise ConfigurationError(
                f"tolerable_loss {self.tolerable_loss!r} is not {unit} from 0 to below {most:g}, which the criterion "
                f"{self.criterion!r} makes it"
            )
        if self.outlier_factor is not None and not self.outlier_factor > 1.0:
            raise ConfigurationError(
                f"outlier_factor {self.outlier_factor!r} is not above 1; None keeps all neurons in int8"
            )
        if self.budgets is not None and not self.budgets:
            raise ConfigurationError("budgets is empty; name budgets to calibrate at, or leave it out for all of them")
        if self.tolerable_loss is None:
            circumstance = "without tolerable_loss; leave it out, or say how much F1 int8 may lose"
            check_unchanged(self, ("criterion", "max_trials"), circumstance)
        reason = "finds ranges in every call" if self.approach == "dynamic" else "takes what training settled"
        check_unchanged(
            self,
            _SETTLED.get(self.approach, ()),
            f"in the approach {self.approach!r}, which {reason}; leave it out, or use approach 'static'",
        )

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the file beside the model.

        Args:
            folder: The model's folder.

        Returns:
            The file.
        """
        return write_configuration(self, Path(folder) / INC_CONFIG_NAME)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> INCQuaLAConfig:
        """Read the file beside a model.

        Args:
            folder: The model's folder.

        Returns:
            The configuration.

        Raises:
            CheckpointError: If there is none, or it is damaged.
        """
        return cls.from_json_file(Path(folder) / INC_CONFIG_NAME)

    @classmethod
    def from_json_file(cls, file: str | Path) -> INCQuaLAConfig:
        """Read a file.

        Args:
            file: The file.

        Returns:
            The configuration.

        Raises:
            CheckpointError: If it does not exist, is damaged, holds an illegal value or is of another back end.
        """
        return read_configuration(cls, file, foreign="preset")
