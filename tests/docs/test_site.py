"""The navigation of the site is that of the index, and its figures are drawn. Building it is a step of .ci/run."""

from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path
from types import ModuleType
from types import SimpleNamespace as Namespace

import pytest

from tests.docs.conftest import DOCS, ROOT


FIGURES = DOCS / "concepts" / "figures"


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def conf() -> ModuleType:
    return load(DOCS / "conf.py")


def test_figures_are_up_to_date():
    drawn = {name: draw() for name, draw in load(FIGURES / "draw.py").FIGURES.items()}
    stored = {file.name: file.read_text(encoding="utf-8") for file in FIGURES.glob("*.svg")}
    assert stored == drawn, "run python docs/concepts/figures/draw.py"


def test_sections_hold_the_pages_that_they_link_to(conf):
    index = "[a](a.md)\n## One\n- [b](x/b.md#part), [b](x/b.md)\n- [c](https://c.md)\n## Two\n[d](../d.md) [e](e.py)\n"
    assert conf.sections(index) == {"One": ["x/b"], "Two": ["../d"]}


def test_every_page_is_in_the_navigation(conf):
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    listed = {(DOCS / f"{page}.md").resolve() for pages in conf.sections(index).values() for page in pages}
    pages = {*DOCS.rglob("*.md"), *(ROOT / "examples").rglob("*.md"), *ROOT.glob("*.md")}
    assert listed == pages - {DOCS / "index.md"}


def test_navigation_is_added_to_the_index_alone(conf):
    source = ["# Index\n## One\n[b](b.md)\n"]
    conf.add_navigation(None, "docs/other", source)
    assert source == ["# Index\n## One\n[b](b.md)\n"]
    conf.add_navigation(None, "docs/index", source)
    added = source[0].partition("[b](b.md)\n")[2]
    assert added.strip() == inspect.cleandoc(
        """```{toctree}
        :hidden:
        :caption: One

        b
        ```"""
    )


@pytest.mark.parametrize("error", [None, ValueError()], ids=["built", "failed"])
def test_root_of_the_site_leads_to_the_index(conf, tmp_path, error):
    conf.add_entrance(Namespace(outdir=tmp_path), error)
    entrance = tmp_path / "index.html"
    assert entrance.exists() == (error is None)
    if error is None:
        assert 'content="0; url=docs/index.html"' in entrance.read_text(encoding="utf-8")
