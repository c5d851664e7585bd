from __future__ import annotations

import json

import pytest

from optimum_qala.cli.outputs import new_file, resumable_folder
from optimum_qala.errors import OutputExistsError


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


def test_foreign_partial_folder_is_kept(tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "x").write_text("mine")
    with (
        pytest.raises(OutputExistsError, match="out.partial exists and is not the work of an interrupted command"),
        resumable_folder(tmp_path / "out", {}),
    ):
        pass
    assert names(tmp_path / "out.partial") == ["x"]
