"""The commands of README.md and docs, from their code blocks; `python tests/readme.py N` prints headline command N."""

from __future__ import annotations

import re
import sys
from pathlib import Path


ROOT = Path(__file__).parent.parent

_HEADING_OR_BLOCK = re.compile(
    r"^#+ (?P<heading>[^\n]+)$|^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


def code_blocks(path: Path, language: str) -> list[tuple[str, str]]:
    """Code blocks of a Markdown file as (heading above it, text)."""
    blocks, heading = [], ""
    for match in _HEADING_OR_BLOCK.finditer(path.read_text(encoding="utf-8")):
        if match["heading"]:
            heading = match["heading"]
        elif match["language"] == language:
            blocks.append((heading, match["text"]))
    return blocks


def headline_commands() -> list[str]:
    """The README's two commands: set up and run the quickstart; run the tests."""
    return [text.strip() for heading, text in code_blocks(ROOT / "README.md", "bash") if heading == "Quickstart"]


if __name__ == "__main__":
    sys.stdout.write(headline_commands()[int(sys.argv[1]) - 1] + "\n")
