"""A model and a tokenizer that do not belong together are refused."""

from __future__ import annotations

import copy

import pytest
from transformers import AutoTokenizer, XLMRobertaConfig

from optimum_qala.checkpoints import check_tokenizer
from optimum_qala.errors import CheckpointError
from tests.conftest import tiny_config


def test_check_tokenizer_accepts_the_model_s_own(tiny_tokenizer):
    check_tokenizer(tiny_config(), tiny_tokenizer, "folder")


def test_check_tokenizer_refuses_one_that_transformers_made_up(tmp_path):
    # The special tokens of XLM-R and of what is made up have the same numbers, so nothing else would show it.
    config = XLMRobertaConfig(vocab_size=200)
    config.save_pretrained(tmp_path)
    made_up = AutoTokenizer.from_pretrained(tmp_path)
    model_config = tiny_config(sep_token_id=2, pad_token_id=1)
    with pytest.raises(
        CheckpointError, match=r"folder has no tokenizer: transformers made up one of 5 special tokens"
    ):
        check_tokenizer(model_config, made_up, "folder")


def test_check_tokenizer_refuses_a_larger_vocabulary(tiny_tokenizer):
    size = len(tiny_tokenizer)
    with pytest.raises(CheckpointError, match=rf"of folder has {size} tokens, but the model embeds only {size - 1}"):
        check_tokenizer(tiny_config(vocab_size=size - 1), tiny_tokenizer, "folder")


@pytest.mark.parametrize(("name", "token"), [("sep_token", "."), ("pad_token", "[MASK]")])
def test_check_tokenizer_refuses_other_special_tokens(tiny_tokenizer, name, token):
    other = copy.deepcopy(tiny_tokenizer)
    setattr(other, name, token)
    expected, given = getattr(tiny_tokenizer, f"{name}_id"), other.convert_tokens_to_ids(token)
    with pytest.raises(CheckpointError, match=f"{name}_id is {given} in the tokenizer of folder, but {expected} in"):
        check_tokenizer(tiny_config(), other, "folder")
