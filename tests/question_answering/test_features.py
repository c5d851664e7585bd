"""Training sets and batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from optimum_qala.errors import ConfigurationError, DataError
from optimum_qala.question_answering.features import (
    WindowOptions,
    collate,
    make_windows,
    padded_length,
    tokenize_for_training,
)
from optimum_qala.question_answering.records import QARecord


OPTIONS = WindowOptions(max_length=48, doc_stride=8)
LONG = "the old tower in rome was built by king peter . " * 5
RECORDS = [
    QARecord("a", "who built it ?", LONG, ("king peter",), (LONG.index("king peter"),)),
    QARecord("b", "where was anna born ?", "anna was born in paris .", ("paris",), (17,)),
    QARecord("c", "when ?", "in london .", is_impossible=True),
]


@pytest.fixture(params=["bert", "roberta"])
def tokenizer(request: pytest.FixtureRequest, tiny_tokenizer: Any, roberta_tokenizer: Any) -> Any:
    return tiny_tokenizer if request.param == "bert" else roberta_tokenizer


def test_training_set_holds_every_window(tokenizer: Any) -> None:
    windows = make_windows(RECORDS, tokenizer, OPTIONS, with_positions=True)
    dataset = tokenize_for_training(RECORDS, tokenizer, OPTIONS)
    assert len(dataset) == len(windows)
    assert dataset.lengths == [len(window) for window in windows]
    assert dataset.record_indices == [window.record_index for window in windows]
    for item, window in zip((dataset[index] for index in range(len(dataset))), windows, strict=True):
        expected = {
            "input_ids": window.input_ids,
            "attention_mask": [1] * len(window),
            "start_positions": window.start_position,
            "end_positions": window.end_position,
        }
        if window.token_type_ids is not None:
            expected["token_type_ids"] = window.token_type_ids
        assert item == expected
    assert any(item["start_positions"] > 0 for item in (dataset[index] for index in range(len(dataset))))


def test_training_set_does_not_depend_on_the_chunk_size(tiny_tokenizer: Any) -> None:
    whole = tokenize_for_training(RECORDS, tiny_tokenizer, OPTIONS)
    parts = tokenize_for_training(RECORDS, tiny_tokenizer, OPTIONS, chunk_size=1)
    assert parts.record_indices == whole.record_indices
    assert [parts[index] for index in range(len(parts))] == [whole[index] for index in range(len(whole))]


def test_training_set_counts_from_the_end_and_ends(tiny_tokenizer: Any) -> None:
    dataset = tokenize_for_training(RECORDS, tiny_tokenizer, OPTIONS)
    assert dataset[-1] == dataset[len(dataset) - 1]
    with pytest.raises(IndexError, match=rf"window {len(dataset)} of a data set of {len(dataset)}"):
        dataset[len(dataset)]


def test_training_set_of_nothing_is_refused(tiny_tokenizer: Any) -> None:
    with pytest.raises(DataError, match="no records to train on"):
        tokenize_for_training([], tiny_tokenizer, OPTIONS)


def test_training_set_works_with_a_data_loader(tiny_tokenizer: Any) -> None:
    dataset = tokenize_for_training(RECORDS, tiny_tokenizer, OPTIONS)
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=len(dataset), collate_fn=lambda items: collate(items, tiny_tokenizer)
    )
    (batch,) = loader
    assert batch["start_positions"].tolist() == [dataset[index]["start_positions"] for index in range(len(dataset))]


def test_collate_pads_as_the_tokenizer_does(tokenizer: Any) -> None:
    """Oracle: `tokenizer.pad`."""
    dataset = tokenize_for_training(RECORDS, tokenizer, OPTIONS)
    items = [dataset[index] for index in range(len(dataset))]
    batch = collate(items, tokenizer)
    expected = tokenizer.pad(items, return_tensors="pt")
    assert batch.keys() == expected.keys()
    for name, tensor in batch.items():
        assert tensor.dtype == torch.int64
        assert torch.equal(tensor, expected[name])


def test_collate_takes_windows_with_and_without_positions(tokenizer: Any) -> None:
    labelled = make_windows(RECORDS, tokenizer, OPTIONS, with_positions=True)
    plain = make_windows(RECORDS, tokenizer, OPTIONS)
    dataset = tokenize_for_training(RECORDS, tokenizer, OPTIONS)
    expected = collate([dataset[index] for index in range(len(dataset))], tokenizer)
    found = collate(labelled, tokenizer)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert collate(plain, tokenizer).keys() == expected.keys() - {"start_positions", "end_positions"}


@pytest.mark.parametrize(
    ("options", "length"), [({}, 14), ({"pad_to_multiple_of": 8}, 16), ({"pad_to_length": 48}, 48)]
)
def test_padding_option_sets_the_length(tiny_tokenizer: Any, options: dict[str, int], length: int) -> None:
    windows = make_windows(RECORDS[1:], tiny_tokenizer, OPTIONS)
    assert collate(windows, tiny_tokenizer, **options)["input_ids"].shape == (2, length)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pad_to_length": 5}, r"a window of \d+ tokens does not fit pad_to_length 5"),
        ({"pad_to_length": 0}, "pad_to_length 0 is not a positive integer"),
        ({"pad_to_multiple_of": -8}, "pad_to_multiple_of -8 is not a positive integer"),
        (
            {"pad_to_multiple_of": 8, "pad_to_length": 48},
            "pad_to_multiple_of 8 and pad_to_length 48 exclude each other",
        ),
    ],
)
def test_bad_padding_is_refused(tiny_tokenizer: Any, options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        collate(make_windows(RECORDS, tiny_tokenizer, OPTIONS), tiny_tokenizer, **options)


def test_collating_nothing_is_refused(tiny_tokenizer: Any) -> None:
    with pytest.raises(ConfigurationError, match="at least one window, got none"):
        collate([], tiny_tokenizer)


def test_tokenizer_without_padding_is_refused(tiny_tokenizer: Any) -> None:
    class Unpadded:
        pad_token_id = None

    with pytest.raises(ConfigurationError, match="Unpadded has no padding token"):
        collate(make_windows(RECORDS, tiny_tokenizer, OPTIONS), Unpadded())


@pytest.mark.parametrize(
    ("longest", "multiple", "length", "expected"),
    [(5, None, None, 5), (16, 8, None, 16), (17, 8, None, 24), (5, None, 9, 9)],
)
def test_padded_length(longest: int, multiple: int | None, length: int | None, expected: int) -> None:
    assert padded_length(longest, multiple, length) == expected
