"""Inputs to calibrate with: windows of real questions at their true lengths, at several budgets."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimum_qala.errors import DataError
from optimum_qala.inference.graph import retention_of
from optimum_qala.inference.sizes import plan_sizes
from optimum_qala.models.configuration_quala_minilm import FULL_BUDGET, QuaLAMiniLMConfig
from optimum_qala.models.length_config import LengthConfig
from optimum_qala.quantization.configuration import RETENTION_INPUT, SIZES_INPUT
from optimum_qala.question_answering.features import collate
from optimum_qala.question_answering.records import QARecord
from optimum_qala.question_answering.windows import WindowOptions, make_windows


__all__ = ["calibration_budgets", "calibration_samples"]

# Where a model names no budgets: the range that a graph of its layers will be asked for.
DEFAULT_DROP_RATIOS = (0.1, 0.2)


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
        DataError: If there are no records, or one is bad.
    """
    rng = random.Random(seed)
    records = list(records)
    if not records:
        raise DataError("there are no calibration records, got 0; give some hundred questions of the training set")
    chosen = rng.sample(records, min(num_samples, len(records)))
    turns = _endlessly(list(budgets))
    samples = []
    for record in chosen:
        window = rng.choice(make_windows(record, tokenizer, window_options))
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
