from __future__ import annotations

import json
import shutil

import pytest

from optimum_qala._compat import is_available
from tests.docs.conftest import DOCS, blocks
from tests.reporting.folders import INT8, LATENCY, make_folder, measured, write
from tests.reporting.reports import report as benchmark_report
from tests.reporting.reports import row


needs_matplotlib = pytest.mark.skipif(not is_available("plots"), reason="the plots extra is absent")
FILES = DOCS / "reference" / "files.md"
EXAMPLE = ("--question", "where was anna born ?", "--context", "anna was born in paris . the old tower is red .")


@pytest.fixture
def model(tmp_path):
    """A folder of which much is known, with empty weights."""
    folder = make_folder(tmp_path / "model", budgets=measured(latency_ms=[LATENCY]))
    places = {"model": "/home/jane/model", "data": "/home/jane/dev.json", "quantization": {"data": "/home/train.json"}}
    command = "optimum-cli qala benchmark --model '/home/jane doe/int8' --data=/home/jane/test.json"
    rows = [row("full", "budget", 3.0, 70.0)]
    write(tmp_path / "results.json", benchmark_report(rows=rows, command=command, **places))
    return folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@needs_matplotlib
def test_card_and_pictures_go_into_the_folder(qala, model):
    summary = qala("report", "--model", model, "--json").json
    made = ["README.md", "latency.png", "tokens.png"]
    assert summary == {"model": str(model), "output": str(model), "files": made, "left_out": {}}
    (example,) = [block.text for block in blocks(FILES, "json") if block.note == "example: report"]
    assert summary.keys() == json.loads(example).keys()
    assert names(model) == sorted(["config.json", "model.safetensors", *made])
    card = (model / "README.md").read_text()
    assert '<img src="tokens.png"' in card
    assert '<img src="latency.png"' in card
    assert "example" not in card
    mine = card.replace("# model\n", "# Mine\n")
    (model / "README.md").write_text(mine)
    again = qala("report", "--model", model)
    assert again.out == f"written to {model}: README.md, latency.png, tokens.png\n"
    assert (model / "README.md").read_text() == mine


@needs_matplotlib
def test_a_new_folder_leaves_the_model_alone(qala, model, tmp_path):
    before = names(model)
    qala("report", "--model", model, "--benchmark", tmp_path / "results.json", "--output", tmp_path / "out")
    assert names(model) == before
    assert names(tmp_path / "out") == ["README.md", "benchmark.json", "latency.png", "tokens.png"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "[benchmark.json](benchmark.json)" in card
    assert "| full | 3.00 |" in card
    outcome = qala("report", "--model", model, "--output", tmp_path / "out")
    assert outcome.code == 1
    assert "out exists and is not empty" in outcome.error


@needs_matplotlib
def test_benchmark_stays_for_the_next_time(qala, model, tmp_path):
    qala("report", "--model", model, "--benchmark", tmp_path / "results.json")
    stored = json.loads((model / "benchmark.json").read_text())
    assert stored["rows"]
    assert "home" not in json.dumps(stored)
    assert stored["quantization"] == {"data": "train.json"}
    assert stored["command"] == "optimum-cli qala benchmark --model int8 --data=test.json"
    card = (model / "README.md").read_text()
    assert qala("report", "--model", model).code == 0
    assert (model / "README.md").read_text() == card


def test_names_for_the_hub(qala, model, monkeypatch):
    monkeypatch.setattr("optimum_qala._compat._is_importable", lambda module: module != "matplotlib")
    outcome = qala("report", "--model", model, "--repo-id", "org/quala", "--base-model", "org/base")
    assert outcome.code == 0
    card = (model / "README.md").read_text()
    assert 'model = "org/quala"' in card
    assert "base_model: org/base\n" in card
    assert "no tokens.png: tokens.png needs matplotlib" in outcome.err
    assert names(model) == ["README.md", "config.json", "model.safetensors"]


@needs_matplotlib
def test_files_of_others_are_not_replaced(qala, model):
    (model / "latency.png").write_text("mine")
    outcome = qala("report", "--model", model)
    assert outcome.code == 1
    assert "latency.png exists and is not of an earlier report; nothing was written: rename it" in outcome.error
    assert (model / "latency.png").read_text() == "mine"
    assert names(model) == ["config.json", "latency.png", "model.safetensors"]


def test_card_tells_how_to_load_the_code_that_will_be_pushed(qala, model, tmp_path):
    assert qala("report", "--model", model, "--remote-code").code == 0
    assert "trust_remote_code=True" in (model / "README.md").read_text()
    assert qala("report", "--model", model).code == 0
    assert "trust_remote_code" not in (model / "README.md").read_text()
    outcome = qala("report", "--model", make_folder(tmp_path / "int8", "openvino"), "--remote-code")
    assert "--remote-code is for a torch model, and" in outcome.error
    assert "int8 holds none; leave it out" in outcome.error


@pytest.fixture
def tiny(tiny_folder, tmp_path):
    return shutil.copytree(tiny_folder, tmp_path / "tiny")


@needs_matplotlib
def test_example_shows_the_budget_that_drops_most(qala, tiny):
    assert qala("report", "--model", tiny, *EXAMPLE, "--json").json["left_out"].keys() == {"latency.png"}
    page = (tiny / "example.html").read_text()
    assert "Budget fast: of 12 tokens of the text" in page
    assert "example.png" in (tiny / "README.md").read_text()
    assert qala("report", "--model", tiny).code == 0  # without an example the old one stays
    assert (tiny / "example.html").read_text() == page
    assert "[The same as a page](example.html)" in (tiny / "README.md").read_text()
    qala("report", "--model", tiny, *EXAMPLE, "--budget", "accurate")
    assert "Budget accurate: of 12 tokens" in (tiny / "example.html").read_text()


def test_page_needs_no_matplotlib(qala, tiny, monkeypatch):
    monkeypatch.setattr("optimum_qala._compat._is_importable", lambda module: module != "matplotlib")
    outcome = qala("report", "--model", tiny, *EXAMPLE)
    assert "no example.png: example.png needs matplotlib" in outcome.err
    assert (tiny / "example.html").is_file()
    assert not (tiny / "example.png").exists()


def test_int8_models_are_shown_by_the_torch_model(qala, tmp_path, tiny_folder):
    budgets = {"odd": {"retention": [1.0, 0.5, 0.5, 0.5]}}
    folder = make_folder(tmp_path / "int8", "openvino", budgets, quantization=INT8)
    outcome = qala("report", "--model", folder, *EXAMPLE)
    assert outcome.code == 1
    assert "int8 holds no torch model, and only that says which tokens it drops; name the one" in outcome.error
    assert qala("report", "--model", folder, *EXAMPLE, "--torch-model", tiny_folder).code == 0
    assert "Budget odd: of 12 tokens" in (folder / "example.html").read_text()
    assert "Made with a torch model: int8 models do not tell" in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--question", "who ?"], "--question needs --context: an example is a question and its text"),
        (["--context", "anna ."], "--context needs --question: an example is a question and its text"),
        (["--budget", "fast"], "--budget needs --question and --context, the example to show"),
        (["--torch-model", "x"], "--torch-model needs --question and --context"),
        (["--model", "no/such"], "model folder no/such does not exist; report reads the files of a folder"),
        (["--benchmark", "none.json"], "none.json: No such file or directory"),
        ([*EXAMPLE, "--budget", "slow"], "this model has no budget 'slow'"),
    ],
)
def test_mistakes_are_one_line(qala, tiny, flags, message):
    outcome = qala("report", "--model", tiny, *flags)
    assert outcome.code == 1
    assert message in outcome.error
    assert "README.md" not in names(tiny)


def test_a_model_without_dropping_budgets_needs_one(qala, tiny):
    config = json.loads((tiny / "config.json").read_text())
    write(tiny / "config.json", {**config, "budgets": {"full": {"retention": [1.0] * 4}}})
    outcome = qala("report", "--model", tiny, *EXAMPLE)
    assert "no budget of" in outcome.error
    assert "drops tokens; give ratios with --budget" in outcome.error


def test_a_plain_model_drops_nothing(qala, tiny, plain):
    outcome = qala("report", "--model", tiny, *EXAMPLE, "--torch-model", plain)
    assert outcome.code == 1
