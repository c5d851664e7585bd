"""The layers of QuaLA-MiniLM: embeddings, attention in which queries may be fewer than keys, and the layer itself.

With the same weights they compute what the layers of BERT or RoBERTa compute. In a layer that drops by attention, keys
and values come from every token that enters, while the attention output and the feed-forward layer are computed for
survivors only: the outputs of a token that leaves would never be read (Length-Adaptive Transformer, arXiv 2010.07003,
rewritten exactly).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from .configuration_quala_minilm import QuaLAMiniLMConfig
from .token_selection import TOKEN_SCORES, Tokens, gather_rows, leading_rows


def additive_mask(valid: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn a 0/1 mask of tokens into what is added to attention scores.

    Args:
        valid: 1 for tokens to attend to. *Shape:* `(batch_size, num_tokens)`
        dtype: Floating-point type of the scores.

    Returns:
        0 or the lowest finite number, so that a row without any token stays finite.
        *Shape:* `(batch_size, 1, 1, num_tokens)`
    """
    return (1.0 - valid[:, None, None, :].to(dtype)) * torch.finfo(dtype).min


class QuaLAMiniLMEmbeddings(nn.Module):
    """Word, position and token type embeddings, with the parameter names of BERT and RoBERTa."""

    def __init__(self, config: QuaLAMiniLMConfig) -> None:
        super().__init__()
        self.position_scheme, self.pad_token_id = config.position_scheme, config.pad_token_id or 0
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        # RoBERTa gives padding the number of the padding token and never trains that row.
        padding_position = config.pad_token_id if self.position_scheme == "roberta" else None
        self.position_embeddings = nn.Embedding(
            config.max_position_embeddings, config.hidden_size, padding_idx=padding_position
        )
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def number_positions(self, input_ids: Tensor) -> Tensor:
        """Number the positions. *Shape of input and result:* `(batch_size, sequence_length)`."""
        if self.position_scheme == "roberta":
            is_token = (input_ids != self.pad_token_id).to(torch.int64)
            return torch.cumsum(is_token, dim=1) * is_token + self.pad_token_id
        return torch.arange(input_ids.shape[1], device=input_ids.device).unsqueeze(0)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None, position_ids: Tensor | None) -> Tensor:
        """Embed tokens.

        Args:
            input_ids: *Shape:* `(batch_size, sequence_length)`
            token_type_ids: Zeros if None. *Shape:* `(batch_size, sequence_length)`
            position_ids: Numbered by the position scheme if None. *Shape:* `(batch_size, sequence_length)`

        Returns:
            Embeddings. *Shape:* `(batch_size, sequence_length, hidden_size)`
        """
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        if position_ids is None:
            position_ids = self.number_positions(input_ids)
        embeddings = self.word_embeddings(input_ids) + self.token_type_embeddings(token_type_ids)
        embeddings = self.LayerNorm(embeddings + self.position_embeddings(position_ids))
        return self.dropout(embeddings)  # type: ignore[no-any-return]


class QuaLAMiniLMSelfAttention(nn.Module):
    """Multi-head attention in which queries may come from fewer tokens than keys and values."""

    def __init__(self, config: QuaLAMiniLMConfig) -> None:
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_size = config.hidden_size // config.num_attention_heads
        self.dropout_prob = config.attention_probs_dropout_prob
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)

    def split_heads(self, values: Tensor) -> Tensor:
        """Turn `(batch_size, num_tokens, hidden_size)` into `(batch_size, num_heads, num_tokens, head_size)`."""
        return values.view(values.shape[0], -1, self.num_heads, self.head_size).transpose(1, 2)

    def probabilities(self, query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
        """Attend in float32 and without dropout. *Shape:* `(batch_size, num_heads, num_rows, num_tokens)`."""
        # torch.export would keep the context as an operator of its own, around which nothing can be fused.
        is_exporting = torch.compiler.is_exporting()
        with contextlib.nullcontext() if is_exporting else torch.autocast(query.device.type, enabled=False):
            scores = torch.matmul(query.float(), key.float().transpose(2, 3)) / math.sqrt(self.head_size)
            return torch.softmax(scores + mask.float(), dim=-1)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """Mix values by attention.

        Args:
            query: *Shape:* `(batch_size, num_heads, num_queries, head_size)`
            key: *Shape:* `(batch_size, num_heads, num_tokens, head_size)`
            value: *Shape:* `(batch_size, num_heads, num_tokens, head_size)`
            mask: Additive mask. *Shape:* `(batch_size, 1, 1, num_tokens)`

        Returns:
            Context. *Shape:* `(batch_size, num_queries, hidden_size)`
        """
        dropout_prob = self.dropout_prob if self.training else 0.0
        if self.config._attn_implementation == "eager":
            scores = torch.matmul(query, key.transpose(2, 3)) * self.head_size**-0.5
            weights = torch.softmax(scores + mask, dim=-1, dtype=torch.float32).to(query.dtype)
            context = torch.matmul(nn.functional.dropout(weights, dropout_prob), value)
        else:
            context = nn.functional.scaled_dot_product_attention(
                query, key, value, attn_mask=mask.to(query.dtype), dropout_p=dropout_prob
            )
        return context.transpose(1, 2).reshape(context.shape[0], -1, self.num_heads * self.head_size)


class QuaLAMiniLMResidual(nn.Module):
    """Linear layer, dropout, residual and LayerNorm: the end of both halves of a layer."""

    def __init__(self, config: QuaLAMiniLMConfig, input_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(input_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, values: Tensor, residual: Tensor) -> Tensor:
        """Map `(batch_size, num_tokens, input_size)` to `(batch_size, num_tokens, hidden_size)`."""
        return self.LayerNorm(self.dropout(self.dense(values)) + residual)  # type: ignore[no-any-return]


class QuaLAMiniLMAttention(nn.Module):
    """Holds the two halves of attention under the names that BERT checkpoints use."""

    def __init__(self, config: QuaLAMiniLMConfig) -> None:
        super().__init__()
        self.self = QuaLAMiniLMSelfAttention(config)
        self.output = QuaLAMiniLMResidual(config, config.hidden_size)


class QuaLAMiniLMIntermediate(nn.Module):
    """First half of the feed-forward layer."""

    def __init__(self, config: QuaLAMiniLMConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map `(batch_size, num_tokens, hidden_size)` to `(batch_size, num_tokens, intermediate_size)`."""
        return self.activation(self.dense(hidden_states))  # type: ignore[no-any-return]


class QuaLAMiniLMLayer(nn.Module):
    """A transformer layer that may drop tokens by attention, after it has read them as keys and values."""

    def __init__(self, config: QuaLAMiniLMConfig) -> None:
        super().__init__()
        self.config = config
        self.attention = QuaLAMiniLMAttention(config)
        self.intermediate = QuaLAMiniLMIntermediate(config)
        self.output = QuaLAMiniLMResidual(config, config.intermediate_size)

    def forward(
        self,
        hidden_states: Tensor,
        tokens: Tokens,
        drop: Callable[[Tensor], Any] | None = None,
        num_rows: int | None = None,
    ) -> Any:
        """Run the layer.

        Args:
            hidden_states: *Shape:* `(batch_size, num_tokens, hidden_size)`
            tokens: The tokens that enter.
            drop: Maps token scores to the survivors; None keeps every token and computes no scores.
            num_rows: Leading tokens that hold every question, where the score reads the question's rows.

        Returns:
            Hidden states of the tokens that leave, `(batch_size, num_kept, hidden_size)`, and the survivors or None.
        """
        attention = self.attention.self
        key, value = (attention.split_heads(linear(hidden_states)) for linear in (attention.key, attention.value))
        mask = additive_mask(tokens.valid, key.dtype)  # under autocast keys are narrower than the hidden states
        survivors = None
        if drop is None:
            query = attention.query(hidden_states)
        elif self.config.score_source == "question":
            survivors = drop(self._score_by_question(hidden_states, key, tokens, mask, num_rows))
            hidden_states = gather_rows(hidden_states, survivors.indices)
            query = attention.query(hidden_states)
        else:
            query = attention.query(hidden_states)
            survivors = drop(self._score(query, key, tokens.valid, mask))
            hidden_states, query = (gather_rows(rows, survivors.indices) for rows in (hidden_states, query))
        context = attention.attend(attention.split_heads(query), key, value, mask)
        attention_output = self.attention.output(context, hidden_states)
        return self.output(self.intermediate(attention_output), attention_output), survivors

    @torch.no_grad()  # the choice of survivors has no gradient, and nobody reads these probabilities again
    def _score(self, query: Tensor, key: Tensor, row_mask: Tensor, mask: Tensor) -> Tensor:
        attention = self.attention.self
        probabilities = attention.probabilities(attention.split_heads(query), key, mask)
        return TOKEN_SCORES[self.config.token_scoring].score(probabilities, row_mask)

    @torch.no_grad()
    def _score_by_question(
        self, hidden_states: Tensor, key: Tensor, tokens: Tokens, mask: Tensor, num_rows: int | None
    ) -> Tensor:
        # The question leads the sequence and its tokens are protected, so its rows are the first ones in every layer.
        query = self.attention.self.query(leading_rows(hidden_states, num_rows))
        return self._score(query, key, leading_rows(tokens.question, num_rows), mask)


__all__ = [
    "QuaLAMiniLMEmbeddings",
    "QuaLAMiniLMLayer",
    "QuaLAMiniLMSelfAttention",
    "additive_mask",
]
