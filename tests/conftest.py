"""Tiny, seeded models and tokenizers that need no network."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertTokenizerFast, PreTrainedTokenizerFast

from optimum_qala import QuaLAMiniLMConfig, QuaLAMiniLMForQuestionAnswering


SHARED = Path(__file__).resolve().parents[2] / "shared"

WORDS = (
    "the a an of in on at to and is was who what where when which how many river city king queen book tower old "
    "new red blue green large small north south built wrote found lived died born year day people water stone "
    "gold paris london rome berlin anna peter maria john one two three four five six seven eight nine ten hundred "
    "thousand . , ? ! - ' s"
).split()


def pytest_configure() -> None:
    """Workers of pytest-xdist, and what they start, share the cores: each takes its part of the threads of torch."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1:
        threads = max(1, (os.cpu_count() or 1) // workers)
        torch.set_num_threads(threads)
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A BERT tokenizer over about a hundred words; unknown words become single letters."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    pieces += [piece for letter in letters for piece in (letter, f"##{letter}") if piece not in pieces]
    pieces += [piece for digit in "0123456789" for piece in (digit, f"##{digit}")]
    tokenizer = Tokenizer(models.WordPiece({piece: index for index, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return BertTokenizerFast(tokenizer_object=tokenizer, model_max_length=128)


def tiny_config(**overrides: Any) -> QuaLAMiniLMConfig:
    """Four layers of width 32: small enough to run everything in milliseconds."""
    sizes = {
        "vocab_size": 200,
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 128,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "sep_token_id": 3,
        "initializer_range": 0.3,  # spreads the logits, so that tests see differences
    }
    return QuaLAMiniLMConfig(**(sizes | overrides))


@pytest.fixture(scope="session")
def _tiny_model() -> QuaLAMiniLMForQuestionAnswering:
    torch.manual_seed(0)
    return QuaLAMiniLMForQuestionAnswering(tiny_config()).eval()


@pytest.fixture
def tiny_model(_tiny_model: QuaLAMiniLMForQuestionAnswering) -> QuaLAMiniLMForQuestionAnswering:
    """A seeded random model; each test gets its own copy."""
    return copy.deepcopy(_tiny_model)


@pytest.fixture(scope="session")
def inc_folder(tiny_tokenizer, tmp_path_factory) -> Path:
    """An int8 model of Intel Neural Compressor, of two layers to be compiled soon; read only."""
    from tests.inc_models import quantize_tiny

    path = tmp_path_factory.mktemp("inc") / "int8"
    budgets = {"fast": {"retention": [1.0, 0.5]}, "shallow": {"retention": [1.0, 0.6], "exit_layer": 1}}
    quantize_tiny(path, tiny_tokenizer, 2, budgets)
    return path


@pytest.fixture(scope="session")
def compile_cache(tmp_path_factory) -> Path:
    """Where that model is compiled at full depth, by the first test that needs it; under a home of Hugging Face."""
    return tmp_path_factory.mktemp("huggingface") / "optimum_qala" / "compiled"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real data; skips where it is absent."""
    if not (SHARED / "data" / "qa").is_dir():
        pytest.skip("../shared/data/qa is absent")
    return SHARED / "data" / "qa"


@pytest.fixture(scope="session")
def shared_model() -> Path:
    """Folder of a real fine-tuned MiniLM; skips where it is absent."""
    if not (SHARED / "models" / "minilm-qa").is_dir():
        pytest.skip("../shared/models/minilm-qa is absent")
    return SHARED / "models" / "minilm-qa"
