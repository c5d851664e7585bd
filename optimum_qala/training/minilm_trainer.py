"""Task-agnostic distillation on plain text, on top of transformers' Trainer.

Sources: MiniLMv2 (arXiv 2012.15828) and MiniLM (arXiv 2002.10957).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from optimum_qala.distillation.auxiliary import AUXILIARY_LOSSES, HeadCounts, LossOptions
from optimum_qala.distillation.blocks import BLOCK_INDEX, TextBlocks
from optimum_qala.distillation.teacher import TeacherLayer, default_relation_heads, default_teacher_layer
from optimum_qala.distillation.teacher_cache import TeacherCache
from optimum_qala.distillation.traces import TraceRequest, check_can_be_traced, check_only_layers, record_trace
from optimum_qala.errors import ConfigurationError
from optimum_qala.training.compatibility import (
    check_full_length,
    check_no_loss_function,
    check_one_gpu,
    check_own_parameters,
    check_positions,
    check_same_vocabulary,
    longest_row,
)
from optimum_qala.training.grouping import LengthGroupingTrainer
from optimum_qala.training.minilm_arguments import METHODS, MiniLMDistillationArguments


class MiniLMDistillationTrainer(LengthGroupingTrainer):
    """Trains the last layer of a student, and all that leads to it, to relate tokens as one layer of a teacher does.

    The loss reads queries, keys and values of the last layer only. What comes after these in the student (the rest of
    that layer, a pooler, heads) is not trained: it stays as it is, for fine-tuning to train.

    Args:
        model: The student: an encoder with the layers of BERT, RoBERTa or QuaLA-MiniLM, of any depth and width, for
            example from `make_student`.
        args: The arguments.
        teacher: A model with such layers and the same vocabulary. Only its layers before `args.teacher_layer` run, and
            of that layer queries, keys and values. It is put into evaluation mode and gets no gradients.
        train_dataset: `TextBlocks`, or any data set with `input_ids` and `attention_mask`.
        eval_dataset: Likewise; `evaluate()` gives `eval_loss`.
        kwargs: The other arguments of transformers' Trainer; `processing_class` takes the tokenizer, which pads.

    Raises:
        ConfigurationError: If the models share parameters or do not fit each other or the method, a row is longer than
            one of them takes, `args.teacher_cache` is given without `TextBlocks` or has no room, `compute_loss_func`
            is given, or a run on several GPUs is not started with torchrun.
    """

    args: MiniLMDistillationArguments

    def __init__(
        self,
        model: PreTrainedModel,
        args: MiniLMDistillationArguments,
        teacher: PreTrainedModel,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        **kwargs: Any,
    ) -> None:
        check_one_gpu(args)
        check_no_loss_function(kwargs)
        check_own_parameters(teacher, model)
        check_same_vocabulary(teacher, model, kwargs.get("processing_class"))
        for checked, role in ((teacher, "teacher"), (model, "student")):
            check_can_be_traced(checked, role)
            check_only_layers(checked, role)
            check_full_length(checked, role)
        self.loss_spec = AUXILIARY_LOSSES[METHODS[args.method]]
        layer = args.teacher_layer
        self.teacher_layer = TeacherLayer(
            teacher, default_teacher_layer(teacher.config, args.method) if layer is None else layer
        )
        self.heads = _choose_heads(args, teacher.config, model.config)
        for dataset in (train_dataset, eval_dataset):
            check_positions(longest_row(dataset), {"teacher": teacher, "student": model})
        super().__init__(model, args, train_dataset=train_dataset, eval_dataset=eval_dataset, **kwargs)
        # Of a model that was loaded, transformers would save LayerNorms under the names that TensorFlow gave them, and
        # a resumed training, which does not translate names, would silently lose them.
        model._weight_conversions = None
        # The loss is a mean over the batch: let the Trainer divide by the accumulation steps.
        self.model_accepts_loss_kwargs = False
        # There are no labels, and still there is a loss to evaluate.
        self.label_names: list[str] = []
        self.can_return_loss = True
        self.teacher = teacher.to(self.args.device).eval().requires_grad_(False)
        self._last_layer: int = model.config.num_hidden_layers - 1
        self._cache = None if args.teacher_cache is None else self._open_cache(args.teacher_cache)

    def _open_cache(self, folder: str) -> TeacherCache:
        if not isinstance(self.train_dataset, TextBlocks):
            raise ConfigurationError(
                f"teacher_cache {folder} finds rows by their number, so train_dataset must be TextBlocks, not "
                f"{type(self.train_dataset).__name__}"
            )
        key = {"teacher": self.teacher_layer.fingerprint(), "precision": self.accelerator.mixed_precision}
        return TeacherCache(folder, key, self.train_dataset, self.teacher.config.hidden_size, self.teacher.dtype)

    def _set_signature_columns_if_needed(self) -> None:
        is_new = self._signature_columns is None
        super()._set_signature_columns_if_needed()
        if is_new:
            self._signature_columns.append(BLOCK_INDEX)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as the Trainer does, with the teacher in evaluation mode whatever happened to it since it was given.

        Args:
            args: Passed on.
            kwargs: Passed on.

        Returns:
            The output of the Trainer.
        """
        self.teacher.eval()
        with self._without_untaught_parameters():
            return super().train(*args, **kwargs)

    @contextlib.contextmanager
    def _without_untaught_parameters(self) -> Iterator[None]:
        """Keep the parameters that the loss does not read out of the optimizer, and from processes that wait for them.

        Weight decay would shrink them, and distributed training would wait for their gradients.
        """
        base = self.model.base_model
        taught = [base.embeddings, *base.encoder.layer[: self._last_layer]]
        attention = base.encoder.layer[self._last_layer].attention.self
        taught += [getattr(attention, name) for name in ("query", "key", "value")]
        learned = {id(parameter) for module in taught for parameter in module.parameters()}
        frozen = [one for one in self.model.parameters() if one.requires_grad and id(one) not in learned]
        try:
            for parameter in frozen:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Compare the last layer of the student with the layer of the teacher.

        MiniLMv2 (section 3.1): the mean over queries, keys and values X of
        1/(A_r |x|) * sum over relation heads a and tokens t of KL(R_{a,t}^T || R_{a,t}^S), with
        R_a = softmax(X_a X_a^T / sqrt(d_r)). MiniLM (section 3): the same of attention maps, plus that of values with
        as many relation heads as attention heads.

        Args:
            model: The student, wrapped for distributed training or not.
            inputs: The batch.
            return_outputs: Return what the student returns, too.
            num_items_in_batch: Not used: the loss is a mean.

        Returns:
            The loss, a scalar; or loss and outputs.
        """
        inputs = dict(inputs)
        rows, mask = inputs.pop(BLOCK_INDEX, None), inputs["attention_mask"]
        check_positions(mask.shape[1], {"teacher": self.teacher, "student": self.model})
        parts = self.loss_spec.parts
        with record_trace(self.model, TraceRequest(frozenset({self._last_layer}), frozenset(parts)), mask) as trace:
            outputs = model(**inputs)
        with self.accelerator.autocast():
            taught = self.teacher_layer.trace(self._entering_states(inputs, rows), mask, parts)
        learned = trace.layers[self._last_layer]
        with torch.autocast(mask.device.type, enabled=False):
            loss = self.loss_spec.compute(taught, learned, LossOptions(self.heads))
        return (loss, outputs) if return_outputs else loss

    def _entering_states(self, inputs: dict[str, Tensor], rows: Tensor | None) -> Tensor:
        """Run the teacher, or read what it gave before. Numbers of rows are those of the training data."""
        if self._cache is None or rows is None or not self.model.training:
            return self.teacher_layer.entering_states(inputs)
        is_token = inputs["attention_mask"].bool()
        indices = rows.tolist()
        found = [self._cache.read(index) for index in indices]
        missing = [number for number, states in enumerate(found) if states is None]
        states = torch.zeros(*is_token.shape, self._cache.width, dtype=self._cache.dtype, device=is_token.device)
        for number, known in enumerate(found):
            if known is not None:
                states[number, is_token[number]] = known.to(states.device)
        if missing:
            computed = self.teacher_layer.entering_states({name: value[missing] for name, value in inputs.items()})
            for number, new in zip(missing, computed, strict=True):
                self._cache.write(indices[number], new[is_token[number]])
                states[number] = new.to(states.dtype)
        return states


def _choose_heads(args: MiniLMDistillationArguments, teacher: Any, student: Any) -> HeadCounts:
    spec = AUXILIARY_LOSSES[METHODS[args.method]]
    if spec.needs_same_heads and teacher.num_attention_heads != student.num_attention_heads:
        raise ConfigurationError(
            f"method {args.method!r} compares attention heads one by one, but the teacher has "
            f"{teacher.num_attention_heads} and the student {student.num_attention_heads}; 'minilmv2' takes any"
        )
    heads = args.relation_heads or default_relation_heads(teacher.hidden_size, student.hidden_size)
    for role, width in (("teacher", teacher.hidden_size), ("student", student.hidden_size)):
        if width % heads:
            raise ConfigurationError(
                f"relation_heads {heads} does not divide the hidden size {width} of the {role}; it must divide both"
            )
    return HeadCounts(student.num_attention_heads, heads)


__all__ = ["MiniLMDistillationTrainer"]
