from __future__ import annotations

import pytest

from optimum_qala._compat import is_available
from optimum_qala.errors import MissingExtraError
from optimum_qala.reporting.plot import STYLES, pareto_names, plot_report, style_of
from tests.reporting.reports import report, row, rows


needs_matplotlib = pytest.mark.skipif(not is_available("plots"), reason="the plots extra is absent")


def test_front_is_of_budgets_that_no_other_beats():
    assert pareto_names(rows()) == ["fast", "full in buckets"]


def test_of_equal_times_the_better_one_stays():
    assert pareto_names([row("a", "budget", 5.0, 60.0), row("b", "budget", 5.0, 61.0)]) == ["b"]
    assert pareto_names([row("a", "budget", 5.0, None)]) == []


def test_kinds_have_markers_of_their_own():
    styles = {one["name"]: style_of(one) for one in rows()[:-1]}
    assert styles["full"] == styles["full in buckets"]
    assert len({style.marker for style in styles.values()}) == 5
    assert len({(style.marker, style.color) for style in STYLES}) == len(STYLES)


@needs_matplotlib
def test_picture_has_a_panel_for_each_setting(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **_: figures.append(figure))
    assert plot_report(report(), tmp_path / "results.png")
    panels = figures[0].axes
    assert [panel.get_title() for panel in panels] == ["Batch size 1, true lengths", "Batch size 32, padded to 200"]
    names = {text.get_text() for text in panels[0].texts if text.get_text()}
    near = {one["name"].removesuffix(" in buckets") for one in rows()[:-1] if one["f1"] > 65}
    # The first layers alone answer so badly that all others would shrink to a line.
    assert names == near | {"first 3 layers ↓ 60.0", "plain int8, 3 layers ↓ 20.0"}
    assert panels[0].get_ylim()[0] > 60
    assert "millisecond" in panels[0].get_xlabel()
    assert panels[0].get_ylabel() == "F1, %"


@needs_matplotlib
def test_picture_is_written(tmp_path):
    assert plot_report(report(), tmp_path / "results.png")
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")


@needs_matplotlib
def test_without_f1_there_is_nothing_to_draw(tmp_path):
    unscored = [one | {"f1": None} for one in rows()]
    assert not plot_report(report(rows=unscored), tmp_path / "results.png")
    assert not (tmp_path / "results.png").exists()


def test_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("optimum_qala._compat._is_importable", lambda module: False)
    with pytest.raises(MissingExtraError, match=r"results.png needs matplotlib.*optimum-qala\[plots\]"):
        plot_report(report(), tmp_path / "results.png")
