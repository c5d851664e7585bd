"""QuaLA-MiniLM as transformers sees it: loading, budgets, the bare encoder and the span head."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from .budget_choice import Conditions, choose_budget
from .configuration_quala_minilm import BACKBONE_POSITION_SCHEMES, QuaLAMiniLMConfig
from .conversion import HUB_ARGUMENTS, convert_config
from .encoder import EncoderOutput, QuaLAMiniLMEncoder, Schedule
from .errors import CheckpointError, ConfigurationError, LengthConfigError
from .hub import HubModel
from .hub_card import CardWriter  # noqa: F401  # named here, as every file that travels must be
from .hub_files import replaced_files  # noqa: F401  # likewise
from .layers import QuaLAMiniLMEmbeddings
from .length_config import LengthConfig
from .remote_code import RemoteCodeModel
from .span_output import QuaLAQuestionAnsweringOutput, span_loss
from .token_selection import find_tokens, is_tracing


SPAN_HEADS = "encoder.span_heads."  # in the names of their parameters


class QuaLAMiniLMPreTrainedModel(RemoteCodeModel, HubModel, PreTrainedModel):
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

    def set_budget(
        self, budget: Any = None, *, max_latency_ms: float | None = None, max_f1_loss: float | None = None
    ) -> None:
        """Choose the budget of the calls that name none, by itself or by what was measured at the named ones.

        Args:
            budget: A named budget, "full", a LengthConfig, ratios as in "1,1,1,0.5@3", or None for full length.
            max_latency_ms: Take the most accurate budget that was measured at or under it here: `fastest_enough`.
            max_f1_loss: Take the cheapest budget that loses at most this share of the full F1: `cheapest_accurate`.

        Raises:
            UnknownBudgetError: If it is a name that the model does not carry, or no budget was measured to fit.
            LengthConfigError: If it does not fit the model.
            ConfigurationError: If more than one argument is given, or one is out of range.
        """
        self._budget = choose_budget(self.config, budget, max_latency_ms, max_f1_loss, Conditions.of_torch)

    def _schedule(
        self,
        budget: Any,
        retention: Tensor | None,
        sizes: Tensor | Sequence[int] | None,
        skip_layers: Collection[int],
    ) -> Schedule:
        layers = self.config.dropping_layers
        if illegal := sorted(set(skip_layers) - set(range(self.config.num_hidden_layers))):
            raise ConfigurationError(
                f"skip_layers names layer {illegal[0]}, but the model has layers 0 to "
                f"{self.config.num_hidden_layers - 1}"
            )
        if retention is not None and budget is not None:
            raise ConfigurationError("give either budget or retention, not both")
        for name, given, expected in (("retention", retention, len(layers)), ("sizes", sizes, 1 + len(layers))):
            if given is None or is_tracing():
                continue
            if (shape := tuple(torch.as_tensor(given).shape)) != (expected,):
                raise LengthConfigError(
                    f"{name} has shape {shape}, but the model drops tokens in layers {list(layers)}: it must have "
                    f"shape ({expected},)"
                )
        if retention is not None:
            ratios: dict[int, float | Tensor] = {layer: retention[index] for index, layer in enumerate(layers)}
            return Schedule(ratios, None, skip_layers, sizes)
        config = self._budget if budget is None else self.config.resolve_budget(budget)
        if config is None:
            return Schedule(skip_layers=skip_layers)
        ratios, previous = {}, 1.0
        for layer in layers:
            # A layer that keeps what the one before kept selects nothing. A skipped layer leaves its drop to the next.
            if layer not in skip_layers and config.retention[layer] < previous:
                previous = ratios[layer] = config.retention[layer]
        return Schedule(ratios, config.exit_layer, skip_layers, sizes)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a QuaLA-MiniLM, or make one of a plain BERT, RoBERTa or XLM-R checkpoint.

        A plain checkpoint is converted on the fly: its configuration through `QuaLAMiniLMConfig.from_backbone_config`,
        to which the fields of `QuaLAMiniLMConfig` among the keyword arguments are passed, its separator from its
        tokenizer where one is stored with it. Its weights become float32 unless `dtype` says otherwise, since half
        precision trains badly and runs slowly on a CPU. `save_pretrained` then writes a QuaLA-MiniLM. Everything else
        works as in `PreTrainedModel.from_pretrained`.

        Early span heads that the checkpoint lacks start as copies of its span head, which reads the tokens that leave
        early where there are no other heads: the model loses nothing by having them, and training starts from there.

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
        hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
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
            kwargs["config"] = convert_config(config, path, hub, kwargs)
            kwargs.setdefault("dtype", torch.float32)
        prefix = "" if cls is QuaLAMiniLMModel else f"{cls.base_model_prefix}."
        kwargs.setdefault("key_mapping", {r"^(bert|roberta)\.": prefix})
        wants_info = kwargs.pop("output_loading_info", False)
        loaded, info = super().from_pretrained(path, *args, output_loading_info=True, **kwargs)
        # Otherwise save_pretrained would translate the names back to those of the backbone, which it cannot do here.
        loaded._weight_conversions = None
        loaded._start_span_heads([*info["missing_keys"], *(key[0] for key in info["mismatched_keys"])])
        return (loaded, info) if wants_info else loaded

    def _start_span_heads(self, new: Collection[str]) -> None:
        """Initialise the early span heads that a checkpoint lacks; a model without a task head leaves them random."""


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
        schedule: Schedule,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        **options: Any,
    ) -> EncoderOutput:
        """Embed and encode; see `QuaLAMiniLMEncoder.forward` for `readout`, `schedule` and the options.

        Args:
            readout: What to read of each token where it leaves.
            schedule: What to run.
            input_ids: *Shape:* `(batch_size, sequence_length)`
            attention_mask: *Shape:* `(batch_size, sequence_length)`
            token_type_ids: *Shape:* `(batch_size, sequence_length)`
            position_ids: *Shape:* `(batch_size, sequence_length)`
            options: Options of the encoder.

        Returns:
            What the encoder returns.

        Raises:
            ConfigurationError: If the sequence is longer than the model has positions.
            LengthConfigError: If sizes are given that do not fit the batch.
        """
        limit = self.config.max_position_embeddings
        limit -= self.embeddings.pad_token_id + 1 if self.config.position_scheme == "roberta" else 0
        if not is_tracing() and input_ids.shape[1] > limit:
            raise ConfigurationError(
                f"a sequence of {input_ids.shape[1]} tokens exceeds the {limit} positions of the model; "
                "use windows of at most that many tokens"
            )
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        tokens = find_tokens(input_ids, attention_mask, self.config.sep_token_id, self.config.protected_tokens)
        shared = options.get("shared_states")
        if shared is None:
            embeddings = self.embeddings(input_ids, token_type_ids, position_ids)
        else:
            self._check_shared(shared, input_ids)
            embeddings = shared[0]
        return self.encoder(embeddings, tokens, schedule, readout, **options)  # type: ignore[no-any-return]

    def _check_shared(self, states: tuple[Tensor, ...], input_ids: Tensor) -> None:
        expected = [(*input_ids.shape, self.config.hidden_size)] * (self.config.num_hidden_layers + 1)
        given = [tuple(state.shape) for state in states]
        if given != expected:
            raise ConfigurationError(
                f"shared_states has shapes {given}, but a pass of this batch at full length has {len(expected)} "
                f"hidden states of shape {expected[0]}: it stopped early, dropped tokens or saw another batch"
            )

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        budget: Any = None,
        retention: Tensor | None = None,
        sizes: Tensor | None = None,
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
            sizes: Leading tokens that hold every question, then the tokens of the widest sample that leave each layer
                in `config.dropping_layers`, as `plan_sizes` gives them; larger numbers give the same result. Counted
                if None. *Shape:* `(1 + num_dropping_layers,)`
            skip_layers: Layers that LayerDrop removes.
            output_hidden_states: Return the hidden states of every layer, each with the tokens that left it.
            return_dict: False returns a tuple.

        Returns:
            `BaseModelOutput` with `last_hidden_state`, `(batch_size, sequence_length, hidden_size)`.
        """
        encoded = self.encode(
            nn.Identity(),
            self._schedule(budget, retention, sizes, skip_layers),
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            output_hidden_states=_default(output_hidden_states, self.config.output_hidden_states),
        )
        output = BaseModelOutput(last_hidden_state=encoded.last_readout, hidden_states=encoded.hidden_states)
        return output if _default(return_dict, self.config.return_dict) else output.to_tuple()


class QuaLAMiniLMForQuestionAnswering(QuaLAMiniLMPreTrainedModel):
    """The encoder with a span head, which reads each token where it left the encoder."""

    auto_class = "AutoModelForQuestionAnswering"

    def __init__(self, config: QuaLAMiniLMConfig) -> None:
        super().__init__(config)
        self.quala = QuaLAMiniLMModel(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    @torch.no_grad()
    def _start_span_heads(self, new: Collection[str]) -> None:
        for name, parameter in self.named_parameters():
            if name in new and SPAN_HEADS in name:
                parameter.copy_(getattr(self.qa_outputs, name.rpartition(".")[2]))

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
        sizes: Tensor | None = None,
        skip_layers: Collection[int] = (),
        output_hidden_states: bool | None = None,
        output_survival: bool = False,
        output_exit_logits: bool = False,
        shared_states: tuple[Tensor, ...] | None = None,
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
            sizes: Leading tokens that hold every question, then the tokens of the widest sample that leave each layer
                in `config.dropping_layers`, as `plan_sizes` gives them; larger numbers give the same result. Counted
                if None. *Shape:* `(1 + num_dropping_layers,)`
            skip_layers: Layers that LayerDrop removes.
            output_hidden_states: Return the hidden states of every layer, each with the tokens that left it.
            output_survival: Return how many layers each token went through.
            output_exit_logits: Return the logits of every exit that the pass goes by; needs early span heads.
            shared_states: `hidden_states` of a pass of the same batch at full length. This pass takes them, with their
                gradient, instead of running the layers before the first one that drops tokens or is skipped.
                *Shape:* `(batch_size, sequence_length, hidden_size)` each
            return_dict: False returns a tuple.

        Returns:
            Start and end logits, `(batch_size, sequence_length)` each, and the mean of both cross-entropies as `loss`
            where positions were given.

        Raises:
            ConfigurationError: If both budget and retention are given, the sequence is too long, exit logits are
                asked of a model without early span heads, or the shared states are not those of this batch.
            LengthConfigError: If the budget does not fit the model, or sizes do not fit the batch.
            UnknownBudgetError: If the model has no budget of that name.
        """
        if output_exit_logits and not self.config.has_span_heads:
            raise ConfigurationError("output_exit_logits needs early span heads, but span_heads of the model is False")
        encoded = self.quala.encode(
            self.qa_outputs,
            self._schedule(budget, retention, sizes, skip_layers),
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            reads_spans=True,
            output_hidden_states=_default(output_hidden_states, self.config.output_hidden_states),
            output_survival=output_survival,
            output_exit_logits=output_exit_logits,
            shared_states=shared_states,
        )
        start_logits, end_logits = (logits.contiguous() for logits in encoded.last_readout.unbind(dim=-1))
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = span_loss((start_logits, end_logits), (start_positions, end_positions))
        output = QuaLAQuestionAnsweringOutput(
            loss=loss,
            start_logits=start_logits,
            end_logits=end_logits,
            hidden_states=encoded.hidden_states,
            survival=encoded.survival,
            exit_logits=encoded.exit_logits,
        )
        return output if _default(return_dict, self.config.return_dict) else output.to_tuple()


def _default(value: bool | None, default: bool | None) -> bool:
    return bool(default if value is None else value)


__all__ = [
    "QuaLAMiniLMForQuestionAnswering",
    "QuaLAMiniLMModel",
    "QuaLAMiniLMPreTrainedModel",
]
