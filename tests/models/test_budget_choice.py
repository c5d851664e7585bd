"""Budgets by milliseconds and by F1."""

from __future__ import annotations

import re

import numpy as np
import pytest

from optimum_qala.errors import ConfigurationError, UnknownBudgetError
from optimum_qala.models.budget_choice import (
    Conditions,
    cheapest_accurate,
    choose_budget,
    cpu_name,
    fastest_enough,
    matching_latencies,
)


def row(median, **changes):
    return (
        {"backend": "openvino", "batch": 1, "threads": 2, "cpu": "Brisk", "precision": "f32"}
        | changes
        | {"median": median}
    )


def budget(f1, macs, *rows):
    return {"retention": [1.0, 1.0, 1.0, 1.0], "f1": f1, "macs": macs, "latency_ms": list(rows)}


HERE = Conditions("openvino", "Brisk", 2, "f32")
BUDGETS = {
    "full": budget(80.0, 400, row(8.0), row(12.0, threads=1)),
    "accurate": budget(79.5, 300, row(6.0), row(9.0, threads=1)),
    "fast": budget(70.0, 100, row(4.0), row(1.0, cpu="Swift")),
    "odd": budget(60.0, 200, row(3.0), row(0.5, backend="torch")),
}


def test_latencies_match_back_end_and_cpu():
    assert matching_latencies(BUDGETS, HERE) == {"full": 8.0, "accurate": 6.0, "fast": 4.0, "odd": 3.0}
    assert matching_latencies(BUDGETS, Conditions("torch", "Brisk")) == {"odd": 0.5}
    assert matching_latencies(BUDGETS, Conditions("openvino", "Swift")) == {"fast": 1.0}
    assert matching_latencies(BUDGETS, Conditions("torch", "Swift")) == {}


def test_latencies_match_threads_precision_and_batch_where_there_are_any():
    assert matching_latencies(BUDGETS, Conditions("openvino", "Brisk", 1)) == {"full": 12.0, "accurate": 9.0}
    assert (
        len(matching_latencies(BUDGETS, Conditions("openvino", "Brisk", 16))) == 4
    )  # none has 16: take what is there
    mixed = {
        "a": budget(1.0, 1, row(2.0), row(3.0, precision="bf16"), row(1.0, batch=32)),
        "b": budget(1.0, 1, row(4.0, precision="bf16"), row(5.0)),
    }
    assert matching_latencies(mixed, HERE) == {"a": 2.0, "b": 5.0}
    assert matching_latencies(mixed, Conditions("openvino", "Brisk", 2, "bf16")) == {"a": 3.0, "b": 4.0}
    assert matching_latencies(mixed, Conditions("openvino", "Brisk", 2, "f32", batch=32)) == {"a": 1.0}


@pytest.mark.parametrize(
    ("here", "message"),
    [
        (
            Conditions("openvino", "Brisk", 2, "f32"),
            "measured with padding multiple of 32, but this model runs with longest; load it with buckets=True",
        ),
        (
            Conditions("openvino", "Brisk", 16, "f32", padding="multiple of 32"),
            "measured with threads 2, but this model runs with 16",
        ),
        (Conditions("openvino", "Brisk", 2, "f32", padding="multiple of 32"), None),
    ],
)
def test_latencies_of_other_conditions_are_warned_of(monkeypatch, here, message):
    warnings: list[str] = []
    monkeypatch.setattr("optimum_qala.models.budget_choice.logger.warning", warnings.append)
    budgets = {"full": budget(80.0, 400, row(8.0, padding="multiple of 32"))}
    assert matching_latencies(budgets, here) == {"full": 8.0}
    assert len(warnings) == (message is not None)
    assert message is None or message in warnings[0]


def test_latencies_match_padding_where_there_is_any():
    one = budget(80.0, 400, row(8.0, padding="multiple of 32"), row(9.0, padding="longest"))
    assert matching_latencies({"full": one}, HERE) == {"full": 9.0}
    in_buckets = Conditions("openvino", "Brisk", 2, "f32", padding="multiple of 32")
    assert matching_latencies({"full": one}, in_buckets) == {"full": 8.0}


def test_latencies_pass_over_rows_of_another_form():
    assert matching_latencies({"a": budget(1.0, 1, {"backend": "openvino", "cpu": "Brisk", "p50": 3})}, HERE) == {}
    assert matching_latencies({"a": {"retention": [1.0]}, "b": {"retention": [1.0], "latency_ms": None}}, HERE) == {}


@pytest.mark.parametrize(("limit", "name"), [(8.0, "full"), (7.9, "accurate"), (5.0, "fast"), (3.0, "odd")])
def test_fastest_enough_is_the_most_accurate_at_or_under_the_limit(limit, name):
    assert fastest_enough(BUDGETS, limit, HERE) == name


def test_fastest_enough_of_equals_is_the_fastest():
    budgets = {"a": budget(70.0, 1, row(4.0)), "b": budget(70.0, 1, row(3.0))}
    assert fastest_enough(budgets, 5.0, HERE) == "b"


def test_fastest_enough_lists_what_was_measured():
    with pytest.raises(UnknownBudgetError, match="takes at most 2.5 ms on openvino and Brisk; .* odd 3 ms, fast 4 ms"):
        fastest_enough(BUDGETS, 2.5, HERE)
    with pytest.raises(
        UnknownBudgetError,
        match="latency measured for torch on Swift; measured are openvino on Brisk, openvino on Swift, torch on Brisk",
    ):
        fastest_enough(BUDGETS, 5.0, Conditions("torch", "Swift"))
    with pytest.raises(UnknownBudgetError, match=r"measured are none at all\. Search by latency .*: .'full'."):
        fastest_enough({}, 5.0, HERE)
    with pytest.raises(UnknownBudgetError, match=r"for inc on Brisk; .* none at all\. Choose a budget by name"):
        fastest_enough({}, 5.0, Conditions("inc", "Brisk"))  # the search does not time it
    with pytest.raises(ConfigurationError, match="max_latency_ms 0 is not above 0"):
        fastest_enough(BUDGETS, 0, HERE)


@pytest.mark.parametrize("value", ["5", True, [5.0]])
def test_limit_that_is_no_number_is_refused(value):
    with pytest.raises(ConfigurationError, match=re.escape(f"max_latency_ms {value!r} is not a number")):
        fastest_enough(BUDGETS, value, HERE)
    with pytest.raises(ConfigurationError, match=re.escape(f"max_f1_loss {value!r} is not a number")):
        cheapest_accurate(BUDGETS, value, HERE)
    assert fastest_enough(BUDGETS, np.float32(3.0), HERE) == "odd"


def test_fastest_enough_passes_over_budgets_without_f1():
    assert fastest_enough(BUDGETS | {"night": {"retention": [1.0], "latency_ms": [row(1.0)]}}, 3.5, HERE) == "odd"


@pytest.mark.parametrize(("loss", "name"), [(0.0, "full"), (0.01, "accurate"), (0.2, "fast"), (0.5, "odd")])
def test_cheapest_accurate_goes_by_latency(loss, name):
    assert cheapest_accurate(BUDGETS, loss, HERE) == name


def test_cheapest_accurate_goes_by_operations_where_latencies_are_missing():
    assert cheapest_accurate(BUDGETS, 0.5, Conditions("torch", "Brisk")) == "fast"


def test_cheapest_accurate_refuses_what_cannot_be_told():
    with pytest.raises(UnknownBudgetError, match=r"what F1 it has at full length.*'fast', 'full'"):
        cheapest_accurate({"fast": BUDGETS["fast"]}, 0.1, HERE)
    bare = {"full": {"f1": 80.0}, "fast": {"f1": 79.0, "macs": 3}}
    with pytest.raises(UnknownBudgetError, match=r"of the budgets .'fast', 'full'., .* on openvino and Brisk nor"):
        cheapest_accurate(bare, 0.1, HERE)
    for loss in (-0.1, 1.0, float("nan")):
        with pytest.raises(ConfigurationError, match=rf"max_f1_loss {loss:g} is not in \[0, 1\)"):
            cheapest_accurate(BUDGETS, loss, HERE)


@pytest.mark.parametrize("limits", [(0.0, None), (float("nan"), None), (None, 1.0), (None, -0.5)])
def test_limits_are_checked_before_what_the_model_runs_on_is_looked_up(tiny_model, limits):
    """A graph may have to be compiled for that."""

    def look_up():
        raise AssertionError("looked up")

    with pytest.raises(ConfigurationError, match="is not"):
        choose_budget(tiny_model.config, None, *limits, look_up)


@pytest.fixture
def measured_model(tiny_model):
    here = {"backend": "torch", "cpu": cpu_name()}
    tiny_model.config.budgets = {
        "full": budget(80.0, 400, row(8.0, **here)),
        "fast": budget(70.0, 100, row(4.0, **here)) | {"retention": [1.0, 0.5, 0.5, 0.5]},
    }
    return tiny_model


def test_set_budget_by_latency_and_by_loss(measured_model):
    fast = measured_model.config.resolve_budget("fast")
    measured_model.set_budget(max_latency_ms=5)
    assert measured_model.budget == fast
    measured_model.set_budget(max_latency_ms=9)
    assert measured_model.budget is None
    measured_model.set_budget(max_f1_loss=0.2)
    assert measured_model.budget == fast
    measured_model.set_budget(max_f1_loss=0.01)
    assert measured_model.budget is None


def test_set_budget_takes_one_argument_and_keeps_the_old_budget_after_an_error(measured_model):
    measured_model.set_budget("fast")
    with pytest.raises(ConfigurationError, match="give only one of budget and max_latency_ms"):
        measured_model.set_budget("fast", max_latency_ms=5)
    with pytest.raises(ConfigurationError, match="give only one of max_latency_ms and max_f1_loss"):
        measured_model.set_budget(max_latency_ms=5, max_f1_loss=0.1)
    with pytest.raises(UnknownBudgetError, match="at most 1 ms on torch"):
        measured_model.set_budget(max_latency_ms=1)
    assert measured_model.budget == measured_model.config.resolve_budget("fast")
