"""Losses and scores by budget, in the Trainer's log and in TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from optimum_qala._compat import is_available
from optimum_qala.question_answering.features import tokenize_for_training
from optimum_qala.question_answering.records import QARecord
from tests.training.runs import WINDOWS, make_batch, make_trainer


RATIOS = "1,0.6,0.4,0.4"


@pytest.fixture
def model(tiny_model: Any) -> Any:
    tiny_model.config.budgets = {"fast": {"retention": [1, 1, 0.5, 0.5]}}
    return tiny_model


@pytest.mark.parametrize("given", ["records", "features"])
def test_loss_of_each_budget_is_that_of_the_model(
    tmp_path: Path, model: Any, tiny_tokenizer: Any, records: list[QARecord], given: str
) -> None:
    features = tokenize_for_training(records[:6], tiny_tokenizer, WINDOWS)
    trainer = make_trainer(
        tmp_path,
        model,
        tiny_tokenizer,
        records,
        eval_dataset=records[:6] if given == "records" else features,
        eval_budgets=["full", "fast", RATIOS],
    )
    model.set_budget(RATIOS)  # the budget of other calls is none of the evaluation's business
    metrics = trainer.evaluate()
    batch = make_batch(records[:6], tiny_tokenizer)
    with torch.inference_mode():
        expected = {budget: model(**batch, budget=budget).loss.item() for budget in ("full", "fast", RATIOS)}
    assert len(set(expected.values())) == 3
    assert metrics["eval_loss"] == pytest.approx(expected["full"], rel=1e-4)
    assert metrics["eval_fast_loss"] == pytest.approx(expected["fast"], rel=1e-4)
    assert metrics[f"eval_{RATIOS}_loss"] == pytest.approx(expected[RATIOS], rel=1e-4)
    assert ("eval_fast_f1" in metrics) == (given == "records")


def test_tensorboard_shows_losses_and_scores_by_budget(
    tmp_path: Path, model: Any, tiny_tokenizer: Any, records: list[QARecord]
) -> None:
    if not is_available("tensorboard"):
        pytest.skip("tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = make_trainer(
        tmp_path,
        model,
        tiny_tokenizer,
        records,
        max_steps=2,
        eval_dataset=records[:4],
        eval_strategy="steps",
        eval_steps=1,
        eval_budgets=["fast", RATIOS],
        report_to="tensorboard",
    )
    trainer.train()
    (run,) = (tmp_path / "out" / "runs").iterdir()
    events = EventAccumulator(str(run))
    events.Reload()
    scalars = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    scores = {f"eval/{name}{key}" for name in ("", "fast_", f"{RATIOS}_") for key in ("loss", "f1", "exact_match")}
    assert {"train/loss", "train/loss_full", "train/loss_smallest", "train/loss_random"} | scores <= set(scalars)
    logged = [entry for entry in trainer.state.log_history if "eval_f1" in entry]
    assert [step for step, _ in scalars["eval/fast_loss"]] == [1, 2]
    for tag in scores:
        expected = [entry[tag.replace("/", "_")] for entry in logged]
        assert [value for _, value in scalars[tag]] == pytest.approx(expected, rel=1e-6)
