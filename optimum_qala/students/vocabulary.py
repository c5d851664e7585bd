"""Smaller vocabularies: only the tokens that a corpus uses, with their rows of the embeddings.

Source: Abdaoui et al., Load What You Need (arXiv 2010.05609), for multilingual BERT: the encoder stays as it is, and
most parameters of a small model are embeddings.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel

from optimum_qala.errors import CheckpointError, ConfigurationError, DataError
from optimum_qala.models.configuration_quala_minilm import BACKBONE_POSITION_SCHEMES

from .token_models import tokens_to_keep, trim_model


# Texts that are cut at once; bounds the memory.
_CHUNK = 1024


@dataclass(frozen=True)
class TrimmedModel:
    """A model with a smaller vocabulary.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        kept_ids: Number that each token had before, by its new number.
        num_texts: Texts of the corpus.
        num_changed_texts: Those that are cut into other tokens than before, as rare tokens are gone.
    """

    model: PreTrainedModel
    tokenizer: Any
    kept_ids: tuple[int, ...]
    num_texts: int
    num_changed_texts: int


def trim_vocabulary(
    model: PreTrainedModel, tokenizer: Any, texts: Sequence[str], min_frequency: int = 1
) -> TrimmedModel:
    """Leave out the tokens that a corpus does not use.

    Special and added tokens stay, so do single characters and what the kind of tokenizer needs (`token_models`).
    Tokens keep their order. With `min_frequency` 1 every text of the corpus is cut into the same tokens as before, so
    the model computes the same on it; this is checked. Other text is cut into smaller tokens where its own are gone.

    Args:
        model: A model for question answering or an encoder.
        tokenizer: Its fast tokenizer: WordPiece (BERT), byte-level BPE (RoBERTa) or Unigram (XLM-R).
        texts: The corpus, as the tokenizer will see it: questions and contexts apart.
        min_frequency: Leave out tokens that occur less often, too; this changes how texts with them are cut.

    Returns:
        Model and tokenizer, which share nothing with those given.

    Raises:
        ConfigurationError: If `min_frequency` is not a positive integer.
        DataError: If the corpus is empty, or one text instead of several.
        CheckpointError: If the model predicts tokens, as one for masked language modelling does, or has fewer rows of
            embeddings than the tokenizer tokens; or if the tokenizer is of a kind, or has an option, that cannot be
            trimmed.
    """
    if isinstance(min_frequency, bool) or not isinstance(min_frequency, int) or min_frequency < 1:
        raise ConfigurationError(f"min_frequency {min_frequency!r} is not a positive integer")
    if isinstance(texts, str):
        raise DataError(f"texts {texts[:40]!r} is one text, whose letters would be the corpus; give a list of texts")
    if not texts:
        raise DataError("there are no texts to choose tokens by, got an empty corpus")
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise CheckpointError(f"a {type(tokenizer).__name__} has no tokenizer.json, so it cannot be trimmed")
    _check_embeddings(model, tokenizer)
    state = json.loads(backend.to_str())
    kept = _choose(model.config, tokenizer, state, texts, min_frequency)
    new_ids = {old: new for new, old in enumerate(kept)}
    trimmed = _trim_tokenizer(tokenizer, state, new_ids)
    changed = _count_changed(tokenizer, trimmed, texts, new_ids)
    if changed and min_frequency == 1:
        raise CheckpointError(
            f"{changed} of {len(texts)} texts would be cut into other tokens, which no text of the corpus may be; "
            f"the tokenizer, a {type(tokenizer).__name__}, cannot be trimmed"
        )
    return TrimmedModel(_trim_model(model, new_ids), trimmed, tuple(kept), len(texts), changed)


def _check_embeddings(model: PreTrainedModel, tokenizer: Any) -> None:
    """Refuse a model with outputs for tokens, which would stay as many as before, and a tokenizer of another model."""
    if model.get_output_embeddings() is not None:
        raise CheckpointError(
            f"a {type(model).__name__} predicts tokens, and its outputs cannot be trimmed; give its encoder, "
            "model.base_model, or a model for question answering"
        )
    embeddings: Any = model.get_input_embeddings()
    last, rows = max(tokenizer.get_vocab().values()), embeddings.num_embeddings
    if last >= rows:
        raise CheckpointError(
            f"the tokenizer numbers its tokens up to {last}, but the model has embeddings of {rows} only; they do not "
            "belong together"
        )


def _choose(config: Any, tokenizer: Any, state: dict[str, Any], texts: Sequence[str], min_frequency: int) -> list[int]:
    """Choose the tokens to keep; return their numbers, ascending."""
    vocab = tokenizer.get_vocab()
    names = {number: token for token, number in vocab.items()}
    counts: NDArray[np.int64] = np.zeros(1 + max(names), dtype=np.int64)
    unknown: list[str] = []
    for chunk, cut in _cut(tokenizer, texts):
        for text, ids in zip(chunk, cut, strict=True):
            np.add.at(counts, ids, 1)
            if tokenizer.unk_token_id in ids:
                unknown.append(text)
    used = {names[number] for number in np.flatnonzero(counts >= min_frequency).tolist()}
    required = tokens_to_keep(state["model"], used, _words(tokenizer.backend_tokenizer, unknown))
    kept = {vocab[token] for token in required if token in vocab}
    kept |= {entry["id"] for entry in state["added_tokens"]} | set(tokenizer.all_special_ids)
    kept |= {number for number in _token_ids(config).values() if number in names}
    scheme = BACKBONE_POSITION_SCHEMES.get(config.model_type, getattr(config, "position_scheme", "absolute"))
    if scheme == "roberta":  # positions are numbered from the padding token's number on, which must not move
        kept |= {number for number in names if number <= config.pad_token_id}
    return sorted(kept)


def _cut(tokenizer: Any, texts: Sequence[str]) -> Iterator[tuple[Sequence[str], list[list[int]]]]:
    """Tokenize in chunks, as windows do."""
    for start in range(0, len(texts), _CHUNK):
        chunk = texts[start : start + _CHUNK]
        encoded = tokenizer(list(chunk), add_special_tokens=False, truncation=False, padding=False, verbose=False)
        yield chunk, encoded["input_ids"]


def _words(backend: Any, texts: Sequence[str]) -> Iterator[str]:
    for text in texts:
        normalized = text if backend.normalizer is None else backend.normalizer.normalize_str(text)
        if backend.pre_tokenizer is None:
            yield normalized
        else:
            yield from (word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normalized))


def _token_ids(config: Any) -> dict[str, int]:
    """Fields of a configuration that name a token, such as `sep_token_id`."""
    return {
        name: value
        for name, value in config.to_dict().items()
        if name.endswith("_token_id") and isinstance(value, int)
    }


def _trim_tokenizer(tokenizer: Any, state: dict[str, Any], new_ids: dict[int, int]) -> Any:
    tokens = {token: new_ids[number] for token, number in tokenizer.get_vocab().items() if number in new_ids}
    trimmed = {
        **_renumber(state, new_ids),
        "model": trim_model(state["model"], tokens),
        "added_tokens": [{**entry, "id": new_ids[entry["id"]]} for entry in state["added_tokens"]],
    }
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        (Path(folder) / "tokenizer.json").write_text(json.dumps(trimmed, ensure_ascii=False), encoding="utf-8")
        made = AutoTokenizer.from_pretrained(folder)
    made.name_or_path = tokenizer.name_or_path
    if made.get_vocab() != tokens:
        raise CheckpointError(
            f"the tokenizer, a {type(tokenizer).__name__}, numbers its tokens in a way that cannot be trimmed"
        )
    return made


def _renumber(value: Any, new_ids: dict[int, int]) -> Any:
    """Renumber the tokens that the post-processor and the padding of tokenizer.json name; leave the rest as it is."""
    post_processor, padding = copy.deepcopy(value["post_processor"]), copy.deepcopy(value["padding"])
    pending = [post_processor] if post_processor else []
    while pending:
        processor = pending.pop()
        pending += processor.get("processors", [])  # of a sequence
        for name in ("sep", "cls"):
            if name in processor:
                processor[name][1] = new_ids[processor[name][1]]
        for token in processor["special_tokens"].values() if processor["type"] == "TemplateProcessing" else ():
            token["ids"] = [new_ids[number] for number in token["ids"]]
    if padding:
        padding["pad_id"] = new_ids[padding["pad_id"]]
    return {**value, "post_processor": post_processor, "padding": padding}


def _count_changed(before: Any, after: Any, texts: Sequence[str], new_ids: dict[int, int]) -> int:
    changed = 0
    for (_, old), (_, new) in zip(_cut(before, texts), _cut(after, texts), strict=True):
        changed += sum([new_ids.get(one) for one in ids] != cut for ids, cut in zip(old, new, strict=True))
    return changed


def _trim_model(model: PreTrainedModel, new_ids: dict[int, int]) -> PreTrainedModel:
    trimmed = copy.deepcopy(model)
    embeddings: Any = trimmed.get_input_embeddings()
    rows = embeddings.weight.data[list(new_ids)]
    replacement = nn.Embedding(len(rows), rows.shape[1], padding_idx=new_ids.get(embeddings.padding_idx))
    replacement.weight = nn.Parameter(rows)
    trimmed.set_input_embeddings(replacement)
    trimmed.config.vocab_size = len(new_ids)
    for name, number in _token_ids(trimmed.config).items():
        setattr(trimmed.config, name, new_ids.get(number))
    return trimmed


__all__ = ["TrimmedModel", "trim_vocabulary"]
