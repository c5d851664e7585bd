"""The latency table: what it counts, how it is fitted, and how well it predicts a machine whose times are known."""

from __future__ import annotations

import numpy as np
import pytest

from optimum_qala.errors import ConfigurationError
from optimum_qala.models.length_config import LengthConfig
from optimum_qala.search.latency import (
    FEATURES,
    CalibrationOptions,
    LatencyTable,
    calibrate,
    calibration_configs,
    fit_non_negative,
    table_cost,
    time_in_turns,
    window_features,
)
from optimum_qala.search.options import SearchOptions
from optimum_qala.search.space import SearchSpace
from tests.conftest import tiny_config


FULL = LengthConfig.full(4)
FACTORS = {
    "call": 0.5,
    "token": 0.002,
    "layer": 0.1,
    "projection": 0.004,
    "attention": 2e-5,
    "choice": 0.3,
    "candidate": 0.001,
    "score": 5e-5,
}
TABLE = LatencyTable(FACTORS)
SIZES = [(30, 8), (60, 10), (90, 12), (120, 9)]


def counted(length_config, size=(100, 10), bucket=None, **fields):
    features = window_features(tiny_config(**fields), LengthConfig.parse(length_config), size, bucket)
    return dict(zip(FEATURES, features.tolist(), strict=True))


def to_32(length):
    return -(-length // 32) * 32


def test_features_of_full_length():
    assert counted("1,1,1,1") == {
        "call": 1,
        "token": 100,
        "layer": 4,
        "projection": 400,
        "attention": 4 * 100 * 100,
        "choice": 0,
        "candidate": 0,
        "score": 0,
    }


# Feed-forward layers are twice as wide as the hidden states: 2 parts of a row are keys and values, 6 the rest.
def test_features_of_tokens_that_leave_after_they_were_keys():
    found = counted("1,0.5,0.5,0.2", token_scoring="question")
    assert found["projection"] == 100 + (2 * 100 + 6 * 50) / 8 + 50 + (2 * 50 + 6 * 20) / 8
    assert found["attention"] == 100 * 100 + 50 * 100 + 50 * 50 + 20 * 50
    assert (found["choice"], found["candidate"], found["score"]) == (2, 150, 10 * 150)
    assert counted("1,0.5,0.5,0.2", token_scoring="attention")["score"] == 100 * 100 + 50 * 50


def test_features_of_tokens_that_leave_before_the_layer():
    found = counted("1,0.5,0.5,0.2", token_scoring="answer")
    assert found["projection"] == 100 + 50 + 50 + 20
    assert found["attention"] == 100**2 + 50**2 + 50**2 + 20**2
    assert (found["choice"], found["candidate"], found["score"]) == (2, 150, 0)


def test_features_of_an_exit_count_only_layers_that_run():
    found = counted("1,0.5,0.5,0.5@2", token_scoring="answer")
    assert (found["layer"], found["projection"], found["choice"]) == (2, 150, 1)


def test_features_know_that_questions_survive_and_which_layers_drop():
    assert counted("1,1,1,0.05", size=(100, 40), token_scoring="answer")["projection"] == 300 + 41
    found = counted("1,0.5,0.5,0.5", token_scoring="answer", drop_layers=[1, 3])
    assert (found["projection"], found["choice"]) == (100 + 50 * 3, 1)


def test_features_in_buckets_have_the_sizes_of_the_graph():
    found = counted("1,0.5,0.5,0.5", size=(100, 10), bucket=to_32, token_scoring="answer")
    assert found["token"] == 128
    assert found["projection"] == 128 + 3 * 64
    assert found == counted("1,0.5,0.5,0.5", size=(120, 12), bucket=to_32, token_scoring="answer")


SPACE_OPTIONS = SearchOptions(exit_layers=(2, 3), step=0.1)
SPACE = SearchSpace(4, SPACE_OPTIONS)


def some_features(count, seed=0):
    configs = calibration_configs(SPACE, count, seed)
    return np.array([[window_features(tiny_config(), one, size) for size in SIZES] for one in configs])


def test_fit_recovers_known_factors():
    features = some_features(20).reshape(-1, len(FEATURES))
    fitted = fit_non_negative(features, TABLE.predict(features))
    assert fitted.predict(features) == pytest.approx(TABLE.predict(features), rel=1e-6)
    assert {name: fitted.factors[name] for name in FEATURES} == pytest.approx(FACTORS, rel=1e-3)


def test_fit_never_goes_below_zero():
    features = some_features(12).reshape(-1, len(FEATURES))
    times = np.maximum(0.1, 3.0 - 0.004 * features[:, FEATURES.index("projection")])  # slower where less is done
    factors = fit_non_negative(features, times).factors
    assert min(factors.values()) == 0.0


def test_fit_weighs_relative_errors():
    """Of two groups with times of 1 and 100 ms that no factor can tell apart, the fit lies near the fast one."""
    features = np.zeros((2, len(FEATURES)))
    features[:, 0] = 1.0
    assert fit_non_negative(features, np.array([1.0, 100.0])).factors["call"] < 2.0


def test_fit_refuses_times_of_zero():
    with pytest.raises(ConfigurationError, match="a timing of 0 ms is not above 0; the clock is too coarse"):
        fit_non_negative(some_features(2)[0], np.array([1.0, 0.0, 1.0, 1.0]))


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ({"call": 1.0}, "a latency table needs factors of .*'score'.*, got .'call'."),
        (FACTORS | {"layer": -1.0}, "factor 'layer' of a latency table is -1.0; it must be at least 0"),
        (FACTORS | {"layer": float("nan")}, "factor 'layer' of a latency table is nan"),
    ],
)
def test_table_refuses_illegal_factors(factors, message):
    with pytest.raises(ConfigurationError, match=message):
        LatencyTable(factors)


def test_calibration_configs_are_the_ends_then_simple_and_random_ones():
    configs = calibration_configs(SPACE, 12)
    assert configs[:2] == [FULL, LengthConfig.parse("0.6,0.4,0.4,0.4@2")]
    assert len(set(configs)) == 12
    assert {config.depth for config in configs} == {2, 3, 4}
    assert calibration_configs(SPACE, 12) == configs != calibration_configs(SPACE, 12, seed=1)
    small = SearchSpace(2, SearchOptions(step=0.5, drop_ratio_bound=0.5))
    assert len(calibration_configs(small, 30)) == 3


class Machine:
    """A clock, and a model whose every window takes what a table says."""

    def __init__(self, slowdown=1.0):
        self.now, self.runs, self.slowdown = 0.0, [], slowdown

    def run(self, length_config, window):
        features = window_features(tiny_config(), length_config, SIZES[window])
        milliseconds = float(TABLE.predict(features))
        if len(length_config.drop_layers) > 1:
            milliseconds *= self.slowdown  # what no feature explains
        self.runs.append((length_config, window))
        self.now += milliseconds / 1000

    def clock(self):
        return self.now


def run_calibration(machine, **options):
    return calibrate(
        machine.run, SIZES, tiny_config(), SPACE, CalibrationOptions(**options), clock=machine.clock, progress=None
    )


def test_calibrate_predicts_configs_that_it_did_not_see():
    machine = Machine()
    table, report = run_calibration(machine, configs=16, repeats=3)
    assert report["max_error"] < 1e-3
    assert report["mean_error"] <= report["max_error"]
    seen = {LengthConfig(tuple(row["retention"]), row.get("exit_layer")) for row in report["held_out"]}
    assert len(seen) == 4
    unseen = LengthConfig.parse("0.9,0.7,0.7,0.3")
    features = window_features(tiny_config(), unseen, (77, 9))
    assert float(table.predict(features)) == pytest.approx(float(TABLE.predict(features)), rel=1e-3)


def test_calibrate_reports_what_it_cannot_explain():
    _, report = run_calibration(Machine(slowdown=3.0), configs=16)
    assert report["max_error"] > 0.1
    row = max(report["held_out"], key=lambda row: row["error"])
    assert row["error"] == pytest.approx(abs(row["predicted_ms"] - row["measured_ms"]) / row["measured_ms"])


@pytest.mark.parametrize(
    "change",
    [{"configs": 8}, {"held_out_configs": 2}, {"repeats": 2}, {"warmup": 0}, {"seed": 3}],
    ids=lambda change: next(iter(change)),
)
def test_calibration_options_change_what_is_timed(change):
    plain, changed = Machine(), Machine()
    run_calibration(plain)
    run_calibration(changed, **change)
    assert plain.runs != changed.runs


def test_time_in_turns_interleaves_within_each_window():
    runs, reports, now = [], [], [0.0]
    durations = {FULL: [9.0, 1.0, 5.0, 3.0], LengthConfig.parse("1,1,1,0.5"): [7.0, 2.0, 2.0, 8.0]}

    def run(config, window):
        now[0] += durations[config][sum(done == (config, window) for done in runs)] * (window + 1) / 1000
        runs.append((config, window))

    times = time_in_turns(run, list(durations), 2, 3, 1, lambda: now[0], reports.append)
    assert times == pytest.approx(np.array([[3.0, 6.0], [2.0, 4.0]]))
    assert [window for _, window in runs] == [0] * 8 + [1] * 8
    rounds = [[config for config, _ in runs[first : first + 2]] for first in range(0, 16, 2)]
    assert all(set(one) == set(durations) for one in rounds)
    assert len({tuple(one) for one in rounds}) == 2  # none always comes first
    assert reports == [1, 1]


def test_table_cost_is_the_mean_over_windows():
    config, length_config = tiny_config(), LengthConfig.parse("1,0.5,0.5,0.5")
    sizes = [(100, 10), (40, 12), (100, 10)]
    expected = [float(TABLE.predict(window_features(config, length_config, size))) for size in sizes]
    assert table_cost(TABLE, sizes, config)(length_config) == pytest.approx(sum(expected) / 3)
    padded = [float(TABLE.predict(window_features(config, length_config, size, to_32))) for size in sizes]
    assert table_cost(TABLE, sizes, config, to_32)(length_config) == pytest.approx(sum(padded) / 3)


def test_table_cost_refuses_no_windows():
    with pytest.raises(ConfigurationError, match="table_cost got no windows"):
        table_cost(TABLE, [], tiny_config())


def test_calibrate_refuses_a_space_without_a_config_to_spare():
    small = SearchSpace(4, SearchOptions(drop_layers=(3,), step=0.5, drop_ratio_bound=0.5))
    with pytest.raises(ConfigurationError, match="needs at least 4 configs to time, but the search has only 2"):
        calibrate(lambda *_: None, SIZES, tiny_config(), small)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"configs": 0}, "configs is 0; it must be at least 1"),
        ({"held_out_configs": 0}, "held_out_configs is 0"),
        ({"windows": 0}, "windows is 0"),
        ({"repeats": 0}, "repeats is 0"),
        ({"warmup": -1}, "warmup is -1; it must be at least 0"),
        ({"configs": 3, "windows": 2}, "3 configs on 2 windows are 6 timings, too few for the 8 factors of a table"),
    ],
)
def test_calibration_options_refuse_illegal_values(change, message):
    with pytest.raises(ConfigurationError, match=message):
        CalibrationOptions(**change)


def test_calibrate_refuses_too_few_timings():
    message = "12 configs on 0 windows are 0 timings, too few for the 8 factors of a latency table; give more"
    with pytest.raises(ConfigurationError, match=message):
        calibrate(lambda *_: None, [], tiny_config(), SPACE)
