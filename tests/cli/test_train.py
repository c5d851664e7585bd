from __future__ import annotations

import json
import shutil

import pytest
import torch
import yaml
from transformers import AutoModelForQuestionAnswering, BertConfig, BertModel

from optimum_qala._compat import is_available
from optimum_qala.cli.train import last_checkpoint
from optimum_qala.training.trainer import QuaLATrainer
from tests.cli.weights import are_equal, baseline_weights, weights


@pytest.fixture
def train(qala, tiny_folder, tiny_data, tmp_path):
    """Run a training of four steps; returns the outcome and the output folder."""

    def run(*flags, output="trained"):
        steps = ("--max-steps", 4, "--batch-size", 4, "--learning-rate", 0.001)
        arguments = ("--model", tiny_folder, "--data", tiny_data, "--output", tmp_path / output)
        return qala("train", *arguments, *steps, *flags, "--json"), tmp_path / output

    return run


def test_model_and_tokenizer_are_written(train, tiny_folder, tiny_data, tmp_path):
    outcome, folder = train("--validation-data", tiny_data, "--budget", "fast")
    summary = outcome.json
    assert summary["steps"] == 4
    assert summary["num_sub_models"] == 2
    assert sorted(summary["validation"]) == ["exact_match", "f1", "fast_exact_match", "fast_f1"]
    assert not are_equal(weights(folder), weights(tiny_folder))
    assert (folder / "tokenizer.json").is_file()
    assert json.loads((folder / "training.json").read_text())["log"]
    model = AutoModelForQuestionAnswering.from_pretrained(folder)
    assert sorted(model.config.budgets) == ["accurate", "fast"]
    assert [path.name for path in tmp_path.iterdir()] == ["trained"]  # neither checkpoints nor state


def test_events_of_tensorboard_lie_beside_the_model(train, tiny_data, tmp_path):
    if not is_available("tensorboard"):
        pytest.skip("tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    flags = ("--validation-data", tiny_data, "--budget", "fast", "--report-to", "tensorboard")
    _, folder = train(*flags)
    (run,) = (folder / "runs").iterdir()
    events = EventAccumulator(str(run))
    events.Reload()
    assert {"train/loss_smallest", "eval/f1", "eval/fast_f1", "eval/fast_loss"} <= set(events.Tags()["scalars"])
    assert [path.name for path in tmp_path.iterdir()] == ["trained"]


def test_reporting_changes_no_weight(train, tiny_baseline):
    outcome, folder = train("--report-to", "none", "--debug")
    assert outcome.code == 0, outcome.err
    assert are_equal(weights(folder), tiny_baseline)


def test_missing_tensorboard_is_named_before_any_work(train, monkeypatch):
    monkeypatch.setattr("optimum_qala._compat._is_importable", lambda module: module != "tensorboard")
    outcome, folder = train("--report-to", "tensorboard")
    assert 'needs tensorboard, which is not installed: pip install "optimum-qala[tensorboard]"' in outcome.error
    assert not folder.exists()


def test_new_span_head_is_that_of_the_seed(train, tiny_tokenizer, tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=200, max_position_embeddings=128, **sizes)).save_pretrained(tmp_path / "backbone")
    tiny_tokenizer.save_pretrained(tmp_path / "backbone")
    trained = []
    for number, seed in enumerate((42, 42, 43)):
        torch.manual_seed(number)  # what was drawn before does not matter
        flags = ("--model", tmp_path / "backbone", "--learning-rate", 1e-9, "--max-steps", 1, "--seed", seed)
        trained.append(weights(train(*flags, output=f"trained-{number}")[1])["qa_outputs.weight"])
    assert torch.allclose(trained[0], trained[1], atol=1e-6)
    assert not torch.allclose(trained[0], trained[2], atol=1e-3)


def test_measurements_of_the_model_before_are_dropped(train, qala, tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "measured")
    config = json.loads((folder / "config.json").read_text())
    config["budgets"] = {"fast": {"retention": [0.5] * 4, "f1": 99.0, "macs": 1}}
    (folder / "config.json").write_text(json.dumps(config))
    _, trained = train("--model", folder)
    assert json.loads((trained / "config.json").read_text())["budgets"] == {"fast": {"retention": [0.5] * 4}}
    _, reselected = train("--model", folder, "--drop-layers", "2,3", output="reselected")
    assert json.loads((reselected / "config.json").read_text())["budgets"] == {}


@pytest.mark.parametrize(("steps", "stop"), [(4, 2), (8, 5)], ids=["first epoch", "second epoch"])
def test_interrupted_training_goes_on_as_if_it_had_not_been(train, monkeypatch, tmp_path, steps, stop):
    """An epoch has three steps."""
    flags = ("--max-steps", steps)
    _, whole = train(*flags, output="whole")
    step = QuaLATrainer.training_step

    def interrupted(self, *arguments, **options):
        if self.state.global_step == stop:
            raise KeyboardInterrupt
        return step(self, *arguments, **options)

    monkeypatch.setattr(QuaLATrainer, "training_step", interrupted)
    outcome, folder = train(*flags)
    assert outcome.code == 130
    assert "run the same command again to go on" in outcome.err
    assert not folder.exists()
    seen = []

    def counted(self, *arguments, **options):
        seen.append(self.state.global_step)
        return step(self, *arguments, **options)

    monkeypatch.setattr(QuaLATrainer, "training_step", counted)
    outcome, folder = train(*flags)
    assert f"going on from checkpoint-{stop}" in outcome.err
    assert outcome.json["steps"] == steps
    assert seen == list(range(stop, steps))
    assert are_equal(weights(folder), weights(whole))


def test_half_written_checkpoint_is_removed(tmp_path):
    for number in (2, 10, 9):
        (tmp_path / f"checkpoint-{number}").mkdir()
    for number in (2, 9):
        (tmp_path / f"checkpoint-{number}" / "trainer_state.json").touch()
    assert last_checkpoint(tmp_path).name == "checkpoint-9"
    assert not (tmp_path / "checkpoint-10").exists()


def test_data_changed_since_the_interruption_is_noticed(qala, tiny_folder, tiny_data, tmp_path, monkeypatch):
    data = tmp_path / "data.json"
    shutil.copy(tiny_data, data)

    def interrupted(self, *arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(QuaLATrainer, "training_step", interrupted)
    arguments = ("train", "--model", tiny_folder, "--data", data, "--output", tmp_path / "out", "--max-steps", 2)
    assert qala(*arguments).code == 130
    data.write_text(data.read_text().replace("large and red", "large and old"))
    assert "other settings (data_content)" in qala(*arguments).error


@pytest.mark.parametrize(
    "flags",
    [
        ["--seed", 7],
        ["--drop-ratio-bound", 0.5],
        ["--num-random-sub-models", 2],
        ["--no-smallest-sub-model"],
        ["--layer-drop-prob", 0.5],
        ["--divergence", "reverse"],
        ["--divergence", "skew", "--skew", 0.4],
        ["--temperature", 3],
        ["--sub-model-label-weight", 0.5],
        ["--token-scoring", "attention"],
        ["--score-pooling", 0],
        ["--span-heads"],
        ["--protected-tokens", "cls", "--token-scoring", "attention"],
        ["--drop-layers", "2,3"],
        ["--min-tokens", 20],
        ["--warmup-steps", 2],
        ["--weight-decay", 0.9],
        ["--gradient-accumulation-steps", 2],
        ["--max-length", 24, "--doc-stride", 2],
        ["--max-question-length", 2, "--truncate-question"],
        ["--limit", 4],
        ["--bf16"],
        ["--dropout", 0.5],
    ],
    ids=lambda flags: flags[0],
)
def test_option_changes_the_model(train, tmp_path, tiny_baseline, flags):
    _, folder = train(*flags)
    assert not are_equal(weights(folder), tiny_baseline)


@pytest.mark.parametrize(
    "flags",
    [
        ["--deep-supervision-weight", 0.2],
        ["--early-exit-prob", 1.0],
        ["--min-exit-layer", 3],
    ],
)
def test_option_of_early_span_heads_changes_the_model(train, flags):
    _, plain = train("--token-scoring", "answer", "--drop-layers", "3", output="plain")
    _, folder = train("--token-scoring", "answer", "--drop-layers", "3", *flags)
    assert not are_equal(weights(folder), weights(plain))


def test_budgets_that_stop_early_stay_legal(train):
    _, first = train("--token-scoring", "answer", output="first")
    config = json.loads((first / "config.json").read_text())
    config["budgets"] = {"shallow": {"retention": [1, 1, 0.5, 0.5], "exit_layer": 3, "f1": 9.0}}
    (first / "config.json").write_text(json.dumps(config))
    outcome, second = train("--model", first, "--budget", "shallow", output="second")
    assert outcome.code == 0
    stored = json.loads((second / "config.json").read_text())["budgets"]
    assert stored == {"shallow": {"retention": [1, 1, 0.5, 0.5], "exit_layer": 3}}


@pytest.fixture
def tiny_baseline(train, baseline_cache):
    """Weights after the same training without further flags."""
    return baseline_weights(train, baseline_cache)


def test_teacher_changes_the_model(train, tiny_baseline, tmp_path, tiny_folder):
    _, teacher = train("--seed", 3, output="teacher")
    _, half = train("--teacher", teacher, output="half")
    _, most = train("--teacher", teacher, "--teacher-weight", 0.9, output="most")
    assert not are_equal(weights(half), tiny_baseline)
    assert not are_equal(weights(half), weights(most))


def test_auxiliary_losses_change_the_model(train, tiny_baseline, tiny_folder):
    """The model of the training is its own teacher, and so has its layers and heads."""
    teacher = ("--teacher", tiny_folder, "--teacher-weight", 0)
    losses = ("--auxiliary-losses", "relations=1,hidden_states=1,mutual_information=1")
    runs = {
        "plain": (*teacher, *losses),
        "layers": (*teacher, *losses, "--teacher-layers", "0,0,1,1"),
        "heads": (*teacher, *losses, "--relation-heads", 1),
        "alpha": (*teacher, *losses, "--mutual-information-alpha", 1),
        "tokens": (*teacher, *losses, "--mutual-information-tokens", 8),
        "subs": ("--sub-model-auxiliary-losses", "attention_maps=1"),
    }
    trained = {name: weights(train(*flags, output=name)[1]) for name, flags in runs.items()}
    for name in ("plain", "subs"):
        assert not are_equal(trained[name], tiny_baseline), name
    for name in ("layers", "heads", "alpha", "tokens"):
        assert not are_equal(trained[name], trained["plain"]), name


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--auxiliary-losses", "minilm=1"), "auxiliary_losses ['minilm'] compare with a teacher, but none is given"),
        (("--sub-model-auxiliary-losses", "hidden=1"), "sub_model_auxiliary_losses names 'hidden', which is none of"),
    ],
)
def test_auxiliary_losses_that_do_not_fit_are_refused(train, flags, message):
    outcome, folder = train(*flags)
    assert outcome.code == 1
    assert message in outcome.error
    assert not folder.exists()


def test_recipe_is_used_saved_and_used_again(train, tiny_folder, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "teacher_weight: 0.9\nauxiliary_losses: {relations: 1, hidden_states: 5e-1}\nteacher_layers: [0, 0, 1, 1]\n"
        "relation_heads: 1\nsub_model_auxiliary_losses: {attention_maps: 1}\nseed: 6\nnum_train_epochs: 9\n"
    )
    teacher = ("--teacher", tiny_folder)
    flags = ("--teacher-weight", 0.9, "--auxiliary-losses", "relations=1,hidden_states=0.5", "--relation-heads", 1)
    flags += ("--teacher-layers", "0,0,1,1", "--sub-model-auxiliary-losses", "attention_maps=1", "--seed", 5)
    runs = {
        "flags": (*teacher, *flags),
        "recipe": (*teacher, "--recipe", recipe, "--seed", 5),  # the flag wins
        "again": (*teacher, "--recipe", tmp_path / "recipe" / "recipe.yaml"),
    }
    trained = {}
    for name, given in runs.items():
        outcome, trained[name] = train(*given, output=name)
        assert outcome.code == 0, outcome.err
    for name in ("recipe", "again"):
        assert are_equal(weights(trained[name]), weights(trained["flags"])), name
    saved = yaml.safe_load((trained["recipe"] / "recipe.yaml").read_text())
    assert (saved["seed"], saved["teacher_weight"], saved["max_steps"]) == (5, 0.9, 4)
    assert saved["auxiliary_losses"] == {"relations": 1.0, "hidden_states": 0.5}


def test_question_that_is_too_long_is_refused(train):
    outcome, folder = train("--max-question-length", 2)
    assert "record 'q0': the question has 5 tokens, at most 2 are allowed" in outcome.error
    assert not folder.exists()


def test_bad_recipe_leaves_no_output(train, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("auxiliary_losses: {hidden: 1}\n")
    outcome, folder = train("--recipe", recipe)
    assert outcome.code == 1
    assert f"recipe {recipe}: auxiliary_losses names 'hidden', which is none of ['attention_maps'," in outcome.error
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def test_recipe_changed_since_the_interruption_is_noticed(train, tmp_path, monkeypatch):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("seed: 1\n")
    step = QuaLATrainer.training_step

    def interrupted(self, *arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(QuaLATrainer, "training_step", interrupted)
    assert train("--recipe", recipe)[0].code == 130
    monkeypatch.setattr(QuaLATrainer, "training_step", step)
    recipe.write_text("seed: 2\n")
    assert "other settings (recipe_content)" in train("--recipe", recipe)[0].error


def test_teacher_with_another_vocabulary_is_refused(train, tiny_folder, tmp_path):
    teacher = shutil.copytree(tiny_folder, tmp_path / "teacher")
    tokenizer = teacher / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"river"', '"rover"'))
    outcome, folder = train("--teacher", teacher)
    assert f"teacher {teacher} has another vocabulary" in outcome.error
    assert not list(tmp_path.glob("trained*")), "the corrected command would find the settings of this one"


def test_training_without_sub_models_says_that_it_is_not_adaptive(train):
    outcome, _ = train("--no-smallest-sub-model", "--num-random-sub-models", 0)
    assert outcome.json["num_sub_models"] == 0
    assert "WARNING: Length-adaptive training is OFF" in outcome.err


def test_filled_output_is_refused_before_any_work(train, tmp_path):
    (tmp_path / "trained").mkdir()
    (tmp_path / "trained" / "x").write_text("mine")
    outcome, folder = train()
    assert outcome.code == 1
    assert "trained exists and is not empty" in outcome.error
    assert [path.name for path in folder.iterdir()] == ["x"]
    assert [path.name for path in tmp_path.iterdir()] == ["trained"]


@pytest.mark.parametrize(
    ("backend", "message"), [("openvino", "openvino does not train"), ("inc", "inc does not train")]
)
def test_backend_that_does_not_train_is_refused(train, backend, message):
    assert message in train("--backend", backend)[0].error


def test_data_without_answers_is_refused(qala, tiny_folder, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text('{"id": "a", "question": "who ?", "context": "anna ."}\n')
    outcome = qala("train", "--model", tiny_folder, "--data", data, "--output", tmp_path / "out")
    assert outcome.code == 1
    assert "'a'" in outcome.error
    assert not (tmp_path / "out.partial").exists()
