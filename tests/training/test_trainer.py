"""The real Trainer on a tiny model and records of a few words."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForQuestionAnswering

from optimum_qala import LengthConfig, QuaLATrainer, QuaLATrainingArguments
from optimum_qala.distillation.divergences import span_divergence
from optimum_qala.errors import ConfigurationError, UnknownBudgetError
from optimum_qala.question_answering.answers import DecodeOptions
from optimum_qala.question_answering.features import tokenize_for_training
from optimum_qala.question_answering.records import QARecord
from tests.training.runs import WINDOWS, assert_resumes_identically, gradients_of, make_batch, make_trainer


def test_training_step_gradient_is_the_mean_over_passes(
    tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any, records: list[QARecord]
) -> None:
    """Oracle: one backward pass through the summed loss, written out."""
    trainer = make_trainer(tmp_path, tiny_model, tiny_tokenizer, records, num_random_sub_models=2)
    trainer.create_optimizer_and_scheduler(4)
    trainer.current_gradient_accumulation_steps = 1
    batch = make_batch(records[:4], tiny_tokenizer)
    reference = copy.deepcopy(tiny_model).train()

    loss = trainer.training_step(tiny_model, dict(batch))

    full = reference(**batch, budget="full")
    logits = (full.start_logits.detach(), full.end_logits.detach())
    sub_models = trainer.draw_sub_models(0, 0)
    expected = full.loss
    features = {name: value for name, value in batch.items() if not name.endswith("positions")}
    for sub_model in sub_models:
        sub = reference(**features, budget=sub_model.length_config)
        expected = expected + span_divergence(logits, (sub.start_logits, sub.end_logits), batch["attention_mask"])
    expected = expected / 4
    expected.backward()
    assert len(sub_models) == 3
    torch.testing.assert_close(loss, expected.detach())
    for name, gradient in gradients_of(reference).items():
        torch.testing.assert_close(gradients_of(tiny_model)[name], gradient, msg=name)


def test_training_step_runs_one_forward_per_pass(
    tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any, records: list[QARecord]
) -> None:
    trainer = make_trainer(tmp_path, tiny_model, tiny_tokenizer, records, max_steps=1, num_random_sub_models=2)
    calls = []
    tiny_model.register_forward_pre_hook(lambda *_: calls.append(1))
    trainer.train()
    assert len(calls) == 4


def test_sub_models_do_not_repeat_what_the_full_length_pass_computed(
    tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any, records: list[QARecord]
) -> None:
    tiny_model.config.drop_layers = [2, 3]
    trainer = make_trainer(tmp_path, tiny_model, tiny_tokenizer, records, max_steps=1, num_random_sub_models=2)
    ran = []
    for index, layer in enumerate(tiny_model.quala.encoder.layer):
        layer.register_forward_pre_hook(lambda *_, index=index: ran.append(index))
    trainer.train()
    assert ran == [0, 1, 2, 3] + 3 * [2, 3]


def test_gradient_accumulation_equals_the_large_batch(
    tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any, records: list[QARecord]
) -> None:
    """Two batches of four give the gradient of one of eight, where both halves draw the same sub-models."""
    batch = make_batch(records[:8], tiny_tokenizer)
    halves = [{name: value[part] for name, value in batch.items()} for part in (slice(0, 4), slice(4, 8))]
    whole_model = copy.deepcopy(tiny_model)

    def prepare(model: Any, steps: int) -> QuaLATrainer:
        trainer = make_trainer(tmp_path, model, tiny_tokenizer, records, num_random_sub_models=0)
        trainer.create_optimizer_and_scheduler(4)
        trainer.current_gradient_accumulation_steps = steps
        return trainer

    prepare(whole_model, 1).training_step(whole_model, batch)
    trainer = prepare(tiny_model, 2)
    for half in halves:
        trainer.training_step(tiny_model, half)
    for name, gradient in gradients_of(whole_model).items():
        torch.testing.assert_close(gradients_of(tiny_model)[name], gradient, msg=name, atol=1e-5, rtol=1e-4)


def test_training_learns_and_logs_each_pass(
    tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any, records: list[QARecord]
) -> None:
    trainer = make_trainer(tmp_path, tiny_model, tiny_tokenizer, records, max_steps=60, learning_rate=3e-3)
    trainer.train()
    losses = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1]["loss_full"] < losses[0]["loss_full"] / 2
    assert {"loss_full", "loss_smallest", "loss_random"} <= set(losses[0])


def test_evaluation_reports_f1_per_budget(
    tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any, records: list[QARecord]
) -> None:
    tiny_model.config.budgets = {"fast": {"retention": [1, 1, 0.5, 0.5]}}
    trainer = make_trainer(
        tmp_path,
        tiny_model,
        tiny_tokenizer,
        records,
        eval_dataset=records[:6],
        eval_strategy="steps",
        eval_steps=4,
        eval_budgets=["fast", "1,0.9,0.8,0.7"],
        save_strategy="steps",
        save_steps=4,
        load_best_model_at_end=True,
        metric_for_best_model="fast_f1",
        greater_is_better=True,
    )
    trainer.train()
    logged = next(entry for entry in trainer.state.log_history if "eval_f1" in entry)
    assert {"eval_loss", "eval_f1", "eval_exact_match", "eval_fast_f1", "eval_1,0.9,0.8,0.7_f1"} <= set(logged)
    assert trainer.state.best_metric == logged["eval_fast_f1"]


@pytest.fixture
def impossible(records: list[QARecord]) -> list[QARecord]:
    return [QARecord(record.id, record.question, record.context, is_impossible=True) for record in records[:4]]


def test_evaluation_of_impossible_questions_lets_them_stay_open(
    tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any, records: list[QARecord], impossible: list[QARecord]
) -> None:
    evaluated = {
        name: make_trainer(tmp_path, tiny_model, tiny_tokenizer, records, eval_dataset=dataset)
        for name, dataset in {"v1": records[:4], "v2": [*records[:4], impossible[0]]}.items()
    }
    assert evaluated["v1"].decode_options == DecodeOptions()
    assert evaluated["v2"].decode_options == DecodeOptions(allow_no_answer=True)


@pytest.mark.parametrize(
    ("decode_options", "expected"),
    [
        (DecodeOptions(), 0.0),
        (DecodeOptions(allow_no_answer=True, null_threshold=-1e6), 100.0),
        (DecodeOptions(allow_no_answer=True, null_threshold=1e6), 0.0),
    ],
    ids=["without", "always", "never"],
)
def test_decode_options_decide_the_scores(
    tmp_path: Path,
    tiny_model: Any,
    tiny_tokenizer: Any,
    records: list[QARecord],
    impossible: list[QARecord],
    decode_options: DecodeOptions,
    expected: float,
) -> None:
    settings = {"eval_dataset": impossible, "decode_options": decode_options}
    trainer = make_trainer(tmp_path, tiny_model, tiny_tokenizer, records, **settings)
    assert trainer.evaluate()["eval_exact_match"] == expected


def test_evaluation_of_features_reports_the_loss(
    tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any, records: list[QARecord]
) -> None:
    features = tokenize_for_training(records[:6], tiny_tokenizer, WINDOWS)
    trainer = make_trainer(tmp_path, tiny_model, tiny_tokenizer, records, eval_dataset=features)
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] > 0
    assert "eval_f1" not in metrics


def test_interrupted_training_resumes_identically(
    tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any, records: list[QARecord]
) -> None:
    settings = {
        "max_steps": 8,
        "save_strategy": "steps",
        "save_steps": 3,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 2,
        "layer_drop_prob": 0.3,
    }
    tiny_model.config.hidden_dropout_prob = 0.1  # random numbers that only the checkpoint knows
    for module in tiny_model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1
    assert_resumes_identically(5, tmp_path, tiny_model, tiny_tokenizer, records, **settings)


def test_draw_sub_models_depends_on_seed_and_step_alone(
    tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any, records: list[QARecord]
) -> None:
    trainer = make_trainer(tmp_path, tiny_model, tiny_tokenizer, records, num_random_sub_models=2)
    first = trainer.draw_sub_models(3, 1)
    assert [sub_model.name for sub_model in first] == ["smallest", "random", "random"]
    assert first == trainer.draw_sub_models(3, 1)
    assert first != trainer.draw_sub_models(4, 1)
    assert first != trainer.draw_sub_models(3, 0)
    trainer.args.seed = 7
    assert first != trainer.draw_sub_models(3, 1)


def test_sub_models_drop_only_where_the_model_may(
    tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any, records: list[QARecord]
) -> None:
    tiny_model.config.drop_layers = [1, 3]
    trainer = make_trainer(tmp_path, tiny_model, tiny_tokenizer, records, drop_ratio_bound=0.5)
    smallest, drawn = trainer.draw_sub_models(0, 0)
    assert smallest.length_config == LengthConfig((1.0, 0.5, 0.5, 0.25))
    assert set(drawn.length_config.drop_layers) <= {1, 3}


def test_layer_drop_skips_layers(
    tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any, records: list[QARecord]
) -> None:
    trainer = make_trainer(tmp_path, tiny_model, tiny_tokenizer, records, layer_drop_prob=0.5)
    drawn = [sub_model.skip_layers for step in range(20) for sub_model in trainer.draw_sub_models(step, 0)]
    assert any(drawn)
    assert all(len(skip) < tiny_model.config.num_hidden_layers for skip in drawn)


@pytest.mark.parametrize(
    "setting",
    [
        {"divergence": "reverse"},
        {"divergence": "skew"},
        {"temperature": 3.0},
        {"sub_model_label_weight": 0.5},
        {"smallest_sub_model": False},
        {"num_random_sub_models": 2},
        {"drop_ratio_bound": 0.1},
        {"layer_drop_prob": 0.6},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_every_option_changes_the_training(
    tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any, records: list[QARecord], setting: dict[str, Any]
) -> None:
    plain, changed = copy.deepcopy(tiny_model), copy.deepcopy(tiny_model)
    make_trainer(tmp_path, plain, tiny_tokenizer, records, max_steps=2).train()
    make_trainer(tmp_path, changed, tiny_tokenizer, records, max_steps=2, **setting).train()
    assert not torch.equal(plain.qa_outputs.weight, changed.qa_outputs.weight)


def test_skew_changes_the_training(
    tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any, records: list[QARecord]
) -> None:
    models = [copy.deepcopy(tiny_model) for _ in range(2)]
    for model, skew in zip(models, (0.1, 0.6), strict=True):
        make_trainer(tmp_path, model, tiny_tokenizer, records, max_steps=2, divergence="skew", skew=skew).train()
    assert not torch.equal(models[0].qa_outputs.weight, models[1].qa_outputs.weight)


def small_bert(**settings: Any) -> BertForQuestionAnswering:
    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return BertForQuestionAnswering(BertConfig(**({"vocab_size": 200, "initializer_range": 0.5} | sizes | settings)))


@pytest.fixture
def teacher() -> BertForQuestionAnswering:
    return small_bert()


def test_teacher_steers_the_full_model_and_is_not_saved(
    tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any, records: list[QARecord], teacher: Any
) -> None:
    plain = copy.deepcopy(tiny_model)
    taught = {weight: copy.deepcopy(tiny_model) for weight in (0.5, 1.0)}
    make_trainer(tmp_path, plain, tiny_tokenizer, records, max_steps=2).train()
    for weight, model in taught.items():
        trainer = make_trainer(
            tmp_path, model, tiny_tokenizer, records, max_steps=2, teacher=teacher, teacher_weight=weight
        )
        trainer.train()
    assert not torch.equal(plain.qa_outputs.weight, taught[0.5].qa_outputs.weight)
    assert not torch.equal(taught[0.5].qa_outputs.weight, taught[1.0].qa_outputs.weight)
    assert not teacher.training
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert set(trainer.model.state_dict()) == set(plain.state_dict())


def test_weight_of_a_teacher_that_is_not_there_is_refused(tmp_path: Path, tiny_model: Any) -> None:
    message = "teacher_weight 0.9 has no effect without a teacher; leave it out, or give one"
    with pytest.raises(ConfigurationError, match=message):
        QuaLATrainer(tiny_model, QuaLATrainingArguments(output_dir=str(tmp_path), use_cpu=True, teacher_weight=0.9))


def share_embeddings(model: Any, teacher: Any) -> Any:
    teacher.bert.embeddings.word_embeddings = model.quala.embeddings.word_embeddings
    return teacher


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda model, _: model, "the teacher shares parameters with the model, such as quala.embeddings"),
        (share_embeddings, "such as bert.embeddings.word_embeddings.weight, and a teacher does not learn; give copy"),
        (lambda _, teacher: teacher.bert, "the teacher is a BertModel, which answers no questions; load it with"),
        (
            lambda *_: small_bert(vocab_size=20),
            r"the teacher embeds 20 tokens, but the tokenizer has \d+; both models",
        ),
        (
            lambda *_: small_bert(max_position_embeddings=24),
            r"a row has \d+ tokens, but the teacher takes at most 24;",
        ),
    ],
    ids=["same", "shared", "headless", "vocabulary", "positions"],
)
def test_teacher_that_cannot_teach_is_refused(
    tmp_path: Path,
    tiny_model: Any,
    tiny_tokenizer: Any,
    records: list[QARecord],
    teacher: Any,
    make: Any,
    message: str,
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make_trainer(tmp_path, tiny_model, tiny_tokenizer, records, teacher=make(tiny_model, copy.deepcopy(teacher)))


def test_models_for_something_else_are_refused(tmp_path: Path, tiny_model: Any, teacher: Any) -> None:
    args = QuaLATrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    with pytest.raises(
        ConfigurationError, match="the model is a BertForQuestionAnswering, which drops no tokens; load"
    ):
        QuaLATrainer(teacher, args)
    with pytest.raises(ConfigurationError, match="the model is a QuaLAMiniLMModel, which answers no questions"):
        QuaLATrainer(tiny_model.quala, args)
    with pytest.raises(ConfigurationError, match="compute_loss_func has no effect on this trainer, which has losses"):
        QuaLATrainer(tiny_model, args, compute_loss_func=len)
    message = "the teacher has a vocabulary of 208 tokens, the model one of 200; .*, pass processing_class=tokenizer"
    with pytest.raises(ConfigurationError, match=message):
        QuaLATrainer(tiny_model, args, teacher=small_bert(vocab_size=208))


def test_features_that_are_too_long_for_the_teacher_are_refused_when_they_come(
    tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any, records: list[QARecord]
) -> None:
    features = list(tokenize_for_training(records, tiny_tokenizer, WINDOWS))
    trainer = make_trainer(
        tmp_path, tiny_model, tiny_tokenizer, features, teacher=small_bert(max_position_embeddings=24)
    )
    with pytest.raises(ConfigurationError, match=r"a row has \d+ tokens, but the teacher takes at most 24; choose a"):
        trainer.train()


def test_form_of_the_teacher_does_not_change_the_training(
    tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any, records: list[QARecord]
) -> None:
    """Embeddings that no token reads, no second type of tokens, and a teacher that was put into training mode."""
    plain = small_bert()
    other = small_bert(type_vocab_size=1, hidden_dropout_prob=0.5)
    state, name = plain.state_dict(), "bert.embeddings.token_type_embeddings.weight"
    state[name][1] = state[name][0]
    other.load_state_dict(state | {name: state[name][:1]})
    other.resize_token_embeddings(208)
    losses = []
    for teacher in (plain, other):
        model = copy.deepcopy(tiny_model)
        trainer = make_trainer(tmp_path, model, tiny_tokenizer, records, max_steps=2, teacher=teacher)
        teacher.train()
        trainer.train()
        losses.append([entry.get("loss_full") for entry in trainer.state.log_history])
    assert losses[0] == losses[1]
    assert losses[0][0] > 0.0


def test_bf16_trains_with_finite_losses(
    tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any, records: list[QARecord]
) -> None:
    dtypes = []
    tiny_model.quala.encoder.layer[0].intermediate.dense.register_forward_hook(
        lambda _module, _inputs, output: dtypes.append(output.dtype)
    )
    trainer = make_trainer(tmp_path, tiny_model, tiny_tokenizer, records, bf16=True)
    result = trainer.train()
    assert set(dtypes) == {torch.bfloat16}
    assert torch.isfinite(torch.tensor(result.training_loss))
    assert all(torch.isfinite(value).all() for value in tiny_model.state_dict().values())


@pytest.mark.parametrize(("bf16", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_teacher_runs_in_the_precision_of_the_training(
    tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any, records: list[QARecord], teacher: Any, bf16: bool, dtype: Any
) -> None:
    dtypes = []
    teacher.bert.encoder.layer[0].intermediate.dense.register_forward_hook(
        lambda _module, _inputs, output: dtypes.append(output.dtype)
    )
    make_trainer(tmp_path, tiny_model, tiny_tokenizer, records, max_steps=1, bf16=bf16, teacher=teacher).train()
    assert set(dtypes) == {dtype}


def test_training_without_sub_models_says_so(
    tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any, records: list[QARecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    from optimum_qala.training import trainer as module

    messages: list[str] = []
    monkeypatch.setattr(module.logger, "warning", messages.append)
    make_trainer(tmp_path, tiny_model, tiny_tokenizer, records)
    assert messages == []
    trainer = make_trainer(tmp_path, tiny_model, tiny_tokenizer, records, drop_ratio_bound=0.0, max_steps=1)
    assert any("Length-adaptive training is OFF" in message for message in messages)
    calls = []
    tiny_model.register_forward_pre_hook(lambda *_: calls.append(1))
    trainer.train()
    assert len(calls) == 1


def test_saved_model_loads_with_its_budgets(
    tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any, records: list[QARecord]
) -> None:
    budget = {"retention": [1.0, 1.0, 0.5, 0.5]}
    tiny_model.config.budgets = {"fast": {**budget, "f1": 99.0, "latency_ms": []}}
    trainer = make_trainer(tmp_path, tiny_model, tiny_tokenizer, records, max_steps=1)
    assert "f1" in tiny_model.config.budgets["fast"]
    trainer.train()
    assert tiny_model.config.budgets == {"fast": budget}, "what was measured was measured before"
    trainer.save_model(str(tmp_path / "saved"))
    loaded = type(tiny_model).from_pretrained(tmp_path / "saved").eval()
    batch = make_batch(records[:3], tiny_tokenizer)
    with torch.no_grad():
        expected = tiny_model.eval()(**batch, budget="fast").start_logits
        torch.testing.assert_close(loaded(**batch, budget="fast").start_logits, expected)
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["budgets"] == tiny_model.config.budgets
    assert (tmp_path / "saved" / "tokenizer.json").is_file()


def test_records_without_tokenizer_are_refused(tmp_path: Path, tiny_model: Any, records: list[QARecord]) -> None:
    with pytest.raises(ConfigurationError, match="pass processing_class=tokenizer"):
        make_trainer(tmp_path, tiny_model, None, records)


def test_unknown_eval_budget_is_refused_before_training(
    tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any, records: list[QARecord]
) -> None:
    with pytest.raises(UnknownBudgetError, match="no budget 'quick'"):
        make_trainer(tmp_path, tiny_model, tiny_tokenizer, records, eval_budgets=["quick"])


def test_several_gpus_in_one_process_are_refused(
    tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any, records: list[QARecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(QuaLATrainingArguments, "n_gpu", property(lambda _: 2))
    with pytest.raises(ConfigurationError, match="this process sees 2 GPUs: .*torchrun with .*run_qa.py"):
        make_trainer(tmp_path, tiny_model, tiny_tokenizer, records)
