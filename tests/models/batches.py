"""Random batches with a question, a context and padding, and comparisons that say how far apart two tensors are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


CLS, SEP = 2, 3


def make_batch(
    lengths: Sequence[int],
    question_lengths: Sequence[int] | int = 4,
    pad_to: int | None = None,
    seed: int = 0,
    vocab_size: int = 200,
    pad_token_id: int = 0,
) -> dict[str, Tensor]:
    """Sequences [CLS] question [SEP] context [SEP] of the given real lengths, padded on the right.

    `question_lengths` counts the words of the question; the sequence spends three more on [CLS] and the separators.
    """
    generator = torch.Generator().manual_seed(seed)
    if isinstance(question_lengths, int):
        question_lengths = [question_lengths] * len(lengths)
    width = pad_to or max(lengths)
    input_ids = torch.full((len(lengths), width), pad_token_id)
    token_type_ids = torch.zeros_like(input_ids)
    for row, (length, question_length) in enumerate(zip(lengths, question_lengths, strict=True)):
        input_ids[row, :length] = torch.randint(5, vocab_size, (length,), generator=generator)
        input_ids[row, 0] = CLS
        input_ids[row, [question_length + 1, length - 1]] = SEP
        token_type_ids[row, question_length + 2 : length] = 1
    attention_mask = (torch.arange(width).unsqueeze(0) < torch.tensor(lengths).unsqueeze(1)).to(torch.int64)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}


def single(batch: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    """One sequence of a batch, alone and without its padding."""
    length = int(batch["attention_mask"][row].sum())
    return {name: values[row : row + 1, :length] for name, values in batch.items()}


def assert_equal_tensors(actual: Tensor, expected: Tensor, tolerance: float = 1e-6, what: str = "") -> None:
    """Fail with the largest deviation and its place."""
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    assert torch.isfinite(actual).all(), f"{what}: not finite"
    deviation = (actual - expected).abs()
    worst = int(deviation.argmax())
    place = tuple(int(index) for index in torch.unravel_index(torch.tensor(worst), deviation.shape))
    assert deviation.max() <= tolerance, (
        f"{what}: differs by {deviation.max():.3g} at {place}: {actual.flatten()[worst]:.7g}, expected "
        f"{expected.flatten()[worst]:.7g}"
    )


def assert_equal_logits(actual, expected, tolerance: float = 1e-6) -> None:
    """Compare the start and the end logits of two outputs."""
    assert_equal_tensors(actual.start_logits, expected.start_logits, tolerance, "start_logits")
    assert_equal_tensors(actual.end_logits, expected.end_logits, tolerance, "end_logits")
