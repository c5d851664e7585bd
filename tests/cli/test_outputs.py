from __future__ import annotations

import json

import pytest

from optimum_qala.cli.outputs import new_file, resumable_folder
from optimum_qala.errors import ConfigurationError, DataError, OutputExistsError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_file_that_appears_meanwhile_is_kept(tmp_path):
    with pytest.raises(OutputExistsError, match="f appeared meanwhile"), new_file(tmp_path / "f"):
        (tmp_path / "f").write_text("theirs")
    assert (tmp_path / "f").read_text() == "theirs"
    assert names(tmp_path) == ["f"]


def test_interrupted_work_is_resumed_and_removed_in_the_end(tmp_path):
    with pytest.raises(KeyboardInterrupt), resumable_folder(tmp_path / "out", {"seed": 1}) as work:
        assert not work.is_resumed
        (work.state / "checkpoint").write_text("step 5")
        (work.result / "half").touch()
        raise KeyboardInterrupt
    assert names(tmp_path) == ["out.partial"]
    with resumable_folder(tmp_path / "out", {"seed": 1}) as work:
        assert work.is_resumed
        assert (work.state / "checkpoint").read_text() == "step 5"
        assert names(work.result) == []  # a half-written result is never published
        (work.result / "model").touch()
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["model"]


def test_work_of_other_settings_is_not_mixed_in(tmp_path):
    with pytest.raises(KeyboardInterrupt), resumable_folder(tmp_path / "out", {"seed": 1, "steps": (1, 2)}):
        raise KeyboardInterrupt
    with (
        pytest.raises(OutputExistsError, match=r"interrupted run with other settings \(seed\)"),
        resumable_folder(tmp_path / "out", {"seed": 2, "steps": (1, 2)}),
    ):
        pass
    assert json.loads((tmp_path / "out.partial" / "settings.json").read_text())["seed"] == 1


@pytest.mark.parametrize("kept", [None, "checkpoint-5", "evaluations.json"])
def test_error_leaves_only_what_a_command_goes_on_from(tmp_path, kept):
    """Tokens are made anew, and the settings of a command that failed must not stop the corrected one."""
    with pytest.raises(DataError), resumable_folder(tmp_path / "out", {"teacher": "wrong"}) as work:
        (work.state / "tokens.bin").touch()
        (work.result / "half").touch()
        if kept is not None:
            (work.state / kept).touch()
        raise DataError("no text")
    assert names(tmp_path) == ([] if kept is None else ["out.partial"])
    if kept is None:
        with resumable_folder(tmp_path / "out", {"teacher": "right"}) as work:
            assert not work.is_resumed
    else:
        assert (tmp_path / "out.partial" / "state" / kept).is_file()


def test_error_keeps_the_folder_of_an_earlier_run(tmp_path):
    """Which may still be at work."""
    with pytest.raises(KeyboardInterrupt), resumable_folder(tmp_path / "out", {}):
        raise KeyboardInterrupt
    with pytest.raises(DataError), resumable_folder(tmp_path / "out", {}):
        raise DataError("no text")
    assert names(tmp_path) == ["out.partial"]


def test_several_processes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with (
        pytest.raises(ConfigurationError, match="this is one of 2 processes .*To train in several, start examples"),
        resumable_folder(tmp_path / "out", {}),
    ):
        pass
    assert names(tmp_path) == []
    monkeypatch.setenv("WORLD_SIZE", "1")
    with resumable_folder(tmp_path / "out", {}):
        pass
    assert names(tmp_path) == ["out"]


def test_foreign_partial_folder_is_kept(tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "x").write_text("mine")
    with (
        pytest.raises(OutputExistsError, match="out.partial exists and is not the work of an interrupted command"),
        resumable_folder(tmp_path / "out", {}),
    ):
        pass
    assert names(tmp_path / "out.partial") == ["x"]
