"""Training of early span heads: deep supervision in the full-length pass, and sub-models that stop early."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from optimum_qala import QuaLAMiniLMForQuestionAnswering
from optimum_qala.distillation.divergences import span_divergence
from optimum_qala.errors import ConfigurationError
from optimum_qala.question_answering.records import QARecord
from tests.conftest import tiny_config
from tests.training.runs import assert_resumes_identically, gradients_of, make_batch, make_trainer


@pytest.fixture
def answer_model() -> QuaLAMiniLMForQuestionAnswering:
    torch.manual_seed(0)
    return QuaLAMiniLMForQuestionAnswering(tiny_config(token_scoring="answer"))


def make_stepper(tmp_path: Path, model: Any, tokenizer: Any, data: list[QARecord], **settings: Any) -> Any:
    trainer = make_trainer(tmp_path, model, tokenizer, data, **settings)
    trainer.create_optimizer_and_scheduler(4)
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def cross_entropy(logits: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    rows = torch.arange(len(logits))
    losses = [
        -torch.log_softmax(logits[..., side], dim=1)[rows, batch[name]]
        for side, name in enumerate(("start_positions", "end_positions"))
    ]
    return sum(losses).mean() / 2


@pytest.mark.parametrize(
    ("drop_layers", "min_exit_layer", "heads"),
    [
        (None, 1, (0, 1, 2, 3)),
        ([2, 3], 1, (1, 2, 3)),
        ([2, 3], 2, (2, 3)),
        ([2, 3], 3, (2, 3)),
        ([3], 2, (2, 3)),
        ([3], 9, (3,)),
    ],
)
@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_full_pass_trains_every_head_that_a_budget_reads(
    tmp_path: Path,
    answer_model: Any,
    tiny_tokenizer: Any,
    records: list[QARecord],
    drop_layers: list[int] | None,
    min_exit_layer: int,
    heads: tuple[int, ...],
    weight: float,
) -> None:
    """Labels and final logits teach it. Oracle: the loss written out, one backward pass."""
    answer_model.config.drop_layers = drop_layers
    settings = {"smallest_sub_model": False, "num_random_sub_models": 0, "deep_supervision_weight": weight}
    trainer = make_stepper(tmp_path, answer_model, tiny_tokenizer, records, min_exit_layer=min_exit_layer, **settings)
    batch = make_batch(records[:4], tiny_tokenizer)
    reference = copy.deepcopy(answer_model).train()

    loss = trainer.training_step(answer_model, dict(batch))

    output = reference(**batch, budget="full", output_hidden_states=True)
    final = (output.start_logits.detach(), output.end_logits.detach())
    deep = []
    for head in heads:
        logits = reference.quala.encoder.span_heads[head](output.hidden_states[head])
        divergence = span_divergence(final, (logits[..., 0], logits[..., 1]), batch["attention_mask"])
        deep.append(cross_entropy(logits, batch) + divergence)
    expected = output.loss + weight * sum(deep) / len(deep)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    for name, gradient in gradients_of(reference).items():
        torch.testing.assert_close(gradients_of(answer_model)[name], gradient, msg=name)
    has_gradient = [head.weight.grad is not None for head in answer_model.quala.encoder.span_heads]
    assert has_gradient == [index in heads for index in range(4)]
    logged = trainer._loss_log.take()  # rounded to four digits
    assert logged["loss_full"] == pytest.approx(output.loss.item(), abs=1e-4)
    assert logged["loss_full_span_heads"] == pytest.approx((sum(deep) / len(deep)).item(), abs=1e-4)


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_sub_model_trains_the_heads_that_see_fewer_tokens(
    tmp_path: Path,
    answer_model: Any,
    tiny_tokenizer: Any,
    records: list[QARecord],
    weight: float,
) -> None:
    """Oracle: both passes written out, one backward pass each."""
    answer_model.config.drop_layers = [1, 2]
    settings = {"num_random_sub_models": 0, "deep_supervision_weight": weight, "drop_ratio_bound": 0.5}
    trainer = make_stepper(tmp_path, answer_model, tiny_tokenizer, records, **settings)
    batch = make_batch(records[:4], tiny_tokenizer)
    reference = copy.deepcopy(answer_model).train()
    (sub_model,) = trainer.draw_sub_models(0, 0)
    assert sub_model.length_config.retention == (1.0, 0.5, 0.25, 0.25)

    trainer.training_step(answer_model, dict(batch))

    full, whole = trainer._full_length_loss(reference, batch, has_sub_models=False)
    output = reference(**batch, budget=sub_model.length_config, output_exit_logits=True)
    mask = batch["attention_mask"]
    loss = span_divergence(whole.logits, (output.start_logits, output.end_logits), mask)
    # Head 0 reads no more than at full length, head 1 chooses the first survivors among all tokens.
    heads = [span_divergence(whole.logits, output.exit_logits[head].unbind(dim=-1), mask) for head in (2, 3)]
    deep = full.extras["span_heads"].loss
    ((full.loss + weight * deep + loss + weight * sum(heads) / 2) / 2).backward()
    for name, gradient in gradients_of(reference).items():
        torch.testing.assert_close(gradients_of(answer_model)[name], gradient, msg=name)
    logged = trainer._loss_log.take()
    assert logged["loss_smallest_span_heads"] == pytest.approx((sum(heads) / 2).item(), abs=1e-4)


def test_weight_of_zero_trains_no_head(
    tmp_path: Path,
    answer_model: Any,
    tiny_tokenizer: Any,
    records: list[QARecord],
) -> None:
    settings = {"smallest_sub_model": False, "num_random_sub_models": 0, "deep_supervision_weight": 0.0}
    trainer = make_stepper(tmp_path, answer_model, tiny_tokenizer, records, **settings)
    trainer.training_step(answer_model, make_batch(records[:4], tiny_tokenizer))
    assert all(parameter.grad is None for parameter in answer_model.quala.encoder.span_heads.parameters())
    assert "loss_full_span_heads" not in trainer._loss_log.take()


def test_step_costs_its_passes_and_the_heads(
    tmp_path: Path,
    answer_model: Any,
    tiny_tokenizer: Any,
    records: list[QARecord],
) -> None:
    """Multiplications of the linear layers, counted, against a pass each, counted alone."""
    trainer = make_stepper(tmp_path, answer_model, tiny_tokenizer, records, num_random_sub_models=2, early_exit_prob=1)
    batch = make_batch(records[:4], tiny_tokenizer)
    counted = [0]

    def count(module: nn.Linear, _: Any, output: torch.Tensor) -> None:
        counted[0] += output.numel() * module.in_features

    for module in answer_model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(count)
    trainer.training_step(answer_model, dict(batch))
    in_step, counted[0] = counted[0], 0
    features = {name: value for name, value in batch.items() if not name.endswith("positions")}
    answer_model(**features, budget="full")
    for sub_model in trainer.draw_sub_models(0, 0):
        answer_model(**features, budget=sub_model.length_config)
    heads = 4 * batch["input_ids"].numel() * 2 * answer_model.config.hidden_size
    assert in_step == counted[0] + heads


def test_random_sub_models_stop_early_and_the_smallest_does_not(
    tmp_path: Path,
    answer_model: Any,
    tiny_tokenizer: Any,
    records: list[QARecord],
) -> None:
    settings = {"num_random_sub_models": 2, "early_exit_prob": 0.5, "layer_drop_prob": 0.3}
    trainer = make_trainer(tmp_path, answer_model, tiny_tokenizer, records, **settings)
    drawn = [sub_model for step in range(60) for sub_model in trainer.draw_sub_models(step, 0)]
    assert drawn[:3] == trainer.draw_sub_models(0, 0)
    assert {sub_model.length_config.exit_layer for sub_model in drawn if sub_model.name == "random"} == {None, 1, 2, 3}
    assert {sub_model.length_config.exit_layer for sub_model in drawn if sub_model.name == "smallest"} == {None}
    for sub_model in drawn:  # LayerDrop leaves a layer of those that run
        assert len(sub_model.skip_layers) < sub_model.length_config.depth
    trainer.args.min_exit_layer = 3
    late = [sub_model for step in range(60) for sub_model in trainer.draw_sub_models(step, 0)]
    assert {sub_model.length_config.exit_layer for sub_model in late} == {None, 3}


def test_no_early_exits_leave_the_draws_of_earlier_versions(
    tmp_path: Path,
    tiny_model: Any,
    answer_model: Any,
    tiny_tokenizer: Any,
    records: list[QARecord],
) -> None:
    plain, answer = (make_trainer(tmp_path, model, tiny_tokenizer, records) for model in (tiny_model, answer_model))
    for step in range(5):
        assert plain.draw_sub_models(step, 0) == answer.draw_sub_models(step, 0)


@pytest.mark.parametrize(
    "setting",
    [{"deep_supervision_weight": 0.5}, {"early_exit_prob": 1.0}, {"temperature": 3.0}, {"layer_drop_prob": 0.6}],
    ids=lambda setting: next(iter(setting)),
)
def test_every_option_changes_the_training(
    tmp_path: Path,
    answer_model: Any,
    tiny_tokenizer: Any,
    records: list[QARecord],
    setting: dict[str, Any],
) -> None:
    plain, changed = copy.deepcopy(answer_model), copy.deepcopy(answer_model)
    make_trainer(tmp_path, plain, tiny_tokenizer, records, max_steps=2).train()
    make_trainer(tmp_path, changed, tiny_tokenizer, records, max_steps=2, **setting).train()
    assert not torch.equal(plain.qa_outputs.weight, changed.qa_outputs.weight)


def test_training_teaches_every_exit_and_logs_it(
    tmp_path: Path,
    answer_model: Any,
    tiny_tokenizer: Any,
    records: list[QARecord],
) -> None:
    batch = make_batch(records, tiny_tokenizer)

    def losses() -> list[float]:
        with torch.no_grad():
            return [answer_model(**batch, budget=f"1,1,1,1@{exit_layer}").loss.item() for exit_layer in (1, 2, 3)]

    before = losses()
    trainer = make_trainer(tmp_path, answer_model, tiny_tokenizer, records, max_steps=60, learning_rate=3e-3)
    trainer.train()
    assert all(after < loss / 2 for after, loss in zip(losses(), before, strict=True))
    entry = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert {"loss_full_span_heads", "loss_smallest_span_heads", "loss_random_span_heads"} <= set(entry)


def test_interrupted_training_resumes_identically(
    tmp_path: Path,
    answer_model: Any,
    tiny_tokenizer: Any,
    records: list[QARecord],
) -> None:
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "early_exit_prob": 0.5}
    assert_resumes_identically(3, tmp_path, answer_model, tiny_tokenizer, records, **settings)


def test_bf16_trains_with_finite_losses(
    tmp_path: Path,
    answer_model: Any,
    tiny_tokenizer: Any,
    records: list[QARecord],
) -> None:
    make_trainer(tmp_path, answer_model, tiny_tokenizer, records, bf16=True, early_exit_prob=0.5).train()
    assert all(torch.isfinite(value).all() for value in answer_model.state_dict().values())


def test_early_exits_of_a_model_without_span_heads_are_refused(
    tmp_path: Path,
    tiny_model: Any,
    tiny_tokenizer: Any,
    records: list[QARecord],
) -> None:
    with pytest.raises(
        ConfigurationError, match=r"early_exit_prob is 0\.5, but the model has no span heads to stop at"
    ):
        make_trainer(tmp_path, tiny_model, tiny_tokenizer, records, early_exit_prob=0.5)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"num_random_sub_models": 0}, "only random sub-models stop early, and num_random_sub_models is 0"),
        ({"min_exit_layer": 4}, "min_exit_layer 4 is not between 1 and 3"),
    ],
)
def test_early_exits_that_cannot_happen_are_refused(
    tmp_path: Path,
    answer_model: Any,
    tiny_tokenizer: Any,
    records: list[QARecord],
    setting: dict[str, int],
    message: str,
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make_trainer(tmp_path, answer_model, tiny_tokenizer, records, early_exit_prob=0.5, **setting)
