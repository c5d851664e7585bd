from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from optimum_qala.distillation import blocks as module
from optimum_qala.distillation.blocks import BLOCK_INDEX, BlockOptions, TextBlocks, tokenize_texts
from optimum_qala.errors import ConfigurationError, DataError


CLS, SEP = 2, 3
TEXTS = ["the a an", "of in on at to and is was", "who what"]


def words(tokenizer: Any, *texts: str) -> list[list[int]]:
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def rows_of(blocks: TextBlocks) -> list[list[int]]:
    return [blocks[index]["input_ids"] for index in range(len(blocks))]


def test_packed_rows_are_full_and_texts_are_separated(tiny_tokenizer: Any) -> None:
    first, second, third = words(tiny_tokenizer, *TEXTS)
    blocks = tokenize_texts(TEXTS, tiny_tokenizer, BlockOptions(max_length=8))
    rows = [[*first, SEP, *second[:2]], second[2:], third]  # the second text fills its row: no separator follows
    assert [len(row) for row in rows] == [6, 6, 2]
    assert rows_of(blocks) == [[CLS, *row, SEP] for row in rows]
    assert (blocks.num_tokens, blocks.longest) == (8 + 8 + 4, 8)
    assert blocks[-1] == {"input_ids": [CLS, *third, SEP], "attention_mask": [1] * 4, BLOCK_INDEX: 2}


def test_without_packing_a_row_holds_one_text(tiny_tokenizer: Any) -> None:
    first, second, third = words(tiny_tokenizer, *TEXTS)
    blocks = tokenize_texts(TEXTS, tiny_tokenizer, BlockOptions(max_length=8, packing=False))
    assert rows_of(blocks) == [[CLS, *row, SEP] for row in (first, second[:6], second[6:], third)]


def test_tokens_on_disk_are_those_in_memory(
    tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CHUNK", 2)  # texts are tokenized in several chunks
    options = BlockOptions(max_length=6)
    memory = tokenize_texts(TEXTS * 5, tiny_tokenizer, options)
    disk = tokenize_texts(iter(TEXTS * 5), tiny_tokenizer, options, tmp_path / "tokens.bin")
    assert rows_of(disk) == rows_of(memory)
    assert (tmp_path / "tokens.bin").stat().st_size == 4 * memory.num_tokens
    assert disk.fingerprint == memory.fingerprint


def test_fingerprint_covers_tokens_and_rows(tiny_tokenizer: Any) -> None:
    made = [
        tokenize_texts(texts, tiny_tokenizer, BlockOptions(max_length=8, packing=packing)).fingerprint
        for texts, packing in ((TEXTS, True), (TEXTS, False), (TEXTS[::-1], True))
    ]
    assert len(set(made)) == 3


def test_blocks_end(tiny_tokenizer: Any) -> None:
    blocks = tokenize_texts(TEXTS, tiny_tokenizer)
    assert len(blocks) == 1
    with pytest.raises(IndexError, match="block 1 of a data set of 1"):
        blocks[1]


@pytest.mark.parametrize("on_disk", [False, True])
def test_no_text_is_refused(tiny_tokenizer: Any, tmp_path: Path, on_disk: bool) -> None:
    with pytest.raises(DataError, match="there is no text to distil on"):
        tokenize_texts([], tiny_tokenizer, file=tmp_path / "tokens.bin" if on_disk else None)


def test_row_without_room_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="max_length 2 is not an integer of at least 3"):
        BlockOptions(max_length=2)


def test_tokenizer_without_separator_is_refused(tiny_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.sep_token = None
    with pytest.raises(ConfigurationError, match="has no sep_token_id; use the tokenizer of a BERT or RoBERTa"):
        tokenize_texts(TEXTS, tokenizer)
