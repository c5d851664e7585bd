"""How Sphinx makes the site: `sphinx-build -W -c docs . OUT`. Pages are the repository's own Markdown, where they lie.

The source is the root of the repository, so links between docs/ and the other pages work as they do in the repository;
programs and raw results that a page links to are copied to the site. The navigation is that of docs/index.md.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any


project = "optimum-qala"
author = "the optimum-qala contributors"
html_title = project
root_doc = "docs/index"
include_patterns = ["docs/**.md", "examples/**.md", "README.md", "CHANGELOG.md", "CONTRIBUTING.md"]
exclude_patterns = [".*", "build", "dist"]
extensions = ["myst_parser"]
myst_heading_anchors = 4  # as deep as the reference goes
html_theme = "furo"  # loads nothing from elsewhere
html_copy_source = False
html_show_sphinx = False
highlight_language = "text"

_SECTION = re.compile(r"^## (?P<title>.+)$", re.MULTILINE)
_LINK = re.compile(r"\]\((?!https?:)(?P<target>[^)#\s]+)\.md(?:#[^)]*)?\)")


def sections(index: str) -> dict[str, list[str]]:
    """List the pages that each section of the index links to.

    Args:
        index: Markdown of docs/index.md.

    Returns:
        Names of pages, relative to the index, by the title of their section, in order.
    """
    titles = list(_SECTION.finditer(index))
    ends = [title.start() for title in titles[1:]] + [len(index)]
    return {
        title["title"]: list(dict.fromkeys(link["target"] for link in _LINK.finditer(index, title.end(), end)))
        for title, end in zip(titles, ends, strict=True)
    }


def add_navigation(app: Any, name: str, source: list[str]) -> None:
    """Give the index the hidden tables of contents that Sphinx makes the navigation of."""
    if name == root_doc:
        for title, pages in sections(source[0]).items():
            listed = "\n".join(pages)
            source[0] += f"\n\n```{{toctree}}\n:hidden:\n:caption: {title}\n\n{listed}\n```\n"


def add_entrance(app: Any, error: Exception | None) -> None:
    """Send readers who come to the root of the site to its index."""
    if error is None:
        text = f'<!doctype html><meta http-equiv="refresh" content="0; url={root_doc}.html"><title>{project}</title>\n'
        Path(app.outdir, "index.html").write_text(text, encoding="utf-8")


def setup(app: Any) -> None:
    """Connect the functions above."""
    app.connect("source-read", add_navigation)
    app.connect("build-finished", add_entrance)
