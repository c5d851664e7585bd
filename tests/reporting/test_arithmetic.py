from __future__ import annotations

from types import SimpleNamespace

import pytest

from optimum_qala._compat import is_available
from optimum_qala.errors import MissingExtraError
from optimum_qala.reporting import arithmetic
from optimum_qala.reporting.arithmetic import measure_int8_peak


needs_openvino = pytest.mark.skipif(not is_available("openvino"), reason="the openvino extra is absent")


@needs_openvino
def test_product_runs_in_int8():
    peak = measure_int8_peak(threads=1, shapes=((32, 64, 64),), repeats=1)
    assert peak.arithmetic in ("u8", "i8")
    assert peak.shape == (32, 64, 64)
    assert peak.threads == 1
    assert peak.gmacs_per_s > 0


@needs_openvino
def test_fastest_run_of_the_fastest_shape_counts(monkeypatch):
    """A run takes as long as the clock says: 4 s, 2 s, 3 s for each shape, the first one prepares."""
    times = iter([0, 8, 10, 12, 20, 23] * 2)
    monkeypatch.setattr(arithmetic, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    peak = measure_int8_peak(threads=1, shapes=((16, 32, 32), (32, 64, 64)), repeats=2)
    assert peak.shape == (32, 64, 64)
    assert peak.gmacs_per_s == pytest.approx(32 * 64 * 64 / 2 / 1e9)
    assert peak.as_dict()["gmacs_per_s"] == peak.gmacs_per_s


def test_missing_extra_is_named(monkeypatch):
    monkeypatch.setattr("optimum_qala._compat._is_importable", lambda module: False)
    with pytest.raises(MissingExtraError, match=r"measuring the peak of int8 needs .*optimum-qala\[openvino\]"):
        measure_int8_peak()
