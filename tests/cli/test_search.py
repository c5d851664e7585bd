from __future__ import annotations

import json

import pytest
from transformers import AutoModelForQuestionAnswering

import optimum_qala.cli.search as search_module
from optimum_qala._compat import is_available


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
