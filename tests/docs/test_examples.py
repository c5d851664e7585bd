"""The examples run on tiny data, as their README says."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForQuestionAnswering

from optimum_qala import QuaLATrainingArguments
from optimum_qala.errors import CheckpointError, ConfigurationError, QuestionTooLongError
from optimum_qala.reporting.facts import read_facts
from optimum_qala.reporting.model_card import make_model_card
from optimum_qala.training.recipe import load_recipe
from tests.docs.conftest import ROOT, blocks, run_bash
from tests.hub_server import HubServer


FOLDER = ROOT / "examples" / "question_answering"
README = FOLDER / "README.md"
TINY = ("--use_cpu", "--max_steps", "2", "--max_seq_length", "64", "--doc_stride", "8", "--disable_tqdm", "true")


@pytest.fixture(scope="module")
def run_qa():
    """Run run_qa.py in this process."""
    spec = importlib.util.spec_from_file_location("run_qa", FOLDER / "run_qa.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["run_qa"] = module  # dataclasses look up their annotations there
    spec.loader.exec_module(module)

    def run(*arguments: object) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["run_qa.py", *map(str, arguments)])
            module.main()

    yield run
    del sys.modules["run_qa"]


@pytest.fixture
def data(workplace) -> tuple[str, ...]:
    model = ("--model_name_or_path", workplace / "minilm", "--train_file", workplace / "train.json")
    return (*model, "--validation_file", workplace / "dev.json")


def test_trains_evaluates_predicts_and_goes_on(run_qa, data, workplace, tmp_path):
    flags = (
        "--output_dir",
        tmp_path,
        "--do_train",
        "--do_eval",
        "--save_steps",
        1,
        "--eval_budgets",
        "1,1,1,1,0.5,0.5",
    )
    run_qa(*data, *flags, *TINY, "--do_predict", "--test_file", workplace / "test.json", "--max_predict_samples", 3)
    results = json.loads((tmp_path / "all_results.json").read_text(encoding="utf-8"))
    assert {"train_loss", "eval_loss", "eval_f1", "eval_exact_match", "eval_1,1,1,1,0.5,0.5_f1"} <= set(results)
    assert results["eval_samples"] == 4
    record = json.loads((tmp_path / "training.json").read_text(encoding="utf-8"))
    sources = {"model": "minilm", "data": "train.json", "validation_data": "dev.json", "teacher": None}
    assert {name: record[name] for name in sources} == sources
    assert (record["num_questions"], record["steps"], record["arguments"]["max_steps"]) == (8, 2, 2)
    assert record["validation"]["f1"] == results["eval_f1"]
    training = make_model_card(read_facts(tmp_path)).partition("## Training")[2]
    assert "| Trained from | minilm |" in training
    assert load_recipe(tmp_path / "recipe.yaml", QuaLATrainingArguments)["max_steps"] == 2
    predictions = json.loads((tmp_path / "predict_predictions.json").read_text(encoding="utf-8"))
    assert list(predictions) == ["q0", "q1", "q2"]
    assert AutoModelForQuestionAnswering.from_pretrained(tmp_path).config.model_type == "quala_minilm"
    written = (tmp_path / "checkpoint-2" / "trainer_state.json").stat().st_mtime_ns
    run_qa(*data, *flags, *TINY, "--max_steps", 3)
    state = json.loads((tmp_path / "trainer_state.json").read_text(encoding="utf-8"))
    assert state["global_step"] == 3
    assert (tmp_path / "checkpoint-2" / "trainer_state.json").stat().st_mtime_ns == written, "it started anew"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "nothing to do: give --do_train, --do_eval or --do_predict"),
        (("--do_predict",), "no questions for test: give --test_file or --dataset_name"),
    ],
)
def test_what_is_missing_is_named(run_qa, data, tmp_path, flags, message):
    with pytest.raises(ConfigurationError, match=message):
        run_qa(*data, *TINY, "--output_dir", tmp_path, *flags)


def test_teacher_with_other_tokens_is_refused(run_qa, data, workplace, tmp_path):
    teacher = shutil.copytree(workplace / "minilm", tmp_path / "teacher")
    tokenizer = json.loads((teacher / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["another"] = vocabulary.pop(max(vocabulary, key=vocabulary.get))
    (teacher / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    flags = ("--output_dir", tmp_path / "out", "--do_eval", "--teacher_name_or_path", teacher)
    with pytest.raises(CheckpointError, match=f"teacher {teacher} has another vocabulary than the model"):
        run_qa(*data, *TINY, *flags)


def test_questions_that_are_too_long_are_refused_or_cut(run_qa, data, tmp_path):
    flags = ("--output_dir", tmp_path, "--do_eval", "--max_eval_samples", 1, "--max_question_length", 2)
    with pytest.raises(QuestionTooLongError, match="at most 2 are allowed"):
        run_qa(*data, *TINY, *flags)
    run_qa(*data, *TINY, *flags, "--truncate_question")
    assert json.loads((tmp_path / "eval_results.json").read_text(encoding="utf-8"))["eval_samples"] == 1


def test_one_of_several_processes_writes_the_answers(run_qa, data, workplace, tmp_path, monkeypatch):
    flags = ("--output_dir", tmp_path, "--do_predict", "--test_file", workplace / "test.json")
    monkeypatch.setattr("optimum_qala.QuaLATrainer.is_world_process_zero", lambda self: False)
    run_qa(*data, *TINY, *flags)
    assert not (tmp_path / "predict_predictions.json").exists()
    monkeypatch.undo()
    run_qa(*data, *TINY, *flags)
    assert (tmp_path / "predict_predictions.json").is_file()


@pytest.mark.slow
def test_two_processes_write_one_output(data, workplace, tmp_path):
    flags = ["--output_dir", tmp_path, "--do_train", "--do_eval", "--do_predict"]
    flags += ["--test_file", workplace / "test.json"]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", FOLDER / "run_qa.py"]
    command = [sys.executable, *launcher, *data, *TINY, "--ddp_backend", "gloo", "--save_steps", "1", *flags]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, timeout=240, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads((tmp_path / "training.json").read_text(encoding="utf-8"))
    results = json.loads((tmp_path / "all_results.json").read_text(encoding="utf-8"))
    assert (record["steps"], record["validation"]["f1"]) == (2, results["eval_f1"])
    assert (tmp_path / "checkpoint-2" / "rng_state_1.pth").is_file()
    assert (tmp_path / "predict_predictions.json").is_file()


@pytest.fixture
def reader_of_the_readme(workplace, tmp_path) -> Path:
    shutil.copytree(workplace, tmp_path / "work")
    (tmp_path / "work" / "examples").symlink_to(ROOT / "examples")
    return tmp_path / "work"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_commands_of_the_readme_run(reader_of_the_readme, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = [block for block in blocks(README, "bash") if not block.note]
    assert len(found) == 3
    for block in found:
        run_bash(block, reader_of_the_readme)
    assert (reader_of_the_readme / "answers" / "predict_predictions.json").is_file()
    assert (reader_of_the_readme / "finetuned-searched" / "search.json").is_file()


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_fine_tuned_model_is_pushed(reader_of_the_readme, tmp_path):
    (push,) = [block for block in blocks(README, "bash") if block.note == "needs: hub"]
    with HubServer({"hf_writer": "write"}) as hub:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environment |= {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_writer", "HF_HOME": str(tmp_path / "cache")}
        environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "CUDA_VISIBLE_DEVICES": ""}
        environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        environment |= {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "optimum_qala" / "_namespace")])}
        command = ["bash", "-euo", "pipefail", "-c", push.text]
        done = subprocess.run(
            command, env=environment, cwd=reader_of_the_readme, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, done.stderr[-3000:]
        repository = hub.repositories["your-name/quala-minilm"]
    assert repository.private
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= set(repository.head().files)
