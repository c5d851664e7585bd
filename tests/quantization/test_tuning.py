"""Layers that fall back to float: how many, which, and what happens when none of it helps."""

from __future__ import annotations

import re

import pytest
import torch

from optimum_qala import QuaLAMiniLMForQuestionAnswering
from optimum_qala.errors import AccuracyError
from optimum_qala.quantization.tuning import largest_loss, rank_by_sensitivity, tune
from tests.conftest import tiny_config


def accuracy(float32: float, int8: float, budget: str = "full"):
    return {budget: {"float32": {"f1": float32, "em": 0.0}, "int8": {"f1": int8, "em": 0.0}}}


@pytest.mark.parametrize(("criterion", "loss"), [("relative", 0.05), ("absolute", 4.0)])
def test_largest_loss_is_that_of_the_worst_budget(criterion, loss):
    scores = accuracy(80.0, 79.0) | accuracy(80.0, 76.0, "fast") | accuracy(50.0, 51.0, "fastest")
    assert largest_loss(scores, criterion) == (pytest.approx(loss), "fast")


def test_largest_loss_of_a_model_that_answers_nothing():
    assert largest_loss(accuracy(0.0, 0.0), "relative") == (0.0, "full")


class Attempts:
    """Models whose loss falls by a point with every layer in float."""

    def __init__(self, start: float) -> None:
        self.start, self.tried, self.lines = start, [], []

    def __call__(self, count):
        self.tried.append(count)
        return accuracy(100.0, 100.0 - max(self.start - count, 0.0))

    def tune(self, tolerable_loss, *, num_layers=20, criterion="absolute", max_trials=10):
        return tune(
            self,
            num_layers,
            tolerable_loss=tolerable_loss,
            criterion=criterion,
            max_trials=max_trials,
            report=self.lines.append,
        )


@pytest.mark.parametrize(
    ("start", "tried", "count"),
    [
        (1.0, [0], 0),
        (2.0, [0, 1], 1),
        (3.0, [0, 1, 2], 2),
        (4.0, [0, 1, 2, 4, 3], 3),
        (7.0, [0, 1, 2, 4, 8, 6, 5], 6),
        (18.0, [0, 1, 2, 4, 8, 16, 20, 18, 17], 17),
    ],
)
def test_fewest_layers_in_float(start, tried, count):
    attempts = Attempts(start)
    outcome = attempts.tune(1.0)
    assert attempts.tried == tried
    assert outcome.count == count
    assert outcome.accuracy == accuracy(100.0, 100.0 - max(start - count, 0.0))
    assert [trial["num_float"] for trial in outcome.trials] == tried
    assert outcome.trials[0] == {"num_float": 0, "loss": start, "budget": "full"}


def test_trials_are_bounded():
    attempts = Attempts(7.0)
    assert attempts.tune(1.0, max_trials=6).count == 6
    assert attempts.tried == [0, 1, 2, 4, 8, 6]
    assert Attempts(7.0).tune(1.0, max_trials=5).count == 8


def test_relative_criterion_is_a_share():
    assert Attempts(4.0).tune(0.01, criterion="relative").count == 3


def test_no_tolerance_takes_the_first_model_silently():
    attempts = Attempts(50.0)
    assert attempts.tune(None).count == 0
    assert attempts.tried == [0]
    assert attempts.lines == []


def test_progress_names_trial_loss_and_tolerance():
    attempts = Attempts(2.0)
    attempts.tune(0.01, criterion="relative")
    assert attempts.lines[1] == (
        "trial 2 of at most 10: 1 of 20 layers in float, loses 1.00 % of F1 at budget full (1.00 % of F1 tolerated)"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"max_trials": 3},
            "of 3 int8 models none loses at most 0.50 points of F1; the best, with 2 of 20 linear layers in float, "
            "loses 28.00 points of F1 at budget full; nothing was written: allow more trials",
        ),
        ({"num_layers": 3}, "of 4 int8 models none loses .*; the best, with 3 of 3 linear layers in float"),
        ({"num_layers": 0}, "of 1 int8 models none loses .*; the best, with 0 of 0 linear layers in float"),
    ],
)
def test_failure_is_honest(options, message):
    with pytest.raises(AccuracyError, match=message):
        Attempts(30.0).tune(0.5, **options)


@pytest.fixture(scope="module")
def samples():
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "input_ids": torch.randint(5, 100, (1, 20), generator=generator).index_fill_(1, torch.tensor([5, 19]), 3),
            "attention_mask": torch.ones(1, 20, dtype=torch.int64),
            "retention": None,
        }
        for _ in range(3)
    ]


@pytest.fixture(scope="module")
def answer_model():
    """A model with a span head in every layer; read only."""
    torch.manual_seed(0)
    budgets = {"fast": {"retention": [1.0, 0.5, 0.5, 0.5]}}
    return QuaLAMiniLMForQuestionAnswering(tiny_config(token_scoring="answer", budgets=budgets)).eval()


class TestRanking:
    def names(self, model):
        return [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]

    def test_layer_that_int8_ruins_comes_first(self, tiny_model, samples):
        ruined = "quala.encoder.layer.2.output.dense"
        with torch.no_grad():  # one large weight a row leaves nothing of the 8 bits for the others
            tiny_model.get_submodule(ruined).weight[:, 0] = 1e3
            tiny_model.get_submodule("quala.encoder.layer.2.intermediate.dense").weight[0] = 0.0
            tiny_model.get_submodule("quala.encoder.layer.2.intermediate.dense").bias[0] = 0.0
        ranking = rank_by_sensitivity(tiny_model, samples, self.names(tiny_model), ["full"])
        assert sorted(ranking) == sorted(self.names(tiny_model))
        assert ranking[0] == ruined

    def test_layer_whose_inputs_int8_ruins_comes_first(self, tiny_model, samples):
        ruined = "quala.encoder.layer.1.output.dense"
        with torch.no_grad():  # a neuron of huge activations that nothing reads
            tiny_model.get_submodule("quala.encoder.layer.1.intermediate.dense").bias[0] = 1e4
            tiny_model.get_submodule(ruined).weight[:, 0] = 0.0
        assert rank_by_sensitivity(tiny_model, samples, self.names(tiny_model), ["full"])[0] == ruined

    def test_model_is_as_it_was(self, tiny_model, samples):
        before = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
        tiny_model.train()
        rank_by_sensitivity(tiny_model, samples, self.names(tiny_model), ["full", "1,1,0.5,0.5"])
        assert tiny_model.training
        assert all(torch.equal(tensor, before[name]) for name, tensor in tiny_model.state_dict().items())
        assert not any(module._forward_pre_hooks for module in tiny_model.modules())

    @pytest.mark.parametrize(
        ("budgets", "unreached"),
        [
            (["full"], r"span_heads"),
            (["full", "fast"], r"span_heads\.[023]"),
            (["1,0.5,0.5,0.5@2"], r"span_heads\.[03]|layer\.[23]|qa_outputs"),
            (["1,0.5,0.5,0.5@2", "full"], r"span_heads\.[03]"),
        ],
    )
    def test_layers_that_no_budget_reaches_come_last(self, answer_model, samples, budgets, unreached):
        names = self.names(answer_model)
        ranking = rank_by_sensitivity(answer_model, samples, names, budgets)
        assert sorted(ranking) == sorted(names)
        last = {name for name in names if re.search(unreached, name)}
        assert set(ranking[-len(last) :]) == last
