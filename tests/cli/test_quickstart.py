from __future__ import annotations

import json

import pytest

import optimum_qala.cli.quickstart as quickstart_module
from optimum_qala.cli.quickstart import QuickstartOptions


@pytest.fixture
def quickstart(qala, tiny_folder, tmp_path, monkeypatch):
    """The quickstart with the tiny model, whose windows hold only short contexts."""
    monkeypatch.setattr(quickstart_module, "NUM_ANSWERS", 2)

    def run(*flags):
        arguments = ("--model", tiny_folder, "--output", tmp_path / "demo", "--questions", 32)
        return qala("quickstart", *arguments, *flags), tmp_path / "demo"

    return run


@pytest.fixture
def tiny_options(monkeypatch):
    """Sizes that fit the tiny model and a test's patience."""
    changes = {"drop_layers": (1, 2, 3), "max_evaluations": 4, "num_samples": 4, "num_train_epochs": 1.0}
    for name, value in changes.items():
        monkeypatch.setattr(QuickstartOptions, name, value)
    defaults = list(QuickstartOptions.__init__.__defaults__)
    names = list(QuickstartOptions.__dataclass_fields__)
    for name, value in changes.items():
        defaults[names.index(name)] = value
    monkeypatch.setattr(QuickstartOptions.__init__, "__defaults__", tuple(defaults))


@pytest.mark.usefixtures("tiny_options")
def test_every_step_runs_once_and_the_table_is_shown(quickstart):
    outcome, folder = quickstart()
    assert outcome.code == 0, outcome.err
    assert sorted(path.name for path in folder.iterdir()) == ["data", "int8", "quickstart.json", "searched", "trained"]
    lines = outcome.out.splitlines()
    table = next(index for index, line in enumerate(lines) if line.startswith("budget"))
    assert lines[table].split() == ["budget", "F1", "ms", "speed-up", "over", "full"]
    assert lines[table + 2].split()[0] == "full"
    assert lines[table + 2].split()[-1] == "1.00x"
    assert "synthetic" in outcome.out
    assert outcome.out.count("right answer:") == 2
    again, _ = quickstart("--json")
    assert again.err.count("done before") == 4
    assert again.json["num_questions"] == 4
    assert len(again.json["answers"]) == 2
    for split, size in (("train", 32), ("validation", 4), ("test", 4)):
        data = json.loads((folder / "data" / f"{split}.json").read_text())
        assert sum(len(paragraph["qas"]) for paragraph in data["data"][0]["paragraphs"]) == size
        assert "(synthetic)" in data["data"][0]["title"]


def test_foreign_folder_is_kept(quickstart, tmp_path):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "x").write_text("mine")
    outcome, folder = quickstart()
    assert outcome.code == 1
    assert "demo exists and is not a quickstart with these settings" in outcome.error
    assert [path.name for path in folder.iterdir()] == ["x"]


def test_other_settings_are_not_mixed_in(quickstart, tmp_path, monkeypatch):
    monkeypatch.setattr(quickstart_module, "_make_data", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert quickstart()[0].code == 130
    assert "is not a quickstart with these settings" in quickstart("--seed", 7)[0].error


def test_too_few_questions_are_refused(quickstart):
    assert "questions 3 is less than 8" in quickstart("--questions", 3)[0].error


def test_contexts_are_short_and_as_many_as_asked_for():
    records = quickstart_module._short_records(30, 90, 1, "train")
    assert len(records) == 30
    assert max(len(record.context.split()) for record in records) <= 90
