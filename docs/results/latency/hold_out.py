"""Take articles out of training data, and search budgets on them.

Usage: python hold_out.py TRAIN VALIDATION KEPT SEARCH [TITLE ...]. A few hundred validation questions find a lucky
config; the ten articles of the default, which look like the development set, and the validation questions together are
2,453. KEPT is what is left to train on.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


TITLES = {
    "Andes",
    "Antibiotics",
    "Drum_and_bass",
    "Ice_hockey",
    "Istanbul",
    "Latin",
    "Lens",
    "Morality",
    "Tin",
    "University_of_Notre_Dame",
}


def main() -> None:
    """Read and write."""
    train, validation, kept, search = map(Path, sys.argv[1:5])
    titles = set(sys.argv[5:]) or TITLES
    data = json.loads(train.read_text(encoding="utf-8"))
    held = [article for article in data["data"] if article["title"] in titles]
    if len(held) != len(titles):
        raise SystemExit(f"{train} lacks {sorted(titles - {article['title'] for article in held})}")
    others = json.loads(validation.read_text(encoding="utf-8"))["data"]
    for path, articles in (
        (kept, [article for article in data["data"] if article["title"] not in titles]),
        (search, held + others),
    ):
        path.write_text(json.dumps({"version": "1.1", "data": articles}), encoding="utf-8")


if __name__ == "__main__":
    main()
