"""A Trainer that evaluates at full length and at other budgets: losses and scores by budget, among its own metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers.trainer_utils import EvalLoopOutput

from optimum_qala.models.configuration_quala_minilm import FULL_BUDGET
from optimum_qala.question_answering.answers import DecodeOptions
from optimum_qala.question_answering.features import WindowOptions
from optimum_qala.question_answering.predictor import evaluate
from optimum_qala.question_answering.records import QARecord
from optimum_qala.training.arguments import QuaLATrainingArguments
from optimum_qala.training.side_module import SideModuleTrainer


class BudgetEvaluationTrainer(SideModuleTrainer):
    """Trainer that evaluates at every budget of `args.eval_budgets`, and answers `eval_records` if there are any."""

    args: QuaLATrainingArguments
    eval_records: Sequence[QARecord]
    window_options: WindowOptions
    decode_options: DecodeOptions
    _eval_budget = FULL_BUDGET

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Predict a batch as the Trainer does, at the budget that is being evaluated.

        Args:
            model: The model, wrapped or not.
            inputs: The batch.
            args: Passed on.
            kwargs: Passed on.

        Returns:
            Loss, logits and labels.
        """
        return super().prediction_step(model, inputs | {"budget": self._eval_budget}, *args, **kwargs)

    def evaluation_loop(self, dataloader: Any, description: str, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate at full length as the Trainer does, then add the loss and the answers at the other budgets.

        Args:
            dataloader: The data.
            description: Passed on.
            args: Passed on.
            kwargs: Passed on.

        Returns:
            The output at full length. Among its metrics are the loss and, of the evaluation records, F1 and exact
            match of every budget.
        """
        prefix = kwargs.get("metric_key_prefix", "eval")
        output = super().evaluation_loop(dataloader, description, *args, **kwargs)
        has_answers = bool(self.eval_records) and dataloader.dataset is self.eval_dataset
        for budget in (FULL_BUDGET, *self.args.eval_budgets):
            name = prefix if budget == FULL_BUDGET else f"{prefix}_{budget}"
            if f"{prefix}_loss" in output.metrics and f"{name}_loss" not in output.metrics:
                output.metrics.update(self._losses_at(budget, dataloader, description, name))
            if has_answers:
                output.metrics.update(self._scores_at(budget, name))
        return output

    def _losses_at(self, budget: str, dataloader: Any, description: str, name: str) -> dict[str, float]:
        self._eval_budget = budget
        try:
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only=True, metric_key_prefix=name
            )
        finally:
            self._eval_budget = FULL_BUDGET
        return {f"{name}_loss": output.metrics[f"{name}_loss"]}

    def _scores_at(self, budget: str, name: str) -> dict[str, float]:
        with self.compute_loss_context_manager():
            scores = evaluate(
                self.model,
                self.processing_class,
                self.eval_records,
                budget=budget,
                window_options=self.window_options,
                decode_options=self.decode_options,
                batch_size=self.args.eval_batch_size,
            )
        return {f"{name}_{key}": scores[key] for key in ("f1", "exact_match")}


__all__ = ["BudgetEvaluationTrainer"]
