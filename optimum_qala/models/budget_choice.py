"""Choosing among the named budgets of a model by what was measured at them: milliseconds, F1 or operations."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from transformers.utils import logging

from .configuration_quala_minilm import FULL_BUDGET, QuaLAMiniLMConfig
from .errors import ConfigurationError, UnknownBudgetError
from .length_config import LengthConfig


logger = logging.get_logger(__name__)

UNPADDED = "longest"  # batches are padded to their longest sequence, so a single one is not padded at all


@dataclass(frozen=True)
class Conditions:
    """What a latency depends on besides the budget.

    Args:
        backend: What runs the model, "torch" or "openvino".
        cpu: Name of the CPU.
        threads: Threads of one call, if known.
        precision: What float operations run in, if known.
        batch: Windows of one call.
        padding: How sequences are padded: "longest", or "multiple of N" in shape buckets.
    """

    backend: str
    cpu: str
    threads: int | None = None
    precision: str | None = None
    batch: int = 1
    padding: str = UNPADDED

    @classmethod
    def here(
        cls, backend: str, threads: int | None = None, precision: str | None = None, padding: str = UNPADDED
    ) -> Conditions:
        """Describe this machine."""
        return cls(backend, cpu_name(), threads, precision, padding=padding)

    @classmethod
    def of_torch(cls) -> Conditions:
        """Describe a torch model on this machine."""
        return cls.here("torch", torch.get_num_threads())


def cpu_name() -> str:
    """Return the name of this machine's CPU."""
    return str(torch.cpu.get_capabilities().get("cpu_name") or platform.processor() or platform.machine())


def matching_latencies(budgets: Mapping[str, Mapping[str, Any]], conditions: Conditions) -> dict[str, float]:
    """Find the latencies that hold under some conditions.

    Back end and CPU must be the same. Where some of the rows have the same padding, batch size, threads or precision
    too, in this order, the others are left out, for all budgets alike. Where none has, a warning says so, for the
    model may be slower than it was there.

    Args:
        budgets: The `budgets` of a config; their `latency_ms` is a list of rows.
        conditions: The conditions.

    Returns:
        Milliseconds by name of the budget; the last row of those that match.
    """
    rows = [
        (name, row)
        for name, budget in budgets.items()
        for row in budget.get("latency_ms") or ()
        if (row.get("backend"), row.get("cpu")) == (conditions.backend, conditions.cpu) and "median" in row
    ]
    for field in ("padding", "batch", "threads", "precision"):
        wanted = getattr(conditions, field)
        same = [(name, row) for name, row in rows if row.get(field) == wanted]
        others = sorted({str(row[field]) for _, row in rows if row.get(field) is not None})
        if others and wanted is not None and not same:
            hint = "; load it with buckets=True" if field == "padding" and wanted == UNPADDED else ""
            logger.warning(
                f"latencies were measured with {field} {' or '.join(others)}, but this model runs with {wanted}{hint}"
            )
        rows = same or rows
    return {name: float(row["median"]) for name, row in rows}


def fastest_enough(budgets: Mapping[str, Mapping[str, Any]], max_latency_ms: float, conditions: Conditions) -> str:
    """Choose the most accurate budget that is fast enough.

    Args:
        budgets: The `budgets` of a config.
        max_latency_ms: Most milliseconds per window.
        conditions: What the model runs on.

    Returns:
        Name of the budget of the highest F1 whose measured latency is at or under the limit; of equals the fastest.

    Raises:
        ConfigurationError: If the limit is not above 0.
        UnknownBudgetError: If no latency was measured under these conditions, or none is at or under the limit.
    """
    check_latency(max_latency_ms)
    found = matching_latencies(budgets, conditions)
    measured = {name: latency for name, latency in found.items() if budgets[name].get("f1") is not None}
    if not measured:
        rows = [
            (row.get("backend"), row.get("cpu")) for one in budgets.values() for row in one.get("latency_ms") or ()
        ]
        there = ", ".join(f"{backend} on {cpu}" for backend, cpu in dict.fromkeys(rows)) or "none at all"
        # The search times no models of Intel Neural Compressor.
        advice = "Choose" if conditions.backend == "inc" else "Search by latency on this machine, or choose"
        raise UnknownBudgetError(
            f"no budget of this model has both F1 and a latency measured for {conditions.backend} on "
            f"{conditions.cpu}; measured are {there}. {advice} a budget by name: {sorted({FULL_BUDGET, *budgets})}"
        )
    fast = {name: latency for name, latency in measured.items() if latency <= max_latency_ms}
    if not fast:
        there = ", ".join(f"{name} {latency:.3g} ms" for name, latency in sorted(measured.items(), key=_by_value))
        raise UnknownBudgetError(
            f"no budget of this model takes at most {max_latency_ms:g} ms on {conditions.backend} and "
            f"{conditions.cpu}; measured are {there}"
        )
    return max(fast, key=lambda name: (budgets[name]["f1"], -fast[name]))


def cheapest_accurate(budgets: Mapping[str, Mapping[str, Any]], max_f1_loss: float, conditions: Conditions) -> str:
    """Choose the cheapest budget that is accurate enough.

    Args:
        budgets: The `budgets` of a config.
        max_f1_loss: Largest loss relative to the F1 of full length: 0.01 accepts 99 % of it.
        conditions: What the model runs on.

    Returns:
        Name of the budget; cheapest is what takes least milliseconds if all that are accurate enough were measured
        under the conditions, and least operations otherwise. Full length itself is always accurate enough.

    Raises:
        ConfigurationError: If the loss is out of range.
        UnknownBudgetError: If the F1 of full length is not known, or neither latencies nor operations of all that are
            accurate enough.
    """
    check_loss(max_f1_loss)
    full_f1 = budgets.get(FULL_BUDGET, {}).get("f1")
    if full_f1 is None:
        raise UnknownBudgetError(
            "this model does not say what F1 it has at full length, so a loss cannot be told; search its budgets, or "
            f"choose one by name: {sorted({FULL_BUDGET, *budgets})}"
        )
    floor = full_f1 * (1.0 - max_f1_loss)
    accurate = [name for name, one in budgets.items() if one.get("f1") is not None and one["f1"] >= floor]
    latencies = matching_latencies(budgets, conditions)
    if all(name in latencies for name in accurate):
        costs = latencies
    elif all(budgets[name].get("macs") is not None for name in accurate):
        costs = {name: float(budgets[name]["macs"]) for name in accurate}
    else:
        raise UnknownBudgetError(
            f"of the budgets {sorted(accurate)}, which are accurate enough, neither the latencies on "
            f"{conditions.backend} and {conditions.cpu} nor the operations are all known; search again, or choose one "
            "by name"
        )
    return min(accurate, key=lambda name: (costs[name], -budgets[name]["f1"]))


def check_loss(max_f1_loss: float) -> None:
    """Raise unless a loss is a share.

    Args:
        max_f1_loss: The loss relative to the F1 of full length.

    Raises:
        ConfigurationError: If it is no number, or out of range.
    """
    _check_number("max_f1_loss", max_f1_loss)
    if not 0.0 <= max_f1_loss < 1.0:
        raise ConfigurationError(f"max_f1_loss {max_f1_loss:g} is not in [0, 1); 0.01 accepts 99 % of the full F1")


def check_latency(max_latency_ms: float) -> None:
    """Raise unless a limit is positive.

    Args:
        max_latency_ms: The limit in milliseconds.

    Raises:
        ConfigurationError: If it is no number, or not above 0.
    """
    _check_number("max_latency_ms", max_latency_ms)
    if not max_latency_ms > 0:
        raise ConfigurationError(f"max_latency_ms {max_latency_ms:g} is not above 0")


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ConfigurationError(f"{name} {value!r} is not a number")


def choose_budget(
    config: QuaLAMiniLMConfig,
    budget: Any,
    max_latency_ms: float | None,
    max_f1_loss: float | None,
    conditions: Callable[[], Conditions],
) -> LengthConfig | None:
    """Read the arguments of `set_budget`, of which at most one is given.

    Args:
        config: Configuration of the model.
        budget: A budget as it is.
        max_latency_ms: See `fastest_enough`.
        max_f1_loss: See `cheapest_accurate`.
        conditions: Says what the model runs on; called only where that matters.

    Returns:
        The LengthConfig, or None for full length.

    Raises:
        ConfigurationError: If more than one is given, or one is out of range.
        UnknownBudgetError: If no budget fits, or the model does not carry one of that name.
        LengthConfigError: If the budget does not fit the model.
    """
    given = {"budget": budget, "max_latency_ms": max_latency_ms, "max_f1_loss": max_f1_loss}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise ConfigurationError(f"give only one of {' and '.join(names)}")
    # Limits are checked before the conditions, for which a graph may have to be compiled.
    if max_latency_ms is not None:
        check_latency(max_latency_ms)
        budget = fastest_enough(config.budgets or {}, max_latency_ms, conditions())
    if max_f1_loss is not None:
        check_loss(max_f1_loss)
        budget = cheapest_accurate(config.budgets or {}, max_f1_loss, conditions())
    return config.resolve_budget(budget)


def _by_value(item: tuple[str, float]) -> float:
    return item[1]


__all__ = [
    "UNPADDED",
    "Conditions",
    "cheapest_accurate",
    "choose_budget",
    "cpu_name",
    "fastest_enough",
    "matching_latencies",
]
