"""Count the gold answers that survive where tokens are chosen by the words of the question that stand near them.

Usage: python overlap.py TOKENIZER DATA OUTPUT_JSON [LIMIT]. No model is run: a token's score is the sum, over the
words that the question and the context share, of their inverse document frequency, falling linearly with the distance
to the nearest one. Words are compared by their first five letters. The question survives, as it does in the model.
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer

from optimum_qala.question_answering.features import make_windows
from optimum_qala.question_answering.records import load_records
from optimum_qala.question_answering.windows import WindowOptions


REACHES = (5, 10, 20, 30, 45)  # tokens at which a word no longer counts
RATIOS = (0.9, 0.8, 0.7, 0.6, 0.5)
COMMON = frozenset(
    "the a an of in on at to and is was were are be been has have had did does do what which who when where why how "
    "that this it its by for with as from or ? , . ' s many much name".split()
)


def main() -> None:
    """Measure and write."""
    path, data, output, *rest = sys.argv[1:]
    records = load_records(data, require_answers=True)
    limit = int(rest[0]) if rest else None
    random.Random(0).shuffle(records)
    tokenizer = AutoTokenizer.from_pretrained(path)
    windows = make_windows(records[:limit], tokenizer, WindowOptions(), with_positions=True)
    windows = [window for window in windows if window.start_position != window.cls_index]
    words = [tokenizer.convert_ids_to_tokens(window.input_ids) for window in windows]
    frequency = Counter(word for own in {tuple(own) for own in words} for word in set(own))
    kept = {reach: dict.fromkeys(RATIOS, 0) for reach in REACHES}
    for window, own in zip(windows, words, strict=True):
        first = own.index(tokenizer.sep_token) + 1
        question, context = own[:first], own[first:]
        shared = {
            word[:5]: math.log(1 + len(words) / (1 + frequency[word])) for word in question if word not in COMMON
        }
        places = {
            stem: [place for place, word in enumerate(context) if word[:5] == stem and word not in COMMON]
            for stem in shared
        }
        gold = set(range(window.start_position - first, window.end_position - first + 1))
        distances = np.abs(np.arange(len(context))[:, None] - np.arange(len(context))[None, :])
        for reach in REACHES:
            near = np.maximum(0.0, 1.0 - distances / reach)
            scores = sum(
                (shared[s] * near[:, at].max(axis=1) for s, at in places.items() if at), np.zeros(len(context))
            )
            order = np.argsort(-scores, kind="stable")
            for ratio in RATIOS:
                room = max(0, math.ceil(ratio * len(own)) - first)
                kept[reach][ratio] += gold <= set(order[:room].tolist())
    report = {
        "num_windows": len(windows),
        "answers_kept": {
            str(reach): {str(ratio): 100.0 * count / len(windows) for ratio, count in counts.items()}
            for reach, counts in kept.items()
        },
    }
    Path(output).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
