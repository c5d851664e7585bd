"""Make the tables of README.md in this folder from the raw results; `run.sh` calls it.

Everything between the two marker lines of README.md is replaced.
"""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any


HERE = Path(__file__).parent
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"
NAMES = {
    "torch": "torch",
    "without-plugin": "torch, without optimum-qala",
    "openvino-float": "OpenVINO float32",
    "openvino": "OpenVINO int8",
    "inc": "Intel Neural Compressor int8",
}


def read(name: str) -> Any:
    """Read one raw result."""
    return json.loads((HERE / "raw" / name).read_text(encoding="utf-8"))


def table(header: list[str], rows: list[list[str]]) -> str:
    """Lay out a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def files_table(repository: dict[str, Any]) -> str:
    """Sizes of the files of the repository."""
    return table(["file", "bytes"], [[f"`{name}`", f"{size:,}"] for name, size in repository["files"].items()])


def scores_table(answers: dict[str, Any]) -> str:
    """F1, EM and differences of the logits."""
    rows = []
    for budget, found in answers["budgets"].items():
        for kind, name in NAMES.items():
            scores, logits = found["scores"][kind], found["logits against torch"][kind]
            numbers = [scores["f1"], scores["exact_match"], logits["root mean square"], logits["largest"]]
            rows.append([budget, name, *(f"{number:.2f}" for number in numbers)])
    differences = "logits less those of torch"
    return table(["budget", "", "F1, %", "EM, %", f"{differences}, root mean square", f"{differences}, largest"], rows)


def equality_table(answers: dict[str, Any]) -> str:
    """Shares of equal answers."""
    rows = []
    for one, other in combinations(NAMES, 2):
        counts = [found["equal answers"][f"{one} = {other}"] for found in answers["budgets"].values()]
        shares = [f"{100 * count / answers['questions']:.0f} %" for count in counts]
        rows.append([f"{NAMES[one]} and {NAMES[other]}", *shares])
    return table(["equal answers of", *answers["budgets"]], rows)


def times_table(answers: dict[str, Any]) -> str:
    """Seconds from the start of the process, on the clock and of the processor."""
    rows = [
        [NAMES[kind], *(f"{times[step][unit]:.1f}" for step in times for unit in ("wall_s", "cpu_s"))]
        for kind, times in answers["times"].items()
    ]
    steps = next(iter(answers["times"].values()))
    return table(["", *(f"{step}, {unit} s" for step in steps for unit in ("clock", "CPU"))], rows)


def main() -> None:
    """Rewrite the tables."""
    readme = HERE / "README.md"
    before, rest = readme.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    repository, answers = read("repository.json"), read("answers.json")
    is_generated = "the generated one" if repository["card is the generated one"] else "another one"
    parts = [
        "## The repository",
        f"{len(repository['commits'])} commits, the first by the Hub itself; the card is {is_generated}; "
        f"{repository['size_bytes'] / 1e6:.1f} MB:",
        files_table(repository),
        f"## Answers to {answers['questions']} questions",
        scores_table(answers),
        equality_table(answers),
        "## Seconds from the start of the process",
        times_table(answers),
    ]
    readme.write_text(before + BEGIN + "\n\n" + "\n\n".join(parts) + "\n\n" + END + after, encoding="utf-8")


if __name__ == "__main__":
    main()
