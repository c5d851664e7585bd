"""Accuracy-driven tuning: linear layers fall back to float, the most sensitive first, until int8 loses little enough.

Intel Neural Compressor's own `autotune` lowers the number of trials to that of its configurations and returns the
best model even if none of them meets the tolerance. Here a tuning that fails says so and leaves nothing behind.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from optimum_qala.distillation.divergences import span_divergence
from optimum_qala.errors import AccuracyError
from optimum_qala.models.modeling_quala_minilm import QuaLAMiniLMForQuestionAnswering
from optimum_qala.quantization.calibration import sample_tensors


__all__ = ["Outcome", "largest_loss", "rank_by_sensitivity", "tune"]

Accuracy = Mapping[str, Mapping[str, Mapping[str, float]]]

_LARGEST_ACTIVATION, _LARGEST_WEIGHT = 255, 127


@dataclass(frozen=True)
class Outcome:
    """A model that is accurate enough.

    Attributes:
        count: How many layers it has in float beside those that are always.
        accuracy: Its scores: budget -> kind -> F1 and EM in percent.
        trials: What was tried, in order: `num_float`, `loss`, and the `budget` that lost most.
    """

    count: int
    accuracy: Accuracy
    trials: list[dict[str, Any]]


def tune(
    attempt: Callable[[int], Accuracy],
    num_layers: int,
    *,
    tolerable_loss: float | None,
    criterion: str,
    max_trials: int,
    report: Callable[[str], Any],
) -> Outcome:
    """Find how many layers have to stay in float, in few trials.

    None, 1, 2, 4, ... layers are tried until a model is accurate enough. The trials that are left halve the gap
    between that count and the one before it. More layers in float are taken to lose less, which need not be so; the
    model that is returned was scored in any case.

    Args:
        attempt: Makes the model with so many layers in float, the most sensitive ones, and scores it and the float
            model: budget -> "float32" and "int8" -> "f1" and "em".
        num_layers: How many layers may fall back.
        tolerable_loss: How much F1 may be lost at any budget; None takes the first model.
        criterion: "relative", a share of float32's F1 at the same budget, or "absolute", points of F1.
        max_trials: How often `attempt` may be called.
        report: Called with a line of text after each trial.

    Returns:
        The accurate enough model with the fewest layers in float.

    Raises:
        AccuracyError: If no model that was tried is accurate enough.
    """
    trials: list[dict[str, Any]] = []
    enough: dict[int, Accuracy] = {}

    def meets(count: int) -> bool:
        accuracy = attempt(count)
        loss, budget = largest_loss(accuracy, criterion)
        trials.append({"num_float": count, "loss": loss, "budget": budget})
        if tolerable_loss is not None:
            report(
                f"trial {len(trials)} of at most {max_trials}: {count} of {num_layers} layers in float, "
                f"loses {_shown(loss, criterion)} at budget {budget} ({_shown(tolerable_loss, criterion)} tolerated)"
            )
        if tolerable_loss is None or loss <= tolerable_loss:
            enough[count] = accuracy
        return count in enough

    failed, count = -1, 0
    while not meets(count):
        if count == num_layers or len(trials) == max_trials:
            raise _failure(trials, num_layers, float(tolerable_loss or 0.0), criterion)
        failed, count = count, min(max(1, 2 * count), num_layers)
    while len(trials) < max_trials and count - failed > 1:
        middle = (failed + count) // 2
        if meets(middle):
            count = middle
        else:
            failed = middle
    return Outcome(count, enough[count], trials)


def largest_loss(accuracy: Accuracy, criterion: str) -> tuple[float, str]:
    """Find the budget at which int8 loses most F1 against float32 at the same budget.

    Args:
        accuracy: Budget -> "float32" and "int8" -> "f1" in percent.
        criterion: "relative" or "absolute".

    Returns:
        The loss, negative if int8 is better at every budget, and the budget.
    """
    losses = []
    for budget, kinds in accuracy.items():
        float32, int8 = kinds["float32"]["f1"], kinds["int8"]["f1"]
        losses.append(((float32 - int8) / (float32 or 1.0) if criterion == "relative" else float32 - int8, budget))
    return max(losses)


def _shown(loss: float, criterion: str) -> str:
    return f"{100 * loss:.2f} % of F1" if criterion == "relative" else f"{loss:.2f} points of F1"


def _failure(
    trials: Sequence[Mapping[str, Any]], num_layers: int, tolerable_loss: float, criterion: str
) -> AccuracyError:
    best = min(trials, key=lambda trial: trial["loss"])
    return AccuracyError(
        f"of {len(trials)} int8 models none loses at most {_shown(tolerable_loss, criterion)}; the best, with "
        f"{best['num_float']} of {num_layers} linear layers in float, loses {_shown(best['loss'], criterion)} at "
        f"budget {best['budget']}; nothing was written: allow more trials (max_trials) or more loss (tolerable_loss)"
    )


def rank_by_sensitivity(
    model: QuaLAMiniLMForQuestionAnswering,
    samples: Sequence[Mapping[str, Any]],
    names: Iterable[str],
    budgets: Iterable[str],
) -> list[str]:
    """Order linear layers by what int8 in each of them alone does to the answers.

    Each layer in turn computes with 8-bit weights, a scale for each row, and 8-bit inputs, whose range is the average
    of the samples' extremes. What counts is the divergence of the start and end distributions from float32's.

    Args:
        model: The model in float.
        samples: Calibration windows, one a sample; keys that the model does not take are ignored.
        names: Names of linear layers, as in `model.named_modules()`.
        budgets: Budgets to run the samples at, in turn: those at which int8 must not lose much.

    Returns:
        The names, the most sensitive first; those that no budget reaches last.
    """
    names = list(names)
    batches: list[dict[str, Any]] = [
        {**sample_tensors(sample, model.device), "budget": budget}
        for sample, budget in zip(samples, itertools.cycle(budgets), strict=False)
    ]
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            ranges: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
            with _watching(model, ranges):
                expected = [_logits(model, batch) for batch in batches]
            damage = dict.fromkeys(names, -math.inf)  # rounding may leave others a little below 0
            for name, extremes in ranges.items():
                if not extremes:
                    continue  # a span head where no budget drops tokens or exits
                lowest, highest = (sum(ends) / len(ends) for ends in zip(*extremes, strict=True))
                with _in_int8(model.get_submodule(name), min(lowest, 0.0), max(highest, 0.0)):
                    damage[name] = sum(
                        float(span_divergence(logits, _logits(model, batch), batch["attention_mask"]))
                        for logits, batch in zip(expected, batches, strict=True)
                    )
    finally:
        model.train(was_training)
    return sorted(names, key=damage.__getitem__, reverse=True)


def _logits(model: QuaLAMiniLMForQuestionAnswering, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    output = model(**batch)
    return output.start_logits, output.end_logits


@contextmanager
def _watching(model: nn.Module, ranges: Mapping[str, list[tuple[float, float]]]) -> Iterator[None]:
    """Collect the extremes of the inputs of layers, call by call."""

    def watch(extremes: list[tuple[float, float]]) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            extremes.append((float(args[0].min()), float(args[0].max())))

        return hook

    hooks = [model.get_submodule(name).register_forward_pre_hook(watch(seen)) for name, seen in ranges.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _in_int8(layer: Any, lowest: float, highest: float) -> Iterator[None]:
    """Round a layer's weights and inputs as int8 kernels do."""
    scale = max((highest - lowest) / _LARGEST_ACTIVATION, torch.finfo(torch.float32).tiny)
    zero = round(-lowest / scale)
    weight = layer.weight.detach().clone()
    scales = weight.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / _LARGEST_WEIGHT

    def round_inputs(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        rounded = torch.fake_quantize_per_tensor_affine(args[0], scale, zero, 0, _LARGEST_ACTIVATION)
        return (rounded, *args[1:])

    hook = layer.register_forward_pre_hook(round_inputs)
    layer.weight.copy_(
        torch.fake_quantize_per_channel_affine(
            weight, scales, torch.zeros_like(scales), 0, -_LARGEST_WEIGHT, _LARGEST_WEIGHT
        )
    )
    try:
        yield
    finally:
        layer.weight.copy_(weight)
        hook.remove()
