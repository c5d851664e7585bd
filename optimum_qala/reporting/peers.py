"""Models to compare with: plain ones as users of optimum-intel make them, whole or cut, and one of BERT-base shape."""

from __future__ import annotations

import contextlib
import shutil
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForQuestionAnswering, BertConfig, BertForQuestionAnswering
from transformers.utils import logging

from optimum_qala._compat import require
from optimum_qala.checkpoints import HEAD_KEYS
from optimum_qala.errors import CheckpointError, ConfigurationError
from optimum_qala.models.configuration_quala_minilm import QuaLAMiniLMConfig
from optimum_qala.models.length_config import count_macs
from optimum_qala.quantization.calibration import calibration_samples
from optimum_qala.quantization.configuration import DEFAULT_SMOOTH_QUANT_ALPHA
from optimum_qala.quantization.cpu import choose_overflow_fix
from optimum_qala.question_answering.records import QARecord
from optimum_qala.question_answering.windows import Window, WindowOptions


__all__ = [
    "PeerOptions",
    "check_depth",
    "export_plain",
    "load_plain_config",
    "make_bert_base",
    "plain_macs",
    "quantize_plain",
]

BERT_BASE = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
}
BERT_POSITIONS = 512


@dataclass(frozen=True)
class PeerOptions:
    """How the models to compare with are made.

    Args:
        calibration_samples: Questions that int8 models are calibrated with, one window of each.
        seed: Seed of the choice of these, and of random weights.

    Raises:
        ConfigurationError: If a number is out of range.
    """

    calibration_samples: int = 300
    seed: int = 42

    def __post_init__(self) -> None:
        if self.calibration_samples < 1:
            raise ConfigurationError(f"calibration_samples {self.calibration_samples} is less than 1")


def export_plain(path: str | Path, folder: Path, tokenizer: Any, num_layers: int | None = None) -> Path:
    """Export a plain question answering checkpoint by optimum-intel's own class, in float32.

    Args:
        path: Folder or repository id of the torch checkpoint.
        folder: Where to write the exported model.
        tokenizer: Its tokenizer, which is saved beside it.
        num_layers: Keep the first layers only, with the same span head; all if None.

    Returns:
        The folder.

    Raises:
        CheckpointError: If it is a QuaLA-MiniLM, cannot be loaded or has no trained span head.
        ConfigurationError: If `num_layers` is not below the layers of the checkpoint.
        MissingExtraError: If OpenVINO is not installed.
    """
    require("openvino", "a plain model to compare with")
    model = _load_plain(path, num_layers)
    with _scratch(folder, "torch") as checkpoint:
        # As float32: a checkpoint may be stored in half precision, and its graph would be too.
        model.save_pretrained(checkpoint)
        return _export(checkpoint, folder, tokenizer)


def load_plain_config(path: str | Path) -> Any:
    """Load the configuration of a plain question answering checkpoint.

    Args:
        path: Its folder or repository id.

    Returns:
        The configuration.

    Raises:
        CheckpointError: If it is a QuaLA-MiniLM, or there is none.
    """
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(_cannot_load(path, error)) from error
    if config.model_type == QuaLAMiniLMConfig.model_type:
        raise CheckpointError(f"{path} is a QuaLA-MiniLM; give the plain model that it is to be compared with")
    return config


def _load_plain(path: str | Path, num_layers: int | None) -> Any:
    config = load_plain_config(path)
    if num_layers is not None:
        check_depth(num_layers, config.num_hidden_layers, path)
        config.num_hidden_layers = num_layers
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # layers that are left out are not reported as a table
    try:
        model, info = AutoModelForQuestionAnswering.from_pretrained(
            path, config=config, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError) as error:
        raise CheckpointError(_cannot_load(path, error)) from error
    finally:
        logging.set_verbosity(verbosity)
    if HEAD_KEYS & set(info["missing_keys"]):
        raise CheckpointError(
            f"{path} has no trained span head, so its answers would be random; fine-tune it for question answering "
            "first"
        )
    return model.eval()


def check_depth(depth: int, num_layers: int, path: str | Path) -> None:
    """Raise unless a model can be cut to a number of layers.

    Args:
        depth: The number.
        num_layers: Layers of the model.
        path: Where the model is, for the message.

    Raises:
        ConfigurationError: If it is not below the layers of the model.
    """
    if not 1 <= depth < num_layers:
        raise ConfigurationError(
            f"depth {depth} is not from 1 to {num_layers - 1}, fewer than the {num_layers} layers of {path}"
        )


def _cannot_load(path: str | Path, error: Exception) -> str:
    return f"plain model {path} cannot be loaded: {str(error).strip().splitlines()[0]}"


def quantize_plain(
    source: Path,
    folder: Path,
    tokenizer: Any,
    records: Sequence[QARecord],
    *,
    options: PeerOptions,
    window_options: WindowOptions,
) -> dict[str, Any]:
    """Quantize an exported plain model to int8 by optimum-intel's own class: static, after training.

    Args:
        source: Folder of the exported float model.
        folder: Where to write the int8 model.
        tokenizer: Its tokenizer, which is saved beside it.
        records: Questions to calibrate with.
        options: How many of them.
        window_options: How contexts are cut.

    Returns:
        The settings that it was quantized with.

    Raises:
        DataError: If there are no records, or one is bad.
    """
    import nncf
    from optimum.intel.openvino import OVConfig, OVModelForQuestionAnswering, OVQuantizationConfig, OVQuantizer

    model = OVModelForQuestionAnswering.from_pretrained(str(source), export=False, compile=False)
    names = {min(tensor.get_names(), key=len) for tensor in model.model.inputs}
    samples = calibration_samples(
        records,
        tokenizer,
        QuaLAMiniLMConfig(type_vocab_size=2 if "token_type_ids" in names else 1),
        [None],
        num_samples=options.calibration_samples,
        window_options=window_options,
        seed=options.seed,
    )
    inputs = [{name: value for name, value in sample.items() if name in names} for sample in samples]
    # Those of our own models, as far as optimum-intel's class has them.
    settings = {
        "sym": False,
        "num_samples": len(inputs),
        "smooth_quant_alpha": DEFAULT_SMOOTH_QUANT_ALPHA,
        "fast_bias_correction": True,
        "overflow_fix": choose_overflow_fix("auto")[0],
    }
    with contextlib.redirect_stdout(sys.stderr):  # NNCF draws progress bars
        OVQuantizer(model).quantize(
            calibration_dataset=nncf.Dataset(inputs),
            save_directory=folder,
            ov_config=OVConfig(quantization_config=OVQuantizationConfig(**settings)),
        )
    tokenizer.save_pretrained(folder)
    return settings


def make_bert_base(folder: Path, tokenizer: Any, num_positions: int, options: PeerOptions) -> tuple[Any, Path]:
    """Make a model of the shape of BERT-base with random weights: its time is real, its answers are not.

    Args:
        folder: Where to write the exported model.
        tokenizer: Tokenizer of the windows, which decides the size of the vocabulary.
        num_positions: Tokens that it has to take at least.
        options: Gives the seed.

    Returns:
        The torch model and the folder of the exported one.

    Raises:
        MissingExtraError: If OpenVINO is not installed.
    """
    require("openvino", "the shape of BERT-base in OpenVINO")
    config = BertConfig(
        **BERT_BASE,
        vocab_size=max(len(tokenizer), BertConfig().vocab_size),
        max_position_embeddings=max(num_positions, BERT_POSITIONS),
        pad_token_id=tokenizer.pad_token_id,
    )
    # Forked, since the export draws numbers too, for the inputs that it traces with.
    with torch.random.fork_rng(devices=[]), _scratch(folder, "torch") as checkpoint:
        torch.manual_seed(options.seed)
        model = BertForQuestionAnswering(config).eval()
        model.save_pretrained(checkpoint)
        return model, _export(checkpoint, folder, tokenizer)


@contextlib.contextmanager
def _scratch(folder: Path, name: str) -> Iterator[Path]:
    """Make a folder for a torch checkpoint that the exported model does not need any more."""
    checkpoint = folder / name
    checkpoint.mkdir(parents=True)
    try:
        yield checkpoint
    finally:
        shutil.rmtree(checkpoint)


def _export(checkpoint: Path, folder: Path, tokenizer: Any) -> Path:
    from optimum.intel.openvino import OVModelForQuestionAnswering

    with warnings.catch_warnings():
        # OpenVINO still traces; there is nothing that the user could do about it.
        warnings.filterwarnings("ignore", r"`torch\.jit\.trace", DeprecationWarning)
        warnings.filterwarnings("ignore", "Converting a tensor to a Python boolean")
        model = OVModelForQuestionAnswering.from_pretrained(str(checkpoint), export=True, compile=False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def plain_macs(config: Any, window: Window) -> int:
    """Count the multiply-accumulate operations of a window in a model that drops nothing.

    Args:
        config: Configuration of a BERT-shaped model.
        window: The window.

    Returns:
        The count, as `QuaLAMiniLMConfig.macs` counts full length.
    """
    length = len(window)
    layers = [length] * config.num_hidden_layers
    # With a token score that is never computed: without one the count would be that of the published method.
    return count_macs(layers, length, config.hidden_size, config.intermediate_size, token_scoring="answer")
