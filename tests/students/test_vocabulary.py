"""A trimmed model reads its corpus as before, and other text in smaller tokens."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    BertTokenizerFast,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForQuestionAnswering,
    RobertaTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaForQuestionAnswering,
    XLMRobertaTokenizerFast,
)

from optimum_qala import QuaLAMiniLMForQuestionAnswering, trim_vocabulary
from optimum_qala.checkpoints import load_unchanged
from optimum_qala.errors import CheckpointError, ConfigurationError, DataError
from optimum_qala.question_answering.predictor import predict
from optimum_qala.question_answering.records import load_records
from optimum_qala.students.token_models import tokens_to_keep
from tests.conftest import tiny_config


TEXTS = [
    "where was anna born ?",
    "anna was born in paris in the year one hundred .",
    "the old tower of the city ☃ is large and red .",
    "the abba of the bcd abc",
]
OTHER_TEXTS = ["peter wrote the green book in a small stone house near the river", "john found gold and water"]
FAIRSEQ = ["<s>", "<pad>", "</s>", "<unk>"]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


@dataclass(frozen=True)
class Case:
    model: Any
    tokenizer: Any


def word_pieces() -> Case:
    """Special tokens behind others, as in the vocabularies of BERT, so that their numbers change."""
    words = [word for text in TEXTS + OTHER_TEXTS for word in text.split() if word not in ("☃", "abc", "bcd")]
    pieces = ["[PAD]", *(f"[unused{index}]" for index in range(9)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1) if chr(code) != "c"]
    pieces += dict.fromkeys([*letters, *(f"##{letter}" for letter in letters), "ab", "##bc", "##cd", *words])
    backend = Tokenizer(models.WordPiece({piece: index for index, piece in enumerate(pieces)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 12), ("[CLS]", 11))
    model = QuaLAMiniLMForQuestionAnswering(tiny_config(vocab_size=300, sep_token_id=12))
    return Case(model, BertTokenizerFast(tokenizer_object=backend))


def byte_pairs() -> Case:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[*FAIRSEQ, "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS + OTHER_TEXTS, trainer)
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    config = RobertaConfig(vocab_size=400, pad_token_id=1, initializer_range=0.3, **SIZES)
    return Case(RobertaForQuestionAnswering(config), RobertaTokenizerFast(tokenizer_object=backend))


def unigrams() -> Case:
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=90, special_tokens=FAIRSEQ, unk_token="<unk>", show_progress=False)
    backend.train_from_iterator([text.replace("☃", "") for text in TEXTS + OTHER_TEXTS], trainer)
    specials = [("<s>", 0), ("</s>", 2)]
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=specials
    )
    config = XLMRobertaConfig(vocab_size=200, pad_token_id=1, initializer_range=0.3, **SIZES)
    return Case(XLMRobertaForQuestionAnswering(config), XLMRobertaTokenizerFast(tokenizer_object=backend))


@pytest.fixture(scope="module", params=[word_pieces, byte_pairs, unigrams], ids=lambda make: make.__name__)
def case(request: pytest.FixtureRequest) -> Case:
    torch.manual_seed(0)
    made = request.param()
    made.model.eval()
    return made  # type: ignore[no-any-return]


def logits(model: Any, tokenizer: Any, texts: list[str]) -> torch.Tensor:
    batch = tokenizer([texts[0]] * len(texts), texts, padding=True, return_tensors="pt")
    names = ("input_ids", "attention_mask", "token_type_ids")
    with torch.no_grad():
        output = model.eval()(**{name: batch[name] for name in names if name in batch})
    return torch.stack([output.start_logits, output.end_logits])


def test_reloaded_model_reads_the_corpus_as_before(case: Case, tmp_path: Path) -> None:
    trimmed = trim_vocabulary(case.model, case.tokenizer, TEXTS)
    trimmed.model.save_pretrained(tmp_path)
    trimmed.tokenizer.save_pretrained(tmp_path)
    model, tokenizer = (kind.from_pretrained(tmp_path) for kind in (AutoModelForQuestionAnswering, AutoTokenizer))
    new_ids = {old: new for new, old in enumerate(trimmed.kept_ids)}
    for text in TEXTS:
        before, after = (one(text, TEXTS[0]).input_ids for one in (case.tokenizer, tokenizer))
        assert after == [new_ids[number] for number in before]
        assert tokenizer.convert_ids_to_tokens(after) == case.tokenizer.convert_ids_to_tokens(before)
    assert torch.equal(logits(model, tokenizer, TEXTS), logits(case.model, case.tokenizer, TEXTS))
    assert (trimmed.num_texts, trimmed.num_changed_texts) == (4, 0)
    stored = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    sizes = {len(tokenizer), model.config.vocab_size, len(trimmed.kept_ids), len(model.get_input_embeddings().weight)}
    assert len(sizes) == 1
    assert sizes.pop() < len(case.tokenizer)
    extra = sum(entry["content"] not in dict(stored["model"]["vocab"]) for entry in stored["added_tokens"])
    assert len(stored["model"]["vocab"]) + extra == len(tokenizer)
    for name in ("pad_token_id", "sep_token_id", "cls_token_id", "unk_token_id", "mask_token_id"):
        assert trimmed.kept_ids[getattr(tokenizer, name)] == getattr(case.tokenizer, name)
    assert model.config.pad_token_id == tokenizer.pad_token_id == model.get_input_embeddings().padding_idx


def test_other_text_is_still_read(case: Case) -> None:
    trimmed = trim_vocabulary(case.model, case.tokenizer, TEXTS)
    for text in ("peter wrote the green book", "jumpy xenon"):
        before, after = (one(text, add_special_tokens=False) for one in (case.tokenizer, trimmed.tokenizer))
        assert after.input_ids.count(trimmed.tokenizer.unk_token_id) <= before.input_ids.count(
            case.tokenizer.unk_token_id
        )
        assert len(after.input_ids) >= len(before.input_ids)
    assert torch.isfinite(logits(trimmed.model, trimmed.tokenizer, OTHER_TEXTS)).all()


def test_given_model_and_tokenizer_are_left_alone(case: Case) -> None:
    before = (case.model.config.vocab_size, len(case.tokenizer), case.model.get_input_embeddings().weight.clone())
    trim_vocabulary(case.model, case.tokenizer, TEXTS).model.get_input_embeddings().weight.data.zero_()
    after = (case.model.config.vocab_size, len(case.tokenizer), case.model.get_input_embeddings().weight)
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])


def test_separator_of_the_config_moves_with_its_token() -> None:
    case = word_pieces()
    trimmed = trim_vocabulary(case.model, case.tokenizer, TEXTS)
    assert trimmed.model.config.sep_token_id == trimmed.tokenizer.sep_token_id < case.tokenizer.sep_token_id
    trimmed.model.config.check()


def test_rare_tokens_may_go_too() -> None:
    case = word_pieces()
    sizes, changed = [], []
    for min_frequency in (1, 2, 9):
        trimmed = trim_vocabulary(case.model, case.tokenizer, TEXTS, min_frequency=min_frequency)
        sizes.append(len(trimmed.tokenizer))
        changed.append(trimmed.num_changed_texts)
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 3
    assert changed == [0, 4, 4]
    vocab = trim_vocabulary(case.model, case.tokenizer, TEXTS, min_frequency=2).tokenizer.get_vocab()
    assert "anna" in vocab
    assert "paris" not in vocab


def test_unknown_word_stays_unknown() -> None:
    """ "abc" starts with "ab" and fails at "c"; without "ab" it would be "a", "##bc"."""
    case = word_pieces()
    assert case.tokenizer.tokenize("abc") == ["[UNK]"]
    corpus = ["xbc", "abc"]
    trimmed = trim_vocabulary(case.model, case.tokenizer, corpus)
    assert trimmed.tokenizer.tokenize("xbc abc") == ["x", "##bc", "[UNK]"]


def test_text_that_would_be_cut_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    case = word_pieces()
    singles = {token for token in case.tokenizer.get_vocab() if len(token.removeprefix("##")) == 1}
    monkeypatch.setattr(
        "optimum_qala.students.vocabulary.tokens_to_keep", lambda model, used, unknown: {*used, *singles}
    )
    with pytest.raises(CheckpointError, match="1 of 2 texts would be cut into other tokens, which no text of the"):
        trim_vocabulary(case.model, case.tokenizer, ["xbc", "abc"])


def test_tokenizer_that_is_not_read_back_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    case = word_pieces()
    monkeypatch.setattr(
        "optimum_qala.students.vocabulary.AutoTokenizer.from_pretrained", lambda folder: word_pieces().tokenizer
    )
    with pytest.raises(CheckpointError, match="a BertTokenizer, numbers its tokens in a way that cannot be trimmed"):
        trim_vocabulary(case.model, case.tokenizer, TEXTS)


@pytest.mark.parametrize(
    ("texts", "min_frequency", "error", "message"),
    [
        ([], 1, DataError, "there are no texts to choose tokens by, got an empty corpus"),
        ("anna was born in paris", 1, DataError, "texts 'anna was born in paris' is one text, whose letters would be"),
        (TEXTS, 0, ConfigurationError, "min_frequency 0 is not a positive integer"),
        (TEXTS, 1.5, ConfigurationError, "min_frequency 1.5 is not a positive integer"),
        (TEXTS, True, ConfigurationError, "min_frequency True is not a positive integer"),
    ],
)
def test_bad_arguments_are_refused(texts: list[str], min_frequency: Any, error: type, message: str) -> None:
    case = word_pieces()
    with pytest.raises(error, match=message):
        trim_vocabulary(case.model, case.tokenizer, texts, min_frequency=min_frequency)


def test_models_that_cannot_be_trimmed_are_refused(tiny_tokenizer: Any) -> None:
    """A masked language model would be left with outputs for the tokens before, which is silent until it is loaded."""
    config = BertConfig(vocab_size=len(tiny_tokenizer), **SIZES)
    with pytest.raises(CheckpointError, match="a BertForMaskedLM predicts tokens, and its outputs cannot be trimmed"):
        trim_vocabulary(BertForMaskedLM(config), tiny_tokenizer, TEXTS)
    last = len(tiny_tokenizer) - 1
    config.vocab_size = last
    with pytest.raises(
        CheckpointError, match=f"numbers its tokens up to {last}, but .* has embeddings of {last} only"
    ):
        trim_vocabulary(BertModel(config), tiny_tokenizer, TEXTS)


def test_tokenizers_that_cannot_be_trimmed_are_refused(tiny_model: Any) -> None:
    with pytest.raises(CheckpointError, match=r"a str has no tokenizer\.json, so it cannot be trimmed"):
        trim_vocabulary(tiny_model, "tokenizer", TEXTS)
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1, "a": 2}, unk_token="[UNK]"))
    words = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]")
    with pytest.raises(
        CheckpointError, match=r"is a WordLevel model; only those of \['BPE', 'Unigram', 'WordPiece'\] can be trimmed"
    ):
        trim_vocabulary(tiny_model, words, TEXTS)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"type": "BPE", "dropout": 0.1}, "is a BPE model with dropout 0.1, which cannot be trimmed"),
        ({"type": "BPE", "end_of_word_suffix": "</w>"}, "is a BPE model with end_of_word_suffix '</w>'"),
        ({"type": "BPE", "ignore_merges": True}, "is a BPE model with ignore_merges True"),
        ({"type": "Unigram", "byte_fallback": True}, "is a Unigram model with byte_fallback True, which cannot be"),
    ],
)
def test_options_that_are_not_understood_are_refused(model: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        tokens_to_keep(model, {"a"}, [])


def test_least_probable_token_stays_for_it_scores_unknown_characters() -> None:
    vocab = [["<unk>", 0.0], ["a", -1.0], ["ab", -2.0], ["abc", -9.0]]
    assert tokens_to_keep({"type": "Unigram", "vocab": vocab}, {"ab"}, []) == {"a", "ab", "abc"}


def test_merges_that_lead_to_a_token_stay() -> None:
    model = {
        "type": "BPE",
        "vocab": dict.fromkeys("a b c ab abc bc".split()),
        "merges": [["a", "b"], ["ab", "c"], ["b", "c"]],
    }
    assert tokens_to_keep(model, {"abc"}, []) == {"a", "b", "c", "ab", "abc"}


@pytest.mark.slow
def test_real_model_answers_as_before(shared_model: Path, shared_data: Path, tmp_path: Path) -> None:
    records = load_records(shared_data / "test_small.json", limit=12)
    model, tokenizer = load_unchanged(shared_model), AutoTokenizer.from_pretrained(shared_model)
    texts = [text for record in records for text in (record.question, record.context)]
    trimmed = trim_vocabulary(model, tokenizer, texts)
    trimmed.model.save_pretrained(tmp_path)
    trimmed.tokenizer.save_pretrained(tmp_path)
    answers = [
        [
            found
            for _, found in predict(
                AutoModelForQuestionAnswering.from_pretrained(folder, dtype=torch.float32),
                AutoTokenizer.from_pretrained(folder),
                records,
            )
        ]
        for folder in (shared_model, tmp_path)
    ]
    assert answers[0] == answers[1]
    assert len(trimmed.tokenizer) < len(tokenizer) / 4
