"""Configuration of QuaLA-MiniLM: a BERT- or RoBERTa-shaped encoder, how it drops tokens, and its budgets."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from transformers import PreTrainedConfig

from .errors import CheckpointError, ConfigurationError, LengthConfigError, UnknownBudgetError
from .length_config import LengthConfig, count_macs


# model_type of the checkpoints that load as a backbone -> how they number positions.
BACKBONE_POSITION_SCHEMES = {"bert": "absolute", "roberta": "roberta", "xlm-roberta": "roberta"}

# Fields of the backbone that carry over as they are.
_BACKBONE_FIELDS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "max_position_embeddings",
    "type_vocab_size",
    "initializer_range",
    "layer_norm_eps",
    "pad_token_id",
)

# Integer fields -> the least legal value.
_LEAST = {
    "vocab_size": 1,
    "hidden_size": 1,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "intermediate_size": 1,
    "max_position_embeddings": 1,
    "type_vocab_size": 1,
    "sep_token_id": 0,
    "score_pooling": 0,
    "min_tokens": 1,
}

BERT_SEP_TOKEN_ID = 102  # [SEP] of every vocabulary that Google published; others name theirs in the tokenizer
FULL_BUDGET = "full"

# What can only be ratios, and what follows them after an @; every other string is the name of a budget.
_RATIOS = re.compile(r"[\s()\[\],.eE+-]*\d[\s()\[\],.eE+\d-]*(@.*)?")


class QuaLAMiniLMConfig(PreTrainedConfig):
    """Configuration of a `QuaLAMiniLMModel`.

    Args:
        position_scheme: "absolute" numbers positions 0, 1, ... as BERT does; "roberta" numbers real tokens from
            `pad_token_id + 1` as RoBERTa and XLM-R do.
        sep_token_id: Id of the separator token ([SEP] or </s>): everything up to the first one is the question.
        token_scoring: Name of the score that decides which tokens survive: "question" (attention paid by [CLS] and the
            question), "answer" (how likely a span head takes the token for the start or the end of the answer) or
            "attention" (attention paid by all tokens: Length-Adaptive Transformer, arXiv 2010.07003).
        score_pooling: Neighbours on each side over which the maximum of the score is taken, so that a span survives
            together with its context. 0 scores every token on its own, as published.
        protected_tokens: Tokens that always survive: "question" ([CLS], separators and the question), "cls" or "none".
        drop_layers: 0-based layers that may drop tokens; None means all of them.
        min_tokens: Lower bound of the number of tokens that leave a layer.
        span_heads: Give every layer a span head of its own, which reads the layer's input: tokens that leave there
            keep its logits, and a budget may stop there. None means True where the token score reads span heads, as
            "answer" does, and False elsewhere.
        quantization_aware: What a quantization-aware training learned besides the weights: see `QATRecord`. None if
            there was none.
        budgets: Name -> {"retention": [...], "exit_layer": number of layers that run (all if absent or None), and what
            was measured at it}.

    The other fields are those of `BertConfig`. The defaults describe MiniLM-L6-H384.

    Raises:
        ConfigurationError: If a field has a value that is not legal.
        LengthConfigError: If a budget does not fit the number of layers.
    """

    model_type = "quala_minilm"

    vocab_size: int = 30522
    hidden_size: int = 384
    num_hidden_layers: int = 6
    num_attention_heads: int = 12
    intermediate_size: int = 1536
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    position_scheme: str = "absolute"
    sep_token_id: int = BERT_SEP_TOKEN_ID
    token_scoring: str = "question"
    score_pooling: int = 4
    protected_tokens: str = "question"
    drop_layers: list[int] | tuple[int, ...] | None = None
    min_tokens: int = 2
    span_heads: bool | None = None
    budgets: dict[str, dict[str, Any]] | None = None
    quantization_aware: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.check()

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Make a configuration of a dictionary, as `PreTrainedConfig` does, and check the keyword arguments too."""
        made = super().from_dict(config_dict, **kwargs)  # sets the keyword arguments after __post_init__ has run
        (made[0] if isinstance(made, tuple) else made).check()
        return made

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Save as `PreTrainedConfig` does, after a check: fields may have changed since the configuration was made.

        Args:
            save_directory: The folder.
            args: Passed on.
            kwargs: Passed on.

        Raises:
            ConfigurationError: If a field has a value that is not legal.
            LengthConfigError: If a budget does not fit the model.
        """
        self.check()
        super().save_pretrained(save_directory, *args, **kwargs)

    def check(self) -> None:
        """Raise if a field has a value that is not legal.

        Raises:
            ConfigurationError: If a field has a value that is not legal.
            LengthConfigError: If a budget does not fit the model.
        """
        self.budgets = {} if self.budgets is None else self.budgets
        self._check_sizes()
        self._check_dropping()
        if not isinstance(self.budgets, dict):
            raise ConfigurationError(f"budgets maps names to budgets, got {self.budgets!r}")
        for name, budget in self.budgets.items():
            self._check_budget(name, budget)

    def _check_sizes(self) -> None:
        from transformers.activations import ACT2FN  # it needs torch, this file does not

        for name, least in _LEAST.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigurationError(f"{name} {value!r} is not an integer of at least {least}")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigurationError(f"{name} {getattr(self, name)} is not in [0, 1)")
        if self.hidden_act not in ACT2FN:
            raise ConfigurationError(f"hidden_act {self.hidden_act!r} is not one of {sorted(ACT2FN)}")
        if self.hidden_size % self.num_attention_heads:
            raise ConfigurationError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        schemes = sorted(set(BACKBONE_POSITION_SCHEMES.values()))
        if self.position_scheme not in schemes:
            raise ConfigurationError(f"position_scheme {self.position_scheme!r} is not one of {schemes}")
        if self.sep_token_id >= self.vocab_size:
            raise ConfigurationError(
                f"sep_token_id {self.sep_token_id} is outside the vocabulary of {self.vocab_size} tokens; "
                "give the id of the tokenizer's separator"
            )

    def _check_dropping(self) -> None:
        from .token_selection import TOKEN_SCORES  # its registry needs torch, this file does not

        if self.token_scoring not in TOKEN_SCORES:
            raise ConfigurationError(f"token_scoring {self.token_scoring!r} is not one of {sorted(TOKEN_SCORES)}")
        if self.span_heads is not None and not isinstance(self.span_heads, bool):
            raise ConfigurationError(f"span_heads {self.span_heads!r} is not one of [None, False, True]")
        if self.score_source == "answer" and not self.has_span_heads:
            raise ConfigurationError(
                f"token_scoring {self.token_scoring!r} reads the span heads, so span_heads must not be "
                f"{self.span_heads}"
            )
        if self.protected_tokens not in ("question", "cls", "none"):
            raise ConfigurationError(
                f"protected_tokens {self.protected_tokens!r} is not one of ['cls', 'none', 'question']"
            )
        if self.score_source == "question" and self.protected_tokens != "question":
            raise ConfigurationError(
                f"token_scoring {self.token_scoring!r} reads the question's rows, so protected_tokens must be "
                f"'question', got {self.protected_tokens!r}"
            )
        if self.drop_layers is not None:
            layers = list(self.drop_layers)
            legal = all(isinstance(layer, int) and 0 <= layer < self.num_hidden_layers for layer in layers)
            if not legal or layers != sorted(set(layers)):
                raise ConfigurationError(
                    f"drop_layers {layers} must be ascending layer numbers from 0 to {self.num_hidden_layers - 1}"
                )

    def _check_budget(self, name: str, budget: Any) -> None:
        if not isinstance(budget, dict) or "retention" not in budget:
            raise LengthConfigError(f"budget {name!r} needs a 'retention' list, got {budget!r}")
        config = self._parse(budget["retention"], budget.get("exit_layer"))
        if name == FULL_BUDGET and not config.is_full:
            raise LengthConfigError(f"budget {FULL_BUDGET!r} means full length, got retention {config}")

    @classmethod
    def from_backbone_config(cls, backbone: PreTrainedConfig, **overrides: Any) -> QuaLAMiniLMConfig:
        """Make the configuration of a QuaLA-MiniLM that has the shape of a BERT, RoBERTa or XLM-R backbone.

        Args:
            backbone: Configuration of the backbone.
            overrides: Fields of `QuaLAMiniLMConfig` to set. Give `sep_token_id` where the vocabulary's separator is
                not the usual one (102 for BERT, `eos_token_id` for RoBERTa).

        Returns:
            The configuration.

        Raises:
            CheckpointError: If the backbone is of another kind, or uses relative positions.
        """
        if backbone.model_type not in BACKBONE_POSITION_SCHEMES:
            raise CheckpointError(
                f"a {backbone.model_type!r} checkpoint cannot become a QuaLA-MiniLM; legal kinds are "
                f"{sorted(BACKBONE_POSITION_SCHEMES)} and 'quala_minilm'"
            )
        if getattr(backbone, "position_embedding_type", "absolute") != "absolute":
            raise CheckpointError(
                f"position_embedding_type {backbone.position_embedding_type!r} is not supported, only 'absolute'"
            )
        fields = {name: getattr(backbone, name) for name in _BACKBONE_FIELDS}
        fields["position_scheme"] = BACKBONE_POSITION_SCHEMES[backbone.model_type]
        fields["sep_token_id"] = BERT_SEP_TOKEN_ID if backbone.model_type == "bert" else backbone.eos_token_id
        for name in ("id2label", "label2id"):
            fields[name] = getattr(backbone, name)
        return cls(**(fields | overrides))

    @property
    def dropping_layers(self) -> tuple[int, ...]:
        """0-based layers that may drop tokens, ascending: one entry of the graph's `retention` input each."""
        if self.drop_layers is None:
            return tuple(range(self.num_hidden_layers))
        return tuple(self.drop_layers)

    @property
    def score_source(self) -> str:
        """What the token score reads: see `TokenScore`."""
        from .token_selection import TOKEN_SCORES

        return TOKEN_SCORES[self.token_scoring].source

    @property
    def has_span_heads(self) -> bool:
        """True if every layer has a span head of its own, so that a budget may stop after any number of layers."""
        return self.score_source == "answer" if self.span_heads is None else self.span_heads

    def resolve_budget(self, budget: Any) -> LengthConfig | None:
        """Turn what a user calls a budget into a LengthConfig.

        Args:
            budget: The name of a budget in `budgets`, "full", a LengthConfig, ratios as a string such as
                "1,1,0.8,0.8,0.5,0.5" ("1,1,0.8,0.8,0.8,0.8@4" stops after four layers) or as a sequence, or None.

        Returns:
            The LengthConfig, or None for full length.

        Raises:
            UnknownBudgetError: If it is a name that the model does not carry.
            LengthConfigError: If it is malformed, has another number of layers, drops in a layer that may not drop, or
                stops early where there are no span heads.
        """
        if budget is None or (isinstance(budget, str) and budget == FULL_BUDGET):
            return None
        budgets = self.budgets or {}
        if isinstance(budget, str) and budget in budgets:
            config = self._parse(budgets[budget]["retention"], budgets[budget].get("exit_layer"))
        elif isinstance(budget, str) and not _RATIOS.fullmatch(budget):
            names = sorted({FULL_BUDGET, *budgets})
            raise UnknownBudgetError(
                f"this model has no budget {budget!r}; it has {names}. Ratios such as "
                f"{LengthConfig.from_drop_ratio(self.num_hidden_layers, 0.1, self.dropping_layers)} work too"
            )
        else:
            config = self._parse(budget)
        return None if config.is_full else config

    def _parse(self, value: Any, exit_layer: Any = None) -> LengthConfig:
        config = LengthConfig.parse(value, self.num_hidden_layers)
        if exit_layer is not None:
            config = replace(config, exit_layer=exit_layer)
        if config.exit_layer is not None and not self.has_span_heads:
            raise LengthConfigError(
                f"LengthConfig {config} stops after {config.exit_layer} of {self.num_hidden_layers} layers, but this "
                "model has no span heads to stop at; train one with token_scoring 'answer' or span_heads=True"
            )
        illegal = sorted(set(config.drop_layers) - set(self.dropping_layers))
        if illegal:
            raise LengthConfigError(
                f"LengthConfig {config} drops tokens in layer {illegal[0]}, but this model drops only in layers "
                f"{list(self.dropping_layers)}"
            )
        return config

    def macs(self, length_config: LengthConfig | None, sequence_length: int, num_question_tokens: int = 16) -> int:
        """Count the multiply-accumulate operations of one sequence at a LengthConfig, as this package's graph runs it.

        Args:
            length_config: The LengthConfig, or None for full length.
            sequence_length: Real tokens of the sequence.
            num_question_tokens: [CLS], question and separator.

        Returns:
            Multiply-accumulate operations; see `count_macs`.
        """
        config = length_config or LengthConfig.full(self.num_hidden_layers)
        # The question and the separator that ends the context survive however small the budget is.
        num_protected = {"question": num_question_tokens + 1, "cls": 1, "none": 0}[self.protected_tokens]
        return count_macs(
            config.num_tokens(sequence_length, max(self.min_tokens, num_protected)),
            sequence_length,
            self.hidden_size,
            self.intermediate_size,
            token_scoring=self.score_source,
            num_question_tokens=num_question_tokens,
        )


__all__ = ["QuaLAMiniLMConfig"]
