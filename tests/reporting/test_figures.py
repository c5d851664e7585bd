"""Pictures of a model card: what they say, and that it can be read."""

from __future__ import annotations

from itertools import combinations

import pytest

from optimum_qala._compat import is_available
from optimum_qala.errors import MissingExtraError
from optimum_qala.reporting.drawing import CARD_DPI, CARD_WIDTH, SMALL_SIZE, ink_on, new_figure, ramp
from optimum_qala.reporting.facts import read_facts
from optimum_qala.reporting.figures import draw_figures
from optimum_qala.reporting.plot import plot_front
from optimum_qala.reporting.token_plot import plot_tokens
from tests.reporting.folders import BUDGETS, INT8, LATENCY, make_folder, measured, write
from tests.reporting.reports import report, row


needs_matplotlib = pytest.mark.skipif(not is_available("plots"), reason="the plots extra is absent")
PHONE = 360  # pixels


@pytest.fixture
def drawn(monkeypatch):
    """Figures that are saved, in order; nothing is written."""
    from matplotlib.figure import Figure

    figures = []

    def keep(figure, file, **_):
        figure.canvas.draw()
        figures.append(figure)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def texts_of(figure):
    found = [*figure.texts, *(text for axes in figure.axes for text in axes.texts)]
    return [text for text in found if text.get_text().strip()]


def boxes_of(figure):
    return {text.get_text(): text.get_window_extent() for text in texts_of(figure)}


def overlapping(figure):
    boxes = boxes_of(figure).items()
    return [(a, b) for (a, one), (b, other) in combinations(boxes, 2) if one.padded(-1).overlaps(other.padded(-1))]


def outside(figure):
    frame = figure.bbox
    inside = {name: frame.x0 <= b.x0 and b.x1 <= frame.x1 and frame.y0 <= b.y0 for name, b in boxes_of(figure).items()}
    return [name for name, is_inside in inside.items() if not is_inside]


@needs_matplotlib
def test_front_has_the_plain_model_and_says_what_was_measured(drawn, tmp_path):
    rows = [
        row("full", "budget", 12.0, 76.6),
        row("fast", "budget", 9.0, 76.4),
        row("balanced", "budget", 9.2, 76.5),
        row("accurate", "budget", 9.6, 76.0),
        row("first 5 layers", "depth", 11.0, 76.5, speedup=1.5),
        row("plain int8", "plain", 14.0, 80.7),
        row("plain int8 in buckets", "plain", 11.2, 80.7),
        row("no F1", "peer", 3.0, None),
    ]
    assert plot_front(rows, "Batch size 1; a CPU", tmp_path / "x.png")
    (figure,) = drawn
    assert set(boxes_of(figure)) == {
        *("full", "fast", "balanced", "accurate", "first 5 layers", "plain int8", "plain int8,\nin buckets"),
        "Batch size 1; a CPU",
    }
    assert overlapping(figure) == []
    assert outside(figure) == []
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("median milliseconds per window", "F1, %")
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == [
        "QuaLA-MiniLM at its budgets",
        "QuaLA-MiniLM, first layers only",
        "plain model, int8",
        "best budgets",
    ]


@needs_matplotlib
def test_letters_can_be_read_on_a_phone(drawn, tmp_path):
    """Ten pixels and more where the picture is as wide as a phone."""
    plot_front([row("full", "budget", 12.0, 70.0)], "x", tmp_path / "x.png")
    plot_tokens(BUDGETS, 4, tmp_path / "y.png")
    for figure in drawn:
        assert figure.get_figwidth() == CARD_WIDTH
        smallest = min(text.get_fontsize() for text in texts_of(figure))
        assert smallest / 72 * PHONE / CARD_WIDTH >= 9
    assert CARD_WIDTH * CARD_DPI >= 2 * PHONE


@needs_matplotlib
def test_long_conditions_are_wrapped(drawn, tmp_path):
    assert plot_front([row("full", "budget", 12.0, 70.0)], "words " * 40, tmp_path / "x.png")
    assert outside(drawn[0]) == []
    assert overlapping(drawn[0]) == []


@needs_matplotlib
def test_tokens_are_those_of_the_budgets(drawn, tmp_path):
    assert plot_tokens(measured(), 4, tmp_path / "x.png")
    (figure,) = drawn
    values = [[text.get_text() for text in axes.texts] for axes in figure.axes]
    assert values == [["100", "50", "50", "not run"], ["100"] * 4]
    heights = [[patch.get_height() for patch in axes.patches][1:6:2] for axes in figure.axes]
    assert heights == [[1.0, 0.5, 0.5], [1.0, 1.0, 1.0]]
    names = [text.get_text() for text in figure.texts]
    assert names[0] == "Tokens that each layer keeps, % of those in the window"
    assert {"fast", "F1 71.2 %, 12 million MACs"} <= set(names)
    assert [tick.get_text() for tick in figure.axes[-1].get_xticklabels()] == ["1", "2", "3", "4"]
    assert outside(figure) == []


@needs_matplotlib
def test_tokens_of_a_deep_model_stay_legible(drawn, tmp_path):
    name = "a very long name of a budget | $x$ <b>" * 3
    budgets = {name: {"retention": [1.0] * 12 + [0.37] * 12, "f1": 50.0}}
    assert plot_tokens(budgets, 24, tmp_path / "x.png")
    (axes,) = drawn[0].axes
    assert [text.get_text() for text in axes.texts] == ["100", "37"]
    assert overlapping(drawn[0]) == []
    assert outside(drawn[0]) == []


@needs_matplotlib
def test_pictures_of_a_folder_are_written(tmp_path):
    facts = read_facts(make_folder(tmp_path, budgets=measured(latency_ms=[LATENCY])))
    assert draw_figures(facts, tmp_path) == {}
    for name in ("latency.png", "tokens.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
        assert b"Software" not in (tmp_path / name).read_bytes()


@needs_matplotlib
def test_what_has_no_numbers_is_left_out(drawn, tmp_path):
    facts = read_facts(make_folder(tmp_path, budgets={}))
    assert draw_figures(facts, tmp_path) == {
        "latency.png": "nothing was measured in both F1 and milliseconds",
        "tokens.png": "the model has no budgets",
    }
    assert drawn == []


@needs_matplotlib
def test_latencies_of_one_kind_are_compared(drawn, tmp_path):
    """Where budgets were measured under several conditions, those that most of them share."""
    budgets = measured(latency_ms=[{**LATENCY, "cpu": "Old", "median": 1.0}, LATENCY])
    budgets["full"]["latency_ms"] = [{**LATENCY, "median": 9.0}]
    draw_figures(read_facts(make_folder(tmp_path, "openvino", budgets, quantization=INT8)), tmp_path)
    latency = boxes_of(drawn[0])
    assert {"full", "fast"} <= set(latency)
    assert any("OpenVINO int8 on A CPU, 2 threads, batch 1" in text.replace("\n", " ") for text in latency)


@needs_matplotlib
def test_benchmark_is_preferred(drawn, tmp_path):
    write(make_folder(tmp_path, budgets=measured(latency_ms=[LATENCY])) / "benchmark.json", report())
    draw_figures(read_facts(tmp_path), tmp_path)
    texts = " ".join(boxes_of(drawn[0])).replace("\n", " ")
    assert "plain int8" in texts
    assert "Batch size 1, true lengths; A CPU, 2 threads; 100 questions of dev.json" in texts


def test_without_matplotlib_the_reason_is_given(tmp_path, monkeypatch):
    monkeypatch.setattr("optimum_qala._compat._is_importable", lambda module: False)
    facts = read_facts(make_folder(tmp_path, budgets=measured(latency_ms=[LATENCY])))
    left_out = draw_figures(facts, tmp_path)
    assert set(left_out) == {"latency.png", "tokens.png"}
    assert left_out["tokens.png"].startswith("tokens.png needs matplotlib")
    with pytest.raises(MissingExtraError, match="x.png needs matplotlib, which is not installed"):
        new_figure("x.png")


def contrast(one, other):
    def luminance(color):
        parts = [int(color[index : index + 2], 16) / 255 for index in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("count", range(1, 26))
def test_letters_on_every_colour_can_be_read(count):
    """The ratio that WCAG 2 asks for, and colours that get darker step by step, so that no hue needs to be seen."""
    colors = ramp(count)
    assert len(set(colors)) == count
    for color in colors:
        assert contrast(color, ink_on(color)) >= 4.5, color
    against_white = [contrast(color, "#ffffff") for color in colors]
    assert against_white == sorted(against_white)


def test_small_letters_are_not_smaller_than_planned():
    assert SMALL_SIZE >= 7.5
