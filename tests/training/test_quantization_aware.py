"""Quantization-aware training: what is learned, what is saved, and that it goes on where it stopped."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from optimum_qala import QuaLAMiniLMForQuestionAnswering
from optimum_qala.distillation.divergences import span_divergence
from optimum_qala.errors import CheckpointError, ConfigurationError
from optimum_qala.quantization.fake_quantization import FakeQuantization
from optimum_qala.quantization.qat_record import QATRecord, site_names
from tests.conftest import tiny_config
from tests.training.conftest import make_records
from tests.training.runs import assert_resumes_identically, gradients_of, make_batch, make_trainer


def make_model(**overrides: Any) -> QuaLAMiniLMForQuestionAnswering:
    torch.manual_seed(0)
    return QuaLAMiniLMForQuestionAnswering(tiny_config(num_hidden_layers=2, **overrides))


@pytest.fixture(scope="module")
def _model() -> QuaLAMiniLMForQuestionAnswering:
    return make_model(token_scoring="answer")


@pytest.fixture
def model(_model: QuaLAMiniLMForQuestionAnswering) -> QuaLAMiniLMForQuestionAnswering:
    return copy.deepcopy(_model)


@torch.no_grad()
def divergence(quantization: FakeQuantization, batch: dict[str, torch.Tensor], teacher: Any) -> float:
    """KL divergence of the answers of a rounded model from those of a teacher."""
    with quantization.active():
        learned = quantization.model.eval()(**batch, budget="full")
    taught = teacher(**batch, budget="full")
    pairs = ((taught.start_logits, learned.start_logits), (taught.end_logits, learned.end_logits))
    return float(span_divergence(*zip(*pairs, strict=True), batch["attention_mask"], kind="forward"))


@pytest.mark.parametrize("bits", [4, 2])
def test_training_brings_the_rounded_model_nearer_to_the_float_one(tmp_path, tiny_tokenizer, records, bits):
    """Nearer than rounding after training is; the teacher is the model before."""
    model = make_model()
    teacher, batch = copy.deepcopy(model).eval(), make_batch(records, tiny_tokenizer)
    trainer = make_trainer(
        tmp_path,
        model,
        tiny_tokenizer,
        records,
        teacher=teacher,
        teacher_weight=1.0,
        quantization_aware=True,
        weight_bits=bits,
        auxiliary_losses={"attention_maps": 1.0, "attention_outputs": 1.0},
        sub_model_auxiliary_losses={"attention_outputs": 1.0},
        max_steps=30,
        learning_rate=2e-3,
    )
    trainer.begin_training(is_resumed=False)
    before = divergence(trainer.fake_quantization, batch, teacher)
    trainer.train()
    logs = [entry["loss_full"] for entry in trainer.state.log_history if "loss_full" in entry]
    assert sum(logs[-5:]) < 0.8 * sum(logs[:5])
    after = divergence(trainer.fake_quantization, batch, teacher)
    assert after < 0.7 * before
    again = FakeQuantization.from_record(model, QATRecord.of(model.config, "it"))
    assert divergence(again, batch, teacher) == after


def train(tmp_path, model, tokenizer, records, **settings):
    """Train some steps; return the trainer."""
    trainer = make_trainer(tmp_path, model, tokenizer, records, **({"quantization_aware": True} | settings))
    trainer.train()
    return trainer


FACTOR = 1.01  # at which the random model has outlier neurons


def train_briefly(folder, model, tokenizer, records, **settings):
    """Train two steps; return all weights in one vector, and the trainer."""
    trainer = train(folder, copy.deepcopy(model), tokenizer, records, max_steps=2, **settings)
    return torch.cat([values.detach().flatten() for values in trainer.model.parameters()]), trainer


@pytest.fixture(scope="module")
def baseline(_model, tiny_tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("baseline")
    return train_briefly(folder, _model, tiny_tokenizer, make_records(), outlier_factor=FACTOR)[0]


@pytest.mark.parametrize(
    "changed",
    [
        {"quantization_aware": False},
        {"outlier_factor": FACTOR, "weight_bits": 4},
        {"outlier_factor": FACTOR, "weight_bits": 2},
        {"outlier_factor": 9.0},
        {"outlier_factor": 0.0},
        {"outlier_factor": FACTOR, "range_averaging": 0.9},
    ],
    ids=str,
)
def test_option_changes_the_weights(tmp_path, _model, tiny_tokenizer, records, baseline, changed):
    weights, trainer = train_briefly(tmp_path, _model, tiny_tokenizer, records, **changed)
    assert not torch.equal(weights, baseline)
    if trainer.fake_quantization is not None:
        assert bool(trainer.fake_quantization.outlier_neurons) is (trainer.args.outlier_factor == FACTOR)


def test_interrupted_training_goes_on_with_its_ranges(tmp_path, model, tiny_tokenizer, records):
    settings = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 1, "max_steps": 4}
    settings |= {"quantization_aware": True, "weight_bits": 2, "gradient_accumulation_steps": 2}
    assert_resumes_identically(3, tmp_path, model, tiny_tokenizer, records, **settings)
    stored = [
        QuaLAMiniLMForQuestionAnswering.from_pretrained(tmp_path / name / "out" / "checkpoint-4").config
        for name in ("whole", "killed")
    ]
    assert stored[0].quantization_aware == stored[1].quantization_aware is not None


def test_ranges_take_one_step_for_all_batches_of_an_optimisation_step(tmp_path, model, tiny_tokenizer, records):
    """And stand still while it lasts."""
    trainer = make_trainer(
        tmp_path, model, tiny_tokenizer, records, quantization_aware=True, num_random_sub_models=0, learning_rate=0.0
    )
    trainer.begin_training(is_resumed=False)
    before = trainer.fake_quantization.ranges.clone()
    halves = [make_batch(records[:4], tiny_tokenizer), make_batch(records[4:12], tiny_tokenizer)]
    for half in halves:
        trainer.current_gradient_accumulation_steps = 2
        trainer.training_step(model, half)
    assert torch.equal(trainer.fake_quantization.ranges, before)
    trainer.learn_ranges()
    both = copy.deepcopy(trainer.fake_quantization.ranges)
    trainer.fake_quantization.ranges = before
    trainer.training_step(model, make_batch(records[:12], tiny_tokenizer))
    trainer.learn_ranges()
    torch.testing.assert_close(trainer.fake_quantization.ranges, both)
    assert not torch.equal(both, before)


@pytest.mark.parametrize(
    ("scoring", "settings"),
    [
        ("answer", {"early_exit_prob": 0.5, "layer_drop_prob": 0.3, "num_random_sub_models": 2}),
        ("question", {"bf16": True}),
        ("attention", {"bf16": True, "weight_bits": 2}),
    ],
    ids=["answer", "question", "attention"],
)
def test_all_weights_learn_with_every_token_score(tmp_path, tiny_tokenizer, records, scoring, settings):
    model = make_model(token_scoring=scoring)
    trainer = make_trainer(tmp_path, model, tiny_tokenizer, records, quantization_aware=True, **settings)
    trainer.current_gradient_accumulation_steps = 1
    trainer.begin_training(is_resumed=False)
    trainer.training_step(model, make_batch(records, tiny_tokenizer))
    gradients = gradients_of(model)
    assert gradients.keys() == dict(model.named_parameters()).keys()
    assert all(torch.isfinite(values).all() for values in gradients.values())
    assert "forward" not in vars(model.qa_outputs)


def test_evaluation_is_that_of_the_rounded_model_with_frozen_ranges(tmp_path, model, tiny_tokenizer, records):
    trainer = train(
        tmp_path, model, tiny_tokenizer, records, eval_dataset=records[:4], weight_bits=2, eval_budgets=["0.8,0.5"]
    )
    ranges = trainer.fake_quantization.ranges.clone()
    metrics = trainer.evaluate()
    assert torch.equal(trainer.fake_quantization.ranges, ranges)
    batch = make_batch(records[:4], tiny_tokenizer)
    quantization = FakeQuantization.from_record(model, QATRecord.of(model.config, "it"))
    with torch.no_grad():
        for name, budget in (("eval_loss", "full"), ("eval_0.8,0.5_loss", "0.8,0.5")):
            in_float = float(model.eval()(**batch, budget=budget).loss)
            with quantization.active():
                rounded = float(model(**batch, budget=budget).loss)
            assert metrics[name] == pytest.approx(rounded, rel=1e-5)
            assert metrics[name] != pytest.approx(in_float, rel=1e-3)
    assert "eval_f1" in metrics


def test_checkpoint_holds_weights_before_rounding_and_the_record(tmp_path, model, tiny_tokenizer, records):
    trainer = train(tmp_path, model, tiny_tokenizer, records, weight_bits=2)
    trainer.save_model(str(tmp_path / "saved"))
    loaded = QuaLAMiniLMForQuestionAnswering.from_pretrained(tmp_path / "saved")
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    assert loaded.quala.encoder.layer[0].intermediate.dense.weight.unique().numel() > 3
    record = QATRecord.of(loaded.config, "it")
    assert record.weight_bits == 2
    assert set(record.activation_ranges) == set(site_names(2))
    # A model that was trained so is evaluated without training data.
    again = make_trainer(
        tmp_path / "again", loaded, tiny_tokenizer, None, eval_dataset=records[:4], quantization_aware=True
    )
    trainer.eval_dataset = again.eval_dataset
    assert again.evaluate()["eval_loss"] == pytest.approx(trainer.evaluate()["eval_loss"], rel=1e-5)
    # What it learned about roundings is no longer true after another training.
    make_trainer(tmp_path / "float", loaded, tiny_tokenizer, records, max_steps=1).train()
    assert loaded.config.quantization_aware is None


def test_best_checkpoint_comes_back_with_its_ranges(tmp_path, model, tiny_tokenizer, records):
    settings = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "max_steps": 3}
    trainer = train(
        tmp_path,
        model,
        tiny_tokenizer,
        records,
        eval_dataset=records[:4],
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=True,
        range_averaging=0.9,
        **settings,
    )
    best = QuaLAMiniLMForQuestionAnswering.from_pretrained(trainer.state.best_model_checkpoint).config
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-1")
    assert model.config.quantization_aware == best.quantization_aware


def test_first_windows_do_not_disturb_the_random_numbers(tmp_path, model, tiny_tokenizer, records):
    trainer = make_trainer(tmp_path, model, tiny_tokenizer, records, quantization_aware=True)
    state = torch.get_rng_state()
    trainer.begin_training(is_resumed=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training


class TestErrors:
    def test_checkpoint_of_another_training(self, tmp_path, model, tiny_tokenizer, records):
        settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1}
        start = copy.deepcopy(model)
        make_trainer(tmp_path, model, tiny_tokenizer, records, **settings).train()
        other = make_trainer(tmp_path, start, tiny_tokenizer, records, quantization_aware=True, **settings)
        with pytest.raises(
            CheckpointError, match="checkpoint-1 comes from a training without quantization_aware=True"
        ):
            other.train(resume_from_checkpoint=True)

    def test_checkpoint_of_other_bits(self, tmp_path, model, tiny_tokenizer, records):
        settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1}
        start = copy.deepcopy(model)
        train(tmp_path, model, tiny_tokenizer, records, weight_bits=4, **settings)
        other = make_trainer(tmp_path, start, tiny_tokenizer, records, quantization_aware=True, **settings)
        with pytest.raises(CheckpointError, match="a training with weight_bits 4, so one with weight_bits 8 cannot"):
            other.train(resume_from_checkpoint=True)

    def test_nothing_to_find_ranges_with(self, tmp_path, model, tiny_tokenizer, records):
        trainer = make_trainer(tmp_path, model, tiny_tokenizer, None, eval_dataset=records, quantization_aware=True)
        with pytest.raises(ConfigurationError, match="needs windows to find the ranges of activations in: give a"):
            trainer.evaluate()
