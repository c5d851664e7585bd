from __future__ import annotations

import re
import warnings
from html.parser import HTMLParser

import pytest
import torch

from optimum_qala._compat import is_available
from optimum_qala.errors import BackendError
from optimum_qala.question_answering.features import collate, make_windows
from optimum_qala.question_answering.records import QARecord
from optimum_qala.question_answering.windows import WindowOptions
from optimum_qala.reporting.drawing import missing_letters
from optimum_qala.reporting.example import Example, Piece, trace_example
from optimum_qala.reporting.example_picture import example_html, plot_example


QUESTION = "who built the old tower ?"
CONTEXT = "anna built the old tower in paris . peter lived in rome and maria in berlin ."
BUDGET = "1,0.7,0.5,0.3"
OPTIONS = WindowOptions(max_length=64, doc_stride=16)
HOSTILE = "<script>alert(\"1\")</script> & 'x' <img src=x onerror=y> $x_1$ a_b"
needs_matplotlib = pytest.mark.skipif(not is_available("plots"), reason="the plots extra is absent")


class Reader(HTMLParser):
    """What a browser sees: tags with their attributes, and the text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self.inside = [], {}, []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img"):
            self.inside.append(tag)

    def handle_endtag(self, tag):
        assert self.inside.pop() == tag

    def handle_data(self, data):
        for tag in self.inside:
            self.text[tag] = self.text.get(tag, "") + data


@pytest.fixture
def example(tiny_model, tiny_tokenizer):
    return trace_example(tiny_model, tiny_tokenizer, QUESTION, CONTEXT, BUDGET, OPTIONS)


def test_depths_are_those_of_the_forward_pass(example, tiny_model, tiny_tokenizer):
    (window,) = make_windows(QARecord("x", QUESTION, CONTEXT), tiny_tokenizer, OPTIONS)
    with torch.no_grad():
        output = tiny_model(**collate([window], tiny_tokenizer), budget=BUDGET, output_survival=True)
    by_character = "".join(str(piece.depth or " ") * len(piece.text) for piece in example.pieces)
    assert "".join(piece.text for piece in example.pieces) == CONTEXT
    for span, depth in zip(window.offsets, output.survival[0].tolist(), strict=True):
        if span is not None:
            assert by_character[span[0] : span[1]] == str(depth) * (span[1] - span[0])
    assert example.num_tokens == len(window.char_spans)
    assert example.num_kept == sum(output.survival[0, window.context_position : -1].tolist().count(n) for n in (4,))
    assert len(example.depths) > 2


def test_answers_are_those_of_the_pipeline(example):
    marked = "".join(piece.text for piece in example.pieces if piece.is_answer)
    assert marked == example.answer
    assert example.answer in CONTEXT
    assert example.full_answer in CONTEXT


def test_budget_changes_what_is_dropped(example, tiny_model, tiny_tokenizer):
    full = trace_example(tiny_model, tiny_tokenizer, QUESTION, CONTEXT, "full", OPTIONS)
    assert (full.depths, full.num_kept) == ([4], full.num_tokens)
    assert example.num_kept < full.num_kept
    assert "stayed through all 4 layers that run" in full.summary[1]


def test_of_a_long_text_the_window_with_the_answer_is_shown(tiny_model, tiny_tokenizer):
    context = " ".join(f"{CONTEXT} one two three" for _ in range(6))
    options = WindowOptions(max_length=40, doc_stride=8)
    found = trace_example(tiny_model, tiny_tokenizer, QUESTION, context, BUDGET, options)
    text = "".join(piece.text for piece in found.pieces)
    assert text in context
    assert len(text) < len(context)
    assert found.answer in text


def test_training_mode_is_left_as_it_was(tiny_model, tiny_tokenizer):
    tiny_model.train()
    trace_example(tiny_model, tiny_tokenizer, QUESTION, CONTEXT, BUDGET, OPTIONS)
    assert tiny_model.training


def test_other_models_are_refused(tiny_tokenizer):
    with pytest.raises(BackendError, match="a str does not say which tokens it drops; give the torch model"):
        trace_example("model", tiny_tokenizer, QUESTION, CONTEXT, BUDGET, OPTIONS)


def test_depths_are_told_in_words(example):
    words = [example.describe(depth) for depth in (0, 2, 4)]
    assert words == ["left before layer 1", "left after layer 2", "stayed to the end"]


def made_up(text=HOSTILE, question=HOSTILE, **changes):
    half = len(text) // 2
    pieces = (Piece(text[:half], 1), Piece("  ", None), Piece(text[half:], 3, True))
    fields = {"question": question, "pieces": pieces, "budget": HOSTILE, "answer": text[half:], "full_answer": HOSTILE}
    return Example(**fields | changes, num_layers=3, num_tokens=9, num_kept=4)


def test_page_says_what_the_picture_says(example):
    page = Reader(example_html(example))
    assert page.inside == []
    assert page.text["h1"] == QUESTION
    assert page.text["p"].startswith(CONTEXT)
    assert re.findall(r"\w[^\n]+", page.text["ul"]) == [example.describe(depth) for depth in example.depths]
    spans = [attributes for tag, attributes in page.tags if tag == "span"]
    assert {one["title"] for one in spans if "title" in one} == {example.describe(depth) for depth in example.depths}
    assert any("answer" in one["class"] for one in spans)
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in page.tags


def test_hostile_text_stays_text():
    page = Reader(example_html(made_up()))
    allowed = {"html", "head", "meta", "title", "style", "body", "h1", "ul", "li", "p", "span"}
    assert {tag for tag, _ in page.tags} == allowed
    assert {name for _, attributes in page.tags for name in attributes if name.startswith("on")} == set()
    assert page.text["h1"] == HOSTILE
    assert HOSTILE[:10] in page.text["p"]
    policy = [one["content"] for tag, one in page.tags if "http-equiv" in one]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]


@needs_matplotlib
def test_letters_that_the_picture_lacks_are_told_once(tmp_path, caplog):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of which matplotlib has one for each letter
        plot_example(made_up("日本語 paris", question="日本"), tmp_path / "x.png")
        plot_example(made_up("paris", question="anna"), tmp_path / "y.png")
    assert (tmp_path / "x.png").is_file()
    (message,) = caplog.messages
    assert message == (
        "x.png has boxes for 3 letters, such as 日, which no font here has; the HTML page of the example has them"
    )


@needs_matplotlib
def test_other_warnings_go_on_where_letters_are_collected():
    with pytest.warns(UserWarning, match="something else"), missing_letters() as letters:
        warnings.warn("something else", stacklevel=1)
    assert letters == set()


@needs_matplotlib
@pytest.mark.parametrize(
    "text", [HOSTILE, "a" * 300, "word " * 50, "", " \n "], ids=["hostile", "long", "many", "none", "space"]
)
def test_picture_holds_all_words_within_its_frame(tmp_path, monkeypatch, text):
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **_: figures.append(figure))
    plot_example(made_up(text=text), tmp_path / "x.png")
    (axes,) = figures[0].axes
    figures[0].canvas.draw()
    frame = figures[0].bbox
    for written in axes.texts:
        box = written.get_window_extent()
        assert frame.x0 <= box.x0, written.get_text()
        assert box.x1 <= frame.x1 + 1, written.get_text()
        assert frame.y0 <= box.y0 <= box.y1 <= frame.y1, written.get_text()
        assert not written.get_parse_math()
    drawn = "".join(written.get_text() for written in axes.texts)
    assert "".join(text.split()) in "".join(drawn.split())


@needs_matplotlib
def test_picture_is_written(tmp_path, example):
    plot_example(example, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
