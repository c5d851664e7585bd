"""Records are read from every promised source, and whatever is wrong with them is named."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from optimum_qala.errors import ConfigurationError, DataError, MissingExtraError
from optimum_qala.question_answering import records as records_module
from optimum_qala.question_answering.records import (
    QARecord,
    iter_records,
    load_records,
    record_to_json,
    records_to_squad,
)


CONTEXT = "Anna found the old book in Paris."
ANSWER = {"text": "Paris", "answer_start": 27}
FLAT = {"id": "a", "question": "Where?", "context": CONTEXT, "answers": {"text": ["Paris"], "answer_start": [27]}}
EXPECTED = QARecord("a", "Where?", CONTEXT, ("Paris",), (27,))


def squad(*questions: dict[str, Any]) -> dict[str, Any]:
    questions = questions or ({"id": "a", "question": "Where?", "answers": [ANSWER]},)
    return {"version": "1.1", "data": [{"title": "t", "paragraphs": [{"context": CONTEXT, "qas": list(questions)}]}]}


def write(tmp_path: Path, value: Any, name: str = "data.json", indent: int | None = None) -> Path:
    path = tmp_path / name
    path.write_text(value if isinstance(value, str) else json.dumps(value, indent=indent), encoding="utf-8")
    return path


@pytest.mark.parametrize("indent", [None, 2], ids=["one-line", "indented"])
def test_squad_json_is_read(tmp_path: Path, indent: int | None) -> None:
    assert load_records(write(tmp_path, squad(), indent=indent)) == [EXPECTED]


def test_squad_json_with_byte_order_mark_is_read(tmp_path: Path) -> None:
    assert load_records(write(tmp_path, "\ufeff" + json.dumps(squad()))) == [EXPECTED]


def test_json_array_of_records_is_read(tmp_path: Path) -> None:
    assert load_records(write(tmp_path, [FLAT], indent=1)) == [EXPECTED]


@pytest.mark.parametrize("name", ["data.jsonl", "data.json"])
def test_json_lines_are_recognized_by_content_or_suffix(tmp_path: Path, name: str) -> None:
    lines = json.dumps(FLAT) + "\n\n" + json.dumps({**FLAT, "id": "b", "answers": [ANSWER]}) + "\n"
    assert [record.id for record in iter_records(str(write(tmp_path, lines, name)))] == ["a", "b"]


def test_standard_input_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A record is given out before the next line is read: the second line is broken, the first record arrives."""
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(FLAT) + "\n{broken\n"))
    records = iter_records("-")
    assert next(records) == EXPECTED
    with pytest.raises(DataError, match=r"standard input, line 2, is not JSON"):
        next(records)


def test_iterables_of_mappings_and_records_are_read() -> None:
    assert load_records(item for item in [FLAT, QARecord("b", "Who?", CONTEXT)]) == [
        EXPECTED,
        QARecord("b", "Who?", CONTEXT),
    ]


def test_parsed_squad_object_is_read() -> None:
    assert load_records(squad()) == [EXPECTED]


def test_limit_stops_reading() -> None:
    assert [record.id for record in load_records([FLAT, {**FLAT, "id": "b"}, "never reached"], limit=2)] == ["a", "b"]


@pytest.mark.parametrize("limit", [0, -1, 1.5, True])
def test_bad_limit_is_refused(limit: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"limit {limit!r} is not a positive integer"):
        load_records([FLAT], limit=limit)


def test_missing_ids_are_numbered_and_integer_ids_become_text() -> None:
    without = {key: value for key, value in FLAT.items() if key != "id"}
    assert [record.id for record in load_records([without, {**FLAT, "id": 7}, without])] == [
        "record-1",
        "7",
        "record-3",
    ]


def test_datasets_object_is_read() -> None:
    datasets = pytest.importorskip("datasets")
    assert load_records(datasets.Dataset.from_list([FLAT])) == [EXPECTED]


class TestDatasetsId:
    """Ids are looked up with `datasets`, here replaced: it needs the network."""

    @pytest.fixture(autouse=True)
    def _datasets(self, monkeypatch: pytest.MonkeyPatch) -> None:
        datasets = pytest.importorskip("datasets")
        self.asked: list[tuple[str, str | None, str | None]] = []

        def load_dataset(name: str, configuration: str | None, split: str | None) -> Any:
            self.asked.append((name, configuration, split))
            if name == "absent/one":
                raise FileNotFoundError("no such data set\nlong story")
            if split is None:
                return {"train": [FLAT], "validation": [FLAT]} if name == "squad" else {"test": [FLAT]}
            return [FLAT]

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)

    @pytest.mark.parametrize(
        ("source", "asked"),
        [
            ("squad:validation", ("squad", None, "validation")),
            ("org/name:hard:test", ("org/name", "hard", "test")),
            ("org/name", ("org/name", None, None)),
        ],
    )
    def test_parts_are_passed_on(self, source: str, asked: tuple[Any, ...]) -> None:
        assert load_records(source) == [EXPECTED]
        assert self.asked == [asked]

    def test_missing_split_is_named(self) -> None:
        with pytest.raises(
            DataError, match=r"'squad' has the splits 'train', 'validation'; choose one, as in 'squad:tr"
        ):
            load_records("squad")

    def test_failure_is_one_line(self) -> None:
        with pytest.raises(DataError, match=r"'absent/one:x' is not a file and cannot .*: no such data set; check"):
            load_records("absent/one:x")

    @pytest.mark.parametrize("source", ["a:b:c:d", "squad:", ":x"])
    def test_malformed_id_is_refused(self, source: str) -> None:
        with pytest.raises(DataError, match=f"'{source}' is neither a file nor a datasets id"):
            load_records(source)

    def test_absent_library_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(extra: str, purpose: str) -> None:
            raise MissingExtraError(f"{purpose}: {extra}")

        monkeypatch.setattr(records_module, "require", refuse)
        with pytest.raises(MissingExtraError, match=r"reading 'squad:train' .*: datasets"):
            load_records("squad:train")


class TestNoAnswer:
    """What an absent answer means depends on the shape, as its producers mean it."""

    @pytest.mark.parametrize(
        ("fields", "is_impossible"),
        [
            ({"answers": {"text": [], "answer_start": []}}, True),
            ({"answers": []}, False),
            ({"answers": [], "is_impossible": True}, True),
            ({"answers": {"text": [], "answer_start": []}, "is_impossible": False}, False),
            ({}, False),
        ],
        ids=["datasets-empty", "list-empty", "flagged", "unflagged", "unlabelled"],
    )
    def test_is_impossible(self, fields: dict[str, Any], is_impossible: bool) -> None:
        (record,) = load_records([{"question": "Where?", "context": CONTEXT, **fields}])
        assert record.is_impossible is is_impossible

    def test_require_answers_refuses_unlabelled_only(self, tmp_path: Path) -> None:
        impossible = {"id": "i", "question": "Why?", "answers": [], "is_impossible": True}
        assert load_records(squad(impossible), require_answers=True)[0].is_impossible
        path = write(tmp_path, squad({"id": "u", "question": "Why?", "answers": []}))
        assert load_records(path)[0].answers == ()
        with pytest.raises(DataError, match=r"data\.json, record 'u' has no answer; training needs one"):
            load_records(path, require_answers=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"data\.json is empty"),
        (" \n ", r"data\.json is empty"),
        ("{oops", r"data\.json is not JSON: .*, line 1 column 2"),
        ('{\n"data": [}', r"data\.json is not JSON: .*, line 2"),
        ('{"version": 1}', r"data\.json has no 'data': expected .*, found an object with the keys 'version'"),
        ("3", r"data\.json has no 'data': .* found 3"),
        ("null", r"data\.json has no 'data': .* found None"),
        ('{"data": 3}', r"data\.json: 'data' is not a list of objects, found 3"),
        ('{"data": []}', r"data\.json holds no questions"),
        ("[]", r"data\.json holds no questions"),
        ('{"data": [{"title": "t"}]}', r"data\[0\]: 'paragraphs' is not a list of objects, found None"),
        ('{"data": [{"paragraphs": [{"qas": []}]}]}', r"data\[0\]\.paragraphs\[0\] has no 'context' text, found None"),
        ('{"data": [{"paragraphs": [{"context": "c"}]}]}', r"paragraphs\[0\]: 'qas' is not a list of objects"),
        ('{"data": [{"paragraphs": [{"context": "c", "qas": [1]}]}]}', r"'qas' is not a list of objects, found \[1\]"),
        ("[1]", r"data\.json, record 1 is not an object with 'question' and 'context', found 1"),
    ],
)
def test_malformed_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_records(write(tmp_path, text))


def test_other_encoding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_bytes('{"data": "é"}'.encode("latin-1"))
    with pytest.raises(DataError, match=r"data\.json is not UTF-8 text \(byte 10\)"):
        load_records(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question": None}, r"list, record 1 \(id 'a'\) has no 'question' text, found None"),
        ({"context": 5}, r"\(id 'a'\) has no 'context' text, found 5"),
        ({"question": " \n"}, r"list, record 'a': the question is empty"),
        ({"id": ""}, r"the id '' is not a non-empty text or an integer"),
        ({"id": 1.5}, r"the id 1\.5 is not"),
        ({"is_impossible": "no"}, r"is_impossible 'no' is neither true nor false"),
        ({"is_impossible": True}, r"record 'a' is marked is_impossible but has the answer 'Paris'"),
        ({"answers": "Paris"}, r"answers 'Paris' are neither"),
        ({"answers": {"text": ["Paris"]}}, r"answers \{'text': \['Paris'\]\} are neither"),
        ({"answers": {"text": ["Paris"], "answer_start": []}}, r"record 'a' has 1 answer texts but 0 offsets"),
        ({"answers": [{"text": "Paris"}]}, r"answer_start None of the answer 'Paris' is not an integer"),
        ({"answers": [{"text": "Paris", "answer_start": "27"}]}, r"answer_start '27' of the answer 'Paris'"),
        ({"answers": [{"text": "", "answer_start": 0}]}, r"the answer text '' is not a non-empty text"),
        ({"answers": [{"text": 7, "answer_start": 0}]}, r"the answer text 7 is not a non-empty text"),
    ],
)
def test_malformed_record_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_records([{**FLAT, **changes}])


def test_record_without_question_lists_its_keys() -> None:
    with pytest.raises(DataError, match=r"has no 'question' text, only 'context', 'text'"):
        load_records([{"context": CONTEXT, "text": "x"}])


@pytest.mark.parametrize(
    ("text", "start", "message"),
    [
        ("Paris", 26, r"expected the answer 'Paris' at offset 26 of the context, found ' Pari' \(it occurs at 27\)"),
        ("Rome", 27, r"expected the answer 'Rome' at offset 27 .* found 'Pari' \(the context does not contain it\)"),
        ("Paris", -6, r"expected the answer 'Paris' at offset -6 of the context, found '' \(it occurs at 27\)"),
        ("Paris", 999, r"expected the answer 'Paris' at offset 999 of the context, found ''"),
    ],
)
def test_wrong_offset_is_refused(tmp_path: Path, text: str, start: int, message: str) -> None:
    path = write(
        tmp_path, squad({"id": "q7", "question": "Where?", "answers": [{"text": text, "answer_start": start}]})
    )
    with pytest.raises(DataError, match=rf"data\.json, record 'q7': {message}"):
        load_records(path)


def test_offsets_count_characters_beyond_the_basic_plane() -> None:
    record = {"question": "?", "context": "😀 Paris", "answers": [{"text": "Paris", "answer_start": 2}]}
    assert load_records([record])[0].answer_starts == (2,)


def test_duplicate_id_is_refused() -> None:
    with pytest.raises(DataError, match=r"list, record 'a' \(record 2\): another record has this id"):
        load_records([FLAT, FLAT])


def test_empty_iterable_is_refused() -> None:
    with pytest.raises(DataError, match="list holds no questions"):
        load_records([])


@pytest.mark.parametrize("name", ["absent.json", "./absent"])
def test_missing_file_is_not_taken_for_a_datasets_id(name: str) -> None:
    with pytest.raises(DataError, match="absent.* does not exist; give a SQuAD JSON"):
        iter_records(name)


def test_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder, not a file"):
        iter_records(tmp_path)


def test_mapping_without_data_is_refused() -> None:
    with pytest.raises(DataError, match="a mapping with the keys 'test', 'train' is neither"):
        iter_records({"train": [], "test": []})


def test_other_source_is_refused() -> None:
    with pytest.raises(DataError, match="cannot read records from int 3"):
        iter_records(3)


# --- writing


@pytest.mark.parametrize("last_is_impossible", [False, True])
def test_written_records_are_read_back(tmp_path, last_is_impossible):
    records = [
        QARecord("a", "who ?", "Anna, 9", ("Anna",), (0,)),
        QARecord("b", "how old ?", "Anna, 9", ("9", "9"), (6, 6)),
        QARecord("c", "where ?", "Rome", is_impossible=True) if last_is_impossible else QARecord("c", "?", "Rome"),
    ]
    squad = records_to_squad(records)
    assert load_records(squad) == records
    assert [len(paragraph["qas"]) for paragraph in squad["data"][0]["paragraphs"]] == [2, 1]
    assert squad["version"] == ("v2.0" if last_is_impossible else "1.1")
    labelled = records if last_is_impossible else records[:2]
    assert load_records([record_to_json(record) for record in labelled]) == labelled
