from __future__ import annotations

import json
import shutil
import statistics

import pytest
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

import optimum_qala.cli.search as search_module
from optimum_qala import QuaLAMiniLMForQuestionAnswering
from optimum_qala._compat import is_available
from optimum_qala.cli.loading import LoadedModel
from optimum_qala.question_answering.features import WindowOptions, make_windows
from optimum_qala.question_answering.records import load_records
from optimum_qala.reporting.benchmark import describe_machine
from optimum_qala.search.cost import MeasuredLatency
from tests.cli.conftest import squad


@pytest.fixture
def search(qala, tiny_folder, tiny_data, tmp_path):
    """Run a short search; returns the outcome and the output folder."""

    def run(*flags, output="searched"):
        size = ("--iterations", 1, "--population-size", 3, "--mutations", 3, "--crossovers", 2)
        arguments = ("--model", tiny_folder, "--data", tiny_data, "--output", tmp_path / output)
        return qala("search", *arguments, *size, *flags, "--json"), tmp_path / output

    return run


def test_budgets_are_written_into_the_config(search, tmp_path, tiny_data):
    outcome, folder = search()
    budgets = outcome.json["budgets"]
    config = AutoModelForQuestionAnswering.from_pretrained(folder).config
    assert config.budgets == budgets
    assert budgets["full"]["retention"] == [1.0] * 4
    assert len(budgets) > 1
    for name, budget in budgets.items():
        assert budget["dataset"] == tiny_data.name
        assert budget["split"] == "tiny"
        assert {"f1", "em", "macs"} <= budget.keys(), name
    assert budgets["fast"]["macs"] < budgets["full"]["macs"]
    windows = make_windows(load_records(tiny_data), AutoTokenizer.from_pretrained(folder), WindowOptions(128, 32))
    for name, budget in budgets.items():
        counts = [config.macs(config.resolve_budget(name), len(one), one.context_position) for one in windows]
        assert budget["macs"] == round(statistics.mean(counts))
    assert json.loads((folder / "search.json").read_text())["front"]
    assert (folder / "tokenizer.json").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["searched"]


def test_found_budget_works_in_evaluate(search, qala, tiny_data):
    outcome, folder = search()
    scores = qala("evaluate", "--model", folder, "--data", tiny_data, "--budget", "fast", "--json").json
    assert scores["f1"] == outcome.json["budgets"]["fast"]["f1"]


def test_interrupted_search_does_not_measure_twice(search, monkeypatch):
    evaluate = search_module.evaluate
    budgets = []

    def interrupted(*arguments, **options):
        if len(budgets) == 4:
            raise KeyboardInterrupt
        budgets.append(options["budget"])
        return evaluate(*arguments, **options)

    monkeypatch.setattr(search_module, "evaluate", interrupted)
    outcome, folder = search()
    assert outcome.code == 130
    assert not folder.exists()
    first = list(budgets)

    def counted(*arguments, **options):
        budgets.append(options["budget"])
        return evaluate(*arguments, **options)

    monkeypatch.setattr(search_module, "evaluate", counted)
    summary = search()[0].json
    monkeypatch.setattr(search_module, "evaluate", evaluate)
    whole = search(output="whole")[0].json
    assert summary["budgets"] == whole["budgets"]
    # What was measured before is measured again only to name the exact match of a chosen budget.
    chosen = {tuple(budget["retention"]) for budget in whole["budgets"].values()}
    again = {budget.retention for budget in budgets[len(first) :]} & {budget.retention for budget in first}
    assert again <= chosen
    assert summary["num_evaluations"] == whole["num_evaluations"] > len(first)


def test_other_search_options_go_on_from_what_was_measured(search, monkeypatch):
    monkeypatch.setattr(search_module, "choose_budgets", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    assert search()[0].code == 130
    monkeypatch.undo()
    assert search("--seed", 5, "--max-loss", 0.9)[0].code == 0


@pytest.mark.parametrize(
    "flags",
    [
        ["--seed", 5],
        ["--drop-ratio-bound", 0.6],
        ["--step", 0.25],
        ["--max-evaluations", 3],
        ["--iterations", 2],
        ["--population-size", 1],
        ["--mutations", 0],
        ["--crossovers", 0],
        ["--mutation-probability", 0.05],
        ["--limit", 3],
        ["--max-length", 20, "--doc-stride", 2],
    ],
    ids=lambda flags: flags[0],
)
def test_option_changes_what_is_searched(search, monkeypatch, flags):
    searched = []
    evaluate = search_module.evaluate

    def recorded(model, tokenizer, records, *, budget, window_options, **options):
        searched.append((budget.retention, len(records), window_options))
        return evaluate(model, tokenizer, records, budget=budget, window_options=window_options, **options)

    monkeypatch.setattr(search_module, "evaluate", recorded)
    assert search(output="plain")[0].code == 0
    plain = list(searched)
    searched.clear()
    assert search(*flags)[0].code == 0
    assert searched != plain


def test_losses_reach_the_choice_of_budgets(search, monkeypatch):
    seen = {}
    choose = search_module.choose_budgets

    def recorded(*arguments, **options):
        seen.update(options)
        return choose(*arguments, **options)

    monkeypatch.setattr(search_module, "choose_budgets", recorded)
    assert search("--accurate-loss", 0.2, "--max-loss", 0.4)[0].code == 0
    assert (seen["accurate_loss"], seen["max_loss"]) == (0.2, 0.4)


@pytest.fixture
def timed(monkeypatch):
    """Time a search on a clock of its own: a token that leaves a layer takes 1 ms. Gives the lengths timed."""
    now, lengths = [0.0], []
    forward = QuaLAMiniLMForQuestionAnswering.forward

    def counted(self, input_ids, attention_mask=None, token_type_ids=None, budget=None, **options):
        if len(input_ids) == 1:
            lengths.append(input_ids.shape[1])
            now[0] += sum(budget.num_tokens(input_ids.shape[1])) / 1000
        return forward(self, input_ids, attention_mask, token_type_ids, budget=budget, **options)

    monkeypatch.setattr(QuaLAMiniLMForQuestionAnswering, "forward", counted)
    monkeypatch.setattr(
        search_module,
        "measured_latency_cost",
        lambda run, **options: MeasuredLatency(run, clock=lambda: now[0], **options),
    )
    monkeypatch.setattr(LoadedModel, "threads", 7)
    return lengths


def test_latency_is_per_window_and_says_what_it_depends_on(search, timed):
    outcome, folder = search("--cost", "latency")
    budgets = outcome.json["budgets"]
    (length,) = set(timed)
    row = {"backend": "torch", "batch": 1, "threads": 7, "cpu": describe_machine()["cpu"]}
    assert budgets["full"]["latency_ms"] == [row | {"median": pytest.approx(4 * length)}]
    assert budgets["fast"]["latency_ms"][0]["median"] < 4 * length
    front = json.loads((folder / "search.json").read_text())["front"]
    assert front[-1]["cost"] == pytest.approx(4 * length)


def test_latency_is_measured_on_windows_of_all_lengths(qala, tiny_folder, tmp_path, monkeypatch, timed):
    questions = [
        {"id": str(count), "question": "where ?", "context": "paris " + "the old tower " * count, "answer": "paris"}
        for count in range(7)
    ]
    data = tmp_path / "lengths.json"
    data.write_text(json.dumps(squad(questions)))
    monkeypatch.setattr(search_module, "LATENCY_WINDOWS", 3)
    flags = ("--cost", "latency", "--max-evaluations", 2, "--batch-size", 8)
    assert qala("search", "--model", tiny_folder, "--data", data, "--output", tmp_path / "out", *flags).code == 0
    shortest = len("[CLS] where ? [SEP] paris [SEP]".split())
    assert set(timed) == {shortest + 3 * count for count in (1, 3, 5)}


def test_latencies_of_other_conditions_are_not_gone_on_from(search, timed, monkeypatch, tmp_path):
    monkeypatch.setattr(search_module, "choose_budgets", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    assert search("--cost", "latency")[0].code == 130
    monkeypatch.setattr(LoadedModel, "threads", 3)
    assert "was made with threads=7, but this search has threads=3" in search("--cost", "latency")[0].error
    monkeypatch.setattr(LoadedModel, "threads", 7)
    timed.clear()
    assert search("--cost", "latency")[0].code == 130
    assert timed == []
    store = tmp_path / "searched.partial" / "state" / "evaluations.json"
    document = json.loads(store.read_text())
    (full,) = (entry for entry in document["evaluations"] if entry["retention"] == [1.0] * 4)
    assert full["cost"] < 200  # one window, not twelve
    del document["fingerprint"]["cost_unit"]
    store.write_text(json.dumps(document))
    message = "was made with cost_unit=None, but this search has cost_unit='milliseconds per window'"
    assert message in search("--cost", "latency")[0].error


def test_measured_latency_is_recorded(search):
    """A tiny model need not be faster with fewer tokens, so the smallest config may turn out not to be cheaper."""
    outcome, _ = search("--cost", "latency", "--drop-ratio-bound", 0.7)
    if outcome.code:
        assert "dropping tokens saves nothing here" in outcome.error
        return
    (row,) = outcome.json["budgets"]["full"]["latency_ms"]
    assert row["median"] > 0
    assert row["backend"] == "torch"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--drop-ratio-bound", 0], "drop_ratio_bound 0 is not in (0, 1)"),
        (["--iterations", 0, "--population-size", 0], "there is nothing to search"),
        (["--backend", "inc"], "not available in this version"),
    ],
)
def test_search_without_anything_to_search_is_refused(search, flags, message):
    outcome, folder = search(*flags)
    assert outcome.code == 1
    assert message in outcome.error
    assert not folder.exists()


@pytest.mark.skipif(not is_available("openvino"), reason="the openvino extra is absent")
def test_openvino_scores_a_torch_checkpoint_which_stays_one(search):
    outcome, folder = search("--backend", "openvino")
    assert outcome.code == 0, outcome.err
    assert (folder / "model.safetensors").is_file()
    assert not list(folder.glob("*.xml"))
    model = AutoModelForQuestionAnswering.from_pretrained(folder)
    assert model.config.budgets == outcome.json["budgets"]


def test_budgets_that_stop_early_do_not_go_silently(qala, tiny_folder, tiny_data, tmp_path):
    model = QuaLAMiniLMForQuestionAnswering.from_pretrained(tiny_folder, token_scoring="answer")
    model.config.budgets = {"shallow": {"retention": [1.0] * 4, "exit_layer": 2}}
    folder = shutil.copytree(tiny_folder, tmp_path / "answer")
    model.save_pretrained(folder)
    limits = ("--max-evaluations", 3, "--population-size", 3)
    outcome = qala("search", "--model", folder, "--data", tiny_data, "--output", tmp_path / "out", *limits)
    assert outcome.code == 0, outcome.err
    assert "the budgets that stop early go: ['shallow']" in outcome.err


def test_table_of_budgets_shows_exits():
    table = search_module.budget_table(
        {"fast": {"retention": [1, 0.5, 0.5], "exit_layer": 2}, "slow": {"retention": [1, 1, 0.5]}}
    )
    assert [line.split()[-1] for line in table.splitlines()[-2:]] == ["1,0.5,0.5@2", "1,1,0.5"]
