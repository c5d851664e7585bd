"""Length-adaptive training on top of transformers' Trainer: LengthDrop, sandwich rule and in-place distillation.

Sources: Length-Adaptive Transformer (arXiv 2010.07003, section 3.2) for LengthDrop, LayerDrop and the losses;
Universally Slimmable Networks (arXiv 1903.05134) for the sandwich rule and in-place distillation.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.trainer_utils import TrainOutput
from transformers.utils import logging

from optimum_qala.distillation.divergences import span_divergence
from optimum_qala.distillation.traces import Trace
from optimum_qala.errors import ConfigurationError
from optimum_qala.models.configuration_quala_minilm import FULL_BUDGET
from optimum_qala.models.length_config import LengthConfig
from optimum_qala.models.span_output import span_loss
from optimum_qala.question_answering.answers import DecodeOptions
from optimum_qala.question_answering.features import WindowOptions, tokenize_for_training
from optimum_qala.question_answering.records import QARecord
from optimum_qala.training.arguments import QuaLATrainingArguments
from optimum_qala.training.auxiliary import AuxiliaryLosses
from optimum_qala.training.compatibility import (
    check_answers_questions,
    check_early_exits,
    check_no_loss_function,
    check_one_gpu,
    check_own_parameters,
    check_positions,
    check_same_vocabulary,
    check_takes_budgets,
    check_teacher_weight,
    longest_row,
)
from optimum_qala.training.evaluation import BudgetEvaluationTrainer
from optimum_qala.training.grouping import LengthGroupingTrainer
from optimum_qala.training.hub import HubTrainer
from optimum_qala.training.pass_losses import LossLog, PassLoss, WeightedLoss
from optimum_qala.training.quantization_aware import QuantizationAwareTrainer
from optimum_qala.training.sampling import (
    sample_exit_layer,
    sample_length_config,
    sample_skip_layers,
    smallest_length_config,
)


logger = logging.get_logger(__name__)

WHAT_RUNS = ("retention", "exit_layer")  # of a budget in config.json
_LABELS = ("start_positions", "end_positions")


@dataclass(frozen=True)
class SubModel:
    """One sub-model pass.

    Args:
        name: "smallest" or "random", under which its loss is logged.
        length_config: How many tokens it keeps, and how many layers it runs.
        skip_layers: Layers that LayerDrop removes.
    """

    name: str
    length_config: LengthConfig
    skip_layers: tuple[int, ...]


@dataclass(frozen=True)
class _FullPass:
    """What the sub-models take from the full-length pass: logits and layers to learn from, states to go on from."""

    logits: tuple[Tensor, Tensor]
    states: tuple[Tensor, ...] | None
    trace: Trace


class QuaLATrainer(HubTrainer, LengthGroupingTrainer, QuantizationAwareTrainer, BudgetEvaluationTrainer):
    """Trains one model for every budget.

    Args:
        model: A `QuaLAMiniLMForQuestionAnswering`.
        args: The arguments.
        train_dataset: Features as `tokenize_for_training` makes them, or a list of `QARecord`.
        eval_dataset: Likewise. Evaluated at full length (`eval_loss`) and at every budget of `args.eval_budgets`
            (`eval_<budget>_loss`); records by F1 and exact match too (`eval_f1`, `eval_<budget>_f1`).
        teacher: A question answering model with the same tokenizer, whose logits, and layers where
            `args.auxiliary_losses` says so, the full-length model learns from besides the labels. It stays outside the
            trained model, is never saved with it and must not share parameters with it.
        window_options: How long contexts are cut where records are given.
        decode_options: How the answers to evaluation records are chosen. By default `DecodeOptions()`, with
            `allow_no_answer` where a record is impossible to answer, as in SQuAD v2.
        kwargs: The other arguments of transformers' Trainer. Records need the tokenizer as `processing_class`.

    Raises:
        ConfigurationError: If the model is no QuaLA-MiniLM for question answering, records come without a tokenizer, a
            run on several GPUs is not started with torchrun, sub-models are to stop early in a model that cannot, the
            teacher shares parameters with the model, answers no questions, has another vocabulary or fewer positions
            than a window has tokens, `teacher_weight` was changed without one, an auxiliary loss does not fit the
            models, or `compute_loss_func` is given.
        UnknownBudgetError: If `args.eval_budgets` names a budget that the model does not carry.
    """

    args: QuaLATrainingArguments

    def __init__(
        self,
        model: PreTrainedModel,
        args: QuaLATrainingArguments,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        teacher: PreTrainedModel | None = None,
        window_options: WindowOptions | None = None,
        decode_options: DecodeOptions | None = None,
        **kwargs: Any,
    ) -> None:
        tokenizer = kwargs.get("processing_class")
        self.window_options = window_options or WindowOptions()
        self.eval_records: Sequence[QARecord] = eval_dataset if _holds_records(eval_dataset) else ()
        self.decode_options = decode_options or DecodeOptions(
            allow_no_answer=any(record.is_impossible for record in self.eval_records)
        )
        check_takes_budgets(model)
        for budget in args.eval_budgets:
            model.config.resolve_budget(budget)
        check_early_exits(model.config, args)
        check_one_gpu(args)
        check_no_loss_function(kwargs)
        check_answers_questions(teacher, "teacher")
        check_own_parameters(teacher, model)
        check_same_vocabulary(teacher, model, tokenizer)
        check_teacher_weight(teacher, args)
        features = self._featurize(train_dataset, tokenizer)
        check_positions(longest_row(features), {"teacher": teacher})
        super().__init__(
            model,
            args,
            train_dataset=features,
            eval_dataset=self._featurize(eval_dataset, tokenizer),
            **kwargs,
        )
        # The span loss is a mean over the batch: let the Trainer divide by the accumulation steps, which it leaves to
        # the model wherever forward takes keyword arguments.
        self.model_accepts_loss_kwargs = False
        self.teacher = None if teacher is None else teacher.to(self.args.device).eval().requires_grad_(False)
        self.auxiliary = self.side_module = AuxiliaryLosses(model, self.teacher, self.args).to(self.args.device)
        self._micro_step = (-1, 0)  # optimisation step, and how many batches of it have been seen
        self._loss_log = LossLog()
        if args.num_sub_models == 0:
            logger.warning(
                "Length-adaptive training is OFF: no sub-model is trained, so the model loses much of its accuracy "
                "below full length. Set num_random_sub_models or smallest_sub_model, and drop_ratio_bound > 0."
            )

    def _featurize(self, dataset: Any, tokenizer: Any) -> Any:
        if not _holds_records(dataset):
            return dataset
        if tokenizer is None:
            raise ConfigurationError("a dataset of QARecord needs the tokenizer: pass processing_class=tokenizer")
        return tokenize_for_training(dataset, tokenizer, self.window_options)

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train as transformers' Trainer does; of the model's budgets only what they run stays.

        Their ratios stay legal, but what was measured with them was measured on the model before this training. The
        teacher is in evaluation mode, whatever happened to it since it was given.

        Args:
            args: Passed on.
            kwargs: Passed on.

        Returns:
            Steps, loss and other metrics.
        """
        if self.teacher is not None:
            self.teacher.eval()  # it may have been put into training mode since it was given
        config = self.model.config
        config.budgets = {
            name: {field: budget[field] for field in WHAT_RUNS if field in budget}
            for name, budget in (config.budgets or {}).items()
        }
        return super().train(*args, **kwargs)

    def draw_sub_models(self, global_step: int, micro_step: int) -> list[SubModel]:
        """Draw the sub-models of one batch.

        They depend on the seed and the step alone, so a resumed training, and every process of a distributed one,
        draws the same.

        Args:
            global_step: Optimisation steps done.
            micro_step: Batches of this step that came before (gradient accumulation).

        Returns:
            The smallest sub-model, if it is on, then the random ones.
        """
        args, config = self.args, self.model.config
        rng = random.Random(f"{args.seed}/{global_step}/{micro_step}")  # noqa: S311  # not for cryptography
        names = ["smallest"] * args.smallest_sub_model + ["random"] * args.num_random_sub_models
        sub_models = []
        for name in names if args.num_sub_models else ():
            num_layers, exit_layer = config.num_hidden_layers, None
            if name == "random":
                exit_layer = sample_exit_layer(rng, num_layers, args.early_exit_prob, args.min_exit_layer)
            skip = sample_skip_layers(rng, exit_layer or num_layers, args.layer_drop_prob)
            shape = (num_layers, args.drop_ratio_bound, config.dropping_layers, skip)
            length_config = smallest_length_config(*shape) if name == "smallest" else sample_length_config(rng, *shape)
            sub_models.append(SubModel(name, replace(length_config, exit_layer=exit_layer), skip))
        return sub_models

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Run the full-length model and the sub-models on a batch, and one backward pass through all of them.

        The loss is (loss_full + sum of the sub-models' losses) / number of passes (Length-Adaptive Transformer,
        section 3.2), divided by the accumulation steps; the weighted losses of early span heads are part of it. A
        sub-model takes what the full-length pass computed before the first layer that drops tokens or is skipped; with
        dropout, that is with the same units dropped.

        Args:
            model: The model, wrapped for distributed training or not.
            inputs: The batch.
            num_items_in_batch: Not used: the loss is a mean.

        Returns:
            The detached loss.
        """
        model.train()
        if callable(getattr(self.optimizer, "train", None)):  # schedule-free optimizers have modes
            self.optimizer.train()
        inputs = self._prepare_inputs(inputs)
        step, seen = self._micro_step
        micro_step = seen + 1 if step == self.state.global_step else 0
        self._micro_step = (self.state.global_step, micro_step)
        if micro_step == 0:
            self.clear_side_gradients()
        self.auxiliary.start_batch(f"{self.args.seed}/{self.state.global_step}/{micro_step}")
        sub_models = self.draw_sub_models(self.state.global_step, micro_step)

        with self.compute_loss_context_manager():
            with self._gradient_sync(model, last=not sub_models):
                pass_loss, full = self._full_length_loss(model, inputs, bool(sub_models))
            self._loss_log.note("full", pass_loss)
            total = pass_loss.total
            for number, sub_model in enumerate(sub_models, start=1):
                with self._gradient_sync(model, last=number == len(sub_models)):
                    pass_loss = self._sub_model_loss(model, inputs, sub_model, full)
                self._loss_log.note(sub_model.name, pass_loss)
                total = total + pass_loss.total
        scaled: Tensor = total / ((1 + len(sub_models)) * self.current_gradient_accumulation_steps)
        self.accelerator.backward(scaled)
        self.share_side_gradients()
        return scaled.detach()

    @contextlib.contextmanager
    def _gradient_sync(self, model: nn.Module, last: bool) -> Iterator[None]:
        """Let distributed processes exchange gradients once: the last pass forward says so to the pass backward."""
        with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
            yield

    def _full_length_loss(
        self, model: nn.Module, inputs: dict[str, Any], has_sub_models: bool
    ) -> tuple[PassLoss, _FullPass]:
        """Return the losses of the full-length model, early span heads that train included, and the pass."""
        heads, mask = self._supervised_heads(), inputs["attention_mask"]
        with self.auxiliary.record_full_pass(self.model, mask, has_sub_models) as trace:
            output = model(
                **inputs,
                budget=FULL_BUDGET,
                output_hidden_states=has_sub_models,
                **({"output_exit_logits": True} if heads else {}),
            )
        logits = (output.start_logits, output.end_logits)
        pass_loss = PassLoss(output.loss)
        if self.teacher is not None:
            check_positions(mask.shape[1], {"teacher": self.teacher})
            left_out = set(_LABELS)
            if getattr(self.teacher.config, "type_vocab_size", 2) < 2:
                left_out.add("token_type_ids")  # it has no embedding for the second part, and knows the first only
            features = {name: value for name, value in inputs.items() if name not in left_out}
            # The Trainer puts mixed precision around the forward of the model that it trains, and around no other.
            with (
                torch.no_grad(),
                self.accelerator.autocast(),
                self.auxiliary.record_teacher(self.teacher, mask) as teacher_trace,
            ):
                taught = self.teacher(**features)
            distilled = self._divergence((taught.start_logits, taught.end_logits), logits, inputs)
            weight = self.args.teacher_weight
            pass_loss = PassLoss(
                (1.0 - weight) * output.loss + weight * distilled,
                self.auxiliary.full_length_losses(teacher_trace, trace),
            )
        taught_logits = (logits[0].detach(), logits[1].detach())
        deep_losses = [self._span_head_loss(output.exit_logits[head], taught_logits, inputs) for head in heads]
        self._add_span_heads(pass_loss, deep_losses)
        return pass_loss, _FullPass(taught_logits, output.hidden_states, trace)

    def _add_span_heads(self, pass_loss: PassLoss, losses: list[Tensor]) -> None:
        if losses:
            deep_loss = torch.stack(losses).mean()
            pass_loss.extras["span_heads"] = WeightedLoss(self.args.deep_supervision_weight, deep_loss)

    def _supervised_heads(self) -> list[int]:
        """Name the early span heads that some budget reads: to choose tokens, or to answer after `min_exit_layer`."""
        config = self.model.config
        if not config.has_span_heads or self.args.deep_supervision_weight == 0.0:
            return []
        return list(range(min([self.args.min_exit_layer, *config.dropping_layers]), config.num_hidden_layers))

    def _shortened_heads(self, length_config: LengthConfig) -> list[int]:
        """Name the supervised heads that a sub-model goes by after it dropped tokens."""
        dropping = [layer for layer, ratio in enumerate(length_config.retention) if ratio < 1.0]
        return [head for head in self._supervised_heads() if dropping and dropping[0] < head < length_config.depth]

    def _span_head_loss(
        self, head_logits: Tensor, full_logits: tuple[Tensor, Tensor], inputs: dict[str, Any]
    ) -> Tensor:
        """Sum the cross-entropy on the labels and the forward KL divergence from the final logits."""
        logits = (head_logits[..., 0], head_logits[..., 1])
        divergence = span_divergence(
            full_logits, logits, inputs["attention_mask"], kind="forward", temperature=self.args.temperature
        )
        return divergence + span_loss(logits, (inputs[_LABELS[0]], inputs[_LABELS[1]]))

    def _sub_model_loss(
        self, model: nn.Module, inputs: dict[str, Any], sub_model: SubModel, full: _FullPass
    ) -> PassLoss:
        """Return the losses of a sub-model, and of the early span heads which see fewer tokens than at full length.

        Without these a budget that both drops tokens and stops early would read heads that never saw a
        shortened sequence.
        """
        label_weight = self.args.sub_model_label_weight
        features = inputs
        if label_weight == 0.0:
            features = {name: value for name, value in inputs.items() if name not in _LABELS}
        heads = self._shortened_heads(sub_model.length_config)
        with self.auxiliary.record_sub_model(self.model, inputs["attention_mask"]) as trace:
            output = model(
                **features,
                budget=sub_model.length_config,
                skip_layers=sub_model.skip_layers,
                shared_states=full.states,
                **({"output_exit_logits": True} if heads else {}),
            )
        loss = self._divergence(full.logits, (output.start_logits, output.end_logits), inputs)
        if label_weight > 0.0:
            loss = label_weight * output.loss + (1.0 - label_weight) * loss
        pass_loss = PassLoss(loss, self.auxiliary.sub_model_losses(full.trace, trace))
        early = [output.exit_logits[head].unbind(dim=-1) for head in heads]
        self._add_span_heads(pass_loss, [self._divergence(full.logits, logits, inputs) for logits in early])
        return pass_loss

    def _divergence(
        self, teacher: tuple[Tensor, Tensor], student: tuple[Tensor, Tensor], inputs: dict[str, Any]
    ) -> Tensor:
        return span_divergence(
            teacher,
            student,
            inputs["attention_mask"],
            kind=self.args.divergence,
            temperature=self.args.temperature,
            skew=self.args.skew,
        )

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, with the mean loss of each kind of pass, over all processes, beside the training loss.

        Args:
            logs: The values.
            args: Passed on.
            kwargs: Passed on.
        """
        if "loss" in logs:
            logs.update(self._loss_log.take(self.accelerator.reduce))
        super().log(logs, *args, **kwargs)


def _holds_records(dataset: Any) -> bool:
    return isinstance(dataset, list | tuple) and bool(dataset) and isinstance(dataset[0], QARecord)
