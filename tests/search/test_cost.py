"""Costs: MACs over a length distribution, and measured latency on a scripted clock."""

from __future__ import annotations

import pytest

from optimum_qala.errors import ConfigurationError
from optimum_qala.models.length_config import LengthConfig
from optimum_qala.search.cost import MeasuredLatency, mac_cost, measured_latency_cost
from tests.conftest import tiny_config


WINDOWS = [(100, 10), (40, 12), (100, 10), (17, 15)]
CONFIG = LengthConfig((0.8, 0.3))
FULL = LengthConfig.full(2)


def build(windows=WINDOWS, **fields):
    return mac_cost(windows, tiny_config(num_hidden_layers=2, **fields).macs)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"token_scoring": "attention"},
        {"token_scoring": "attention", "protected_tokens": "cls"},
        {"token_scoring": "attention", "protected_tokens": "none"},
        {"min_tokens": 30},
    ],
    ids=str,
)
def test_mac_cost_is_the_mean_over_windows_with_their_own_questions(fields):
    config = tiny_config(num_hidden_layers=2, **fields)
    for length_config in (FULL, CONFIG, LengthConfig((0.1, 0.1))):
        expected = [config.macs(length_config, length, question) for length, question in WINDOWS]
        assert build(**fields)(length_config) == sum(expected) / 4


def test_mac_cost_takes_an_iterator():
    assert build(iter(WINDOWS))(CONFIG) == build()(CONFIG)


@pytest.mark.parametrize("change", [[(100, 11), *WINDOWS[1:]], [(101, 10), *WINDOWS[1:]], WINDOWS[1:]], ids=str)
def test_mac_cost_depends_on_every_window(change):
    assert build(change)(CONFIG) != build()(CONFIG)


def test_mac_cost_refuses_illegal_arguments():
    with pytest.raises(ConfigurationError, match="got no windows"):
        build([])
    with pytest.raises(ConfigurationError, match="a window of 0 tokens"):
        build([(3, 2), (0, 0)])


class Machine:
    """A clock and a workload: the n-th run of a config takes the n-th of its times, the last one from then on."""

    def __init__(self, **milliseconds):
        self.milliseconds = {FULL: milliseconds["full"], CONFIG: milliseconds.get("config", [1])}
        self.now = 0.0
        self.runs = []

    def run(self, length_config):
        times = self.milliseconds[length_config]
        self.now += times[min(self.runs.count(length_config), len(times) - 1)] / 1000
        self.runs.append(length_config)

    def clock(self):
        return self.now


def measured(machine, **options):
    return MeasuredLatency(machine.run, clock=machine.clock, **options)


def test_measured_latency_is_the_median_after_warmup_and_is_measured_once():
    machine = Machine(full=[900, 5, 80, 6, 4, 7])
    latency = measured(machine, repeats=5, warmup=1)
    assert latency(FULL) == pytest.approx(6)
    assert latency(FULL) == pytest.approx(6)
    assert len(machine.runs) == 6


def test_measured_latency_every_option_changes_the_result():
    times = [9, 1, 2, 3, 4, 5, 6]
    assert measured(Machine(full=times), repeats=5, warmup=1)(FULL) == pytest.approx(3)
    assert measured(Machine(full=times), repeats=3, warmup=1)(FULL) == pytest.approx(2)
    assert measured(Machine(full=times), repeats=5, warmup=2)(FULL) == pytest.approx(4)
    assert measured(Machine(full=times), repeats=1, warmup=0)(FULL) == pytest.approx(9)


def test_measured_latency_with_a_reference_cancels_a_machine_that_slows_down():
    # Full takes 10 ms, then the machine gets three times slower; the config takes half of full at all times.
    machine = Machine(full=[10] * 3 + [30], config=[15])
    latency = measured(machine, repeats=3, warmup=0, reference=FULL)
    assert latency(FULL) == pytest.approx(10)
    assert latency(CONFIG) == pytest.approx(5)
    assert machine.runs[3:] == [FULL, CONFIG] * 3
    alone = measured(Machine(full=[10] * 3 + [30], config=[15]), repeats=3, warmup=0)
    assert alone(CONFIG) == pytest.approx(15)


def test_measured_latency_measures_the_reference_itself_first():
    machine = Machine(full=[10], config=[5])
    assert measured(machine, repeats=1, warmup=0, reference=FULL)(CONFIG) == pytest.approx(5)
    assert machine.runs == [FULL, FULL, CONFIG]


def test_measured_latency_continues_on_the_scale_of_an_earlier_process():
    machine = Machine(full=[10], config=[5])
    latency = measured(machine, repeats=1, warmup=0, reference=FULL, reference_ms=40.0)
    assert latency(FULL) == 40.0
    assert latency(CONFIG) == pytest.approx(20)


def test_measured_latency_is_per_window():
    machine = Machine(full=[80], config=[40])
    latency = measured(machine, repeats=1, warmup=0, reference=FULL, num_windows=4)
    assert latency(FULL) == pytest.approx(20)
    assert latency(CONFIG) == pytest.approx(10)
    assert latency.measure([CONFIG]) == pytest.approx([10])
    resumed = measured(machine, repeats=1, warmup=0, reference=FULL, reference_ms=20.0, num_windows=4)
    assert resumed(CONFIG) == pytest.approx(10)  # what an earlier process stored is per window too


def test_measure_times_in_turns_and_replaces_earlier_results():
    machine = Machine(full=[8, 10], config=[3, 5])
    latency = measured(machine, repeats=1, warmup=0)
    assert (latency(FULL), latency(CONFIG)) == pytest.approx((8, 3))
    machine.runs.clear()
    machine.milliseconds = {FULL: [20], CONFIG: [10]}
    assert latency.measure([FULL, CONFIG]) == pytest.approx([20, 10])
    assert machine.runs == [FULL, CONFIG]
    assert (latency(FULL), latency(CONFIG)) == pytest.approx((20, 10))


def test_measured_latency_cost_uses_the_real_clock():
    runs = []
    latency = measured_latency_cost(runs.append, repeats=2, warmup=1)
    assert 0 <= latency(FULL) < 1000
    assert runs == [FULL] * 3


def test_measured_latency_refuses_illegal_arguments():
    for arguments, message in [
        ({"repeats": 0}, "repeats is 0"),
        ({"warmup": -1}, "warmup is -1"),
        ({"num_windows": 0}, "num_windows is 0"),
        ({"reference_ms": 3.0}, "reference_ms is 3"),
        ({"reference_ms": 0.0, "reference": FULL}, "reference_ms is 0; it must be above 0"),
    ]:
        with pytest.raises(ConfigurationError, match=message):
            measured_latency_cost(lambda config: None, **arguments)
