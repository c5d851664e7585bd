"""Time what a newcomer does: clone, the README's first command, card, push, an answer by repository id.

Usage: newcomer.py REPOSITORY WORK OUTPUT_JSON
REPOSITORY is what `git clone` takes; WORK must not exist. The commands and the code are those of the README and of the
tutorial, with the folders of the quickstart in place of the reader's. The Hub is that of the tests, on the loopback
address. Run it from any clone of the repository, in an environment that has huggingface_hub.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from datetime import date
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from tests.hub_server import HubServer


TOKEN, REPO_ID = "hf_writer", "your-name/quala-minilm"
FOLDERS = {
    "int8": "qala-quickstart/int8",
    "searched": "qala-quickstart/searched",
    "test.json": "qala-quickstart/data/test.json",
}
QUESTION = {"question": "Who wrote it?", "context": "Ada wrote it in 1843."}


def code_block(page: Path, heading: str, language: str, containing: str = "") -> str:
    """Take the first code block of a language below a heading that contains some text."""
    text = page.read_text(encoding="utf-8").partition(f"\n{heading}\n")[2]
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return next(block.strip() for block in blocks if containing in block)


def main() -> None:
    """Take every step, and write the seconds of each."""
    repository, work, output = sys.argv[1], Path(sys.argv[2]).resolve(), Path(sys.argv[3])
    work.mkdir(parents=True)
    clone = work / "optimum-qala"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON", "VIRTUAL_ENV"))}
    seconds: dict[str, float] = {}

    def take(name: str, command: str, folder: Path, **settings: str) -> str:
        began = time.perf_counter()
        environment = {**kept, **settings}
        done = subprocess.run(
            ["bash", "-c", command], cwd=folder, env=environment, check=True, stdout=subprocess.PIPE, text=True
        )
        seconds[name] = time.perf_counter() - began
        sys.stderr.write(f"{name}: {seconds[name]:.1f} s\n")
        return done.stdout

    take("clone", f"git clone --quiet {repository} {clone}", work)
    parts = code_block(clone / "README.md", "## Quickstart", "bash").split(" && ")
    for name, command in zip(("virtual environment", "installation", "quickstart"), parts, strict=True):
        take(name, command, clone)
    tutorial = clone / "docs" / "tutorials" / "first_model.md"
    optimum_cli = clone / ".venv" / "bin" / "optimum-cli"
    benchmark = code_block(tutorial, "## 4. Evaluate", "bash", containing="benchmark")
    report = code_block(tutorial, "## 6. Share", "bash")
    for name, command in (("benchmark", benchmark), ("card", report)):
        words = [FOLDERS.get(word, word) for word in command.split()]
        take(name, " ".join([str(optimum_cli), *words[1:]]), clone)
    push = code_block(tutorial, "## 6. Share", "python").replace('"int8', f'"{FOLDERS["int8"]}')
    (work / "push.py").write_text(push, encoding="utf-8")
    with HubServer({TOKEN: "write"}) as hub:
        settings = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
        take("push", f".venv/bin/python {work}/push.py", clone, HF_HOME=str(work / "home"), **settings)
        seconds["clone to pushed model"] = sum(seconds.values())
        ask = f"echo '{json.dumps(QUESTION)}' | {optimum_cli} qala predict --model {REPO_ID} --data -"
        answer = take("an answer elsewhere", ask, work, HF_HOME=str(work / "elsewhere"), **settings)
        files = {name: len(data) for name, data in sorted(hub.repositories[REPO_ID].head().files.items())}
    result = {"date": date.today().isoformat(), "seconds": seconds, "answer": json.loads(answer), "files": files}
    output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
