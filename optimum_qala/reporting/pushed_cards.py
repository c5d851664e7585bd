"""Model cards of pushes: of what was measured, with what their owner changed on the Hub."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from transformers.utils import logging

from optimum_qala.inference.files import SUBFOLDERS
from optimum_qala.models.hub_card import CardWriter, Repository
from optimum_qala.models.hub_files import replaced_files
from optimum_qala.reporting.card_parts import CardParts, fingerprint, read_card
from optimum_qala.reporting.card_sections import EXAMPLE_PAGE, FIGURES
from optimum_qala.reporting.facts import BENCHMARK_NAME, EMISSIONS_NAME, RECORDS, TRAINING_NAMES, read_facts
from optimum_qala.reporting.model_card import MEASURED, make_model_card, measurements


__all__ = ["MeasuredCardWriter"]

logger = logging.get_logger(__name__)

PUSHED = "#pushed"  # the note of what was pushed: hashes of the metadata by name, and that of the text
TEXT = "#text"
SHOWN = (BENCHMARK_NAME, EXAMPLE_PAGE, *(name for name, _ in FIGURES.values()))  # made of the measurements
# What `read_facts` reads; of other files it wants to know that they are there, and how large they are.
READ = ("config.json", BENCHMARK_NAME, EMISSIONS_NAME, *TRAINING_NAMES, *RECORDS.values())


class MeasuredCardWriter(CardWriter):
    """Writes cards of what was measured, and keeps what their owner wrote around it."""

    def write(self, folder: Path, repo_id: str, existing: str = "") -> str:
        """Write the card of a folder, as `write_model_card` does.

        Args:
            folder: The model, or the layout of a repository with models in its sub-folders.
            repo_id: What users load the model by.
            existing: A card whose text is kept.

        Returns:
            The card.

        Raises:
            CheckpointError: If the folder holds no QuaLA-MiniLM.
            DataError: If a file is damaged, or a benchmark in the folder is one of another model.
        """
        return make_model_card(read_facts(folder), repo_id=repo_id, existing=existing)

    def merge(self, stored: str, new: str, repo_id: str) -> str:
        """Put the generated part of a card into that of the repository.

        What was changed on the Hub since the last push stays. Where nothing was, the new card is pushed as it is: its
        text may be newer.

        Args:
            stored: The card of the repository.
            new: The card to push.
            repo_id: What users load the model by.

        Returns:
            The card to push: the new one where either has no generated part.

        Raises:
            DataError: If a card cannot be read.
        """
        there, here = read_card(stored), read_card(new)
        if there.generated is None or here.generated is None:
            return new
        pushed = there.notes.get(PUSHED) or {}
        if pushed.get(TEXT) != fingerprint(there.own_text) and there.own_text != here.own_text:
            if pushed.get(TEXT) != fingerprint(here.own_text):
                logger.warning(
                    f"The text of the card was changed on the Hub and in the card to push: {repo_id} keeps its own. "
                    "Edit it there"
                )
            here = here.with_text_of(there)
        return str(replace(here, metadata=_merge_metadata(there, here, pushed)))

    def renew(self, stored: str, folder: Path, repository: Repository) -> str:
        """Make the generated part of a card again where the push brings measurements that it does not show.

        It is made of what is pushed and of what the repository holds; what only the folder of a report knows goes
        where it may be wrong now. If the push only adds a model, a card that would lose something stays as it is.

        Args:
            stored: The card.
            folder: What is pushed.
            repository: What is there.

        Returns:
            The card to push.

        Raises:
            DataError: If a file or the card cannot be read.
        """
        card = read_card(stored)
        if card.generated is None:
            return stored
        told, pushed = card.notes.get(MEASURED) or {}, measurements(read_facts(folder))
        if all(told.get(name) == value for name, value in pushed.items()):
            return stored
        replaced = [name for name, value in pushed.items() if told.get(name, value) != value]
        with tempfile.TemporaryDirectory() as temporary:
            _lay_out(Path(temporary), folder, repository, _outdated(replaced))
            made = make_model_card(read_facts(temporary), repo_id=repository.repo_id, existing=stored)
        return _report_loss(stored, made, repository.repo_id, bool(replaced))

    def sign(self, card: str) -> str:
        """Note in a generated card what its text and metadata are.

        Args:
            card: The card.

        Returns:
            The card.
        """
        parts = read_card(card)
        if parts.generated is None:
            return card
        hashes = {name: fingerprint(value) for name, value in parts.metadata.items()}
        return str(replace(parts, notes={**parts.notes, PUSHED: {TEXT: fingerprint(parts.own_text), **hashes}}))


def _merge_metadata(there: CardParts, here: CardParts, pushed: dict[str, Any]) -> dict[str, Any]:
    """Lay the metadata that were changed on the Hub over those of the card to push; tags are joined."""
    changed = there.owned
    removed: set[str] = set()
    if pushed:
        changed = {name: value for name, value in there.metadata.items() if pushed.get(name) != fingerprint(value)}
        removed = pushed.keys() - there.metadata.keys() - {TEXT}
    kept = {name: value for name, value in here.metadata.items() if name not in removed or name not in here.owned}
    merged = {**kept, **changed}
    if "tags" in changed:
        merged["tags"] = list(dict.fromkeys([*changed["tags"], *kept.get("tags", [])]))
    return {**{name: merged[name] for name in there.metadata if name in merged}, **merged}


def _outdated(replaced: Iterable[str]) -> set[str]:
    """Name the files that say something of models which are replaced by others."""
    replaced = list(replaced)
    trained = {*TRAINING_NAMES, EMISSIONS_NAME} if any(name.endswith("/torch") for name in replaced) else set()
    return {*SHOWN, *trained} if replaced else set()


def _lay_out(target: Path, folder: Path, repository: Repository, outdated: set[str]) -> None:
    """Lay a folder out as the repository will be, with files of the right size in place of those that nobody reads."""
    pushed = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
    gone = {*pushed, *outdated, *replaced_files(list(pushed), repository.sizes)}
    sources: dict[str, Path | int] = {name: size for name, size in repository.sizes.items() if name not in gone}
    for name, source in (sources | pushed).items():
        path = PurePosixPath(name)
        if str(path.parent) not in (".", *SUBFOLDERS.values()):
            continue
        (target / path).parent.mkdir(exist_ok=True)
        if path.name in READ:
            shutil.copyfile(repository.fetch(name) if isinstance(source, int) else source, target / path)
        else:
            with (target / path).open("wb") as file:
                file.truncate(source if isinstance(source, int) else source.stat().st_size)


def _report_loss(stored: str, made: str, repo_id: str, is_replaced: bool) -> str:
    """Choose between a card and the one that was made again of less, and say what that costs."""
    before, after = _lines(stored), _lines(made)
    lost = [line for line in before if line not in after]
    if not lost:
        return made
    remedy = "`optimum-cli qala report` makes a card of all that is known, for readme="
    if not is_replaced:
        logger.warning(f"The card of {repo_id} stays without the model that is pushed; {remedy}")
        return stored
    titles = [line.removeprefix("## ") for line in lost if line.startswith("## ")]
    without = f", without {', '.join(titles)}" if titles else ""
    logger.warning(f"The card of {repo_id} showed other measurements and was made again{without}; {remedy}")
    return made


def _lines(card: str) -> list[str]:
    """Return the titles of a card, and what the lines of its tables are about."""
    return re.findall(r"^(## .*|\| [^|]+ \||<img [^>]+>)", read_card(card).generated or "", re.MULTILINE)
