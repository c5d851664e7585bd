"""The model card of a push: which one it is, whether the Hub can read it, and what writes it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from .errors import ConfigurationError


CARD_NAME = "README.md"
# What loads a model, for the Hub: transformers alone does so only with the code of the repository.
LIBRARY_NAME = "optimum-qala"
DEFAULT_CARD = f"""---
library_name: {LIBRARY_NAME}
pipeline_tag: question-answering
tags:
- optimum-qala
---

# {{name}}

A QuaLA-MiniLM for question answering: `pip install optimum-qala` to load it and to choose a budget in each call.
"""
_FILE_NAME = re.compile(r"\S+\.\w+|.*\.(md|markdown|txt|rst|html?)", re.IGNORECASE)


@dataclass(frozen=True)
class Repository:
    """What a repository holds when a push begins.

    Args:
        repo_id: Its id.
        sizes: Bytes of each file, by its path.
        fetch: Downloads a file, by its path.
    """

    repo_id: str
    sizes: Mapping[str, int]
    fetch: Callable[[str], Path]


class CardWriter:
    """What writes the cards of pushes. This one knows a few lines, and keeps or replaces a card as a whole."""

    def write(self, folder: Path, repo_id: str, existing: str = "") -> str:
        """Write the card of a folder.

        Args:
            folder: The model, or the layout of a repository with models in its sub-folders.
            repo_id: What users load the model by.
            existing: A card whose text is kept.

        Returns:
            The card.
        """
        return existing or DEFAULT_CARD.format(name=repo_id.rpartition("/")[2])

    def merge(self, stored: str, new: str, repo_id: str) -> str:
        """Put a card in the place of another one, whose owner may have changed it.

        Args:
            stored: The card of the repository.
            new: The card to push.
            repo_id: What users load the model by.

        Returns:
            The card to push.
        """
        return new

    def renew(self, stored: str, folder: Path, repository: Repository) -> str:
        """Have the card of a repository say what is true after a push.

        Args:
            stored: The card.
            folder: What is pushed.
            repository: What is there.

        Returns:
            The card to push.
        """
        return stored

    def sign(self, card: str) -> str:
        """Note in a card what is pushed, so that the next push knows what was changed since.

        Args:
            card: The card.

        Returns:
            The card to push.
        """
        return card


_make_writer: Callable[[], CardWriter] = CardWriter


def set_card_writer(make: Callable[[], CardWriter] | None) -> None:
    """Choose what writes the cards of pushes.

    Args:
        make: Makes the writer; None for the one that knows a few lines.
    """
    global _make_writer
    _make_writer = make or CardWriter


def card_writer() -> CardWriter:
    """Return what writes the cards of pushes."""
    return _make_writer()


def is_shown(name: str, card: str) -> bool:
    """Tell whether a model card shows a file that lies beside it, as a picture or by a link."""
    return f'"{name}"' in card or f"({name})" in card


def read_new_card(readme: str | Path | None, folder: Path) -> str | None:
    """Return the card that is given, or else the folder's own; what it shows of the files beside it is copied along.

    Args:
        readme: Text of the card, or the Path of its file.
        folder: What is pushed.

    Returns:
        The text, or None if there is no card.

    Raises:
        ConfigurationError: If the card is no file, is the name of a file where its text is expected, or has metadata
            that cannot be read.
    """
    own = folder / CARD_NAME
    if isinstance(readme, str) and _FILE_NAME.fullmatch(readme):
        raise ConfigurationError(f"readme {readme!r} is not the text of a card; give a file as Path({readme!r})")
    if isinstance(readme, Path):
        if not readme.is_file():
            raise ConfigurationError(f"readme {readme} is no file; `optimum-cli qala report` writes a card")
        text = readme.read_text(encoding="utf-8")
        for file in readme.parent.iterdir():
            if file.is_file() and is_shown(file.name, text) and not (folder / file.name).exists():
                shutil.copyfile(file, folder / file.name)
        readme = text
    if readme is None and own.is_file():
        readme = own.read_text(encoding="utf-8")
    if readme is not None:
        check_metadata(readme, "the card")
    return readme


def check_metadata(card: str, name: str) -> None:
    """Raise if the metadata of a card are no metadata.

    Args:
        card: The card.
        name: What it is called in the message.

    Raises:
        ConfigurationError: If so.
    """
    import yaml

    if REGEX_YAML_BLOCK.search(card) is None:
        return
    try:
        ModelCard(card)
    except (ValueError, TypeError, yaml.YAMLError) as error:
        problem = " ".join(str(error).split())
        raise ConfigurationError(f"the metadata of {name} cannot be read ({problem}); mend or remove them") from error


def add_metadata(card: str, tags: Sequence[str] = (), **metadata: Any) -> str:
    """Add tags to a card, and set other metadata of it.

    Args:
        card: The card.
        tags: Tags, those that it has already among them or not.
        metadata: Values by name; those that are None stay as they are.

    Returns:
        The card.
    """
    changes = {name: value for name, value in metadata.items() if value is not None}
    if not tags and not changes:
        return card
    changed = ModelCard(card if REGEX_YAML_BLOCK.search(card) else f"---\n{{}}\n---\n{card}")
    data: Any = changed.data
    if tags:
        changes["tags"] = list(dict.fromkeys([*(data.tags or []), *tags]))
    for name, value in changes.items():
        data[name] = value
    return str(changed)


__all__ = [
    "CARD_NAME",
    "LIBRARY_NAME",
    "CardWriter",
    "Repository",
    "add_metadata",
    "card_writer",
    "check_metadata",
    "is_shown",
    "read_new_card",
    "set_card_writer",
]
