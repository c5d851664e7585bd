"""QuaLA-MiniLM as transformers sees it: loading, budgets, the bare encoder and the span head."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, QuestionAnsweringModelOutput
from transformers.utils import logging

from .configuration_quala_minilm import BACKBONE_POSITION_SCHEMES, QuaLAMiniLMConfig
from .encoder import EncoderOutput, QuaLAMiniLMEmbeddings, QuaLAMiniLMEncoder, Ratios
from .errors import CheckpointError, ConfigurationError, LengthConfigError
from .length_config import LengthConfig
from .token_selection import find_tokens


logger = logging.get_logger(__name__)

# Arguments of from_pretrained that say where a checkpoint is, hence go to its configuration and tokenizer too.
_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


class QuaLAMiniLMPreTrainedModel(PreTrainedModel):
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


class QuaLAMiniLMModel(QuaLAMiniLMPreTrainedModel):
    """The encoder without a task head. Dropped tokens keep the hidden state that they left with."""

    def __init__(self, config: QuaLAMiniLMConfig) -> None:
        super().__init__(config)
        # Tracing reads every property, and transformers warns of a model without a loss.
        self.loss_type = "ForQuestionAnswering"
        self.embeddings = QuaLAMiniLMEmbeddings(config)
        self.encoder = QuaLAMiniLMEncoder(config)
        self.post_init()

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
        output = BaseModelOutput(last_hidden_state=encoded.last_readout, hidden_states=encoded.hidden_states)
        return output if _default(return_dict, self.config.return_dict) else output.to_tuple()


@dataclass
class QuaLAQuestionAnsweringOutput(QuestionAnsweringModelOutput):
    """Start and end logits, and how far each token got.

    Args:
        survival: Number of layers that each token went through, if asked for.
            *Shape:* `(batch_size, sequence_length)`
    """

    survival: Tensor | None = None


class QuaLAMiniLMForQuestionAnswering(QuaLAMiniLMPreTrainedModel):
    """The encoder with a span head, which reads each token where it left the encoder."""

    def __init__(self, config: QuaLAMiniLMConfig) -> None:
        super().__init__(config)
        self.quala = QuaLAMiniLMModel(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

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
            loss=loss,
            start_logits=start_logits,
            end_logits=end_logits,
            hidden_states=encoded.hidden_states,
            survival=encoded.survival,
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
