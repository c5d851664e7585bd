"""A synthetic question answering set: generated, seeded, labelled as such. For quick starts and tests, not for claims.

Its text lives in `synthetic.json`: parts of names, phrases, and domains. A domain holds the facts that can be stated
of an entity, each with the kind of its value (a key of `VALUE_MAKERS`), wordings of the statement and of the question
(`{e}` is the entity, `{v}` the value) and, where a value tells entities apart, wordings of the reverse question.
"""

from __future__ import annotations

import json
import os
import random
import tempfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from optimum_qala.errors import ConfigurationError
from optimum_qala.question_answering.records import QARecord


__all__ = ["SPLITS", "VALUE_MAKERS", "generate_records", "write_squad_json"]

Maker = Callable[[random.Random, str], str]

# Which tenths of all names belong to each split; no name belongs to two.
SPLITS: dict[str, range] = {"train": range(6), "validation": range(6, 8), "test": range(8, 10)}
MIN_WORDS, MAX_WORDS = 60, 250
MIN_QUESTIONS, MAX_QUESTIONS = 3, 6  # per paragraph

_TEXT: dict[str, Any] = json.loads(files(__package__).joinpath("synthetic.json").read_text(encoding="utf-8"))
_NAMES: dict[str, list[str]] = _TEXT["names"]
_MONTHS: list[str] = _TEXT["phrases"]["month"]


def _name_maker(*parts: str) -> Maker:
    """Make names of parts, with a checksum that decides to which split a name belongs."""

    def make(rng: random.Random, split: str) -> str:
        while True:
            name = "".join(part if part == " " else rng.choice(_NAMES[part]) for part in parts)
            if zlib.crc32(name.encode()) % 10 in SPLITS[split]:
                return name

    return make


def _phrase_maker(kind: str) -> Maker:
    return lambda rng, split: rng.choice(_TEXT["phrases"][kind])


_surname = _name_maker("surname_stems", "surname_endings")
_place = _name_maker("place_stems", "place_endings")
_coined = _name_maker("coined_starts", "coined_middles", "coined_endings")
_title = _name_maker("adjectives", " ", "nouns")
_animal = _name_maker("animal_adjectives", " ", "animals")


def _small_count(rng: random.Random, split: str) -> str:
    return rng.choice(_NAMES["number_words"]) if rng.random() < 0.5 else str(rng.randint(17, 60))


VALUE_MAKERS: dict[str, Maker] = {
    **{kind: _phrase_maker(kind) for kind in _TEXT["phrases"]},
    "animal": lambda rng, split: f"the {_animal(rng, split)}",
    "book": lambda rng, split: f"The {_title(rng, split)}",
    "bridge": lambda rng, split: f"the {_surname(rng, split)} Bridge",
    "city": _place,
    "company": lambda rng, split: f"{_coined(rng, split)} {rng.choice(_NAMES['company_endings'])}",
    "date": lambda rng, split: f"{rng.randint(1, 28)} {rng.choice(_MONTHS)} {rng.randint(1790, 2019)}",
    "festival": lambda rng, split: f"the {_title(rng, split)} Festival",
    "large_count": lambda rng, split: f"{rng.randint(1_000, 990_000):,}",
    "length": lambda rng, split: f"{rng.randint(12, 980)} {rng.choice(['feet', 'metres', 'yards'])}",
    "mission": lambda rng, split: f"{_coined(rng, split)} {rng.randint(1, 12)}",
    "money": lambda rng, split: f"{rng.randint(11, 990) / 10:g} {rng.choice(['million', 'billion'])} dollars",
    "person": lambda rng, split: f"{rng.choice(_NAMES['first_names'])} {_surname(rng, split)}",
    "river": _coined,
    "small_count": _small_count,
    "target": lambda rng, split: f"{rng.choice(_NAMES['target_kinds'])} {_coined(rng, split)}",
    "team": lambda rng, split: f"{_coined(rng, split)} {rng.choice(_NAMES['team_endings'])}",
    "weight": lambda rng, split: f"{rng.randint(2, 950)} {rng.choice(['grams', 'kilograms', 'ounces', 'pounds'])}",
    "year": lambda rng, split: str(rng.randint(1790, 2019)),
}


@dataclass(frozen=True)
class _Fact:
    """One thing that can be said of an entity."""

    kind: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    reverse: tuple[str, ...]


@dataclass(frozen=True)
class _Domain:
    """A kind of entity and what can be said of it."""

    kind: str
    aliases: tuple[str, ...]
    facts: tuple[_Fact, ...]
    fillers: tuple[str, ...]


@dataclass(frozen=True)
class _Statement:
    """A fact of an entity with its value."""

    entity: str
    fact: _Fact
    value: str


_DOMAINS = tuple(
    _Domain(
        kind,
        tuple(domain["aliases"]),
        tuple(
            _Fact(fact["kind"], tuple(fact["statements"]), tuple(fact["questions"]), tuple(fact["reverse"]))
            for fact in domain["facts"]
        ),
        tuple(domain["fillers"]),
    )
    for kind, domain in _TEXT["domains"].items()
)


class _Paragraph:
    """A text under construction that remembers where each value and each name stands."""

    def __init__(self, rng: random.Random, aliases: tuple[str, ...]) -> None:
        self.text = ""
        self.value_starts: dict[_Statement, int] = {}
        self.name_starts: dict[_Statement, int] = {}
        self._last_mention: dict[str, int] = {}
        self._rng = rng
        self._aliases = aliases

    def add(self, template: str, entity: str, statement: _Statement | None = None, may_alias: bool = False) -> None:
        """Append a clause without its full stop."""
        use_alias = may_alias and self._rng.random() < 0.5
        shown = self._rng.choice(self._aliases) if use_alias else entity
        at_sentence_start = not self.text or self.text.endswith(". ")
        clause_start = len(self.text)
        pieces = template.replace("{e}", "\0e\0").replace("{v}", "\0v\0").split("\0")
        for piece in pieces:
            if piece == "e":
                if not use_alias:
                    self._last_mention[entity] = len(self.text)
                self.text += shown
            elif piece == "v" and statement is not None:
                self.value_starts[statement] = len(self.text)
                self.text += statement.value
            else:
                self.text += piece
        if at_sentence_start:
            self.text = self.text[:clause_start] + self.text[clause_start].upper() + self.text[clause_start + 1 :]
        if statement is not None:
            self.name_starts[statement] = self._last_mention[entity]

    def end_sentence(self) -> None:
        self.text += ". "


def generate_records(num_questions: int, seed: int = 0, split: str = "train") -> list[QARecord]:
    """Generate questions about made-up people, towns, companies and the like.

    A paragraph of 60 to 250 words states facts of two or three entities of one domain, mostly the same facts of each,
    so that it holds several wrong answers of the right kind. Questions are worded differently from the statements, and
    entities are also called by what they are ("the company"). Names (of people, places, companies, ...) are divided
    between the splits; numbers, dates and common nouns are shared.

    Args:
        num_questions: How many to generate.
        seed: Seed; the same arguments give the same records.
        split: One of `SPLITS`. No name occurs in two splits, whatever the seeds.

    Returns:
        Records, each with one gold answer and an id that starts with "synthetic"; those of a paragraph follow each
        other.

    Raises:
        ConfigurationError: If `num_questions` is not a positive integer or `split` is unknown.
    """
    if isinstance(num_questions, bool) or not isinstance(num_questions, int) or num_questions < 1:
        raise ConfigurationError(f"num_questions {num_questions!r} is not a positive integer")
    if split not in SPLITS:
        raise ConfigurationError(f"split {split!r} is not one of {', '.join(SPLITS)}")
    rng = random.Random(f"{split} {seed}")
    records: list[QARecord] = []
    while len(records) < num_questions:
        context, questions = _generate_paragraph(rng, split)
        for question, answer, start in questions[: num_questions - len(records)]:
            record_id = f"synthetic-{split}-{seed}-{len(records) + 1}"
            records.append(QARecord(record_id, question, context, (answer,), (start,)))
    return records


def _generate_paragraph(rng: random.Random, split: str) -> tuple[str, list[tuple[str, str, int]]]:
    """Return a context and its questions with answer and offset."""
    domain = rng.choice(_DOMAINS)
    while True:
        paragraph = _write(rng, domain, _choose_statements(rng, split, domain))
        if MIN_WORDS <= len(paragraph.text.split()) <= MAX_WORDS:
            break
    statements = list(paragraph.value_starts)
    chosen = rng.sample(statements, k=min(len(statements), rng.randint(MIN_QUESTIONS, MAX_QUESTIONS)))
    context = paragraph.text.strip()
    return context, [_ask(rng, context, paragraph, statement) for statement in chosen]


def _choose_statements(rng: random.Random, split: str, domain: _Domain) -> list[list[_Statement]]:
    """Draw entities and facts; no value holds another, so every question has one answer."""
    used: set[str] = set()

    def draw(kind: str) -> str:
        while True:
            value = VALUE_MAKERS[kind](rng, split)
            if not any(value in other or other in value for other in used):
                used.add(value)
                return value

    facts = list(domain.facts)
    rng.shuffle(facts)
    num_shared = rng.randint(3, 4)
    blocks: list[list[_Statement]] = []
    for _ in range(rng.choice([2, 2, 3])):
        entity = draw(domain.kind)
        chosen = facts[:num_shared] + rng.sample(facts[num_shared:], k=rng.randint(0, 3))
        rng.shuffle(chosen)
        blocks.append([_Statement(entity, fact, draw(fact.kind)) for fact in chosen])
    return blocks


def _write(rng: random.Random, domain: _Domain, blocks: list[list[_Statement]]) -> _Paragraph:
    paragraph = _Paragraph(rng, domain.aliases)
    fillers = rng.sample(domain.fillers, k=len(domain.fillers))
    # Some facts are told of two entities in one sentence, and some only after the next entity has been introduced.
    compared = [pair for pair in zip(blocks[0], blocks[1], strict=False) if pair[0].fact == pair[1].fact][:1]
    late = [blocks[0][-1]] if rng.random() < 0.5 else []
    moved = {statement for pair in compared for statement in pair} | set(late)
    for index, block in enumerate(blocks):
        is_named = False
        for statement in block:
            if statement in moved:
                continue
            paragraph.add(rng.choice(statement.fact.statements), statement.entity, statement, may_alias=is_named)
            is_named = True
            paragraph.end_sentence()
            if fillers and rng.random() < 0.25:
                paragraph.add(fillers.pop(), statement.entity, may_alias=True)
                paragraph.end_sentence()
        if index == 1:
            for first, second in (pair if rng.random() < 0.5 else pair[::-1] for pair in compared):
                if first in late or second in late:
                    continue
                template = rng.choice(first.fact.statements)
                paragraph.add(template, first.entity, first)
                paragraph.text += rng.choice([", while ", ", whereas ", "; "])
                paragraph.add(template, second.entity, second)
                paragraph.end_sentence()
    for statement in late:
        paragraph.add(rng.choice(statement.fact.statements), statement.entity, statement)
        paragraph.end_sentence()
    return paragraph


def _ask(rng: random.Random, context: str, paragraph: _Paragraph, statement: _Statement) -> tuple[str, str, int]:
    """Word a question about a statement: mostly for its value, sometimes for its entity."""
    if statement.fact.reverse and rng.random() < 0.3:
        question = rng.choice(statement.fact.reverse).format(v=statement.value)
        start, length = paragraph.name_starts[statement], len(statement.entity)
    else:
        question = rng.choice(statement.fact.questions).format(e=statement.entity)
        start, length = paragraph.value_starts[statement], len(statement.value)
    answer = context[start : start + length]  # from the text, where it may be capitalized
    if answer.lower().startswith("the ") and statement.fact.kind != "book":
        start, answer = start + 4, answer[4:]
    return question, answer, start


def write_squad_json(records: Iterable[QARecord], path: str | os.PathLike[str], title: str = "synthetic") -> None:
    """Write records as SQuAD JSON, v2 if one is impossible, else v1.1. An existing file is replaced in one step.

    Args:
        records: The records.
        path: Where to write.
        title: Title of the only article; "(synthetic)" is added unless it says so.

    Raises:
        ConfigurationError: If there are no records.
    """
    paragraphs: dict[str, list[dict[str, Any]]] = {}
    is_v2 = False
    for record in records:
        answers = [
            {"text": text, "answer_start": start}
            for text, start in zip(record.answers, record.answer_starts, strict=True)
        ]
        question: dict[str, Any] = {"id": record.id, "question": record.question, "answers": answers}
        if record.is_impossible:
            is_v2 = question["is_impossible"] = True
        paragraphs.setdefault(record.context, []).append(question)
    if not paragraphs:
        raise ConfigurationError(f"there are no records to write to {os.fspath(path)}")
    if is_v2:
        for question in (question for questions in paragraphs.values() for question in questions):
            question.setdefault("is_impossible", False)
    article = {
        "title": title if "synthetic" in title.lower() else f"{title} (synthetic)",
        "paragraphs": [{"context": context, "qas": questions} for context, questions in paragraphs.items()],
    }
    document = {"version": "v2.0" if is_v2 else "1.1", "data": [article]}
    target = Path(path)
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=target.parent, delete=False) as file:
        json.dump(document, file, ensure_ascii=False)
    os.chmod(file.name, 0o644)
    os.replace(file.name, target)
