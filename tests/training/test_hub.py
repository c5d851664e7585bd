"""What the Trainer pushes, without a Hub; tests/hub pushes to one."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path

import pytest
from transformers import default_data_collator
from transformers.utils.hub import PushInProgress

from optimum_qala.training import hub
from tests.training.runs import make_trainer


@pytest.fixture
def trainer(tmp_path, tiny_model, tiny_tokenizer, records):
    made = make_trainer(tmp_path, tiny_model, tiny_tokenizer, records, hub_revision="runs", hub_token="stored")
    made.hub_model_id, made.push_in_progress = "org/model", None
    return made


@pytest.fixture
def warnings(monkeypatch):
    messages = []
    monkeypatch.setattr(hub.logger, "warning", messages.append)
    return messages


@pytest.fixture
def push(monkeypatch):
    """What a push is given, instead of the push."""

    def note(folder, repo_id, **options):
        names = {path.name for path in folder.iterdir()}
        return {"repo_id": repo_id, "files": names, "folder": folder, **options}

    monkeypatch.setattr(hub, "push_folder", note)
    monkeypatch.setattr(hub, "read_stored_card", lambda *asked: "")


def test_push_saves_everything_and_takes_branch_and_token_of_the_arguments(trainer, push, warnings, tmp_path):
    trainer.model.add_model_tags(["tiny"])
    pushed = trainer.push_to_hub(tags="tower")
    assert pushed["files"] >= {"config.json", "model.safetensors", "tokenizer.json", "README.md", "training_args.bin"}
    assert pushed["folder"] == tmp_path / "out"
    assert (pushed["repo_id"], pushed["revision"], pushed["token"]) == ("org/model", "runs", "stored")
    assert pushed["commit_message"] == "End of training"
    assert pushed["ignore_patterns"] == ("_*", "checkpoint-*")
    card = Path(tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "- tower\n- tiny\n" in card
    assert "\nlibrary_name: optimum-qala\n" in card
    assert warnings == []


def test_push_without_waiting_gives_a_future(trainer, push):
    future = trainer.push_to_hub("now", blocking=False, token="given", revision="next")
    pushed = future.result(timeout=60)
    assert (pushed["commit_message"], pushed["revision"], pushed["token"]) == ("now", "next", "given")


def test_push_without_a_tokenizer_is_warned_of(trainer, push, warnings):
    trainer.processing_class, trainer.data_collator = None, default_data_collator
    assert "tokenizer.json" not in trainer.push_to_hub()["files"]
    assert len(warnings) == 1
    assert warnings[0].startswith("The Trainer has no tokenizer (processing_class), so none is pushed")


def test_checkpoint_that_was_not_pushed_is_warned_of_once(trainer, warnings):
    broken, done = Future(), Future()
    broken.set_exception(OSError("no connection\nto the Hub"))
    done.set_result(None)
    trainer.push_in_progress = PushInProgress([broken, done])
    trainer._finish_current_push()
    trainer._finish_current_push()
    assert warnings == ["A checkpoint was not pushed (no connection); trainer.push_to_hub() pushes the model"]
