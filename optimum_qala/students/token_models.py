"""Which tokens of a fast tokenizer may go without changing how the remaining ones are chosen.

Each kind of tokenizer chooses the tokens of a word differently, so each needs other tokens besides those that a corpus
uses. Where all of these are there, a text of the corpus is cut as before:

- WordPiece takes the longest token that fits, again and again. The longest of all is the longest of fewer, if it is
  among them. A word that ends in an unknown piece must fail at the same place, so the tokens up to there stay too.
- BPE applies merges in the order of their rank. Those that made the used tokens stay, with what they made on the way.
- Unigram takes the cut of the highest probability, and judges unknown characters by the least probable token, which
  stays.

All single characters stay, at the beginning of a word and inside, so that other text can be cut, too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

from optimum_qala.errors import CheckpointError


State = dict[str, Any]


def tokens_to_keep(model: State, used: Collection[str], unknown_words: Iterable[str]) -> set[str]:
    """Add what a tokenizer needs to cut text into the used tokens as it does now.

    Args:
        model: The entry `model` of tokenizer.json.
        used: Tokens that a corpus uses.
        unknown_words: Words of the texts that hold an unknown piece.

    Returns:
        The used tokens and those that must stay with them.

    Raises:
        CheckpointError: If the tokenizer is of another kind, or has an option that is not understood here.
    """
    kind = model["type"]
    if kind not in _KEEPERS:
        raise CheckpointError(f"the tokenizer is a {kind} model; only those of {sorted(_KEEPERS)} can be trimmed")
    return set(used) | _KEEPERS[kind](model, used, unknown_words)


def trim_model(model: State, new_ids: dict[str, int]) -> State:
    """Leave tokens out.

    Args:
        model: The entry `model` of tokenizer.json.
        new_ids: Number of each token that stays, in the order of the old numbers.

    Returns:
        The new entry.
    """
    vocab = model["vocab"]
    if isinstance(vocab, list):  # Unigram: a token's number is its place
        places = [place for place, (token, _) in enumerate(vocab) if token in new_ids]
        return {**model, "vocab": [vocab[place] for place in places], "unk_id": _moved(model["unk_id"], places)}
    trimmed = {**model, "vocab": {token: new_ids[token] for token in vocab if token in new_ids}}
    if "merges" in model:
        trimmed["merges"] = [
            [first, second] for first, second in model["merges"] if {first, second, first + second} <= new_ids.keys()
        ]
    return trimmed


def _moved(place: int | None, places: list[int]) -> int | None:
    return None if place is None else places.index(place)


def _keep_word_pieces(model: State, used: Collection[str], unknown_words: Iterable[str]) -> set[str]:
    vocab, prefix = model["vocab"], model["continuing_subword_prefix"]
    kept = {token for token in vocab if len(token.removeprefix(prefix)) == 1}
    for word in unknown_words:
        start, path = 0, set[str]()
        while start < len(word):
            pieces = ((prefix if start else "") + word[start:end] for end in range(len(word), start, -1))
            piece = next((piece for piece in pieces if piece in vocab), None)
            if piece is None:
                kept |= path
                break
            path.add(piece)
            start += len(piece) - (len(prefix) if start else 0)
    return kept


def _keep_merged(model: State, used: Collection[str], unknown_words: Iterable[str]) -> set[str]:
    options = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges")
    if given := [name for name in options if model.get(name)]:
        raise CheckpointError(
            f"the tokenizer is a BPE model with {given[0]} {model[given[0]]!r}, which cannot be trimmed"
        )
    ranks = {(first, second): rank for rank, (first, second) in enumerate(model["merges"])}
    kept = {token for token in model["vocab"] if len(token) == 1}
    for token in used:
        parts = list(token)
        while len(parts) > 1:
            pairs = list(zip(parts, parts[1:], strict=False))
            place = min(range(len(pairs)), key=lambda index: ranks.get(pairs[index], len(ranks)))
            if pairs[place] not in ranks:
                break
            parts[place : place + 2] = ["".join(pairs[place])]
            kept.add(parts[place])
    return kept


def _keep_probable(model: State, used: Collection[str], unknown_words: Iterable[str]) -> set[str]:
    if model.get("byte_fallback"):
        raise CheckpointError("the tokenizer is a Unigram model with byte_fallback True, which cannot be trimmed")
    least, _ = min(model["vocab"], key=lambda entry: entry[1])
    return {token for token, _ in model["vocab"] if len(token) == 1} | {least}


_KEEPERS: dict[str, Callable[[State, Collection[str], Iterable[str]], set[str]]] = {
    "BPE": _keep_merged,
    "Unigram": _keep_probable,
    "WordPiece": _keep_word_pieces,
}


__all__ = ["tokens_to_keep", "trim_model"]
