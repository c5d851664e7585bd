from __future__ import annotations

import json

import pytest

from optimum_qala.cli.outputs import check_output, new_file, new_folder, resumable_folder
from optimum_qala.errors import OutputExistsError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_folder_appears_when_complete(tmp_path):
    with new_folder(tmp_path / "a" / "out") as folder:
        (folder / "x").write_text("1")
        assert not (tmp_path / "a" / "out").exists()
    assert names(tmp_path / "a") == ["out"]
    assert (tmp_path / "a" / "out" / "x").read_text() == "1"
    assert (tmp_path / "a" / "out").stat().st_mode & 0o777 == (tmp_path / "a").stat().st_mode & 0o777


def test_empty_folder_is_accepted(tmp_path):
    (tmp_path / "out").mkdir()
    with new_folder(tmp_path / "out") as folder:
        (folder / "x").touch()
    assert names(tmp_path / "out") == ["x"]


def test_failure_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="stop"), new_folder(tmp_path / "out") as folder:
        (folder / "x").touch()
        raise RuntimeError("stop")
    assert names(tmp_path) == []


def test_filled_folder_is_refused(tmp_path):
    (tmp_path / "x").write_text("mine")
    with pytest.raises(OutputExistsError, match=f"output {tmp_path} exists and is not empty"):
        check_output(tmp_path)


def test_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OutputExistsError, match="out exists and is not a folder"):
        check_output(tmp_path / "out")


def test_folder_that_appears_meanwhile_is_kept(tmp_path):
    with pytest.raises(OutputExistsError, match="out appeared while the command ran"), new_folder(tmp_path / "out"):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "x").write_text("theirs")
    assert (tmp_path / "out" / "x").read_text() == "theirs"
    assert names(tmp_path) == ["out"]


def test_file_that_appears_meanwhile_is_kept(tmp_path):
    with pytest.raises(OutputExistsError, match="f appeared while the command ran"), new_file(tmp_path / "f"):
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
