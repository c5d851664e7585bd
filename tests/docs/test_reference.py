"""The reference says what the code says."""

from __future__ import annotations

import inspect
import json
import re
import sys
from dataclasses import fields

import pytest

import optimum_qala
from optimum_qala import QuaLAMiniLMConfig, errors
from optimum_qala._compat import EXTRAS, is_available
from optimum_qala.cli import runner
from optimum_qala.models.length_config import LengthConfig
from optimum_qala.quantization.configuration import CONFIG_NAME, IR_NAME, RETENTION_INPUT
from optimum_qala.search.options import SearchOptions
from optimum_qala.search.store import EvaluationStore
from tests.docs.conftest import DOCS, blocks, qala


REFERENCE = DOCS / "reference"
FILES = REFERENCE / "files.md"

# The first test that needs them runs all commands of the tutorial, one of which quantizes.
pytestmark = pytest.mark.timeout(900)


def page(name: str) -> str:
    return (REFERENCE / name).read_text(encoding="utf-8")


def test_generated_parts_are_up_to_date(generate):
    outdated = []
    for file in generate.pages():
        text = file.read_text(encoding="utf-8")
        if generate.fill(text) != text:
            outdated.append(file.relative_to(DOCS).as_posix())
    assert outdated == [], "run python docs/reference/generate.py"


def test_check_reports_a_page_that_is_out_of_date(generate, tmp_path, monkeypatch, capsys):
    outdated = tmp_path / "page.md"
    outdated.write_text("<!-- generated: extras -->\nold\n<!-- /generated -->\n", encoding="utf-8")
    monkeypatch.setattr(generate, "pages", lambda: [outdated])
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    monkeypatch.setattr(generate, "render", lambda what: f"new {what}")
    monkeypatch.setattr(sys, "argv", ["generate.py", "--check"])
    assert generate.main() == 1
    assert "old" in outdated.read_text(encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["generate.py"])
    assert generate.main() == 0
    assert "new extras" in outdated.read_text(encoding="utf-8")
    assert capsys.readouterr().out == "out of date: page.md\nwritten: page.md\n"


@pytest.mark.parametrize("name", [name for name in optimum_qala.__all__ if name != "__version__"])
def test_every_public_name_has_an_entry(name):
    assert f"\n## {name}\n" in page("python_api.md")


@pytest.mark.parametrize("method", ["set_budget", "from_pretrained", "forward"])
@pytest.mark.parametrize("prefix", ["", "OV", "INC"])
def test_all_models_document_the_same_verbs(prefix, method):
    """Also where a base class of ours defines them."""
    assert f"\n### {prefix}QuaLAMiniLMForQuestionAnswering.{method}()\n" in page("python_api.md")


def test_every_error_is_listed():
    for name in errors.__all__:
        assert f"| `{name}` |" in page("errors.md")


def test_every_extra_is_listed():
    for extra in EXTRAS:
        assert f"| `{extra}` |" in page("python_api.md")


@pytest.mark.parametrize("options", [SearchOptions, QuaLAMiniLMConfig], ids=lambda options: options.__name__)
def test_defaults_are_those_of_the_imported_class(options):
    """The pages are made from the text of the code; this compares them with what the code does."""
    section = page("configuration.md").partition(f"## {options.__name__}\n")[2].partition("\n## ")[0]
    defaults = dict(re.findall(r"^\| `(\w+)` \| `([^`]*)` \|", section, re.MULTILINE))
    names = {item.name for item in fields(options)} if options is SearchOptions else set(defaults)
    assert set(defaults) == names
    made = options()
    for name, default in defaults.items():
        expected = {} if (options, name) == (QuaLAMiniLMConfig, "budgets") else getattr(made, name)
        assert default in (repr(expected), "None"), name


def test_docstring_sections_become_markdown(generate):
    text = inspect.cleandoc(
        """Do it.

        More, if n < 3 and `a < b`.

        Args:
            first: A line
                and another:

                - a point
            second: Short.

        Returns:
            A thing
            on two lines.

        Raises:
            DataError: If bad.
        """
    )
    assert "\n".join(generate.docstring_lines(text)).strip() == inspect.cleandoc(
        r"""Do it.

        More, if n \< 3 and `a < b`.

        **Parameters**

        - `first`: A line
          and another:

          - a point
        - `second`: Short.

        **Returns** A thing on two lines.

        **Raises**

        - `DataError`: If bad."""
    )


def test_exit_codes_are_those_of_the_runner(generate):
    codes = {value for name, value in vars(runner).items() if name.startswith("EXIT_")}
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", page("errors.md"), re.MULTILINE)}
    assert listed == codes
    for name, parser in generate.commands().items():
        text = parser.epilog.partition("exit codes:")[2].partition("--debug")[0]
        assert {int(code) for code in re.findall(r"\b(\d+) \w", text)} == codes, name


def example(name: str) -> dict:
    (text,) = [block.text for block in blocks(FILES, "json") if block.note == f"example: {name}"]
    return json.loads(text)


def test_files_of_a_trained_and_a_searched_model(finished):
    training = json.loads((finished / "trained" / "training.json").read_text(encoding="utf-8"))
    assert training.keys() == example("training.json").keys()
    assert (training["model"], training["data"], training["teacher"]) == ("minilm", "train.json", None)
    assert (finished / "searched" / "training.json").read_bytes() == (
        finished / "trained" / "training.json"
    ).read_bytes()
    search = json.loads((finished / "searched" / "search.json").read_text(encoding="utf-8"))
    assert search.keys() == example("search.json").keys()
    assert search["front"][0].keys() == example("search.json")["front"][0].keys()
    budgets = json.loads((finished / "searched" / "config.json").read_text(encoding="utf-8"))["budgets"]
    assert budgets["fast"].keys() == example("budget").keys()


def test_report_of_a_distillation(workplace, tmp_path):
    student = "--student-layers 1 --student-hidden-size 24 --student-heads 2 --max-steps 1"
    qala(f"optimum-cli qala distill --teacher plain-bert --data texts.txt --output {tmp_path}/s {student}", workplace)
    report = json.loads((tmp_path / "s" / "distillation.json").read_text(encoding="utf-8"))
    assert report.keys() == example("distillation.json").keys()


def test_a_search_by_latency_adds_what_the_page_says(reader, monkeypatch):
    # The tiny model gains no time, so that there would be nothing to search.
    monkeypatch.setattr("optimum_qala.cli.stopwatch.table_cost", lambda *_: lambda config: sum(config.retention))
    search = "optimum-cli qala search --model trained --data dev.json --output ms"
    qala(f"{search} --cost latency --max-evaluations 3", reader)
    budget = json.loads((reader / "ms" / "config.json").read_text(encoding="utf-8"))["budgets"]["full"]
    assert budget.keys() - example("budget").keys() == {"latency_ms"}
    row = page("files.md").partition("| `latency_ms` |")[2].partition("\n")[0]
    assert set(re.findall(r"`(\w+)`", row)) == set(budget["latency_ms"][0])
    latency = json.loads((reader / "ms" / "search.json").read_text(encoding="utf-8"))["latency"]
    section = page("files.md").partition("`latency` is null unless")[2].partition("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", section)) >= set(latency)


def test_files_of_an_int8_model(finished):
    if not is_available("openvino"):
        pytest.skip("openvino is not installed")
    for name in (IR_NAME, CONFIG_NAME):
        assert f"`{name}`" in page("files.md")
        assert (finished / "int8" / name).is_file()
    assert (finished / "int8" / "training.json").is_file()
    assert (finished / "int8" / "search.json").is_file()
    assert f"`{RETENTION_INPUT}`" in page("files.md")
    stored = json.loads((finished / "int8" / CONFIG_NAME).read_text(encoding="utf-8"))
    section = page("configuration.md").partition("## OVQuaLAConfig\n")[2].partition("\n## ")[0]
    assert set(stored) == set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE))


def test_results_of_benchmark_evaluate_and_predict(reader):
    if not is_available("openvino"):
        pytest.skip("openvino is not installed")
    results = json.loads((reader / "report" / "results.json").read_text(encoding="utf-8"))
    assert results.keys() == example("results.json").keys()
    assert results["machine"].keys() == example("results.json")["machine"].keys()
    assert results["rows"][0].keys() == example("results.json")["rows"][0].keys()
    qala("optimum-cli qala evaluate --model int8 --data dev.json --budget fast --json > scores.json", reader)
    scores = json.loads((reader / "scores.json").read_text(encoding="utf-8"))
    assert scores.keys() == example("evaluate").keys()
    assert scores["budgets"]["fast"].keys() == example("evaluate")["budgets"]["fast"].keys()
    answers = (reader / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(answers[0]).keys() == example("answer").keys()


def test_store_of_a_search(tmp_path):
    store = EvaluationStore(tmp_path / "evaluations.json", {})
    store.put(LengthConfig((1.0,)), cost=0.0, score=0.0, details={"em": 0.0})
    store.save()
    assert json.loads((tmp_path / "evaluations.json").read_text(encoding="utf-8")) == example("evaluations.json")
