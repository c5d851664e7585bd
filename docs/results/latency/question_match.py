"""Run a script with a model that is told which context tokens stand near words of the question. A prototype.

Usage: python question_match.py SCRIPT [ARGUMENTS ...], where SCRIPT trains, or scores exits, and
python question_match.py start MODEL DATA OUTPUT, which writes a model to start from: it computes what MODEL computes,
and holds the inverse document frequencies of DATA.

For each token of the context, features say how much of the question, each of its tokens weighted by its inverse
document frequency, is found within 0, 2, 5, 10, 20 and 45 tokens: as the same token, and as one whose embedding is
similar. A small network, which starts at zero, adds them to the embeddings.
"""

from __future__ import annotations

import math
import runpy
import sys
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoTokenizer

from optimum_qala import QuaLAMiniLMForQuestionAnswering
from optimum_qala.models import layers
from optimum_qala.question_answering.records import load_records


REACHES = (0, 2, 5, 10, 20, 45)
CLS, SEP, PAD = 101, 102, 0  # of the uncased vocabulary
LEAST_SIMILARITY, SIMILARITY_RANGE = 0.35, 0.4
SCALE = 5.0  # how much faster the network learns than the rest


class QuestionMatch(nn.Module):
    """Features of words that question and context share, as a vector to add to each embedding."""

    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.zeros(vocab_size))
        self.up = nn.Linear(2 * len(REACHES), 64)
        self.down = nn.Linear(64, hidden_size)

    @torch.no_grad()
    def features(self, input_ids: Tensor, embeddings: Tensor) -> Tensor:
        """Return `(batch_size, sequence_length, 2 * num_reaches)`; zero outside the context."""
        ends = input_ids == SEP
        question = (ends.cumsum(1) == 0) & (input_ids != CLS) & (input_ids != PAD)
        context = ((ends.cumsum(1) == 1) & ~ends).float()
        width = int(question.sum(1).max()) + 1
        asked = input_ids[:, :width]
        directions = functional.normalize(embeddings.float(), dim=-1)
        same = (input_ids[:, None, :] == asked[:, :, None]).float()
        similarity = directions[:, :width] @ directions.transpose(1, 2)
        similar = ((similarity - LEAST_SIMILARITY) / SIMILARITY_RANGE).clamp(0, 1)
        weights = (self.frequencies[asked] * question[:, :width])[:, :, None]
        found = [
            ((functional.max_pool1d(match, 2 * reach + 1, 1, reach) if reach else match) * weights).sum(1)
            for match in (same * context[:, None, :], similar * context[:, None, :])
            for reach in REACHES
        ]
        shared = torch.stack(found, dim=-1) * context[:, :, None]
        return torch.log1p(shared) - 1.2 * context[:, :, None]

    def forward(self, input_ids: Tensor, embeddings: Tensor) -> Tensor:
        """Return what is added, `(batch_size, sequence_length, hidden_size)`."""
        added: Tensor = SCALE * self.down(functional.gelu(self.up(self.features(input_ids, embeddings))))
        return added


class MatchingEmbeddings(layers.QuaLAMiniLMEmbeddings):
    """Embeddings with these features."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.match = QuestionMatch(config.vocab_size, config.hidden_size)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None, position_ids: Tensor | None) -> Tensor:
        """Embed."""
        embedded = super().forward(input_ids, token_type_ids, position_ids)
        return embedded + self.match(input_ids, self.word_embeddings(input_ids)).to(embedded.dtype)


def write_start(path: str, data: str, output: str) -> None:
    """Count in how many contexts each token stands, and write the model."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    contexts = {record.context for record in load_records(data)}
    counts: Counter[int] = Counter()
    for context in contexts:
        counts.update(set(tokenizer(context, add_special_tokens=False)["input_ids"]))
    model = QuaLAMiniLMForQuestionAnswering.from_pretrained(path)
    size, number = model.config.vocab_size, len(contexts)
    rarity = [4.0 * math.log(1 + number / (1 + counts[token])) / math.log(1 + number) for token in range(size)]
    match = model.quala.embeddings.match
    match.frequencies = torch.tensor(rarity)
    match.up.reset_parameters()
    nn.init.zeros_(match.down.weight)
    nn.init.zeros_(match.down.bias)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)


def main() -> None:
    """Run the script, or write the start."""
    from optimum_qala.models import modeling_quala_minilm

    modeling_quala_minilm.QuaLAMiniLMEmbeddings = MatchingEmbeddings
    script, *arguments = sys.argv[1:]
    if script == "start":
        write_start(*arguments)
        return
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
