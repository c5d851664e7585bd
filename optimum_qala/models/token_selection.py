"""Choosing which tokens survive a layer, and putting the outputs of those that left earlier back in their places.

All functions here are pure tensor functions that also trace into a graph with a dynamic number of survivors: counts
stay tensors while tracing and become Python integers otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import ConfigurationError
from .length_config import CEIL_TOLERANCE


# Breaks ties between neighbours that share a pooled maximum in favour of the higher raw score. Without it the order of
# equal scores, hence the survivors, could depend on padding.
TIE_BREAK = 1e-3
_NEVER, _ALWAYS = -1e9, 1e9


# What a token score may read, and when tokens leave by it.
SCORE_SOURCES = ("attention", "question", "answer")


@dataclass(frozen=True)
class TokenScore:
    """A way to score tokens.

    Args:
        score: Maps what `source` names to scores, `(batch_size, num_tokens)`.
        source: "attention" gives attention probabilities of all rows, "question" those of [CLS] and the question,
            `(batch_size, num_heads, num_rows, num_tokens)`, and the mask of the rows that count,
            `(batch_size, num_rows)`; tokens leave after they were read as keys and values. "answer" gives the logits
            of the span head on the layer's input, `(batch_size, num_tokens, 2)`, and the mask of the tokens,
            `(batch_size, num_tokens)`; tokens leave before the layer.
    """

    score: Callable[[Tensor, Tensor], Tensor]
    source: str


TOKEN_SCORES: dict[str, TokenScore] = {}


def register_token_score(name: str, token_score: TokenScore) -> None:
    """Add a token score to the registry, so that `QuaLAMiniLMConfig(token_scoring=name)` uses it.

    Args:
        name: Lower-case name.
        token_score: The score.

    Raises:
        ConfigurationError: If the name is taken or not lower-case, or the source is none of `SCORE_SOURCES`.
    """
    if name in TOKEN_SCORES:
        raise ConfigurationError(f"token score {name!r} is registered already")
    if not name or name != name.lower():
        raise ConfigurationError(f"token score name {name!r} must be lower-case")
    if token_score.source not in SCORE_SOURCES:
        raise ConfigurationError(f"source {token_score.source!r} of token score {name!r} is not in {SCORE_SOURCES}")
    TOKEN_SCORES[name] = token_score


def column_sums(probabilities: Tensor, row_mask: Tensor) -> Tensor:
    """Sum the attention that each token receives over heads and over the rows that count.

    This is the significance score of the Length-Adaptive Transformer (arXiv 2010.07003) where the rows are all real
    tokens; padded rows do not vote.

    Args:
        probabilities: Attention probabilities before dropout.
            *Shape:* `(batch_size, num_heads, num_rows, num_tokens)`
        row_mask: 1 for rows that count.
            *Shape:* `(batch_size, num_rows)`

    Returns:
        Scores. *Shape:* `(batch_size, num_tokens)`
    """
    votes = row_mask.to(probabilities.dtype)[:, None, None, :]
    return torch.matmul(votes, probabilities).sum(dim=(1, 2))


def span_margins(span_logits: Tensor, valid: Tensor) -> Tensor:
    """Say how near each token comes to the best start or the best end of the answer.

    Args:
        span_logits: Start and end logits. *Shape:* `(batch_size, num_tokens, 2)`
        valid: 1 for tokens. *Shape:* `(batch_size, num_tokens)`

    Returns:
        The larger one of two margins: the start logit minus the highest start logit of a token, and the same of the
        end. Plus `TIE_BREAK` times the smaller one, for the best start and the best end would tie.
        *Shape:* `(batch_size, num_tokens)`
    """
    logits = span_logits.to(torch.float32)  # in half precision the differences would tie
    best = torch.where(valid.unsqueeze(-1) > 0, logits, _NEVER).amax(dim=1, keepdim=True)
    margins = logits - best
    return margins.amax(dim=2) + TIE_BREAK * margins.amin(dim=2)


register_token_score("attention", TokenScore(column_sums, source="attention"))
register_token_score("question", TokenScore(column_sums, source="question"))
register_token_score("answer", TokenScore(span_margins, source="answer"))


@dataclass
class Tokens:
    """The tokens that are still in the encoder, in their order in the sequence.

    A sample that keeps fewer tokens than the widest of its batch has surplus entries at the end, which `valid` masks.

    Args:
        positions: Place of each token in the input sequence; surplus entries point one past its end.
            *Shape:* `(batch_size, num_tokens)`
        valid: 1 for tokens, 0 for padding and surplus.
            *Shape:* `(batch_size, num_tokens)`
        protected: 1 for tokens that always survive.
            *Shape:* `(batch_size, num_tokens)`
        question: 1 for [CLS], the question and its separator, which lead every sequence.
            *Shape:* `(batch_size, num_tokens)`
    """

    positions: Tensor
    valid: Tensor
    protected: Tensor
    question: Tensor


def is_tracing() -> bool:
    """Tell whether a graph is being made, in which sizes stay symbols: by tracing, or by `torch.export`."""
    if torch.compiler.is_exporting():
        return True
    return torch.jit.is_tracing()  # type: ignore[attr-defined,no-any-return,no-untyped-call]


def as_size(count: Tensor | int) -> int:
    """Make a size of a count.

    Args:
        count: A 0-dimensional tensor, or a size already: `torch.export` takes sizes from the shapes of its inputs.

    Returns:
        An integer, or while tracing the tensor or symbol that was given, so that it stays dynamic.
    """
    return count if is_tracing() else int(count)  # type: ignore[return-value]


def max_over_neighbours(scores: Tensor, num_neighbours: int) -> Tensor:
    """Take the maximum over some entries on each side.

    Args:
        scores: *Shape:* `(batch_size, num_tokens)`
        num_neighbours: Entries on each side.

    Returns:
        *Shape:* `(batch_size, num_tokens)`
    """
    size = 2 * num_neighbours + 1
    if torch.compiler.is_exporting():  # max_pool1d would make the number of tokens a constant of the graph
        padded = torch.nn.functional.pad(scores, (num_neighbours, num_neighbours), value=float("-inf"))
        return padded.unfold(1, size, 1).amax(dim=-1)
    return torch.nn.functional.max_pool1d(
        scores.unsqueeze(1), kernel_size=size, stride=1, padding=num_neighbours
    ).squeeze(1)


def find_tokens(input_ids: Tensor, attention_mask: Tensor, sep_token_id: int, protected_tokens: str) -> Tokens:
    """Describe the tokens that enter the first layer.

    Args:
        input_ids: Token ids. *Shape:* `(batch_size, sequence_length)`
        attention_mask: 1 for real tokens. *Shape:* `(batch_size, sequence_length)`
        sep_token_id: Id of the separator; the question ends with the first one.
        protected_tokens: "question", "cls" or "none".

    Returns:
        The tokens, all of them still there.
    """
    valid = attention_mask.to(torch.int64)
    is_separator = (input_ids == sep_token_id).to(torch.int64) * valid
    question = (torch.cumsum(is_separator, dim=1) - is_separator == 0).to(torch.int64) * valid
    positions = torch.arange(input_ids.shape[1], device=input_ids.device).unsqueeze(0).expand_as(input_ids)
    if protected_tokens == "question":
        protected = torch.maximum(question, is_separator)
    elif protected_tokens == "cls":
        protected = (positions == 0).to(torch.int64) * valid
    else:
        protected = torch.zeros_like(valid)
    return Tokens(positions, valid, protected, question)


def count_survivors(ratio: Tensor | float, num_real_tokens: Tensor, tokens: Tokens, min_tokens: int) -> Tensor:
    """Count the tokens that each sample keeps.

    Args:
        ratio: Retention ratio of the layer, a 0-dimensional float tensor while tracing.
        num_real_tokens: Real tokens of each sample before the first layer. *Shape:* `(batch_size,)`
        tokens: The tokens that enter the layer.
        min_tokens: Lower bound of the count.

    Returns:
        max(min_tokens, protected tokens, ceil(ratio * num_real_tokens)), but no more than there are, and 1 if there
        are none. *Shape:* `(batch_size,)`
    """
    wanted = torch.ceil(num_real_tokens.to(torch.float32) * ratio - CEIL_TOLERANCE).to(torch.int64)
    wanted = torch.maximum(wanted.clamp(min=min_tokens), tokens.protected.sum(dim=1))
    # A sample without a single token, such as a row that fills up a batch, keeps one entry: no tensor gets empty.
    return torch.minimum(wanted, tokens.valid.sum(dim=1).clamp(min=1))


@dataclass
class Survivors:
    """The tokens that a layer keeps, in their order.

    Args:
        indices: Indices into the tokens that enter the layer, ascending; surplus entries hold 0.
            *Shape:* `(batch_size, num_kept)`
        is_kept: True for survivors, False for surplus entries.
            *Shape:* `(batch_size, num_kept)`
    """

    indices: Tensor
    is_kept: Tensor


def select_survivors(
    scores: Tensor, tokens: Tokens, num_kept: Tensor, score_pooling: int, width: int | None = None
) -> Survivors:
    """Choose the survivors: the protected tokens, then those of the highest pooled scores.

    Args:
        scores: Token scores. *Shape:* `(batch_size, num_tokens)`
        tokens: The tokens that enter the layer.
        num_kept: Tokens that each sample keeps. *Shape:* `(batch_size,)`
        score_pooling: Neighbours on each side over which the maximum is taken; neighbours are surviving tokens.
        width: Entries of each sample, surplus ones included; as many as the sample that keeps most if None.

    Returns:
        The survivors.
    """
    num_tokens = scores.shape[1]
    # In float32: half precision would tie scores that differ, and cannot hold the constants below.
    scores = torch.where(tokens.valid > 0, scores.to(torch.float32), _NEVER)
    if score_pooling:
        scores = max_over_neighbours(scores, score_pooling) + TIE_BREAK * scores
    scores = torch.where(tokens.protected > 0, _ALWAYS, torch.where(tokens.valid > 0, scores, _NEVER))
    width = as_size(num_kept.max()) if width is None else width
    best = torch.topk(scores, width, dim=1).indices
    surplus = torch.arange(width, device=best.device).unsqueeze(0) >= num_kept.unsqueeze(1)
    ordered = torch.sort(torch.where(surplus, num_tokens, best), dim=1).values
    is_kept = ordered < num_tokens
    return Survivors(torch.where(is_kept, ordered, 0), is_kept)


def gather_rows(values: Tensor, indices: Tensor) -> Tensor:
    """Take rows of each sample through one flat lookup, which needs no index as wide as the rows.

    Args:
        values: *Shape:* `(batch_size, num_tokens, width)`
        indices: *Shape:* `(batch_size, num_kept)`

    Returns:
        `values[b, indices[b]]` of every sample b. *Shape:* `(batch_size, num_kept, width)`
    """
    batch_size, num_tokens, width = values.shape
    starts = torch.arange(batch_size, device=indices.device).unsqueeze(1) * num_tokens
    rows = values.reshape(-1, width).index_select(0, (indices + starts).reshape(-1))
    return rows.reshape(batch_size, -1, width)


def leading_rows(values: Tensor, num_rows: int | None) -> Tensor:
    """Take the first rows of each sample.

    Args:
        values: *Shape:* `(batch_size, num_tokens, ...)`
        num_rows: How many; all if None.

    Returns:
        *Shape:* `(batch_size, num_rows, ...)`
    """
    if num_rows is not None and torch.compiler.is_exporting():  # a slice would promise that it is not all of them
        return values.index_select(1, torch.arange(num_rows, device=values.device))
    return values[:, :num_rows]


def narrow(tokens: Tokens, survivors: Survivors, sequence_length: int) -> Tokens:
    """Narrow the description of the tokens to the survivors.

    Args:
        tokens: The tokens that entered the layer.
        survivors: The tokens that leave it.
        sequence_length: Length of the input sequence, which surplus entries point to.

    Returns:
        The tokens that leave the layer.
    """
    indices, flags = survivors.indices, survivors.is_kept.to(torch.int64)
    return Tokens(
        positions=torch.where(survivors.is_kept, tokens.positions.gather(1, indices), sequence_length),
        valid=tokens.valid.gather(1, indices) * flags,
        protected=tokens.protected.gather(1, indices) * flags,
        question=tokens.question.gather(1, indices) * flags,
    )


def restore(places: Tensor, values: Tensor, positions: Tensor) -> Tensor:
    """Write the values of the tokens that are still in the encoder to their places in the sequence.

    Out of place, so that gradients reach every earlier value that is not overwritten.

    Args:
        places: One more row than the sequence, which takes what surplus entries write.
            *Shape:* `(batch_size, sequence_length + 1, width)`
        values: *Shape:* `(batch_size, num_tokens, width)`
        positions: *Shape:* `(batch_size, num_tokens)`

    Returns:
        The updated places. *Shape:* `(batch_size, sequence_length + 1, width)`
    """
    index = positions.unsqueeze(-1).expand(-1, -1, places.shape[2])
    return places.scatter(1, index, values.to(places.dtype))
