"""Peak memory of `optimum-cli qala predict` on more and more questions, each in a process of its own.

Usage: python memory.py MODEL DATA OUTPUT.json
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


COUNTS = (1000, 5000, 10000)


def measure(model: str, data: str, count: int) -> dict[str, Any]:
    """Answer `count` questions at the budget "balanced"; return peak memory in MiB and wall seconds."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["optimum-cli", "qala", "predict", "--model", model, "--data", data, "--limit", str(count)]
        command += ["--budget", "balanced", "--output", str(Path(folder) / "answers.jsonl")]
        began = time.perf_counter()
        process = subprocess.Popen(command)
        _, status, usage = os.wait4(process.pid, 0)
        if status != 0:
            raise RuntimeError(f"{command} failed")
        seconds = time.perf_counter() - began
        answers = sum(1 for _ in (Path(folder) / "answers.jsonl").open(encoding="utf-8"))
    return {"questions": answers, "peak_mib": usage.ru_maxrss / 1024, "seconds": seconds}


def main() -> None:
    """Measure and write."""
    model, data, output = sys.argv[1:]
    Path(output).write_text(json.dumps([measure(model, data, count) for count in COUNTS], indent=2) + "\n")


if __name__ == "__main__":
    main()
