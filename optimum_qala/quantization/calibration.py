"""Inputs to calibrate with: windows of real questions at their true lengths, at several budgets."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from optimum_qala.errors import ConfigurationError, DataError
from optimum_qala.inference.graph import retention_of
from optimum_qala.inference.sizes import plan_sizes
from optimum_qala.models.configuration_quala_minilm import FULL_BUDGET, QuaLAMiniLMConfig
from optimum_qala.models.length_config import LengthConfig
from optimum_qala.quantization.configuration import RETENTION_INPUT, SIZES_INPUT
from optimum_qala.question_answering.features import collate
from optimum_qala.question_answering.records import QARecord
from optimum_qala.question_answering.windows import WindowOptions, make_windows


__all__ = ["calibration_budgets", "calibration_samples", "choose_drop_layers", "narrow_config", "sample_tensors"]

# Where a model names no budgets: the range that a graph of its layers will be asked for.
DEFAULT_DROP_RATIOS = (0.1, 0.2)
_MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def calibration_budgets(
    config: QuaLAMiniLMConfig, names: Sequence[str] | None = None
) -> dict[str, LengthConfig | None]:
    """Choose the budgets to calibrate at.

    Static quantization sees only the activations of the samples, and the tokens that survive differ from budget to
    budget; a model that is calibrated at full length alone would clip some.

    Args:
        config: Configuration of the model.
        names: Budgets of the model, or ratios; full length and all budgets by default. Of a model without budgets,
            full length and two even ones.

    Returns:
        What each name stands for; None for full length.

    Raises:
        UnknownBudgetError: If the model has no budget of that name.
        LengthConfigError: If ratios do not fit the model.
    """
    if names is not None:
        return {name: config.resolve_budget(name) for name in names}
    budgets = {FULL_BUDGET: None} | {name: config.resolve_budget(name) for name in config.budgets or {}}
    if len(budgets) == 1:
        for ratio in DEFAULT_DROP_RATIOS:
            even = LengthConfig.from_drop_ratio(config.num_hidden_layers, ratio, config.dropping_layers)
            budgets[str(even)] = even
    return budgets


def narrow_config(config: QuaLAMiniLMConfig, drop_layers: Sequence[int] | None) -> QuaLAMiniLMConfig:
    """Copy a configuration for a graph that is exported, with other layers that may drop.

    Args:
        config: The configuration.
        drop_layers: 0-based layers; None means all of them.

    Returns:
        The copy, checked: its budgets fit.

    Raises:
        LengthConfigError: If a budget drops in another layer.
    """
    fields = config.to_dict()
    fields["drop_layers"] = None if drop_layers is None else sorted(drop_layers)
    fields.pop("auto_map", None)  # names code of the torch model
    fields["quantization_aware"] = None  # belongs to its weights; a graph has ranges of its own
    narrowed: QuaLAMiniLMConfig = QuaLAMiniLMConfig.from_dict(fields)
    return narrowed


def choose_drop_layers(
    config: QuaLAMiniLMConfig, setting: str, budgets: Mapping[str, LengthConfig | None]
) -> list[int] | None:
    """Choose the layers that may drop tokens in the graph.

    Args:
        config: Configuration of the model.
        setting: "model" or "budgets", as in the configurations of the quantizers.
        budgets: Budgets that are calibrated at.

    Returns:
        0-based layers; None keeps those of the model.

    Raises:
        ConfigurationError: If the budgets leave no layer that drops tokens.
    """
    if setting == "model":
        return None
    named = [config.resolve_budget(name) for name in config.budgets or {}]
    layers = {layer for budget in (*named, *budgets.values()) if budget for layer in budget.drop_layers}
    if not layers:
        raise ConfigurationError(
            f"drop_layers 'budgets' leaves no layer that drops tokens, since no budget among {sorted(budgets)} "
            "drops any; search budgets first or use drop_layers 'model'"
        )
    return sorted(layers)


def calibration_samples(
    records: Iterable[QARecord],
    tokenizer: Any,
    config: QuaLAMiniLMConfig,
    budgets: Iterable[LengthConfig | None],
    *,
    num_samples: int,
    window_options: WindowOptions | None = None,
    seed: int = 42,
) -> list[dict[str, NDArray[Any]]]:
    """Make inputs of the graph.

    Args:
        records: Records; `num_samples` of them are chosen at random, and one window of each.
        tokenizer: The model's fast tokenizer.
        config: Configuration of the graph.
        budgets: Budgets to take in turn.
        num_samples: How many inputs; fewer if there are fewer records.
        window_options: How contexts are cut.
        seed: Seed of the choice.

    Returns:
        Inputs of one window each, without padding. The graph runs all its layers and exits on each, whichever one the
        budget stops at.

    Raises:
        DataError: If there are no records, one is bad, or no window holds any text of a context.
    """
    rng = random.Random(seed)
    records = list(records)
    if not records:
        raise DataError("there are no calibration records, got 0; give some hundred questions of the training set")
    chosen = rng.sample(records, min(num_samples, len(records)))
    turns = _endlessly(list(budgets))
    windows = [rng.choice(make_windows(record, tokenizer, window_options)) for record in chosen]
    if not any(np.ptp(window.char_spans, axis=1).any() for window in windows):
        raise DataError(
            f"none of the {len(windows)} calibration windows, of which record '{chosen[0].id}' gave the first, holds "
            "a token of a context; give questions of the training set with their contexts"
        )
    samples = []
    for window in windows:
        sample: dict[str, NDArray[Any]] = {
            name: tensor.numpy() for name, tensor in collate([window], tokenizer).items()
        }
        if config.type_vocab_size < 2:
            sample.pop("token_type_ids", None)
        elif "token_type_ids" not in sample:
            sample["token_type_ids"] = np.zeros_like(sample["input_ids"])
        budget = next(turns)
        sample[RETENTION_INPUT] = retention_of(budget, config.dropping_layers)
        sample[SIZES_INPUT] = plan_sizes(sample["input_ids"], sample["attention_mask"], config, budget)
        samples.append(sample)
    return samples


def _endlessly(budgets: list[LengthConfig | None]) -> Iterator[LengthConfig | None]:
    while True:
        yield from budgets


def sample_tensors(sample: Mapping[str, Any], device: torch.device) -> dict[str, Tensor]:
    """Make a sample a batch of the torch model.

    Args:
        sample: A calibration sample; keys that the model does not take are left out, such as the retention.
        device: Where the model is.

    Returns:
        Tensors by the model's names. *Shape:* `(batch_size, sequence_length)` each
    """
    return {name: torch.as_tensor(sample[name]).to(device) for name in _MODEL_INPUTS if name in sample}
