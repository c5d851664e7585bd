from __future__ import annotations

import pytest
import torch

from optimum_qala import QuaLAMiniLMForQuestionAnswering
from optimum_qala.errors import ConfigurationError
from optimum_qala.models.token_selection import (
    TOKEN_SCORES,
    Survivors,
    Tokens,
    TokenScore,
    column_sums,
    count_survivors,
    find_tokens,
    gather_rows,
    narrow,
    register_token_score,
    restore,
    select_survivors,
    span_margins,
)
from tests.conftest import tiny_config
from tests.models.batches import make_batch


IDS = torch.tensor([[2, 9, 9, 3, 8, 8, 3, 0], [2, 9, 3, 7, 3, 0, 0, 0]])
MASK = (IDS > 0).to(torch.int64)


def make_tokens(valid, protected=None) -> Tokens:
    valid = torch.tensor(valid)
    protected = torch.zeros_like(valid) if protected is None else torch.tensor(protected)
    positions = torch.arange(valid.shape[1]).expand_as(valid)
    return Tokens(positions, valid, protected, torch.zeros_like(valid))


def kept(survivors: Survivors) -> list[list[int]]:
    return [row[flags].tolist() for row, flags in zip(survivors.indices, survivors.is_kept, strict=True)]


@pytest.fixture
def scores_registry(monkeypatch):
    """The registry, restored afterwards."""
    for name in [name for name in TOKEN_SCORES if name not in ("answer", "attention", "question")]:
        monkeypatch.delitem(TOKEN_SCORES, name)
    before = dict(TOKEN_SCORES)
    yield TOKEN_SCORES
    TOKEN_SCORES.clear()
    TOKEN_SCORES.update(before)


@pytest.mark.parametrize(
    ("protected_tokens", "expected"),
    [
        ("question", [[1, 1, 1, 1, 0, 0, 1, 0], [1, 1, 1, 0, 1, 0, 0, 0]]),
        ("cls", [[1, 0, 0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0]]),
        ("none", [[0] * 8, [0] * 8]),
    ],
)
def test_find_tokens_protects_what_it_should(protected_tokens, expected):
    tokens = find_tokens(IDS, MASK, 3, protected_tokens)
    assert tokens.protected.tolist() == expected
    assert tokens.question.tolist() == [[1, 1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0, 0]]
    assert torch.equal(tokens.valid, MASK)
    assert tokens.positions.tolist() == [list(range(8))] * 2


def test_find_tokens_ignores_separators_in_padding():
    ids = IDS.clone()
    ids[1, 6] = 3
    assert torch.equal(
        find_tokens(ids, MASK, 3, "question").protected, find_tokens(IDS, MASK, 3, "question").protected
    )


def test_find_tokens_finds_the_question_before_a_double_separator():
    ids = torch.tensor([[0, 9, 9, 2, 2, 8, 8, 2]])  # RoBERTa: <s> question </s></s> context </s>
    tokens = find_tokens(ids, torch.ones_like(ids), 2, "question")
    assert tokens.question.tolist() == [[1, 1, 1, 1, 0, 0, 0, 0]]
    assert tokens.protected.tolist() == [[1, 1, 1, 1, 1, 0, 0, 1]]


def test_find_tokens_takes_a_text_without_separator_for_a_question():
    ids = torch.tensor([[2, 9, 9, 9]])
    assert find_tokens(ids, torch.ones_like(ids), 3, "question").protected.tolist() == [[1, 1, 1, 1]]


@pytest.mark.parametrize(
    ("ratio", "min_tokens", "protected", "expected"),
    [
        (0.5, 1, 0, [4, 2, 1]),
        (0.51, 1, 0, [5, 3, 1]),
        (0.01, 1, 0, [1, 1, 1]),
        (0.01, 3, 0, [3, 3, 1]),  # a sample without tokens keeps one entry
        (0.01, 1, 2, [2, 2, 1]),
        (1.0, 1, 0, [8, 4, 1]),
    ],
)
def test_count_survivors_respects_every_bound(ratio, min_tokens, protected, expected):
    valid = [[1] * 8, [1] * 4 + [0] * 4, [0] * 8]
    tokens = make_tokens(valid, [[1] * protected + [0] * (8 - protected)] * 2 + [[0] * 8])
    num_real_tokens = torch.tensor([8, 4, 0])
    assert count_survivors(ratio, num_real_tokens, tokens, min_tokens).tolist() == expected
    assert count_survivors(torch.tensor(ratio), num_real_tokens, tokens, min_tokens).tolist() == expected


def test_count_survivors_refers_to_the_length_before_the_first_layer():
    entering = make_tokens([[1] * 6])
    assert count_survivors(0.5, torch.tensor([10]), entering, 1).tolist() == [5]
    assert count_survivors(0.9, torch.tensor([10]), entering, 1).tolist() == [6]


def test_column_sums_skip_rows_that_do_not_count():
    probabilities = torch.rand(2, 3, 4, 5)
    row_mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    expected = torch.stack([probabilities[0, :, :2].sum(dim=(0, 1)), probabilities[1].sum(dim=(0, 1))])
    torch.testing.assert_close(column_sums(probabilities, row_mask), expected)


def test_span_margins_tell_how_near_the_best_start_or_end_is():
    logits = torch.tensor([[[1.0, 0.0], [4.0, -2.0], [2.0, 5.0], [99.0, 99.0]]])
    margins = span_margins(logits, torch.tensor([[1, 1, 1, 0]]))
    expected = torch.tensor([-3.0 - 0.005, 0.0 - 0.007, 0.0 - 0.002])
    torch.testing.assert_close(margins[0, :3], expected)


def test_span_margins_tell_half_precision_logits_apart():
    logits = torch.tensor([[[100.0, 0.0], [100.25, 50.0]]], dtype=torch.float16)
    margins = span_margins(logits, torch.ones(1, 2, dtype=torch.int64))
    assert margins.dtype == torch.float32
    torch.testing.assert_close(margins, torch.tensor([[-0.25 - 0.05, 0.0]]))


def test_select_survivors_takes_a_width_that_is_given():
    tokens = make_tokens([[1] * 6, [1] * 4 + [0] * 2])
    scores = torch.tensor([[0.1, 0.9, 0.2, 0.8, 0.3, 0.7], [0.5, 0.4, 0.0, 0.6, 9.0, 9.0]])
    for width in (3, 5, 6):
        survivors = select_survivors(scores, tokens, torch.tensor([3, 2]), 0, width)
        assert kept(survivors) == [[1, 3, 5], [0, 3]]
        assert survivors.indices.shape == (2, width)


def test_select_survivors_keeps_the_highest_scores_in_order():
    tokens = make_tokens([[1] * 6, [1] * 4 + [0] * 2], [[0] * 6, [0, 0, 1, 0, 0, 0]])
    scores = torch.tensor([[0.1, 0.9, 0.2, 0.8, 0.3, 0.7], [0.5, 0.4, 0.0, 0.6, 9.0, 9.0]])
    survivors = select_survivors(scores, tokens, torch.tensor([3, 2]), score_pooling=0)
    assert kept(survivors) == [[1, 3, 5], [2, 3]]
    assert survivors.indices.shape == (2, 3)


def test_select_survivors_never_keeps_padding_of_negative_scores():
    tokens = make_tokens([[1, 1, 1, 0, 0]])
    scores = torch.tensor([[-5.0, -4.0, -6.0, 0.0, 0.0]])
    for score_pooling in (0, 1):
        assert kept(select_survivors(scores, tokens, torch.tensor([2]), score_pooling)) == [[0, 1]]


def test_select_survivors_pools_over_neighbours():
    tokens = make_tokens([[1] * 8])
    scores = torch.tensor([[0.0, 0.2, 0.9, 0.1, 0.0, 0.3, 0.4, 0.3]])
    chosen = {pool: kept(select_survivors(scores, tokens, torch.tensor([3]), pool))[0] for pool in (0, 1)}
    assert chosen == {0: [2, 5, 6], 1: [1, 2, 3]}


def test_select_survivors_breaks_ties_of_a_pool_by_the_own_score():
    tokens = make_tokens([[1] * 5])
    scores = torch.tensor([[0.1, 0.3, 0.9, 0.2, 0.25]])
    assert kept(select_survivors(scores, tokens, torch.tensor([2]), 2)) == [[1, 2]]


def test_select_survivors_does_not_pool_padding_in():
    """A real token of a negative score next to padding, as a registered score may give."""
    scores = torch.tensor([[-3.0, -1.0, -9.0, -9.5, 0.0, 0.0]])
    short = select_survivors(scores[:, :4], make_tokens([[1] * 4]), torch.tensor([2]), 1)
    padded = select_survivors(scores, make_tokens([[1, 1, 1, 1, 0, 0]]), torch.tensor([2]), 1)
    assert kept(short) == kept(padded) == [[0, 1]]


def test_select_survivors_tells_half_precision_scores_apart_from_the_bounds():
    tokens = make_tokens([[1] * 4], [[0, 0, 0, 1]])
    scores = torch.tensor([[1.0, 3.0, 2.0, 0.0]], dtype=torch.float16)
    assert kept(select_survivors(scores, tokens, torch.tensor([2]), 0)) == [[1, 3]]


def test_gather_rows_takes_rows_of_each_sample():
    values = torch.rand(3, 7, 5)
    indices = torch.tensor([[0, 6], [3, 3], [1, 0]])
    expected = torch.stack([values[row, picks] for row, picks in enumerate(indices)])
    assert torch.equal(gather_rows(values, indices), expected)


def test_narrow_masks_surplus_and_points_it_past_the_end():
    tokens = find_tokens(IDS, MASK, 3, "question")
    survivors = Survivors(torch.tensor([[0, 1, 5], [0, 4, 0]]), torch.tensor([[True] * 3, [True, True, False]]))
    narrowed = narrow(tokens, survivors, sequence_length=8)
    assert narrowed.positions.tolist() == [[0, 1, 5], [0, 4, 8]]
    assert narrowed.valid.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert narrowed.protected.tolist() == [[1, 1, 0], [1, 1, 0]]
    assert narrowed.question.tolist() == [[1, 1, 0], [1, 0, 0]]


def test_restore_writes_survivors_and_sends_surplus_away():
    places = torch.zeros(1, 5, 2)
    values = torch.tensor([[[1.0, 1.0], [2.0, 2.0], [9.0, 9.0]]], requires_grad=True)
    restored = restore(places, values, torch.tensor([[2, 0, 4]]))
    assert restored[0, :4, 0].tolist() == [2.0, 0.0, 1.0, 0.0]
    assert places.abs().sum() == 0
    restored[:, :4].sum().backward()
    assert values.grad[0, :, 0].tolist() == [1.0, 1.0, 0.0]


def test_registered_score_is_used_by_name(scores_registry):
    """Scores that grow with the place in the sequence keep its end."""

    def later_is_better(probabilities, row_mask):
        return torch.arange(probabilities.shape[3], dtype=torch.float32).expand(len(probabilities), -1)

    register_token_score("place", TokenScore(later_is_better, source="attention"))
    torch.manual_seed(0)
    model = QuaLAMiniLMForQuestionAnswering(
        tiny_config(token_scoring="place", protected_tokens="none", score_pooling=0)
    ).eval()
    survival = model(**make_batch([20, 10]), budget=[0.5] * 4, output_survival=True).survival
    assert (survival == 4).nonzero().tolist() == [[0, i] for i in range(10, 20)] + [[1, i] for i in range(5, 10)]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("attention", "token score 'attention' is registered already"),
        ("Loud", "token score name 'Loud' must be lower-case"),
        ("", "token score name '' must be lower-case"),
    ],
)
def test_register_token_score_refuses_bad_names(scores_registry, name, message):
    with pytest.raises(ConfigurationError, match=message):
        register_token_score(name, TokenScore(column_sums, source="attention"))


def test_register_token_score_refuses_unknown_sources(scores_registry):
    message = r"source 'rows' of token score 'place' is not in \('attention', 'question', 'answer'\)"
    with pytest.raises(ConfigurationError, match=message):
        register_token_score("place", TokenScore(column_sums, source="rows"))


def test_registered_score_may_read_span_logits(scores_registry):
    register_token_score("end", TokenScore(lambda spans, valid: spans[..., 1], source="answer"))
    config = tiny_config(token_scoring="end", protected_tokens="none", score_pooling=0)
    assert config.has_span_heads
    torch.manual_seed(0)
    model = QuaLAMiniLMForQuestionAnswering(config).eval()
    output = model(**make_batch([20]), budget="0.5,0.5,0.5,0.5", output_survival=True, output_exit_logits=True)
    highest = output.exit_logits[0][0, :, 1].topk(10).indices.sort().values
    assert torch.equal((output.survival[0] == 4).nonzero()[:, 0], highest)
