"""The synthetic set is reproducible, valid, varied, labelled, and its splits share no name."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from optimum_qala.errors import ConfigurationError
from optimum_qala.question_answering import synthetic
from optimum_qala.question_answering.records import QARecord, load_records
from optimum_qala.question_answering.synthetic import SPLITS, VALUE_MAKERS, generate_records, write_squad_json


@pytest.fixture(scope="module")
def records() -> list[QARecord]:
    return generate_records(1500, seed=1)


def test_number_of_questions_is_exact(records: list[QARecord]) -> None:
    assert len(records) == 1500
    assert len(generate_records(1)) == 1


def test_records_pass_every_check(records: list[QARecord]) -> None:
    """Offsets, ids and questions are checked by the reader."""
    assert load_records(records, require_answers=True) == records
    assert all(record.answers[0] == record.answers[0].strip() for record in records)
    assert not any(re.search(r"[{}\0]", record.context + record.question) for record in records)


def test_same_seed_gives_the_same_records_and_another_seed_others() -> None:
    assert generate_records(50, seed=3) == generate_records(50, seed=3)
    assert not {one.context for one in generate_records(50, seed=3)} & {
        one.context for one in generate_records(50, seed=4)
    }


def test_more_questions_continue_fewer() -> None:
    assert generate_records(80, seed=3)[:50] == generate_records(50, seed=3)


def test_paragraphs_have_the_promised_length(records: list[QARecord]) -> None:
    lengths = [len(context.split()) for context in {record.context for record in records}]
    assert min(lengths) >= 60
    assert max(lengths) <= 250
    assert max(lengths) > 1.5 * min(lengths)


def test_paragraphs_have_several_questions(records: list[QARecord]) -> None:
    contexts = [record.context for record in records]
    counts = {contexts.count(context) for context in set(contexts[:-10])}
    assert counts <= set(range(1, 7))
    assert {3, 4, 5, 6} <= counts


def test_set_is_varied(records: list[QARecord]) -> None:
    assert len({record.question for record in records}) > 0.95 * len(records)
    assert len({record.answers[0] for record in records}) > 0.5 * len(records)
    assert len({record.question.split()[0] for record in records}) >= 8
    assert {len(record.answers[0].split()) for record in records} >= {1, 2, 3, 4}


def test_every_domain_occurs(records: list[QARecord]) -> None:
    text = " ".join({record.context for record in records}).lower()
    for domain in synthetic._DOMAINS:
        assert any(alias in text for alias in domain.aliases), domain.kind


def test_question_is_not_answered_by_its_own_words(records: list[QARecord]) -> None:
    assert not [record for record in records if record.answers[0].lower() in record.question.lower()]


def test_paragraphs_hold_wrong_answers_of_the_right_kind(records: list[QARecord]) -> None:
    """A year that is asked for is never the only one by more than chance."""
    asked = [record for record in records if re.fullmatch(r"1[789]\d\d|20\d\d", record.answers[0])]
    with_another = [
        record for record in asked if len(set(re.findall(r"\b(?:1[789]\d\d|20\d\d)\b", record.context))) > 1
    ]
    assert len(asked) > 100
    assert len(with_another) > 0.9 * len(asked)


def test_value_is_stated_once(records: list[QARecord]) -> None:
    """No other fact of the paragraph has the same value, so the answer is the only one."""
    values = [record for record in records if re.fullmatch(r"[\d,]{5,}", record.answers[0])]
    assert len(values) > 50
    assert all(record.context.count(record.answers[0]) == 1 for record in values)


@pytest.mark.parametrize(
    "kind", ["person", "city", "company", "river", "festival", "animal", "bridge", "team", "book"]
)
def test_splits_share_no_name(kind: str) -> None:
    names = {
        split: {VALUE_MAKERS[kind](random.Random(seed), split).split(" ", kind == "person")[-1] for seed in range(400)}
        for split in SPLITS
    }
    if kind in ("company", "team"):
        names = {
            split: {VALUE_MAKERS[kind](random.Random(seed), split).split()[0] for seed in range(400)}
            for split in SPLITS
        }
    assert all(len(found) > 25 for found in names.values())
    assert not names["train"] & names["validation"]
    assert not names["train"] & names["test"]
    assert not names["validation"] & names["test"]


def test_splits_share_no_context_or_id_at_the_same_seed() -> None:
    parts = [generate_records(100, seed=0, split=split) for split in SPLITS]
    assert len({record.id for part in parts for record in part}) == 300
    assert sum(len({record.context for record in part}) for part in parts) == len(
        {record.context for part in parts for record in part}
    )


def test_wordings_are_complete() -> None:
    """Every statement and question names what it is about, and every kind has a maker."""
    for domain in synthetic._DOMAINS:
        assert domain.kind in VALUE_MAKERS
        assert len(domain.facts) >= 9
        kinds = [fact.kind for fact in domain.facts]
        assert len(set(kinds)) < len(kinds), f"{domain.kind} has no two facts of one kind"
        for fact in domain.facts:
            assert fact.kind in VALUE_MAKERS
            assert len(fact.statements) >= 2
            assert len(fact.questions) >= 2
            assert all(text.count("{e}") == text.count("{v}") == 1 for text in fact.statements)
            assert all("{e}" in text and "{v}" not in text and text.endswith("?") for text in fact.questions)
            assert all("{v}" in text and "{e}" not in text and text.endswith("?") for text in fact.reverse)


@pytest.mark.parametrize("value", [0, -5, 2.5, True])
def test_bad_number_is_refused(value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"num_questions {value!r} is not a positive integer"):
        generate_records(value)


def test_unknown_split_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="split 'dev' is not one of train, validation, test"):
        generate_records(5, split="dev")


class TestWrite:
    """The SQuAD file."""

    def test_round_trip(self, tmp_path: Path, records: list[QARecord]) -> None:
        write_squad_json(records, tmp_path / "data.json")
        assert load_records(tmp_path / "data.json") == records
        assert [path.name for path in tmp_path.iterdir()] == ["data.json"]

    @pytest.mark.parametrize(
        ("title", "expected"), [("demo", "demo (synthetic)"), ("Synthetic set", "Synthetic set"), (None, "synthetic")]
    )
    def test_title_says_synthetic(self, tmp_path: Path, title: str | None, expected: str) -> None:
        options = {} if title is None else {"title": title}
        write_squad_json(generate_records(3), tmp_path / "data.json", **options)
        document = json.loads((tmp_path / "data.json").read_text(encoding="utf-8"))
        assert [article["title"] for article in document["data"]] == [expected]
        assert document["version"] == "1.1"

    def test_impossible_records_make_version_2(self, tmp_path: Path) -> None:
        records = [QARecord("a", "who?", "anna", ("anna",), (0,)), QARecord("b", "why?", "anna", is_impossible=True)]
        write_squad_json(records, tmp_path / "data.json")
        assert json.loads((tmp_path / "data.json").read_text(encoding="utf-8"))["version"] == "v2.0"
        assert load_records(tmp_path / "data.json") == records

    def test_existing_file_is_replaced(self, tmp_path: Path) -> None:
        (tmp_path / "data.json").write_text("old")
        write_squad_json(generate_records(2), tmp_path / "data.json")
        assert len(load_records(tmp_path / "data.json")) == 2

    def test_nothing_is_refused_and_the_old_file_stays(self, tmp_path: Path) -> None:
        (tmp_path / "data.json").write_text("old")
        with pytest.raises(ConfigurationError, match=r"no records to write to .*data\.json"):
            write_squad_json([], tmp_path / "data.json")
        assert (tmp_path / "data.json").read_text() == "old"
