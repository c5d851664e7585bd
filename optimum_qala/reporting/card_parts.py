"""The parts of a model card: metadata, the generated part, and what its owner wrote around that."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from optimum_qala.errors import ConfigurationError, DataError
from optimum_qala.models.hub_card import CARD_NAME, check_metadata


__all__ = ["END", "CardParts", "fingerprint", "read_card"]

END = "<!-- optimum-qala: end of the generated part -->"
# What follows are notes: of each of the metadata that were generated a hash of its value, so that another value shows
# that the owner of the card has changed it, and the notes of `optimum_qala.reporting.pushed_cards`.
_BEGIN = re.compile(r"^<!-- optimum-qala: generated part (?P<notes>\{[^\n]*\}) -->\r?$", re.MULTILINE)
_END = re.compile(rf"^{re.escape(END)}\r?$", re.MULTILINE)


@dataclass(frozen=True)
class CardParts:
    """A model card.

    Args:
        metadata: By name, in the form in which huggingface_hub writes them.
        before: Text ahead of the generated part; all of it if nothing was generated.
        generated: The generated part; None if there is none.
        after: Text behind it.
        notes: What the generated part says of itself.
    """

    metadata: Mapping[str, Any]
    before: str
    generated: str | None = None
    after: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def owned(self) -> dict[str, Any]:
        """Metadata that its owner wrote or changed."""
        return {name: value for name, value in self.metadata.items() if self.notes.get(name) != fingerprint(value)}

    @property
    def own_text(self) -> str:
        """What its owner wrote, without blank lines and ends of lines, which editors change."""
        lines = [line.strip() for line in [*self.before.splitlines(), "", *self.after.splitlines()]]
        return "\n".join(line for line in lines if line)

    def with_text_of(self, other: CardParts) -> CardParts:
        """Take over what the owner of another card wrote."""
        return replace(self, before=other.before, after=other.after)

    def __str__(self) -> str:
        """The card."""
        data = ModelCardData(**self.metadata)
        section = ""
        if self.generated is not None:
            section = f"<!-- optimum-qala: generated part {json.dumps(self.notes)} -->{self.generated}{END}"
        yaml = data.to_yaml(original_order=list(self.metadata))
        return f"---\n{yaml}\n---\n{self.before}{section}{self.after}"


def read_card(text: str) -> CardParts:
    """Take a card apart.

    Args:
        text: The card.

    Returns:
        Its parts.

    Raises:
        DataError: If its metadata cannot be read, or its generated part begins and does not end.
    """
    metadata, text = _split(text)
    begin = _BEGIN.search(text)
    if begin is None:
        return CardParts(metadata, text)
    end = _END.search(text, begin.end())
    if end is None:
        raise DataError(
            f'{CARD_NAME} has the line that begins the generated part but not the line "{END}" that ends it; put it '
            "back, or remove both"
        )
    generated = text[begin.end() : end.start()]
    return CardParts(metadata, text[: begin.start()], generated, text[end.end() :], _notes(begin["notes"]))


def fingerprint(value: Any) -> str:
    """Hash a value of JSON, or of YAML."""
    return hashlib.sha1(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _split(text: str) -> tuple[dict[str, Any], str]:
    import yaml

    if (block := REGEX_YAML_BLOCK.search(text)) is None:
        return {}, text
    try:
        check_metadata(text, CARD_NAME)
    except ConfigurationError as error:
        raise DataError(str(error)) from error
    order = list(yaml.safe_load(block[2]) or {})
    card = ModelCard(text)
    metadata: dict[str, Any] = card.data.to_dict()  # type: ignore[no-untyped-call]
    return {name: metadata[name] for name in order if name in metadata}, card.text


def _notes(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:  # somebody wrote into the line: all metadata count as theirs
        return {}
    return found if isinstance(found, dict) else {}
