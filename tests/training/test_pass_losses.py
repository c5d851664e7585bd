from __future__ import annotations

import gc

import pytest
import torch

from optimum_qala.training.pass_losses import LossLog, PassLoss, WeightedLoss


def test_total_is_the_weighted_sum():
    extras = {"span_heads": WeightedLoss(0.5, torch.tensor(4.0)), "minilm": WeightedLoss(2.0, torch.tensor(3.0))}
    assert PassLoss(torch.tensor(1.0), extras).total.item() == 9.0
    assert PassLoss(torch.tensor(1.0)).total.item() == 1.0


def test_log_gives_means_of_unweighted_losses_once():
    log = LossLog()
    for value in (1.0, 2.0):
        extra = WeightedLoss(10.0, torch.tensor(value, requires_grad=True))
        log.note("full", PassLoss(torch.tensor(2 * value), {"minilm": extra}))
    log.note("random", PassLoss(torch.tensor(5.0)))
    means = {"loss_full": 3.0, "loss_full_minilm": 1.5, "loss_random": 5.0}
    assert log.take() == pytest.approx(means)
    assert log.take() == {}


def test_log_gives_means_over_processes():
    log = LossLog()
    log.note("full", PassLoss(torch.tensor(1.0)))
    other = torch.tensor([[5.0], [2.0]])  # what another process noted: two losses of 2.5
    assert log.take(lambda tensor: tensor + other) == pytest.approx({"loss_full": 2.0})


def test_log_that_nobody_takes_does_not_grow():
    def count_tensors() -> int:
        return sum(type(found) is torch.Tensor for found in gc.get_objects())

    log = LossLog()
    log.note("full", PassLoss(torch.tensor(1.0)))
    before = count_tensors()
    for _ in range(50):
        log.note("full", PassLoss(torch.tensor(1.0)))
    assert count_tensors() - before < 10


def test_log_sums_half_precision_in_float32():
    log = LossLog()
    for _ in range(1000):
        log.note("full", PassLoss(torch.tensor(1.0, dtype=torch.bfloat16)))
    assert log.take() == {"loss_full": 1.0}
