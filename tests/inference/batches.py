"""Random inputs of a tiny model: a question, a context and padding."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from optimum_qala.errors import ConfigurationError


def random_batch(seed: int, batch_size: int, sequence_length: int, vocab_size: int = 200) -> dict[str, torch.Tensor]:
    """[CLS] question [SEP] context [SEP] padding, with lengths of their own in every row."""
    rng = random.Random(seed)
    names = ("input_ids", "attention_mask", "token_type_ids")
    batch = {name: torch.zeros(batch_size, sequence_length, dtype=torch.int64) for name in names}
    for row in range(batch_size):
        length = sequence_length if row == 0 else rng.randint(8, sequence_length)
        question_end = rng.randint(2, min(length - 4, 10))
        ids = [rng.randrange(5, vocab_size) for _ in range(length)]
        ids[0], ids[question_end], ids[-1] = 2, 3, 3
        batch["input_ids"][row, :length] = torch.tensor(ids)
        batch["attention_mask"][row, :length] = 1
        batch["token_type_ids"][row, question_end + 1 : length] = 1
    return batch


def random_retention(seed: int, num_layers: int) -> list[float]:
    """Falling ratios."""
    rng = random.Random(seed)
    return sorted((rng.uniform(0.15, 1.0) for _ in range(num_layers)), reverse=True)


def distances(actual: Any, expected: Any, attention_mask: torch.Tensor) -> torch.Tensor:
    """Largest difference of the logits of real tokens, for each row."""
    return torch.stack(
        [
            ((getattr(actual, name) - getattr(expected, name)).abs() * attention_mask).amax(dim=1)
            for name in ("start_logits", "end_logits")
        ]
    ).amax(dim=0)


def assert_threads_agree(model: Any, calls: Sequence[tuple[dict[str, torch.Tensor], str]]) -> None:
    """Calls of batches and budgets from six threads at once give what they give one by one."""

    def call(batch: dict[str, torch.Tensor], budget: str) -> torch.Tensor:
        return model(**batch, budget=budget).start_logits

    expected = [call(*arguments) for arguments in calls]
    with ThreadPoolExecutor(max_workers=6) as pool:
        results = list(pool.map(call, *zip(*calls, strict=True)))
    for actual, one_by_one in zip(results, expected, strict=True):
        torch.testing.assert_close(actual, one_by_one, atol=1e-5, rtol=1e-5)


def assert_odd_shapes_are_refused(model: Any) -> None:
    """Inputs that are no batch, or not of one shape, are named before anything runs."""
    ids = torch.tensor([[2, 5, 3], [2, 6, 3]])
    for odd in (ids[0], ids[:0], ids[:, :0], ids[None]):
        shape = re.escape(str(tuple(odd.shape)))
        with pytest.raises(ConfigurationError, match=rf"^input_ids have the shape {shape}; give \(batch_size, seq"):
            model(odd)
    for odd in (torch.ones(1, 3), torch.ones(2, 2), torch.ones(2, 4), torch.ones(3)):
        shape = re.escape(str(tuple(odd.shape)))
        for name in ("attention_mask", "token_type_ids"):
            message = rf"^{name} has the shape {shape}, but input_ids have \(2, 3\); give one value for each token$"
            with pytest.raises(ConfigurationError, match=message):
                model(ids, **{name: odd})
