"""QuaLA-MiniLM in torch: a BERT- or RoBERTa-shaped encoder whose layers may drop tokens.

At full length it computes what `BertModel` or `RobertaModel` computes with the same weights. In a layer that drops,
keys and values come from every token that enters, while queries, the attention output and the feed-forward layer are
computed for survivors only: the outputs of a token that leaves would never be read (Length-Adaptive Transformer, arXiv
2010.07003, rewritten exactly). A token that leaves keeps the output of the layer before, and the task head reads it
there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutput, QuestionAnsweringModelOutput
from transformers.utils import logging

from .configuration_quala_minilm import BACKBONE_POSITION_SCHEMES, QuaLAMiniLMConfig
from .errors import CheckpointError, ConfigurationError, LengthConfigError
from .length_config import LengthConfig
from .token_selection import (
    TOKEN_SCORES,
    Tokens,
    as_size,
    count_survivors,
    find_tokens,
    gather_rows,
    narrow,
    restore,
    select_survivors,
)


logger = logging.get_logger(__name__)

# Arguments of from_pretrained that say where a checkpoint is, hence go to its configuration and tokenizer too.
_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")

# How much to keep, by layer: a Python number, or a 0-dimensional tensor where it is an input of the graph.
Ratios = Mapping[int, "float | Tensor"]


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
        with torch.autocast(query.device.type, enabled=False):
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
    """A transformer layer that may drop tokens after it has read them as keys and values."""

    def __init__(self, config: QuaLAMiniLMConfig) -> None:
        super().__init__()
        self.config = config
        self.attention = QuaLAMiniLMAttention(config)
        self.intermediate = QuaLAMiniLMIntermediate(config)
        self.output = QuaLAMiniLMResidual(config, config.intermediate_size)

    def forward(self, hidden_states: Tensor, tokens: Tokens, drop: Callable[[Tensor], Any] | None = None) -> Any:
        """Run the layer.

        Args:
            hidden_states: *Shape:* `(batch_size, num_tokens, hidden_size)`
            tokens: The tokens that enter.
            drop: Maps token scores to the survivors; None keeps every token and computes no scores.

        Returns:
            Hidden states of the tokens that leave, `(batch_size, num_kept, hidden_size)`, and the survivors or None.
        """
        attention = self.attention.self
        key, value = (attention.split_heads(linear(hidden_states)) for linear in (attention.key, attention.value))
        mask = additive_mask(tokens.valid, key.dtype)  # under autocast keys are narrower than the hidden states
        survivors = None
        if drop is None:
            query = attention.query(hidden_states)
        elif TOKEN_SCORES[self.config.token_scoring].needs_question:
            survivors = drop(self._score_by_question(hidden_states, key, tokens, mask))
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
    def _score_by_question(self, hidden_states: Tensor, key: Tensor, tokens: Tokens, mask: Tensor) -> Tensor:
        # The question leads the sequence and its tokens are protected, so its rows are the first ones in every layer.
        num_rows = as_size(tokens.question.sum(dim=1).max())
        query = self.attention.self.query(hidden_states[:, :num_rows])
        return self._score(query, key, tokens.question[:, :num_rows], mask)


@dataclass
class EncoderOutput:
    """What leaves the encoder.

    Args:
        last_readout: Output of `readout` for every token, read where the token left the encoder.
            *Shape:* `(batch_size, sequence_length, readout_size)`
        hidden_states: Embeddings and the output of every layer, each with the tokens that left it.
            *Shape:* `(batch_size, num_tokens, hidden_size)`
        survival: Number of layers that each token went through. *Shape:* `(batch_size, sequence_length)`
    """

    last_readout: Tensor
    hidden_states: tuple[Tensor, ...] | None = None
    survival: Tensor | None = None


class QuaLAMiniLMEncoder(nn.Module):
    """The layers, and the loop that drops tokens and restores what they left behind."""

    def __init__(self, config: QuaLAMiniLMConfig) -> None:
        super().__init__()
        self.config = config
        self.layer = nn.ModuleList(QuaLAMiniLMLayer(config) for _ in range(config.num_hidden_layers))

    def forward(
        self,
        hidden_states: Tensor,
        tokens: Tokens,
        ratios: Ratios,
        readout: Callable[[Tensor], Tensor],
        skip_layers: Collection[int] = (),
        output_hidden_states: bool = False,
        output_survival: bool = False,
    ) -> EncoderOutput:
        """Run the layers.

        A task head that treats each token on its own is the `readout`: its outputs are restored instead of the hidden
        states, which gives the same result for a fraction of the memory traffic.

        Args:
            hidden_states: Embeddings. *Shape:* `(batch_size, sequence_length, hidden_size)`
            tokens: The tokens that enter.
            ratios: Retention ratio of each layer that drops.
            readout: Maps `(batch_size, num_tokens, hidden_size)` to `(batch_size, num_tokens, readout_size)`.
            skip_layers: Layers that LayerDrop removes from this pass; they do not drop tokens either.
            output_hidden_states: Return all hidden states.
            output_survival: Return the number of layers that each token went through.

        Returns:
            The readout of every token and what was asked for.
        """
        sequence_length, num_real_tokens = hidden_states.shape[1], tokens.valid.sum(dim=1)
        places: Tensor | None = None
        depths: Tensor | None = None
        states: tuple[Tensor, ...] = (
            hidden_states,
        )  # grows only if asked for: a list of all of them would keep them all in memory
        for index, layer in enumerate(self.layer):
            if index in skip_layers:
                pass
            elif index not in ratios:
                hidden_states, _ = layer(hidden_states, tokens)
            else:
                places = self._leave(places, readout(hidden_states), tokens, sequence_length)
                if output_survival:
                    depth = torch.full_like(hidden_states[:, :, :1], index)
                    depths = self._leave(depths, depth, tokens, sequence_length)
                entering = tokens
                num_kept = count_survivors(ratios[index], num_real_tokens, entering, self.config.min_tokens)
                hidden_states, survivors = layer(
                    hidden_states,
                    entering,
                    lambda scores, entering=entering, num_kept=num_kept: select_survivors(
                        scores, entering, num_kept, self.config.score_pooling
                    ),
                )
                tokens = narrow(entering, survivors, sequence_length)
            if output_hidden_states:
                states = (*states, hidden_states)
        survival = None
        if output_survival:
            depth = torch.full_like(hidden_states[:, :, :1], len(self.layer))
            survival = self._finish(depths, depth, tokens, sequence_length).squeeze(-1).to(torch.int64)
        return EncoderOutput(
            last_readout=self._finish(places, readout(hidden_states), tokens, sequence_length),
            hidden_states=states if output_hidden_states else None,
            survival=survival,
        )

    @staticmethod
    def _leave(places: Tensor | None, values: Tensor, tokens: Tokens, sequence_length: int) -> Tensor:
        """Write down the values of all tokens before some of them leave."""
        if places is None:  # all tokens are there, in order; one row more takes what surplus entries write later
            return nn.functional.pad(values, (0, 0, 0, 1))
        return restore(places, values, tokens.positions)

    @staticmethod
    def _finish(places: Tensor | None, values: Tensor, tokens: Tokens, sequence_length: int) -> Tensor:
        if places is None:
            return values
        return restore(places, values, tokens.positions)[:, :sequence_length]


class QuaLAMiniLMPreTrainedModel(PreTrainedModel):  # type: ignore[no-untyped-call]
    """Base class: loading, and the budget that applies where a call names none."""

    config_class = QuaLAMiniLMConfig
    base_model_prefix = "quala"
    _supports_sdpa = True
    _no_split_modules = ["QuaLAMiniLMEmbeddings", "QuaLAMiniLMLayer"]  # noqa: RUF012  # transformers reads it so
    # Parts of BERT and RoBERTa checkpoints that this model has no use for.
    _keys_to_ignore_on_load_unexpected = [  # noqa: RUF012
        r"pooler\.",
        r"position_ids$",
        r"^cls\.",
        r"^lm_head\.",
        r"^classifier\.",
    ]

    _budget: LengthConfig | None = None

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True  # transformers otherwise guesses it from the text of this file

    @property
    def budget(self) -> LengthConfig | None:
        """LengthConfig that calls use where they name no budget; None is full length."""
        return self._budget

    def set_budget(self, budget: Any = None) -> None:
        """Choose the budget of the calls that name none.

        Args:
            budget: A named budget, "full", a LengthConfig, ratios such as "1,1,0.8,0.8,0.5,0.5", or None for full
                length.

        Raises:
            UnknownBudgetError: If it is a name that the model does not carry.
            LengthConfigError: If it does not fit the model.
        """
        self._budget = self.config.resolve_budget(budget)

    def _ratios(self, budget: Any, retention: Tensor | None, skip_layers: Collection[int]) -> Ratios:
        layers = self.config.dropping_layers
        illegal = sorted(set(skip_layers) - set(range(self.config.num_hidden_layers)))
        if illegal:
            raise ConfigurationError(
                f"skip_layers names layer {illegal[0]}, but the model has layers 0 to "
                f"{self.config.num_hidden_layers - 1}"
            )
        if retention is not None:
            if budget is not None:
                raise ConfigurationError("give either budget or retention, not both")
            if not _is_tracing() and tuple(retention.shape) != (len(layers),):
                raise LengthConfigError(
                    f"retention has shape {tuple(retention.shape)}, but the model drops tokens in layers "
                    f"{list(layers)}: it must have shape ({len(layers)},)"
                )
            return {layer: retention[index] for index, layer in enumerate(layers)}
        config = self._budget if budget is None else self.config.resolve_budget(budget)
        if config is None:
            return {}
        ratios: dict[int, float | Tensor] = {}
        previous = 1.0
        for layer in layers:
            # A layer that keeps what the one before kept selects nothing. A skipped layer leaves its drop to the next.
            if layer not in skip_layers and config.retention[layer] < previous:
                previous = ratios[layer] = config.retention[layer]
        return ratios

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a QuaLA-MiniLM, or make one of a plain BERT, RoBERTa or XLM-R checkpoint.

        A plain checkpoint is converted on the fly: its configuration through `QuaLAMiniLMConfig.from_backbone_config`,
        to which the fields of `QuaLAMiniLMConfig` among the keyword arguments are passed, its separator from its
        tokenizer where one is stored with it. Its weights become float32 unless `dtype` says otherwise, since half
        precision trains badly and runs slowly on a CPU. `save_pretrained` then writes a QuaLA-MiniLM. Everything else
        works as in `PreTrainedModel.from_pretrained`.

        Args:
            pretrained_model_name_or_path: Folder or repository id.
            args: Passed on.
            kwargs: Passed on; `config` may be a `QuaLAMiniLMConfig` or the configuration of the backbone.

        Returns:
            The model.

        Raises:
            CheckpointError: If the checkpoint is of another kind.
        """
        path, config = pretrained_model_name_or_path, kwargs.get("config")
        hub = {name: kwargs[name] for name in _HUB_ARGUMENTS if name in kwargs}
        if config is None and path is not None:
            stored, _ = PreTrainedConfig.get_config_dict(path, **hub)
            if not stored:
                raise CheckpointError(f"{path} holds no config.json; give the folder or repository id of a model")
            if stored.get("model_type") != QuaLAMiniLMConfig.model_type:
                if stored.get("model_type") not in BACKBONE_POSITION_SCHEMES:
                    raise CheckpointError(
                        f"{path} holds a {stored.get('model_type')!r} checkpoint, which cannot become a QuaLA-MiniLM; "
                        f"legal kinds are {sorted(BACKBONE_POSITION_SCHEMES)} and 'quala_minilm'"
                    )
                config = AutoConfig.from_pretrained(path, **hub)
        if isinstance(config, PreTrainedConfig) and not isinstance(config, QuaLAMiniLMConfig):
            kwargs["config"] = cls._convert_config(config, path, hub, kwargs)
            kwargs.setdefault("dtype", torch.float32)
        prefix = "" if cls is QuaLAMiniLMModel else f"{cls.base_model_prefix}."
        kwargs.setdefault("key_mapping", {r"^(bert|roberta)\.": prefix})
        loaded = super().from_pretrained(path, *args, **kwargs)
        # Otherwise save_pretrained would translate the names back to those of the backbone, which it cannot do here.
        (loaded[0] if isinstance(loaded, tuple) else loaded)._weight_conversions = None
        return loaded

    @staticmethod
    def _convert_config(
        backbone: PreTrainedConfig, path: Any, hub: dict[str, Any], kwargs: dict[str, Any]
    ) -> QuaLAMiniLMConfig:
        fields = set(QuaLAMiniLMConfig.__dataclass_fields__) - {"dtype"}  # which says how to load, not what
        overrides = {name: kwargs.pop(name) for name in fields & set(kwargs)}
        reason = None
        if "sep_token_id" not in overrides and path is not None:
            separator, reason = _find_separator(path, hub)
            if separator is not None:
                overrides["sep_token_id"] = separator
        config = QuaLAMiniLMConfig.from_backbone_config(backbone, **overrides)
        if reason is not None and "sep_token_id" not in overrides:
            logger.warning(
                f"{path}: no separator from its tokenizer ({reason}), so token {config.sep_token_id}, the usual one, "
                "is taken to end the question; pass sep_token_id if it is another"
            )
        return config


class QuaLAMiniLMModel(QuaLAMiniLMPreTrainedModel):  # type: ignore[no-untyped-call]
    """The encoder without a task head. Dropped tokens keep the hidden state that they left with."""

    def __init__(self, config: QuaLAMiniLMConfig) -> None:
        super().__init__(config)
        self.embeddings = QuaLAMiniLMEmbeddings(config)
        self.encoder = QuaLAMiniLMEncoder(config)
        self.post_init()  # type: ignore[no-untyped-call]

    def get_input_embeddings(self) -> nn.Module:
        """Return the word embeddings."""
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the word embeddings."""
        self.embeddings.word_embeddings = value  # type: ignore[assignment]

    def encode(
        self,
        readout: Callable[[Tensor], Tensor],
        ratios: Ratios,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        **options: Any,
    ) -> EncoderOutput:
        """Embed and encode; see `QuaLAMiniLMEncoder.forward` for `readout`, `ratios` and the options.

        Args:
            readout: What to read of each token where it leaves.
            ratios: Retention ratio of each layer that drops.
            input_ids: *Shape:* `(batch_size, sequence_length)`
            attention_mask: *Shape:* `(batch_size, sequence_length)`
            token_type_ids: *Shape:* `(batch_size, sequence_length)`
            position_ids: *Shape:* `(batch_size, sequence_length)`
            options: Options of the encoder.

        Returns:
            What the encoder returns.

        Raises:
            ConfigurationError: If the sequence is longer than the model has positions.
        """
        limit = self.config.max_position_embeddings
        limit -= self.embeddings.pad_token_id + 1 if self.config.position_scheme == "roberta" else 0
        if not _is_tracing() and input_ids.shape[1] > limit:
            raise ConfigurationError(
                f"a sequence of {input_ids.shape[1]} tokens exceeds the {limit} positions of the model; "
                "use windows of at most that many tokens"
            )
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        tokens = find_tokens(input_ids, attention_mask, self.config.sep_token_id, self.config.protected_tokens)
        embeddings = self.embeddings(input_ids, token_type_ids, position_ids)
        return self.encoder(embeddings, tokens, ratios, readout, **options)  # type: ignore[no-any-return]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        budget: Any = None,
        retention: Tensor | None = None,
        skip_layers: Collection[int] = (),
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Encode tokens.

        Args:
            input_ids: Token ids. *Shape:* `(batch_size, sequence_length)`
            attention_mask: 1 for real tokens, which come first; all if None.
                *Shape:* `(batch_size, sequence_length)`
            token_type_ids: Zeros if None. *Shape:* `(batch_size, sequence_length)`
            position_ids: Usual numbering if None. *Shape:* `(batch_size, sequence_length)`
            budget: As in `set_budget`; None takes what `set_budget` chose.
            retention: Retention ratio of each layer in `config.dropping_layers`, instead of a budget: the form in
                which an exported graph takes it. *Shape:* `(num_dropping_layers,)`
            skip_layers: Layers that LayerDrop removes.
            output_hidden_states: Return the hidden states of every layer, each with the tokens that left it.
            return_dict: False returns a tuple.

        Returns:
            `BaseModelOutput` with `last_hidden_state`, `(batch_size, sequence_length, hidden_size)`.
        """
        encoded = self.encode(
            nn.Identity(),
            self._ratios(budget, retention, skip_layers),
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            skip_layers=skip_layers,
            output_hidden_states=_default(output_hidden_states, self.config.output_hidden_states),
        )
        output = BaseModelOutput(
            **_fields(last_hidden_state=encoded.last_readout, hidden_states=encoded.hidden_states)
        )
        return output if _default(return_dict, self.config.return_dict) else output.to_tuple()


@dataclass
class QuaLAQuestionAnsweringOutput(QuestionAnsweringModelOutput):
    """Start and end logits, and how far each token got.

    Args:
        survival: Number of layers that each token went through, if asked for.
            *Shape:* `(batch_size, sequence_length)`
    """

    survival: Tensor | None = None


class QuaLAMiniLMForQuestionAnswering(QuaLAMiniLMPreTrainedModel):  # type: ignore[no-untyped-call]
    """The encoder with a span head, which reads each token where it left the encoder."""

    def __init__(self, config: QuaLAMiniLMConfig) -> None:
        super().__init__(config)
        self.quala = QuaLAMiniLMModel(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        budget: Any = None,
        retention: Tensor | None = None,
        skip_layers: Collection[int] = (),
        output_hidden_states: bool | None = None,
        output_survival: bool = False,
        return_dict: bool | None = None,
    ) -> Any:
        """Score every token as the start and as the end of the answer.

        Args:
            input_ids: Token ids. *Shape:* `(batch_size, sequence_length)`
            attention_mask: 1 for real tokens, which come first; all if None.
                *Shape:* `(batch_size, sequence_length)`
            token_type_ids: Zeros if None. *Shape:* `(batch_size, sequence_length)`
            position_ids: Usual numbering if None. *Shape:* `(batch_size, sequence_length)`
            start_positions: Index of the answer's first token; an index outside the sequence is ignored.
                *Shape:* `(batch_size,)`
            end_positions: Index of the answer's last token. *Shape:* `(batch_size,)`
            budget: As in `set_budget`; None takes what `set_budget` chose.
            retention: Retention ratio of each layer in `config.dropping_layers`, instead of a budget: the form in
                which an exported graph takes it. *Shape:* `(num_dropping_layers,)`
            skip_layers: Layers that LayerDrop removes.
            output_hidden_states: Return the hidden states of every layer, each with the tokens that left it.
            output_survival: Return how many layers each token went through.
            return_dict: False returns a tuple.

        Returns:
            Start and end logits, `(batch_size, sequence_length)` each, and the mean of both cross-entropies as `loss`
            where positions were given.

        Raises:
            ConfigurationError: If both budget and retention are given, or the sequence is too long.
            LengthConfigError: If the budget does not fit the model.
            UnknownBudgetError: If the model has no budget of that name.
        """
        encoded = self.quala.encode(
            self.qa_outputs,
            self._ratios(budget, retention, skip_layers),
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            skip_layers=skip_layers,
            output_hidden_states=_default(output_hidden_states, self.config.output_hidden_states),
            output_survival=output_survival,
        )
        start_logits, end_logits = (logits.contiguous() for logits in encoded.last_readout.unbind(dim=-1))
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = (_span_loss(start_logits, start_positions) + _span_loss(end_logits, end_positions)) / 2
        output = QuaLAQuestionAnsweringOutput(
            **_fields(
                loss=loss,
                start_logits=start_logits,
                end_logits=end_logits,
                hidden_states=encoded.hidden_states,
                survival=encoded.survival,
            )
        )
        return output if _default(return_dict, self.config.return_dict) else output.to_tuple()


def _find_separator(path: Any, hub: dict[str, Any]) -> tuple[int | None, str]:
    """Return the separator that the tokenizer beside a checkpoint names, or None and the reason."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **hub)
    except (OSError, ValueError, KeyError, ImportError) as error:
        return None, str(error).strip().partition("\n")[0]
    # Where no tokenizer is stored, transformers makes one up that knows special tokens only, under numbers of its own.
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        return None, "there is none"
    return tokenizer.sep_token_id, "it names none"


def _span_loss(logits: Tensor, positions: Tensor) -> Tensor:
    ignored = logits.shape[1]
    return nn.functional.cross_entropy(logits, positions.reshape(-1).clamp(0, ignored), ignore_index=ignored)


def _fields(**fields: Any) -> dict[str, Any]:
    return fields  # untyped, since transformers wants torch.FloatTensor, which no torch function is typed to return


def _is_tracing() -> bool:
    return torch.jit.is_tracing()  # type: ignore[attr-defined,no-any-return,no-untyped-call]


def _default(value: bool | None, default: bool | None) -> bool:
    return bool(default if value is None else value)


__all__ = [
    "QuaLAMiniLMForQuestionAnswering",
    "QuaLAMiniLMModel",
    "QuaLAMiniLMPreTrainedModel",
    "QuaLAQuestionAnsweringOutput",
]
