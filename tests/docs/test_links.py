"""Links between pages lead somewhere, and every page is linked."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.conftest import DOCS, ROOT


PAGES = sorted(DOCS.rglob("*.md"))

_LINK = re.compile(r"(?<!!)\[(?:[^\]\[]|\[[^\]]*\])*\]\((?P<target>[^)\s]+)\)")
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def links(page: Path) -> list[str]:
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    return [match["target"] for match in _LINK.finditer(text) if not match["target"].startswith(("http:", "https:"))]


def anchors(page: Path) -> set[str]:
    """The anchors that a repository page gives its headings."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    found: dict[str, int] = {}
    names = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")
        number = found.get(slug, 0)
        found[slug] = number + 1
        names.add(f"{slug}-{number}" if number else slug)
    return names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_links_lead_to_a_file_and_a_heading(page):
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_reached_from_the_index():
    reached, waiting = set(), [DOCS / "index.md"]
    while waiting:
        page = waiting.pop()
        if page in reached:
            continue
        reached.add(page)
        targets = [(page.parent / link.partition("#")[0]).resolve() for link in links(page)]
        waiting += [target for target in targets if target.suffix == ".md" and DOCS in target.parents]
    lost = [page for page in PAGES if page not in reached and "results" not in page.parts]
    assert lost == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_no_place_of_one_machine_is_named(page):
    assert not re.search(r"/(home|root|Users|work)/|localhost|127\.0\.0\.1", page.read_text(encoding="utf-8"))


def test_a_broken_link_is_seen(tmp_path):
    """The pattern finds links with code and brackets in their text, and not those in code blocks."""
    page = tmp_path / "page.md"
    page.write_text("# A `b` c\n[`x`](gone.md) [a [CLS] b](#a-b-c)\n```text\n[y](z.md)\n```\n", encoding="utf-8")
    assert links(page) == ["gone.md", "#a-b-c"]
    assert anchors(page) == {"a-b-c"}


def test_index_is_linked_from_the_readme():
    assert "docs/index.md" in links(ROOT / "README.md")
