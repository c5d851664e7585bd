from __future__ import annotations

import functools
import json
import shutil
import statistics

import pytest
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

import optimum_qala.cli.search as search_module
import optimum_qala.cli.stopwatch as stopwatch_module
from optimum_qala import QuaLAMiniLMForQuestionAnswering
from optimum_qala._compat import is_available
from optimum_qala.cli.loading import LoadedModel
from optimum_qala.question_answering.features import WindowOptions, make_windows
from optimum_qala.question_answering.records import load_records
from optimum_qala.reporting.machine import describe_machine
from optimum_qala.search.cost import MeasuredLatency
from optimum_qala.search.latency import FEATURES, CalibrationOptions, calibrate, time_in_turns
from tests.cli.conftest import squad


@pytest.fixture
def search(qala, tiny_folder, tiny_data, tmp_path):
    """Run a short search; returns the outcome and the output folder."""

    def run(*flags, output="searched"):
        size = ("--iterations", 1, "--population-size", 3, "--mutations", 3, "--crossovers", 2)
        size += ("--parent-loss", 1)  # the scores of a tiny model are all bad
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
    assert not set(first) & set(budgets[len(first) :])
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
        ["--merge-probability", 1],
        ["--method", "optuna"],
        ["--subset-size", 5],
        ["--subset-size", 5, "--subset-seed", 3],
        ["--subset-size", 5, "--tolerance", 40],
        ["--limit", 3],
        ["--max-length", 20, "--doc-stride", 2],
    ],
    ids=lambda flags: flags[0],
)
def test_option_changes_what_is_searched(search, monkeypatch, flags):
    if "optuna" in flags:
        pytest.importorskip("optuna")
    searched = []
    evaluate = search_module.evaluate

    def recorded(model, tokenizer, records, *, budget, window_options, **options):
        searched.append((budget.retention, [record.id for record in records], window_options))
        return evaluate(model, tokenizer, records, budget=budget, window_options=window_options, **options)

    monkeypatch.setattr(search_module, "evaluate", recorded)
    # An option of the second stage is compared with a search that has one.
    assert search(*flags[: 2 if len(flags) > 2 and "--subset-size" in flags else 0], output="plain")[0].code == 0
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


def test_parent_loss_reaches_the_search(search, monkeypatch):
    seen = []
    monkeypatch.setitem(
        search_module.METHODS, "evolution", lambda *a, **k: seen.append(a[3]) or search_module.evolve(*a)
    )
    assert search("--parent-loss", 0.1)[0].code == 0
    assert seen[0].parent_loss == 0.1


def test_finalists_are_scored_on_all_questions(search, qala, tiny_data, monkeypatch):
    evaluate, calls = search_module.evaluate, []

    def recorded(model, tokenizer, records, **options):
        calls.append((options["budget"], len(records)))
        return evaluate(model, tokenizer, records, **options)

    monkeypatch.setattr(search_module, "evaluate", recorded)
    outcome, folder = search("--subset-size", 5, "--finalists", 2, "--tolerance", 40)
    first = [budget for budget, count in calls if count == 5]
    final = [budget for budget, count in calls if count == 12]
    assert calls == [(budget, 5) for budget in first] + [(budget, 12) for budget in final]
    assert final[0].is_full
    assert len(final) == len(set(final)) == 3
    assert set(final) <= set(first)
    summary = json.loads((folder / "search.json").read_text())
    assert (summary["subset_size"], summary["num_finalists"]) == (5, 3)
    assert summary["num_evaluations"] == len(first)
    fast = outcome.json["budgets"]["fast"]
    scores = qala("evaluate", "--model", folder, "--data", tiny_data, "--budget", "fast", "--json").json
    assert (fast["f1"], fast["em"]) == (scores["f1"], scores["exact_match"])


def test_search_that_was_killed_among_its_finalists_scores_none_of_them_twice(search, monkeypatch):
    evaluate, calls = search_module.evaluate, []

    def interrupted(model, tokenizer, records, **options):
        if [count for _, count in calls].count(12) == 2:
            raise KeyboardInterrupt
        calls.append((options["budget"], len(records)))
        return evaluate(model, tokenizer, records, **options)

    flags = ("--subset-size", 5, "--finalists", 4, "--tolerance", 40)
    monkeypatch.setattr(search_module, "evaluate", interrupted)
    assert search(*flags)[0].code == 130
    before = list(calls)
    calls.clear()
    monkeypatch.setattr(
        search_module, "evaluate", lambda *a, **k: calls.append((k["budget"], len(a[2]))) or evaluate(*a, **k)
    )
    resumed = search(*flags)[0].json
    assert not set(before) & set(calls)
    assert {count for _, count in calls} == {12}
    assert resumed["budgets"] == search(*flags, output="whole")[0].json["budgets"]


def test_another_subset_is_not_gone_on_from(search, monkeypatch, tmp_path):
    monkeypatch.setattr(search_module, "choose_finalists", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    assert search("--subset-size", 5)[0].code == 130
    store = json.loads((tmp_path / "searched.partial" / "state" / "evaluations.json").read_text())
    assert store["fingerprint"]["subset"] == [5, 0]
    assert "other settings (subset_size)" in search("--subset-size", 6)[0].error


@pytest.fixture
def answer_folder(tiny_folder, tmp_path):
    """The tiny model with early span heads."""
    model = QuaLAMiniLMForQuestionAnswering.from_pretrained(tiny_folder, token_scoring="answer")
    model.config.budgets = {"shallow": {"retention": [1.0] * 4, "exit_layer": 2}}
    folder = shutil.copytree(tiny_folder, tmp_path / "answer")
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("flags", "depths"),
    [
        ([], {2, 3, 4}),
        (["--min-exit-layer", 1], {1, 2, 3, 4}),
        (["--min-exit-layer", 3], {3, 4}),
        (["--no-exits"], {4}),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_exits_are_searched_where_the_model_has_them(
    qala, answer_folder, tiny_data, tmp_path, monkeypatch, flags, depths
):
    evaluate, seen = search_module.evaluate, set()
    monkeypatch.setattr(search_module, "evaluate", lambda *a, **k: seen.add(k["budget"].depth) or evaluate(*a, **k))
    arguments = ("--model", answer_folder, "--data", tiny_data, "--output", tmp_path / "out", *flags, "--json")
    outcome = qala("search", *arguments, "--iterations", 1, "--population-size", 8)
    budgets = outcome.json["budgets"]
    assert seen == depths
    assert "warning" not in outcome.err
    found = QuaLAMiniLMForQuestionAnswering.from_pretrained(tmp_path / "out").config
    assert {found.resolve_budget(name) for name in budgets}


def test_exits_need_span_heads(search):
    outcome, _ = search("--min-exit-layer", 2)
    assert "min_exit_layer 2 needs a model with early span heads" in outcome.error


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
    clocked = {"calibrate": calibrate, "time_in_turns": time_in_turns, "measured_latency_cost": MeasuredLatency}
    for name, function in clocked.items():
        monkeypatch.setattr(stopwatch_module, name, functools.partial(function, clock=lambda: now[0]))
    monkeypatch.setattr(LoadedModel, "threads", 7)
    return lengths


LATENCY_COSTS = ("latency", "measured-latency")


@pytest.mark.parametrize("cost", LATENCY_COSTS)
def test_latency_is_per_window_and_says_what_it_depends_on(search, timed, cost):
    outcome, folder = search("--cost", cost)
    budgets = outcome.json["budgets"]
    (length,) = set(timed)
    row = {"backend": "torch", "batch": 1, "threads": 7, "cpu": describe_machine()["cpu"]}
    row |= {"precision": "f32", "padding": "longest"}
    assert budgets["full"]["latency_ms"] == [row | {"median": pytest.approx(4 * length)}]
    assert budgets["fast"]["latency_ms"][0]["median"] < 4 * length
    front = json.loads((folder / "search.json").read_text())["front"]
    assert front[-1]["cost"] == pytest.approx(4 * length, rel=0.1 if cost == "latency" else 1e-6)


def test_latency_table_is_reported_beside_what_was_measured(search, timed):
    outcome, folder = search("--cost", "latency")
    report = json.loads((folder / "search.json").read_text())["latency"]
    assert set(report["factors"]) == set(FEATURES)
    assert report["conditions"]["threads"] == 7
    assert len(report["held_out"]) == CalibrationOptions.held_out_configs
    assert report["budgets"].keys() == outcome.json["budgets"].keys()
    for name, row in report["budgets"].items():
        assert row["measured_ms"] == outcome.json["budgets"][name]["latency_ms"][0]["median"]
        assert row["predicted_ms"] == pytest.approx(row["measured_ms"], rel=0.15)
    assert f"the latency table is off by {report['mean_error']:.0%}" in outcome.err


def test_latency_table_that_predicts_badly_is_warned_of(search, timed, monkeypatch):
    monkeypatch.setattr(stopwatch_module, "LARGEST_ERROR", -1.0)
    outcome, _ = search("--cost", "latency")
    assert "warning: the latency table is off by" in outcome.err
    assert "on configs that it was not fitted to; its costs may be in the wrong order" in outcome.err


def test_latency_table_is_measured_once_however_often_a_search_is_killed(search, timed, monkeypatch):
    monkeypatch.setattr(search_module, "choose_budgets", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    assert search("--cost", "latency")[0].code == 130
    assert timed
    timed.clear()
    assert search("--cost", "latency")[0].code == 130
    assert timed == []


def test_latency_table_of_other_conditions_is_measured_anew(search, timed, monkeypatch, tmp_path):
    monkeypatch.setattr(search_module, "choose_budgets", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    assert search("--cost", "latency")[0].code == 130
    state = tmp_path / "searched.partial" / "state"
    (state / "evaluations.json").unlink()
    timed.clear()
    monkeypatch.setattr(LoadedModel, "threads", 3)
    assert search("--cost", "latency")[0].code == 130
    assert timed
    assert json.loads((state / "latency.json").read_text())["conditions"]["threads"] == 3


def test_latency_table_fitted_to_other_configs_is_measured_anew(search, timed, monkeypatch, tmp_path):
    monkeypatch.setattr(search_module, "choose_budgets", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    assert search("--cost", "latency")[0].code == 130
    state = tmp_path / "searched.partial" / "state"
    evaluations = json.loads((state / "evaluations.json").read_text())["evaluations"]
    timed.clear()
    assert search("--cost", "latency", "--drop-ratio-bound", 0.6)[0].code == 130
    assert timed
    assert json.loads((state / "latency.json").read_text())["searched"]["drop_ratio_bound"] == 0.6
    again = json.loads((state / "evaluations.json").read_text())["evaluations"]
    scores = {tuple(one["retention"]): one["score"] for one in again}
    assert all(scores[tuple(one["retention"])] == one["score"] for one in evaluations if one["score"] is not None)


def test_latency_is_measured_on_windows_of_all_lengths(qala, tiny_folder, tmp_path, monkeypatch, timed):
    questions = [
        {"id": str(count), "question": "where ?", "context": "paris " + "the old tower " * count, "answer": "paris"}
        for count in range(7)
    ]
    data = tmp_path / "lengths.json"
    data.write_text(json.dumps(squad(questions)))
    monkeypatch.setattr(stopwatch_module, "TIMED_WINDOWS", 3)
    flags = ("--cost", "measured-latency", "--max-evaluations", 2, "--batch-size", 8)
    assert qala("search", "--model", tiny_folder, "--data", data, "--output", tmp_path / "out", *flags).code == 0
    shortest = len("[CLS] where ? [SEP] paris [SEP]".split())
    assert set(timed) == {shortest + 3 * count for count in (1, 3, 5)}


def test_latencies_of_other_conditions_are_not_gone_on_from(search, timed, monkeypatch, tmp_path):
    cost = ("--cost", "measured-latency")
    monkeypatch.setattr(search_module, "choose_budgets", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    assert search(*cost)[0].code == 130
    monkeypatch.setattr(LoadedModel, "threads", 3)
    assert "was made with threads=7, but this search has threads=3" in search(*cost)[0].error
    monkeypatch.setattr(LoadedModel, "threads", 7)
    timed.clear()
    assert search(*cost)[0].code == 130
    assert timed == []
    store = tmp_path / "searched.partial" / "state" / "evaluations.json"
    document = json.loads(store.read_text())
    (full,) = (entry for entry in document["evaluations"] if entry["retention"] == [1.0] * 4)
    assert full["cost"] < 200  # one window, not twelve
    del document["fingerprint"]["cost_unit"]
    store.write_text(json.dumps(document))
    message = "was made with cost_unit=None, but this search has cost_unit='milliseconds per window, measured'"
    assert message in search(*cost)[0].error


@pytest.mark.parametrize("cost", LATENCY_COSTS)
def test_measured_latency_is_recorded(search, cost):
    """A tiny model need not be faster with fewer tokens, so the smallest config may turn out not to be cheaper."""
    outcome, _ = search("--cost", cost, "--drop-ratio-bound", 0.7)
    if outcome.code:
        assert "dropping tokens saves nothing here" in outcome.error
        return
    (row,) = outcome.json["budgets"]["full"]["latency_ms"]
    assert row["median"] > 0
    assert row["backend"] == "torch"


@pytest.mark.skipif(not is_available("openvino"), reason="the openvino extra is absent")
def test_openvino_is_timed_in_buckets(search, monkeypatch):
    monkeypatch.setattr(stopwatch_module, "table_cost", lambda *_: lambda config: sum(config.retention))
    outcome, folder = search("--cost", "latency", "--backend", "openvino")
    (row,) = outcome.json["budgets"]["fast"]["latency_ms"]
    assert (row["backend"], row["padding"]) == ("openvino", "multiple of 32")
    report = json.loads((folder / "search.json").read_text())["latency"]
    assert all(one["measured_ms"] > 0 for one in report["held_out"])


@pytest.mark.skipif(not is_available("openvino"), reason="the openvino extra is absent")
def test_plain_checkpoint_is_timed_as_the_model_that_is_searched(qala, plain, tiny_data, tmp_path):
    """In buckets a plain checkpoint would otherwise load as a plain model, which takes no budgets."""
    flags = ("--cost", "measured-latency", "--backend", "openvino", "--max-evaluations", 2, "--no-exits")
    arguments = ("--model", plain, "--data", tiny_data, "--output", tmp_path / "out")
    outcome = qala("search", *arguments, *flags, "--json")
    if outcome.code:
        assert "dropping tokens saves nothing here" in outcome.error
        return
    (row,) = outcome.json["budgets"]["full"]["latency_ms"]
    assert row["padding"] == "multiple of 32"


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_plain_checkpoint_is_searched_without_training(qala, plain, tiny_data, tmp_path, monkeypatch, backend):
    """As Dynamic-TinyBERT does, by latency and with Bayesian optimisation."""
    if backend == "openvino" and not is_available("openvino"):
        pytest.skip("the openvino extra is absent")
    pytest.importorskip("optuna")
    # The tiny model gains no time, so that there would be nothing to search.
    monkeypatch.setattr(stopwatch_module, "table_cost", lambda *_: lambda config: sum(config.retention))
    arguments = ("--model", plain, "--data", tiny_data, "--output", tmp_path / "out", "--backend", backend)
    limits = ("--max-evaluations", 8, "--population-size", 4)
    budgets = qala("search", *arguments, *limits, "--method", "optuna", "--cost", "latency", "--json").json["budgets"]
    assert budgets["fast"]["latency_ms"][0]["backend"] == backend
    found = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "out")
    assert isinstance(found, QuaLAMiniLMForQuestionAnswering)
    assert found.config.budgets == budgets


def test_no_exits_and_the_least_of_them_exclude_each_other(search):
    outcome, _ = search("--no-exits", "--min-exit-layer", 2)
    assert outcome.code == 2
    assert "not allowed with argument" in outcome.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--accurate-loss", 0.6], "accurate_loss 0.6 and max_loss 0.5 must be 0 <= accurate_loss <= max_loss <= 1"),
        (["--max-loss", 1.5], "accurate_loss 0.01 and max_loss 1.5 must be"),
        (["--accurate-loss", -0.1, "--max-loss", 0.2], "accurate_loss -0.1 and max_loss 0.2 must be"),
    ],
)
def test_illegal_losses_are_refused_before_the_search(search, flags, message):
    outcome, folder = search(*flags)
    assert message in outcome.error
    assert not folder.with_name(f"{folder.name}.partial").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--drop-ratio-bound", 0], "drop_ratio_bound 0 is not in (0, 1)"),
        (["--iterations", 0, "--population-size", 0], "there is nothing to search"),
        (["--backend", "inc"], "--backend inc does not search in this version"),
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


def test_table_of_budgets_shows_exits():
    table = search_module.budget_table(
        {"fast": {"retention": [1, 0.5, 0.5], "exit_layer": 2}, "slow": {"retention": [1, 1, 0.5]}}
    )
    assert [line.split()[-1] for line in table.splitlines()[-2:]] == ["1,0.5,0.5@2", "1,1,0.5"]
    timed = {"slow": {"retention": [1.0], "latency_ms": [{"median": 9.0}, {"median": 7.25}]}}
    assert search_module.budget_table(timed).splitlines()[-1].split()[-2] == "7.25"
