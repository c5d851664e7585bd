"""Auxiliary losses in the real Trainer: a tiny model, and teachers that are deeper, wider, or neither."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    DistilBertConfig,
    DistilBertForQuestionAnswering,
    RobertaConfig,
    RobertaForQuestionAnswering,
)

from optimum_qala import LengthConfig, QuaLAMiniLMForQuestionAnswering
from optimum_qala.distillation.auxiliary import AUXILIARY_LOSSES, HeadCounts, LossOptions
from optimum_qala.distillation.divergences import span_divergence
from optimum_qala.distillation.mutual_information import interpolated_bound
from optimum_qala.distillation.states import state_mse
from optimum_qala.distillation.traces import EMBEDDINGS, LayerTrace, Places, Trace, TraceRequest, record_trace
from optimum_qala.errors import CheckpointError, ConfigurationError
from optimum_qala.question_answering.records import QARecord
from optimum_qala.training.auxiliary import CRITIC_WIDTH
from optimum_qala.training.side_module import SIDE_MODULE_FILE
from tests.conftest import tiny_config
from tests.training.runs import assert_resumes_identically, gradients_of, make_batch, make_trainer


NAMES = sorted(AUXILIARY_LOSSES)
# Those that are 0 for two equal layers, and compare each sample on its own.
DISTANCES = [name for name in NAMES if name != "mutual_information"]


def weigh(names: list[str]) -> str:
    return ",".join(f"{name}=0.5" for name in names)


def on_sub_models(names: list[str]) -> list[str]:
    return [name for name in names if name != "embeddings"]


ALL_LOSSES, ON_SUB_MODELS = weigh(NAMES), weigh(on_sub_models(NAMES))
SIZES = {"vocab_size": 200, "num_attention_heads": 2, "intermediate_size": 32, "initializer_range": 0.3}


def make_teacher(hidden_size: int = 32, num_hidden_layers: int = 8, **settings: Any) -> BertForQuestionAnswering:
    torch.manual_seed(1)
    sizes = SIZES | {"hidden_size": hidden_size, "num_hidden_layers": num_hidden_layers} | settings
    return BertForQuestionAnswering(BertConfig(**sizes))


def taught(tmp_path: Path, model: Any, tokenizer: Any, records: list[QARecord], **settings: Any) -> Any:
    return make_trainer(tmp_path, model, tokenizer, records, **({"teacher": make_teacher()} | settings))


def one_step(trainer: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    trainer.create_optimizer_and_scheduler(4)
    trainer.current_gradient_accumulation_steps = 1
    loss: torch.Tensor = trainer.training_step(trainer.model, dict(batch))
    return loss


def apply_critic(critic: Any, teacher: LayerTrace, student: LayerTrace) -> tuple[LayerTrace, ...]:
    """Project the hidden states of both by the matrices of a critic."""
    critic = copy.deepcopy(critic)  # its gradients are no business of the oracle
    return tuple(
        dataclasses.replace(
            trace, states={"hidden_states": trace.states["hidden_states"] @ linear.weight.T + linear.bias}
        )
        for trace, linear in ((teacher, critic.teacher), (student, critic.student))
    )


@pytest.mark.parametrize("name", NAMES)
def test_full_length_pass_learns_from_the_layers_of_the_teacher(
    tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any, records: list[QARecord], name: str
) -> None:
    """Oracle: hidden states as transformers returns them, and the registered loss on complete traces."""
    batch = make_batch(records[:4], tiny_tokenizer)
    reference, teacher = copy.deepcopy(tiny_model).train(), make_teacher().eval()
    settings = {"drop_ratio_bound": 0.0, "teacher_weight": 0.0, "auxiliary_losses": {name: 2.0}}
    trainer = taught(tmp_path, tiny_model, tiny_tokenizer, records, **settings)
    loss = one_step(trainer, batch)

    loss_spec, mask = AUXILIARY_LOSSES[name], batch["attention_mask"]
    features = {key: value for key, value in batch.items() if not key.endswith("positions")}
    request = TraceRequest(frozenset(range(EMBEDDINGS, 8)), frozenset(loss_spec.parts))
    with torch.no_grad(), record_trace(teacher, request, mask) as teacher_trace:
        teacher(**features)
    request = TraceRequest(frozenset(range(EMBEDDINGS, 4)), frozenset(loss_spec.parts))
    with record_trace(reference, request, mask) as trace:
        output = reference(**batch, budget="full")
    pairs = {"embeddings": [(EMBEDDINGS, EMBEDDINGS)], "minilm": [(3, 7)], "relations": [(3, 7)]}
    auxiliary, critics = torch.zeros(()), trainer.auxiliary.critics
    for layer, teacher_layer in pairs.get(name, [(0, 1), (1, 3), (2, 5), (3, 7)]):
        compared = (teacher_trace.layers[teacher_layer], trace.layers[layer])
        if loss_spec.critic:
            compared = apply_critic(critics[f"full_{name}"], *compared)
        auxiliary = auxiliary + loss_spec.compute(*compared, LossOptions(HeadCounts(2, 2)))
    expected = output.loss + 2.0 * auxiliary
    expected.backward()
    assert abs(auxiliary) > 0.01
    torch.testing.assert_close(loss, expected.detach())
    for parameter, gradient in gradients_of(reference).items():
        torch.testing.assert_close(gradients_of(tiny_model)[parameter], gradient, msg=parameter, atol=1e-5, rtol=1e-4)


def test_hidden_states_are_those_that_transformers_returns(
    tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any, records: list[QARecord]
) -> None:
    batch = make_batch(records[:4], tiny_tokenizer)
    settings = {"auxiliary_losses": "hidden_states=1,embeddings=1", "max_steps": 1, "drop_ratio_bound": 0.0}
    trainer = taught(tmp_path, tiny_model, tiny_tokenizer, records, **settings)
    features = {key: value for key, value in batch.items() if not key.endswith("positions")}
    with torch.no_grad():
        full = tiny_model(**features, output_hidden_states=True).hidden_states
        teacher = make_teacher().eval()(**features, output_hidden_states=True).hidden_states
        mask = batch["attention_mask"]
        expected = sum(state_mse(teacher[2 * number], full[number], mask) for number in (1, 2, 3, 4))
        embeddings = state_mse(teacher[0], full[0], mask)
    one_step(trainer, batch)
    logged = trainer._loss_log.take()
    assert logged["loss_full_hidden_states"] == pytest.approx(expected.item(), abs=1e-3)
    assert logged["loss_full_embeddings"] == pytest.approx(embeddings.item(), abs=1e-3)


def test_sub_models_learn_from_the_full_length_pass_at_the_tokens_they_keep(
    tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any, records: list[QARecord]
) -> None:
    """Oracle: hidden states of both passes, compared token by token in a loop."""
    batch = make_batch(records[:3], tiny_tokenizer)
    reference = copy.deepcopy(tiny_model).train()
    settings = {"num_random_sub_models": 0, "sub_model_auxiliary_losses": {"hidden_states": 0.5}}
    trainer = make_trainer(tmp_path, tiny_model, tiny_tokenizer, records, **settings)
    loss = one_step(trainer, batch)

    (sub_model,) = trainer.draw_sub_models(0, 0)
    features = {key: value for key, value in batch.items() if not key.endswith("positions")}
    full = reference(**batch, budget="full", output_hidden_states=True)
    request = TraceRequest(frozenset(range(4)), frozenset({"hidden_states"}))
    with record_trace(reference, request, batch["attention_mask"]) as trace:
        sub = reference(**features, budget=sub_model.length_config, output_hidden_states=True)
    auxiliary = torch.zeros(())
    for layer in range(4):
        rows = trace.layers[layer].rows
        assert rows.valid.sum() < batch["attention_mask"].sum()
        for sample in range(3):
            squares = [
                (
                    sub.hidden_states[layer + 1][sample, token]
                    - full.hidden_states[layer + 1][sample, position].detach()
                )
                .square()
                .mean()
                for token, position in enumerate(rows.positions[sample].tolist())
                if rows.valid[sample, token]
            ]
            auxiliary = auxiliary + torch.stack(squares).mean() / 3
    logits = (full.start_logits.detach(), full.end_logits.detach())
    divergence = span_divergence(logits, (sub.start_logits, sub.end_logits), batch["attention_mask"])
    expected = (full.loss + divergence + 0.5 * auxiliary) / 2
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    for name, gradient in gradients_of(reference).items():
        torch.testing.assert_close(gradients_of(tiny_model)[name], gradient, msg=name, atol=1e-5, rtol=1e-4)


def test_sub_model_that_drops_nothing_has_no_loss(
    tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any, records: list[QARecord]
) -> None:
    trainer = make_trainer(tmp_path, tiny_model, tiny_tokenizer, records, sub_model_auxiliary_losses=ON_SUB_MODELS)
    mask = make_batch(records[:2], tiny_tokenizer)["attention_mask"]
    inputs = make_batch(records[:2], tiny_tokenizer)
    with trainer.auxiliary.record_full_pass(tiny_model, mask, has_sub_models=True) as full:
        output = tiny_model(**inputs, output_hidden_states=True)
    with trainer.auxiliary.record_sub_model(tiny_model, mask) as again:
        tiny_model(**inputs, budget=LengthConfig((1.0,) * 4))
    losses = trainer.auxiliary.sub_model_losses(full, again)
    assert len(losses) == len(NAMES) - 1
    assert all(losses[name].loss.item() == pytest.approx(0.0, abs=1e-6) for name in on_sub_models(DISTANCES))
    with trainer.auxiliary.record_sub_model(tiny_model, mask) as shared:
        tiny_model(**inputs, budget=LengthConfig((1.0,) * 4), shared_states=output.hidden_states)
    assert trainer.auxiliary.sub_model_losses(full, shared) == {}


@pytest.mark.parametrize("token_scoring", ["question", "attention", "answer"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_all_losses_train_and_are_logged(
    tmp_path: Path, tiny_tokenizer: Any, records: list[QARecord], token_scoring: str, attention: str
) -> None:
    torch.manual_seed(0)
    model = QuaLAMiniLMForQuestionAnswering(tiny_config(token_scoring=token_scoring))
    model.set_attn_implementation(attention)
    trainer = taught(
        tmp_path,
        model,
        tiny_tokenizer,
        records,
        max_steps=2,
        auxiliary_losses=ALL_LOSSES,
        sub_model_auxiliary_losses=ON_SUB_MODELS,
        early_exit_prob=0.3 if token_scoring == "answer" else 0.0,
    )
    trainer.train()
    logged = trainer.state.log_history[0]
    keys = {f"loss_full_{name}" for name in NAMES}
    keys |= {f"loss_{kind}_{name}" for kind in ("smallest", "random") for name in on_sub_models(NAMES)}
    assert keys - set(logged) <= {"loss_random_minilm", "loss_random_relations"}  # it may stop before the last layer
    assert all(logged[key] > 0.0 for key in keys & set(logged) if "mutual_information" not in key)
    assert all(logged[key] != 0.0 for key in keys & set(logged))
    assert torch.isfinite(torch.tensor(trainer.state.log_history[-1]["train_loss"]))
    assert not any(module._forward_hooks for module in (*model.modules(), *trainer.teacher.modules()))


def test_different_losses_for_teacher_and_sub_models(
    tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any, records: list[QARecord]
) -> None:
    settings = {"auxiliary_losses": "hidden_states=1", "sub_model_auxiliary_losses": "relations=1", "max_steps": 1}
    trainer = taught(tmp_path, tiny_model, tiny_tokenizer, records, **settings)
    trainer.train()
    extras = {key for key in trainer.state.log_history[0] if key.count("_") > 1}
    assert extras == {"loss_full_hidden_states"} | {"loss_smallest_relations", "loss_random_relations"} & extras
    assert "loss_smallest_relations" in extras


MUTUAL_INFORMATION = {"sub_model_auxiliary_losses": "mutual_information=1"}


def train_weights(
    tmp_path: Path, model: Any, tokenizer: Any, records: list[QARecord], **settings: Any
) -> torch.Tensor:
    model = copy.deepcopy(model)
    taught(tmp_path, model, tokenizer, records, max_steps=2, **settings).train()
    weights: torch.Tensor = model.quala.encoder.layer[0].attention.self.value.weight
    return weights


@pytest.mark.parametrize(
    ("plain", "changed"),
    [
        *(({}, {"auxiliary_losses": {name: 1.0}}) for name in NAMES),
        *(({}, {"sub_model_auxiliary_losses": {name: 1.0}}) for name in on_sub_models(NAMES)),
        ({"auxiliary_losses": "relations=1"}, {"auxiliary_losses": "relations=9"}),
        ({"auxiliary_losses": "relations=1"}, {"auxiliary_losses": "relations=1", "relation_heads": 8}),
        ({"auxiliary_losses": "relations=1"}, {"auxiliary_losses": "relations=1", "teacher_layers": [0, 1, 2, 5]}),
        (MUTUAL_INFORMATION, MUTUAL_INFORMATION | {"mutual_information_alpha": 0.9}),
        (MUTUAL_INFORMATION, MUTUAL_INFORMATION | {"mutual_information_tokens": 16}),
    ],
    ids=lambda setting: "-".join(map(str, setting.values())) or "off",
)
def test_every_option_changes_the_training(
    tmp_path: Path,
    tiny_model: Any,
    tiny_tokenizer: Any,
    records: list[QARecord],
    plain: dict[str, Any],
    changed: dict[str, Any],
) -> None:
    runs = [train_weights(tmp_path, tiny_model, tiny_tokenizer, records, **settings) for settings in (plain, changed)]
    assert not torch.equal(*runs)


def wide_teacher() -> BertForQuestionAnswering:
    return make_teacher(hidden_size=48, num_hidden_layers=3, num_attention_heads=2)


def test_teacher_of_another_width_is_learned_from_through_projections(
    tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any, records: list[QARecord]
) -> None:
    trainer = taught(
        tmp_path, tiny_model, tiny_tokenizer, records, teacher=wide_teacher(), auxiliary_losses=ALL_LOSSES
    )
    shapes = {name: tuple(layer.weight.shape) for name, layer in trainer.auxiliary.projections.items()}
    assert shapes == {name: (48, 32) for name in ("attention_outputs", "embeddings", "hidden_states")}
    before = copy.deepcopy(trainer.auxiliary.state_dict())
    trainer.train()
    for name, weight in trainer.auxiliary.state_dict().items():
        assert torch.isfinite(weight).all()
        assert not torch.equal(weight, before[name]), name
    trainer.save_model(str(tmp_path / "saved"))
    assert not (tmp_path / "saved" / SIDE_MODULE_FILE).exists()
    saved = type(tiny_model).from_pretrained(tmp_path / "saved", output_loading_info=True)[1]
    assert not saved["unexpected_keys"]
    assert not saved["missing_keys"]


def test_projection_forgets_the_gradient_of_the_step_before(
    tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any, records: list[QARecord]
) -> None:
    batch = make_batch(records[:4], tiny_tokenizer)
    settings = {"teacher": wide_teacher(), "auxiliary_losses": "hidden_states=1"}
    trainer = taught(tmp_path, tiny_model, tiny_tokenizer, records, **settings)
    one_step(trainer, batch)
    weight = trainer.auxiliary.projections["hidden_states"].weight
    first = weight.grad.clone()
    trainer.training_step(tiny_model, dict(batch))  # a second batch of the same step
    torch.testing.assert_close(weight.grad, 2 * first)
    trainer.state.global_step = 1
    trainer.training_step(tiny_model, dict(batch))
    torch.testing.assert_close(weight.grad, first)


def test_critics_learn_and_stay_out_of_the_model(
    tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any, records: list[QARecord]
) -> None:
    """One for the teacher, whatever the widths, and one for sub-models; both the same in every process."""
    weights = {"auxiliary_losses": "mutual_information=1", "sub_model_auxiliary_losses": "mutual_information=1"}
    before, trainer = (
        taught(tmp_path, copy.deepcopy(tiny_model), tiny_tokenizer, records, teacher=wide_teacher(), **weights)
        for _ in range(2)
    )
    start = before.auxiliary.state_dict()
    assert {name: tuple(value.shape) for name, value in start.items() if name.endswith("weight")} == {
        "critics.full_mutual_information.teacher.weight": (CRITIC_WIDTH, 48),
        "critics.full_mutual_information.student.weight": (CRITIC_WIDTH, 32),
        "critics.sub_model_mutual_information.teacher.weight": (CRITIC_WIDTH, 32),
        "critics.sub_model_mutual_information.student.weight": (CRITIC_WIDTH, 32),
    }
    assert all(torch.equal(value, start[name]) for name, value in trainer.auxiliary.state_dict().items())
    trainer.train()
    assert not any(torch.equal(value, start[name]) for name, value in trainer.auxiliary.state_dict().items())
    log = trainer.state.log_history
    assert log[3]["loss_full_mutual_information"] < log[0]["loss_full_mutual_information"]
    assert not any("critics" in name for name in trainer.model.state_dict())


def test_sub_model_teaches_neither_the_full_length_pass_nor_the_tokens_it_lost(
    tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any, records: list[QARecord]
) -> None:
    trainer = make_trainer(tmp_path, tiny_model, tiny_tokenizer, records, **MUTUAL_INFORMATION)
    generator = torch.Generator().manual_seed(0)
    full, sub = (torch.randn(2, size, 32, generator=generator, requires_grad=True) for size in (6, 4))
    positions, everything = torch.tensor([[0, 2, 5, 6], [1, 3, 4, 5]]), Places(torch.ones(2, 6))
    rows = Places(torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]), positions)
    traces = [
        Trace({0: LayerTrace({"hidden_states": states}, places, places)})
        for states, places in ((full, everything), (sub, rows))
    ]
    loss = trainer.auxiliary.sub_model_losses(*traces)["mutual_information"].loss
    loss.backward()
    assert full.grad is None
    assert (sub.grad.abs().sum(dim=-1) > 0.0).tolist() == rows.valid.bool().tolist()
    critic = trainer.auxiliary.critics["sub_model_mutual_information"]
    kept = [(sample, token) for sample in (0, 1) for token in range(4) if rows.valid[sample, token]]
    taught = critic.teacher(torch.stack([full[sample, positions[sample, token]] for sample, token in kept]))
    learned = critic.student(torch.stack([sub[sample, token] for sample, token in kept]))
    torch.testing.assert_close(loss, -interpolated_bound(taught @ learned.T / CRITIC_WIDTH**0.5, 0.5))


def test_teacher_of_same_width_needs_no_projection(
    tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any, records: list[QARecord]
) -> None:
    trainer = taught(tmp_path, tiny_model, tiny_tokenizer, records, auxiliary_losses=weigh(DISTANCES))
    assert not trainer.auxiliary.state_dict()


def test_interrupted_training_with_a_projection_resumes_identically(
    tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any, records: list[QARecord]
) -> None:
    settings = {
        "max_steps": 8,
        "save_strategy": "steps",
        "save_steps": 3,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 2,
        "auxiliary_losses": "hidden_states=1,relations=1,mutual_information=1",
        "sub_model_auxiliary_losses": "attention_maps=1,mutual_information=1",
        "mutual_information_tokens": 16,
        "weight_decay": 0.1,
    }
    assert_resumes_identically(5, tmp_path, tiny_model, tiny_tokenizer, records, **settings, teacher=wide_teacher())
    assert (tmp_path / "killed" / "out" / "checkpoint-3" / SIDE_MODULE_FILE).is_file()


def test_resume_without_the_projections_is_refused(
    tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any, records: list[QARecord]
) -> None:
    settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1, "teacher": wide_teacher()}
    taught(tmp_path, copy.deepcopy(tiny_model), tiny_tokenizer, records, **settings).train()
    settings |= {"max_steps": 2, "auxiliary_losses": "hidden_states=1"}
    trainer = taught(tmp_path, tiny_model, tiny_tokenizer, records, **settings)
    with pytest.raises(CheckpointError, match=f"checkpoint-1 holds no {SIDE_MODULE_FILE}"):
        trainer.train(resume_from_checkpoint=True)


def test_gradient_accumulation_equals_the_large_batch(
    tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any, records: list[QARecord]
) -> None:
    batch = make_batch(records[:8], tiny_tokenizer)
    halves = [{name: value[part] for name, value in batch.items()} for part in (slice(0, 4), slice(4, 8))]
    gradients = []
    for steps, batches in ((1, [batch]), (2, halves)):
        trainer = taught(
            tmp_path,
            copy.deepcopy(tiny_model),
            tiny_tokenizer,
            records,
            teacher=wide_teacher(),
            num_random_sub_models=0,
            auxiliary_losses=weigh(DISTANCES),
            sub_model_auxiliary_losses=weigh(on_sub_models(DISTANCES)),
        )
        trainer.create_optimizer_and_scheduler(4)
        trainer.current_gradient_accumulation_steps = steps
        for part in batches:
            trainer.training_step(trainer.model, dict(part))
        gradients.append(gradients_of(trainer.model) | gradients_of(trainer.auxiliary))
    assert any("projections" in name for name in gradients[0])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name, atol=1e-5, rtol=1e-3)


def test_bf16_trains_with_finite_losses(
    tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any, records: list[QARecord]
) -> None:
    settings = {"auxiliary_losses": ALL_LOSSES, "sub_model_auxiliary_losses": ON_SUB_MODELS, "bf16": True}
    teacher = wide_teacher().to(torch.bfloat16)
    trainer = taught(tmp_path, tiny_model, tiny_tokenizer, records, teacher=teacher, **settings)
    result = trainer.train()
    assert torch.isfinite(torch.tensor(result.training_loss))
    for module in (tiny_model, trainer.auxiliary):
        assert all(torch.isfinite(value).all() for value in module.state_dict().values())


def test_teacher_is_put_in_eval_mode_and_gets_no_gradient(
    tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any, records: list[QARecord]
) -> None:
    teacher = make_teacher().train()
    taught(
        tmp_path, tiny_model, tiny_tokenizer, records, teacher=teacher, auxiliary_losses=ALL_LOSSES, max_steps=1
    ).train()
    assert not any(module.training for module in teacher.modules())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_quala_and_roberta_teach_too(
    tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any, records: list[QARecord]
) -> None:
    torch.manual_seed(2)
    roberta = RobertaConfig(**SIZES, hidden_size=16, num_hidden_layers=4, pad_token_id=0)
    teachers = (QuaLAMiniLMForQuestionAnswering(tiny_config()), RobertaForQuestionAnswering(roberta))
    for teacher in teachers:
        settings = {"teacher": teacher, "auxiliary_losses": ALL_LOSSES, "max_steps": 1}
        trainer = taught(tmp_path, copy.deepcopy(tiny_model), tiny_tokenizer, records, **settings)
        trainer.train()
        assert all(trainer.state.log_history[0][f"loss_full_{name}"] > 0.0 for name in DISTANCES)
        assert trainer.state.log_history[0]["loss_full_mutual_information"] != 0.0


def distilbert() -> DistilBertForQuestionAnswering:
    return DistilBertForQuestionAnswering(
        DistilBertConfig(vocab_size=200, dim=32, n_layers=4, n_heads=2, hidden_dim=32)
    )


def shortened() -> QuaLAMiniLMForQuestionAnswering:
    teacher = QuaLAMiniLMForQuestionAnswering(tiny_config())
    teacher.set_budget("1,1,1,0.5")
    return teacher


HIDDEN = {"auxiliary_losses": "hidden_states=1"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            HIDDEN | {"teacher": None},
            r"auxiliary_losses \['hidden_states'\] compare with a teacher, but none is given",
        ),
        (
            {"sub_model_auxiliary_losses": "minilm=1", "drop_ratio_bound": 0.0},
            r"sub_model_auxiliary_losses \['minilm'\] act on sub-models, but none is trained",
        ),
        (
            {"sub_model_auxiliary_losses": "embeddings=1"},
            "sub_model_auxiliary_losses names 'embeddings', but a sub-model has those of the full-length pass",
        ),
        (
            {"teacher_layers": [0, 1, 2, 3]},
            r"teacher_layers \[0, 1, 2, 3\] maps layers for auxiliary_losses, but there",
        ),
        (HIDDEN | {"teacher_layers": [0]}, r"teacher_layers \[0\] has 1 entries, but the student has 4 layers"),
        (HIDDEN | {"teacher_layers": [0, 1, 2, 8]}, "names layer 8, but the teacher has layers 0 to 7"),
        (HIDDEN | {"torch_compile": True}, "torch_compile=True hides; turn one of them off"),
        (
            HIDDEN | {"teacher": distilbert},
            "the teacher is a DistilBertForQuestionAnswering, whose layers are not built",
        ),
        (HIDDEN | {"teacher": shortened}, "the teacher runs at the budget 1,1,1,0.5, but comparing layers needs all"),
        (
            {"auxiliary_losses": "minilm=1", "teacher": lambda: make_teacher(num_attention_heads=4)},
            "auxiliary loss 'minilm' compares attention heads one by one, but the teacher has 4 and the model 2",
        ),
        (
            {"auxiliary_losses": "relations=1", "relation_heads": 3},
            "relation_heads 3 does not divide the hidden size 32 of the model",
        ),
        (
            {"auxiliary_losses": "relations=1", "relation_heads": 32, "teacher": wide_teacher},
            "relation_heads 32 does not divide the hidden size 48 of the teacher",
        ),
        (HIDDEN | {"teacher_layers": [0.0, 1, 2, 3]}, "names layer 0.0, but the teacher has layers 0 to 7"),
        (HIDDEN | {"teacher_layers": "0,1,2,3"}, "teacher_layers '0,1,2,3' is not a list of layers"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path,
    tiny_model: Any,
    tiny_tokenizer: Any,
    records: list[QARecord],
    settings: dict[str, Any],
    message: str,
) -> None:
    if callable(settings.get("teacher")):
        settings = settings | {"teacher": settings["teacher"]()}
    with pytest.raises(ConfigurationError, match=message):
        taught(tmp_path, tiny_model, tiny_tokenizer, records, **settings)


def test_without_auxiliary_losses_nothing_is_recorded(
    tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any, records: list[QARecord]
) -> None:
    hooks: list[int] = []
    tiny_model.qa_outputs.register_forward_pre_hook(
        lambda *_: hooks.append(sum(len(module._forward_hooks) for module in tiny_model.modules()))
    )
    taught(tmp_path, tiny_model, tiny_tokenizer, records, max_steps=1).train()
    assert set(hooks) == {0}
