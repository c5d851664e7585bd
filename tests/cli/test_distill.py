from __future__ import annotations

import json
import shutil
from functools import partial

import pytest
import torch
from transformers import AutoModel, BertModel

from optimum_qala import QuaLAMiniLMForQuestionAnswering
from optimum_qala._compat import is_available
from optimum_qala.training.minilm_trainer import MiniLMDistillationTrainer
from tests.cli.weights import are_equal, baseline_weights, weights
from tests.training.distilling import TEXTS


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("\n".join(TEXTS), encoding="utf-8")
    return path


@pytest.fixture
def distill(qala, plain, texts, tmp_path):
    """Distil for two steps; returns the outcome and the output folder."""

    def run(
        *flags, output="student", sizes=("--student-layers", 1, "--student-hidden-size", 16, "--student-heads", 2)
    ):
        steps = ("--max-steps", 2, "--batch-size", 4, "--max-length", 16)
        arguments = ("--teacher", plain, "--data", texts, "--output", tmp_path / output)
        return qala("distill", *arguments, *sizes, *steps, *flags, "--json"), tmp_path / output

    return run


def test_student_is_a_plain_encoder_that_training_takes(distill, qala, texts, tiny_data, tmp_path):
    outcome, folder = distill("--validation-data", texts)
    report = json.loads((folder / "distillation.json").read_text())
    log = report.pop("log")
    assert outcome.json == {"output": str(folder), **report}
    assert report["method"] == "minilmv2"
    assert (report["teacher_layer"], report["relation_heads"]) == (1, 2)
    assert report["steps"] == 2
    assert report["validation_loss"] > 0
    assert any("eval_loss" in entry for entry in log)
    assert [path.name for path in tmp_path.iterdir()] == ["student"]  # neither checkpoints nor tokens
    student, info = AutoModel.from_pretrained(folder, add_pooling_layer=False, output_loading_info=True)
    assert type(student) is BertModel
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    model = QuaLAMiniLMForQuestionAnswering.from_pretrained(folder)
    assert torch.equal(model.quala.embeddings.word_embeddings.weight, student.embeddings.word_embeddings.weight)
    trained = qala("train", "--model", folder, "--data", tiny_data, "--output", tmp_path / "qa", "--max-steps", 1)
    assert trained.code == 0, trained.err


@pytest.mark.parametrize("is_new", [True, False], ids=["new student", "loaded student"])
def test_interrupted_distillation_goes_on_as_if_it_had_not_been(distill, plain, monkeypatch, is_new):
    """In the second epoch, with dropout."""
    stop, flags = 5, ("--max-steps", 6, "--dropout", 0.1)
    if not is_new:
        distill = partial(distill, "--student", plain, sizes=())
    _, whole = distill(*flags, output="whole")
    compute_loss = MiniLMDistillationTrainer.compute_loss

    def interrupted(self, *arguments, **options):
        if self.state.global_step == stop:
            raise KeyboardInterrupt
        return compute_loss(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(MiniLMDistillationTrainer, "compute_loss", interrupted)
        outcome, folder = distill(*flags)
    assert outcome.code == 130
    assert not folder.exists()
    outcome, folder = distill(*flags)
    assert f"going on from checkpoint-{stop}" in outcome.err
    assert are_equal(weights(folder), weights(whole))


@pytest.fixture
def baseline(distill, baseline_cache):
    """Weights after the same distillation without further flags."""
    return baseline_weights(distill, baseline_cache)


@pytest.mark.parametrize(
    "flags",
    [
        ["--student-layers", 2],
        ["--student-hidden-size", 8],
        ["--student-heads", 4],
        ["--student-intermediate-size", 20],
        ["--method", "minilm"],
        ["--teacher-layer", 0],
        ["--relation-heads", 1],
        ["--no-packing"],
        ["--max-length", 10],
        ["--limit", 3],
        ["--seed", 7],
        ["--dropout", 0.5],
        ["--learning-rate", 0.01],
    ],
    ids=lambda flags: flags[0],
)
def test_option_changes_the_student(distill, baseline, flags):
    outcome, folder = distill(*flags)
    assert outcome.code == 0, outcome.err
    if flags[0] == "--student-heads":  # the relations do not know of them, but attention does
        assert json.loads((folder / "config.json").read_text())["num_attention_heads"] == 4
    assert not are_equal(weights(folder), baseline)


def test_events_of_tensorboard_lie_beside_the_student(distill, tmp_path):
    if not is_available("tensorboard"):
        pytest.skip("tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    outcome, folder = distill("--report-to", "tensorboard")
    assert outcome.code == 0, outcome.err
    (run,) = (folder / "runs").iterdir()
    events = EventAccumulator(str(run))
    events.Reload()
    assert "train/loss" in events.Tags()["scalars"]
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


def test_missing_tensorboard_is_named_before_any_work(distill, monkeypatch):
    monkeypatch.setattr("optimum_qala._compat._is_importable", lambda module: module != "tensorboard")
    outcome, folder = distill("--report-to", "tensorboard")
    assert 'needs tensorboard, which is not installed: pip install "optimum-qala[tensorboard]"' in outcome.error
    assert not folder.exists()


def test_reporting_changes_no_weight(distill, baseline):
    outcome, folder = distill("--report-to", "none", "--debug")
    assert outcome.code == 0, outcome.err
    assert not (folder / "runs").exists()
    assert are_equal(weights(folder), baseline)


def test_student_may_start_from_the_teacher_and_go_on(distill, plain, baseline):
    _, first = distill("--init-layers", "1", "--learning-rate", 0, sizes=(), output="first")
    start, teacher = weights(first), weights(plain)
    for name in ("embeddings.word_embeddings.weight", "encoder.layer.0.output.dense.weight"):
        assert torch.equal(start[name], teacher[f"bert.{name.replace('layer.0', 'layer.1')}"])
    _, second = distill("--student", first, sizes=(), output="second")
    assert start.keys() == weights(second).keys()
    assert not are_equal(start, weights(second))


def test_cache_serves_another_student(distill, baseline, tmp_path, monkeypatch):
    flags = ("--teacher-cache", tmp_path / "cache", "--num-train-epochs", 1, "--max-steps", -1)
    assert distill(*flags, output="first")[0].code == 0
    (kept,) = (tmp_path / "cache").iterdir()
    assert sorted(path.name for path in kept.iterdir()) == ["checksums.bin", "key.json", "states.bin"]
    monkeypatch.setattr("optimum_qala.distillation.teacher.TeacherLayer.entering_states", None)  # nobody calls it
    outcome, _ = distill(*flags, "--seed", 3, output="second")
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--student-heads", 3], "3 attention heads do not divide the hidden size 16 of the student"),
        (["--relation-heads", 5], "relation_heads 5 does not divide the hidden size 32 of the teacher"),
        (["--teacher-layer", 2], "teacher_layer 2 is none of the teacher's layers 0 to 1"),
        (["--init-layers", "0"], "whose hidden_size is 32, so the student cannot have 16"),
        (["--teacher", "gone/model/x"], "model folder gone/model/x does not exist"),
        (["--data", "gone.txt"], "gone.txt does not exist"),
        (["--max-length", 200], "but the teacher takes at most 128"),
        (["--student", "gone/model/x"], "leave the flags out that set hidden_size, num_attention_heads, num_hidden"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_mistakes_are_one_line(distill, texts, tmp_path, flags, message):
    if "--max-length" in flags:  # one row of more than 128 tokens
        long = tmp_path / "long.txt"
        long.write_text(texts.read_text().replace("\n", " "))
        flags = [*flags, "--data", long]
    outcome, folder = distill(*flags)
    assert outcome.code == 1
    assert message in outcome.error
    assert not list(tmp_path.glob("student*")), "the corrected command would find the settings of this one"


def test_empty_text_is_one_line(distill, tmp_path):
    (tmp_path / "empty.txt").touch()
    outcome, _ = distill("--data", tmp_path / "empty.txt")
    assert f"{tmp_path / 'empty.txt'} holds no text" in outcome.error


def test_student_with_another_vocabulary_is_refused(distill, plain, tmp_path):
    other = shutil.copytree(plain, tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["the"], vocabulary["a"] = vocabulary["a"], vocabulary["the"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    outcome, _ = distill("--student", other, sizes=())
    assert f"student {other} has another vocabulary than the teacher" in outcome.error
