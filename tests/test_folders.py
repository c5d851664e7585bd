from __future__ import annotations

import os

import pytest

from optimum_qala._folders import check_output, copy_records, new_folder, replacing, source_name
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
    with pytest.raises(OutputExistsError, match="out appeared meanwhile"), new_folder(tmp_path / "out"):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "x").write_text("theirs")
    assert (tmp_path / "out" / "x").read_text() == "theirs"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("mask", [0o077, 0o002])
def test_folder_respects_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        with new_folder(tmp_path / "out"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o777 & ~mask


def test_names_of_sources_say_nothing_of_this_machine(tmp_path, monkeypatch):
    (tmp_path / "trained").mkdir()
    monkeypatch.chdir(tmp_path / "trained")
    assert source_name(tmp_path / "trained") == "trained"
    assert source_name(".") == "trained"
    assert source_name("org/minilm") == "org/minilm"


def test_records_are_handed_on(tmp_path):
    for folder, texts in (("old", {"a": "1", "b": "2"}), ("new", {"b": "mine"})):
        (tmp_path / folder).mkdir()
        for name, text in texts.items():
            (tmp_path / folder / name).write_text(text)
    copy_records(tmp_path / "old", tmp_path / "new", ("a", "b", "c"))
    assert {path.name: path.read_text() for path in (tmp_path / "new").iterdir()} == {"a": "1", "b": "mine"}
    copy_records("org/minilm", tmp_path / "new", ("a",))


def test_file_is_replaced_when_complete(tmp_path):
    file = tmp_path / "x"
    file.write_text("old")
    with replacing(file) as temporary:
        temporary.write_text("new")
        assert file.read_text() == "old"
    assert (file.read_text(), names(tmp_path)) == ("new", ["x"])


def test_file_that_is_not_completed_stays_what_it_was(tmp_path):
    file = tmp_path / "x"
    file.write_text("old")
    with pytest.raises(RuntimeError, match="stop"), replacing(file) as temporary:
        temporary.write_text("new")
        raise RuntimeError("stop")
    assert (file.read_text(), names(tmp_path)) == ("old", ["x"])
