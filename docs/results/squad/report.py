"""Make the tables of README.md in this folder from the raw results; `run.sh` calls it.

Everything between the two marker lines of README.md is replaced.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


HERE = Path(__file__).parent
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"


def read(name: str) -> Any:
    """Read one raw result."""
    return json.loads((HERE / "raw" / name).read_text(encoding="utf-8"))


def table(header: list[str], rows: list[list[str]]) -> str:
    """Lay out a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def accuracy_table() -> str:
    """F1 and EM on the development set, at true lengths."""
    scores = {kind: read(f"{kind}-pad-none.json")["budgets"] for kind in ("fp32", "int8")}
    macs = {name: budget["macs"] for name, budget in read("search.json")["budgets"].items()}
    reference = scores["fp32"]["full"]["f1"]
    rows = []
    for kind, budgets in scores.items():
        for budget, measured in budgets.items():
            retention = ", ".join(f"{ratio:g}" for ratio in measured["retention"] or [1.0] * 6)
            f1, em = measured["f1"], measured["exact_match"]
            millions = f"{macs[budget] / 1e6:.0f}"
            rows.append([kind, budget, retention, millions, f"{f1:.2f}", f"{em:.2f}", f"{f1 - reference:+.2f}"])
    return table(["", "budget", "retention", "MMACs", "F1", "EM", "F1 against fp32 full"], rows)


def padding_table() -> str:
    """F1 and EM on the development set, at true lengths and padded to 384."""
    plain, padded = (read(f"int8-pad-{pad}.json")["budgets"] for pad in ("none", "384"))
    rows = [
        ["int8", budget, *(f"{one[budget]['f1']:.2f} / {one[budget]['exact_match']:.2f}" for one in (plain, padded))]
        for budget in plain
    ]
    return table(["", "budget", "F1 / EM, true lengths", "F1 / EM, padded to 384"], rows)


def memory_table() -> str:
    """Peak memory of predict by number of questions."""
    rows = [[f"{row['questions']:,}", f"{row['peak_mib']:.0f}"] for row in read("memory.json")]
    return table(["questions", "peak memory, MiB"], rows)


def latency_table() -> str:
    """Milliseconds per window."""
    result = read("benchmark.json")
    rows = [
        [
            row["name"],
            row["precision"],
            str(row["threads"]),
            str(row["batch_size"]),
            row["padding"],
            f"{row['median_ms']:.2f}",
            f"{row['p90_ms']:.2f}",
            "-" if row["speedup"] is None else f"{row['speedup']:.2f}",  # a plain model has no budgets
        ]
        for row in result["rows"]
    ]
    header = [
        "model",
        "precision of float operations",
        "threads",
        "batch",
        "padding",
        "median ms",
        "p90 ms",
        "speed-up",
    ]
    return table(header, rows)


def main() -> None:
    """Rewrite the tables."""
    readme = HERE / "README.md"
    before, rest = readme.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    sizes = dict(line.split() for line in (HERE / "raw" / "files.txt").read_text().splitlines())
    graph = sum(int(sizes[f"openvino_model.{suffix}"]) for suffix in ("xml", "bin"))
    parts = ["## Accuracy, SQuAD 1.1 development set (10,570 questions)", accuracy_table()]
    parts += [
        "## Padded to 384 tokens, as in the paper",
        padding_table(),
        f"Size on disk of the int8 model (graph and weights): {graph / 1e6:.1f} MB.",
        "## Latency per window",
        latency_table(),
        "## Peak memory of `predict`",
        memory_table(),
    ]
    readme.write_text(before + BEGIN + "\n\n" + "\n\n".join(parts) + "\n\n" + END + after, encoding="utf-8")


if __name__ == "__main__":
    main()
