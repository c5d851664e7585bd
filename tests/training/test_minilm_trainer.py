"""Distillation on plain text in the real Trainer: tiny teachers that are deeper and wider than their student."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import DistilBertConfig, DistilBertModel, ElectraConfig, ElectraModel

from optimum_qala import MiniLMDistillationArguments, MiniLMDistillationTrainer, QuaLAMiniLMModel
from optimum_qala.distillation.relations import relation_kl
from optimum_qala.distillation.student import StudentOptions, make_student
from optimum_qala.errors import ConfigurationError
from tests.conftest import tiny_config
from tests.training.distilling import SIZES, STUDENT, make_bert, make_blocks, make_distiller, make_roberta
from tests.training.runs import StopAfter


def make_batch(trainer: Any, num_rows: int = 4) -> dict[str, torch.Tensor]:
    batch: dict[str, torch.Tensor] = trainer.data_collator([trainer.train_dataset[index] for index in range(num_rows)])
    assert batch["attention_mask"].sum() < batch["attention_mask"].numel()  # some rows are padded
    return batch


def weights_of(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], **tolerance: float) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        if tolerance:
            torch.testing.assert_close(second[name], value, msg=name, **tolerance)
        else:
            assert torch.equal(second[name], value), name


def count_calls(modules: Any) -> list[int]:
    calls: list[int] = []
    for index, module in enumerate(modules):
        module.register_forward_pre_hook(lambda *_, index=index: calls.append(index))
    return calls


@pytest.mark.parametrize("make_teacher", [make_bert, make_roberta], ids=["bert", "roberta"])
def test_loss_is_that_of_the_paper(tmp_path: Path, tiny_tokenizer: Any, make_teacher: Any) -> None:
    """Oracle: hidden states as transformers returns them, each row alone without padding, W applied by hand."""
    teacher = make_teacher().train()  # a teacher in training mode is put into evaluation mode
    trainer = make_distiller(tmp_path, tiny_tokenizer, teacher=teacher, teacher_layer=2, relation_heads=6)
    batch = make_batch(trainer)
    assert not teacher.training
    loss = trainer.compute_loss(trainer.model, dict(batch))
    expected = []
    for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
        ids = ids[mask.bool()][None]
        for name in ("query", "key", "value"):
            states = []
            for model, layer in ((teacher, 2), (trainer.model, 1)):
                entering = model(ids, output_hidden_states=True).hidden_states[layer]
                states.append(getattr(model.encoder.layer[layer].attention.self, name)(entering))
            expected.append(relation_kl(*states, torch.ones_like(ids), 6))
    torch.testing.assert_close(loss, torch.stack(expected).mean())


def test_minilm_compares_attention_and_values_of_the_last_layers(tmp_path: Path, tiny_tokenizer: Any) -> None:
    """Oracle: attention maps as transformers returns them."""
    teacher = make_bert(num_attention_heads=2, attn_implementation="eager")
    trainer = make_distiller(tmp_path, tiny_tokenizer, teacher=teacher, method="minilm")
    assert trainer.teacher_layer.index == 3
    batch = make_batch(trainer)
    loss = trainer.compute_loss(trainer.model, dict(batch))
    expected = []
    for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
        ids = ids[mask.bool()][None]
        attention, values = [], []
        for model, layer in ((teacher, 3), (trainer.model, 1)):
            output = model(ids, output_hidden_states=True, output_attentions=True)
            attention.append(output.attentions[layer])
            values.append(model.encoder.layer[layer].attention.self.value(output.hidden_states[layer]))
        maps = (attention[0] * (attention[0].log() - attention[1].log())).sum(dim=-1).mean()
        expected.append(maps + relation_kl(*values, torch.ones_like(ids), 2))
    torch.testing.assert_close(loss, torch.stack(expected).mean(), atol=1e-5, rtol=1e-4)


def test_layers_of_the_teacher_after_the_chosen_one_do_not_run(tmp_path: Path, tiny_tokenizer: Any) -> None:
    """Nor does the chosen one beyond its queries, keys and values."""
    teacher = make_bert()
    trainer = make_distiller(tmp_path, tiny_tokenizer, teacher=teacher, teacher_layer=2, max_steps=1)
    calls = count_calls(teacher.encoder.layer)
    rest = count_calls(module.attention.output for module in teacher.encoder.layer)
    linear = count_calls(getattr(teacher.encoder.layer[2].attention.self, name) for name in ("query", "key", "value"))
    trainer.train()
    assert [index for index in calls if index != 2] == [0, 1]  # the hook that stops the pass is that of layer 2 itself
    assert rest == [0, 1]
    assert sorted(linear) == [0, 1, 2]
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_loss_falls_and_only_what_it_reads_is_trained(tmp_path: Path, tiny_tokenizer: Any) -> None:
    trainer = make_distiller(tmp_path, tiny_tokenizer, max_steps=16, weight_decay=0.5)
    before = weights_of(trainer)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(losses[-4:]) < 0.7 * sum(losses[:4])
    after = weights_of(trainer)
    untouched = {name for name in after if torch.equal(after[name], before[name])}
    last = "encoder.layer.1"
    kept = ("attention.output", "intermediate", "output")
    assert untouched == {name for name in after if name.startswith(tuple(f"{last}.{part}" for part in kept))}
    assert len(untouched) == 10
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())


def test_evaluation_gives_the_loss_on_other_texts(tmp_path: Path, tiny_tokenizer: Any) -> None:
    blocks = make_blocks(tiny_tokenizer, packing=False)
    trainer = make_distiller(tmp_path, tiny_tokenizer, eval_dataset=blocks, per_device_eval_batch_size=16)
    batch = make_batch(trainer, len(blocks))
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(trainer.compute_loss(trainer.model, batch).item(), rel=1e-4)


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: Any, tiny_tokenizer: Any) -> dict[str, torch.Tensor]:
    """Weights after the training that the options change."""
    trainer = make_distiller(tmp_path_factory.mktemp("baseline"), tiny_tokenizer)
    trainer.train()
    return weights_of(trainer)


@pytest.mark.parametrize(
    "settings",
    [{"teacher_layer": 1}, {"relation_heads": 1}, {"bf16": True}, {"gradient_accumulation_steps": 2}, {"seed": 1}],
    ids=lambda settings: next(iter(settings)),
)
def test_option_changes_the_student(
    tmp_path: Path, tiny_tokenizer: Any, baseline: dict[str, torch.Tensor], settings: dict[str, Any]
) -> None:
    trainer = make_distiller(tmp_path, tiny_tokenizer, **settings)
    trainer.train()
    after = weights_of(trainer)
    assert any(not torch.equal(after[name], baseline[name]) for name in after)
    assert all(value.isfinite().all() for value in after.values())


def test_method_changes_the_student(tmp_path: Path, tiny_tokenizer: Any) -> None:
    results = []
    for method in ("minilm", "minilmv2"):
        trainer = make_distiller(
            tmp_path, tiny_tokenizer, teacher=make_bert(num_attention_heads=2), method=method, max_steps=1
        )
        trainer.train()
        results.append(trainer.state.log_history[0]["loss"])
    assert results[0] != results[1]


def test_accumulated_batches_are_one_batch(tmp_path: Path, tiny_tokenizer: Any) -> None:
    whole, parts = (
        make_distiller(
            tmp_path / str(rows),
            tiny_tokenizer,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=8 // rows,
            optim="sgd",
        )
        for rows in (8, 2)
    )
    for trainer in (whole, parts):
        trainer.train()
    assert_equal(weights_of(whole), weights_of(parts), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
def test_resumed_training_ends_as_if_it_had_not_stopped(tmp_path: Path, tiny_tokenizer: Any, strategy: str) -> None:
    """With dropout, in the second epoch; each has four steps."""
    settings = {"save_strategy": "steps", "save_steps": 5, "max_steps": 7, "train_sampling_strategy": strategy}
    student = make_student(make_bert(), STUDENT, hidden_dropout_prob=0.1)
    whole = make_distiller(tmp_path / "whole", tiny_tokenizer, student=copy.deepcopy(student), **settings)
    whole.train()
    stopped = make_distiller(
        tmp_path / "stopped", tiny_tokenizer, student=copy.deepcopy(student), callbacks=[StopAfter(6)], **settings
    )
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    assert all(parameter.requires_grad for parameter in stopped.model.parameters())
    resumed = make_distiller(tmp_path / "stopped", tiny_tokenizer, student=copy.deepcopy(student), **settings)
    resumed.train(resume_from_checkpoint=True)
    assert_equal(weights_of(whole), weights_of(resumed))


@pytest.mark.parametrize("settings", [{}, {"bf16": True}], ids=["float32", "bf16"])
def test_cached_teacher_teaches_the_same_and_runs_once(
    tmp_path: Path, tiny_tokenizer: Any, settings: dict[str, Any]
) -> None:
    """Two epochs; a second training with the same cache does not run the teacher at all."""
    settings = settings | {"num_train_epochs": 2, "max_steps": -1, "teacher_layer": 2}
    settings["blocks"] = make_blocks(tiny_tokenizer)
    plain = make_distiller(tmp_path, tiny_tokenizer, **settings)
    plain.train()
    for passes in (len(plain.get_train_dataloader()), 0):
        teacher = make_bert()
        cached = make_distiller(
            tmp_path, tiny_tokenizer, teacher=teacher, teacher_cache=str(tmp_path / "cache"), **settings
        )
        calls = count_calls([teacher.encoder.layer[0]])
        cached.train()
        assert len(calls) == passes
        tolerance = {"atol": 1e-2, "rtol": 1e-2} if "bf16" in settings else {"atol": 1e-4, "rtol": 1e-3}
        assert_equal(weights_of(plain), weights_of(cached), **tolerance)


def test_cache_is_not_read_while_evaluating(tmp_path: Path, tiny_tokenizer: Any) -> None:
    """Rows of evaluation data have numbers of their own."""
    settings = {"eval_dataset": make_blocks(tiny_tokenizer, max_length=8)}
    plain = make_distiller(tmp_path, tiny_tokenizer, **settings)
    cached = make_distiller(tmp_path, tiny_tokenizer, teacher_cache=str(tmp_path / "cache"), **settings)
    for trainer in (plain, cached):
        trainer.train()
    assert cached.evaluate()["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"], rel=1e-4)


def test_cache_covers_teacher_layer_precision_and_data(tmp_path: Path, tiny_tokenizer: Any) -> None:
    folder = tmp_path / "cache"
    other = make_bert()
    with torch.no_grad():
        other.encoder.layer[1].output.dense.bias[0] += 1.0
    after = make_bert()
    with torch.no_grad():
        after.encoder.layer[2].output.dense.bias[0] += 1.0
    runs = [
        {},
        {"teacher_layer": 1},
        {"teacher": other},
        {"teacher": make_bert(layer_norm_eps=1e-3)},
        {"blocks": make_blocks(tiny_tokenizer)},
        {"bf16": True},
    ]
    for number, settings in enumerate(runs, start=1):
        make_distiller(tmp_path, tiny_tokenizer, teacher_cache=str(folder), **({"teacher_layer": 2} | settings))
        assert len(list(folder.iterdir())) == number
    same = [{}, {"teacher": after}, {"relation_heads": 1}, {"student": make_student(make_bert())}]
    for settings in same:  # what comes after the states that are kept does not matter
        make_distiller(tmp_path, tiny_tokenizer, teacher_cache=str(folder), teacher_layer=2, **settings)
        assert len(list(folder.iterdir())) == len(runs)


def test_quala_minilm_can_teach_and_learn(tmp_path: Path, tiny_tokenizer: Any) -> None:
    torch.manual_seed(0)
    teacher = QuaLAMiniLMModel(tiny_config(budgets={"fast": {"retention": [1.0, 1.0, 0.5, 0.5]}}))
    student = make_student(teacher, STUDENT)
    assert isinstance(student, QuaLAMiniLMModel)
    assert student.config.budgets == {}
    trainer = make_distiller(tmp_path, tiny_tokenizer, teacher=teacher, student=student)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    teacher.set_budget("fast")
    with pytest.raises(ConfigurationError, match="the teacher runs at the budget 1,1,0.5,0.5, but"):
        make_distiller(tmp_path, tiny_tokenizer, teacher=teacher, student=student)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"relation_heads": 5}, "relation_heads 5 does not divide the hidden size 48 of the teacher"),
        ({"relation_heads": 16}, "relation_heads 16 does not divide the hidden size 24 of the student"),
        ({"relation_heads": 0}, "relation_heads 0 is less than 1"),
        ({"relation_heads": 2, "method": "minilm"}, "relation_heads 2 belongs to minilmv2; minilm compares"),
        (
            {"method": "minilm"},
            "'minilm' compares attention heads one by one, but the teacher has 4 and the student 2",
        ),
        ({"method": "tinybert"}, r"method 'tinybert' is not one of \['minilm', 'minilmv2'\]"),
        ({"teacher_layer": 4}, "teacher_layer 4 is none of the teacher's layers 0 to 3"),
        ({"teacher_layer": -1}, "teacher_layer -1 is none of the teacher's layers 0 to 3"),
        ({"teacher_layer": 1.0}, "teacher_layer 1.0 is not a whole number"),
        ({"relation_heads": "8"}, "relation_heads '8' is not a whole number"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor 0.1 has no effect without labels; leave it out"),
        (
            {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
            "has no gradients under reentrant checkpoints; set gradient_checkpointing_kwargs={'use_reentrant': False}",
        ),
        ({"torch_compile": True}, "which torch_compile=True hides"),
        ({"teacher_cache": "cache", "blocks": [{"input_ids": [2, 3]}]}, "train_dataset must be TextBlocks, not list"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, tiny_tokenizer: Any, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make_distiller(tmp_path, tiny_tokenizer, **settings)


def test_models_that_do_not_fit_are_refused(tmp_path: Path, tiny_tokenizer: Any) -> None:
    size = len(tiny_tokenizer)
    with pytest.raises(ConfigurationError, match=f"the model embeds 20 tokens, but the tokenizer has {size}; both"):
        make_distiller(tmp_path, tiny_tokenizer, student=make_bert(vocab_size=20))
    teacher = make_bert()
    student = make_student(teacher, STUDENT)
    student.embeddings.LayerNorm = teacher.embeddings.LayerNorm
    message = "the teacher shares parameters with the model, such as embeddings.LayerNorm.weight, and a teacher does"
    with pytest.raises(ConfigurationError, match=message):
        make_distiller(tmp_path, tiny_tokenizer, teacher=teacher, student=student)
    foreign = DistilBertModel(DistilBertConfig(vocab_size=200, dim=24, n_layers=1, n_heads=2, hidden_dim=8))
    with pytest.raises(ConfigurationError, match="the student is a DistilBertModel, whose layers are not built as"):
        make_distiller(tmp_path, tiny_tokenizer, student=foreign)
    electra = ElectraModel(ElectraConfig(**(SIZES | {"embedding_size": 16})))
    message = "the teacher is a ElectraModel, which learns embeddings_project.weight besides its embeddings"
    with pytest.raises(ConfigurationError, match=message):
        make_distiller(tmp_path, tiny_tokenizer, teacher=electra)
    with pytest.raises(ConfigurationError, match=message):
        make_student(electra, StudentOptions.of_layers(electra.config, (0, 1)))
    with pytest.raises(ConfigurationError, match=message.replace("teacher", "student")):
        make_distiller(tmp_path, tiny_tokenizer, student=electra)
    wide = ElectraModel(ElectraConfig(**(SIZES | {"embedding_size": SIZES["hidden_size"]})))
    student = make_student(wide, StudentOptions.of_layers(wide.config, (0, 1)))
    make_distiller(tmp_path, tiny_tokenizer, teacher=wide, student=student)  # its layers are those of BERT
    short = make_student(make_bert(), STUDENT, max_position_embeddings=10)
    with pytest.raises(ConfigurationError, match="a row has 14 tokens, but the student takes at most 10"):
        make_distiller(tmp_path, tiny_tokenizer, student=short)


def test_rows_of_unknown_length_are_refused_when_they_come(tmp_path: Path, tiny_tokenizer: Any) -> None:
    rows = [{"input_ids": [2, 5, 6, 7, 3], "attention_mask": [1] * 5}] * 4
    with pytest.raises(ConfigurationError, match="a row has 5 tokens, but the teacher takes at most 4; choose a"):
        make_distiller(tmp_path, tiny_tokenizer, teacher=make_bert(max_position_embeddings=4), blocks=rows).train()


def test_loss_function_of_the_trainer_is_refused(tmp_path: Path) -> None:
    teacher, args = make_bert(), MiniLMDistillationArguments(output_dir=str(tmp_path), use_cpu=True)
    with pytest.raises(ConfigurationError, match="compute_loss_func has no effect on this trainer, which has losses"):
        MiniLMDistillationTrainer(make_student(teacher, STUDENT), args, teacher, compute_loss_func=len)


def test_padded_embeddings_and_a_teacher_in_training_mode_change_nothing(
    tmp_path: Path, tiny_tokenizer: Any, baseline: dict[str, torch.Tensor]
) -> None:
    """Eight rows that no token reads; dropout, which evaluation mode turns off."""
    teacher, plain = make_bert(), make_bert(hidden_dropout_prob=0.5)
    plain.load_state_dict(teacher.state_dict())
    plain.resize_token_embeddings(208)
    trainer = make_distiller(tmp_path, tiny_tokenizer, teacher=plain, student=make_student(teacher, STUDENT))
    trainer.teacher.train()
    trainer.train()
    assert_equal(weights_of(trainer), baseline)


def test_several_gpus_in_one_process_are_refused(
    tmp_path: Path, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.TrainingArguments.n_gpu", property(lambda self: 2))
    with pytest.raises(ConfigurationError, match="this process sees 2 GPUs: .*torchrun with .*run_qa.py"):
        make_distiller(tmp_path, tiny_tokenizer)


def test_student_may_start_from_the_teacher(tmp_path: Path, tiny_tokenizer: Any) -> None:
    """The loss of a copy of the teacher's first layers is 0 at the layer that it is a copy of."""
    teacher = make_bert()
    student = make_student(teacher, StudentOptions.of_layers(teacher.config, (0, 1)))
    trainer = make_distiller(tmp_path, tiny_tokenizer, teacher=teacher, student=student, teacher_layer=1)
    assert isinstance(student.encoder.layer, nn.ModuleList)
    assert trainer.compute_loss(student, make_batch(trainer)).item() == pytest.approx(0.0, abs=1e-6)
