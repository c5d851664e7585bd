from __future__ import annotations

from optimum_qala.reporting.machine import describe_machine


def test_machine_is_described():
    machine = describe_machine()
    assert machine["cpu"]
    assert machine["torch_threads"] >= 1
    assert machine["torch"].startswith("2.")
    assert {"transformers", "openvino", "optimum-intel", "neural-compressor-pt", "torchao"} <= machine.keys()


def test_package_that_is_absent_has_no_version(monkeypatch):
    monkeypatch.setattr("optimum_qala.reporting.machine.REPORTED_PACKAGES", ("no-such-package",))
    assert describe_machine()["no-such-package"] is None
