"""The layer of a teacher, the defaults of the papers, and the cache on disk."""

from __future__ import annotations

import os
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, RobertaConfig

from optimum_qala import QuaLAMiniLMModel
from optimum_qala.distillation.blocks import TextBlocks
from optimum_qala.distillation.teacher import TeacherLayer, default_relation_heads, default_teacher_layer
from optimum_qala.distillation.teacher_cache import TeacherCache
from optimum_qala.errors import ConfigurationError
from tests.conftest import tiny_config


@pytest.mark.parametrize(
    ("config", "method", "layer"),
    [
        (BertConfig(num_hidden_layers=12), "minilmv2", 11),
        (BertConfig(num_hidden_layers=24), "minilmv2", 20),
        (RobertaConfig(num_hidden_layers=24), "minilmv2", 18),
        (RobertaConfig(num_hidden_layers=24), "minilm", 23),
    ],
)
def test_default_layer_is_that_of_the_paper(config: Any, method: str, layer: int) -> None:
    assert default_teacher_layer(config, method) == layer


@pytest.mark.parametrize(
    ("teacher", "student", "heads"), [(768, 384, 48), (1024, 384, 64), (768, 312, 24), (48, 24, 3), (8, 6, 1)]
)
def test_default_relation_heads_are_those_of_the_paper_or_fewer(teacher: int, student: int, heads: int) -> None:
    assert default_relation_heads(teacher, student) == heads


def test_layer_that_is_not_reached_is_reported() -> None:
    model = QuaLAMiniLMModel(tiny_config(span_heads=True))
    model.set_budget("1,1,1,1@2")
    layer = TeacherLayer(model, 3)
    with pytest.raises(ConfigurationError, match="the teacher did not run its layer 3; it must run at full length"):
        layer.entering_states({"input_ids": torch.tensor([[2, 5, 3]]), "attention_mask": torch.ones(1, 3)})


@pytest.fixture
def blocks() -> TextBlocks:
    return TextBlocks(np.arange(12, dtype=np.int32), np.array([5, 9, 12], dtype=np.int64))


def make_cache(folder: Path, blocks: TextBlocks, dtype: torch.dtype = torch.float32, **key: Any) -> TeacherCache:
    return TeacherCache(folder, key, blocks, 4, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_cache_returns_what_was_written_also_after_opening_again(
    tmp_path: Path, blocks: TextBlocks, dtype: torch.dtype
) -> None:
    rows = [torch.randn(length, 4, dtype=dtype) for length in (5, 4, 3)]
    cache = make_cache(tmp_path, blocks, dtype)
    for index in (2, 0):
        cache.write(index, rows[index])
    for opened in (cache, make_cache(tmp_path, blocks, dtype)):
        assert torch.equal(opened.read(0), rows[0])
        assert opened.read(1) is None
        assert torch.equal(opened.read(2), rows[2])
        opened.close()
    assert make_cache(tmp_path, blocks, dtype, layer=1).read(0) is None


def test_row_that_was_cut_off_counts_as_absent(tmp_path: Path, blocks: TextBlocks) -> None:
    cache = make_cache(tmp_path, blocks)
    cache.write(1, torch.ones(4, 4))
    cache.write(2, torch.ones(3, 4))
    with open(cache.path / "states.bin", "r+b") as file:
        file.seek((5 + 3) * 16)
        file.write(bytes(16))  # the last token of row 1
    assert cache.read(1) is None
    assert cache.read(2) is not None
    os.truncate(cache.path / "states.bin", 11 * 16)
    assert cache.read(2) is None


def test_disk_without_room_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = TextBlocks(np.zeros(0, dtype=np.int32), np.array([10**9], dtype=np.int64))
    monkeypatch.setattr("shutil.disk_usage", lambda path: namedtuple("Usage", "free")(10**9))
    with pytest.raises(ConfigurationError, match="needs 16.0 GB for 1000000000 tokens, but .* has 1.0 GB left"):
        make_cache(tmp_path, blocks)
