"""`optimum-cli qala report`: the model card of a folder and its pictures."""

from __future__ import annotations

import shlex
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from optimum_qala._folders import new_folder, umask, write_json
from optimum_qala.cli.console import Console
from optimum_qala.cli.loading import load_model
from optimum_qala.cli.options import window_options
from optimum_qala.errors import CheckpointError, ConfigurationError, MissingExtraError, OutputExistsError
from optimum_qala.models.hub_card import is_shown
from optimum_qala.reporting.card_sections import EXAMPLE_PAGE, FIGURES
from optimum_qala.reporting.example import trace_example
from optimum_qala.reporting.example_picture import example_html, plot_example
from optimum_qala.reporting.facts import BENCHMARK_NAME, ModelFacts, read_facts
from optimum_qala.reporting.figures import draw_figures
from optimum_qala.reporting.model_card import CARD_NAME, make_model_card


EXAMPLE_PICTURE, _ = FIGURES["example"]
EXAMPLE_FLAGS = ("budget", "torch_model")  # that mean nothing without an example


def run(args: Namespace, console: Console) -> None:
    """Make the card and the pictures.

    Args:
        args: The parsed command line.
        console: Where to write.

    Raises:
        CheckpointError: If there is no such folder.
        ConfigurationError: If flags contradict one another.
        OutputExistsError: If the output holds something, or a file of the folder is in the way.
    """
    folder = Path(args.model)
    if not folder.is_dir():
        raise CheckpointError(f"model folder {folder} does not exist; report reads the files of a folder")
    _check_example_flags(args)
    facts = replace(read_facts(folder, getattr(args, "benchmark", None)), remote_code="remote_code" in args)
    if facts.remote_code and facts.variants[0].backend != "torch":
        raise ConfigurationError(f"--remote-code is for a torch model, and {folder} holds none; leave it out")
    with _target(args, folder) as work:
        left_out = draw_figures(facts, work)
        if facts.benchmark is not None:
            write_json(work / BENCHMARK_NAME, _without_folders(facts.benchmark))
        if "question" in args:
            left_out |= _draw_example(args, facts, work)
        names = {path.name for path in work.iterdir()}
        if "output" not in args:  # an example that was made before stays
            names |= {name for name in (EXAMPLE_PICTURE, EXAMPLE_PAGE) if (folder / name).is_file()}
        card = folder / CARD_NAME
        text = make_model_card(
            replace(facts, figures=frozenset(names)),
            repo_id=getattr(args, "repo_id", None),
            base_model=getattr(args, "base_model", None),
            existing=card.read_text(encoding="utf-8") if card.is_file() else None,
        )
        (work / CARD_NAME).write_text(text, encoding="utf-8")
        files = sorted(path.name for path in work.iterdir())
    for name, reason in left_out.items():
        console.info(f"no {name}: {reason}")
    output = getattr(args, "output", args.model)
    summary = {"model": args.model, "output": output, "files": files, "left_out": left_out}
    console.result(summary, f"written to {output}: {', '.join(files)}")


def _without_folders(content: Any, key: str = "") -> Any:
    """Copy a benchmark with names in place of absolute paths, which are nobody's business on the Hub."""
    if isinstance(content, Mapping):
        return {name: _without_folders(value, name) for name, value in content.items()}
    if isinstance(content, list):
        return [_without_folders(value) for value in content]
    if key == "command":
        return shlex.join("=".join(map(_without_folders, word.split("=", 1))) for word in shlex.split(content))
    return Path(content).name if isinstance(content, str) and Path(content).is_absolute() else content


def _check_example_flags(args: Namespace) -> None:
    if ("question" in args) != ("context" in args):
        given, missing = ("question", "context") if "question" in args else ("context", "question")
        raise ConfigurationError(f"--{given} needs --{missing}: an example is a question and its text")
    for name in EXAMPLE_FLAGS:
        if name in args and "question" not in args:
            raise ConfigurationError(f"--{name.replace('_', '-')} needs --question and --context, the example to show")


@contextmanager
def _target(args: Namespace, folder: Path) -> Iterator[Path]:
    """Give a folder to write to: a new one, or one whose files then replace those of an earlier report."""
    if "output" in args:
        with new_folder(args.output) as work:
            yield work
        return
    with tempfile.TemporaryDirectory(dir=folder, prefix=".report-", suffix=".tmp") as name:
        work = Path(name)
        yield work
        made = sorted(work.iterdir(), key=lambda path: path.name == CARD_NAME)  # the card last: it shows the others
        _check_replaced(folder, made)
        for path in made:
            path.chmod(0o666 & ~umask())
            path.replace(folder / path.name)


def _check_replaced(folder: Path, made: list[Path]) -> None:
    """Raise if a file that would be replaced is not one that the card shows, hence somebody else's."""
    card = folder / CARD_NAME
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    for path in made:
        old = folder / path.name
        if (
            path.name != CARD_NAME
            and old.exists()
            and not is_shown(path.name, text)
            and old.read_bytes() != path.read_bytes()
        ):
            raise OutputExistsError(
                f"{old} exists and is not of an earlier report; nothing was written: rename it, or name a new folder "
                "with --output"
            )


def _draw_example(args: Namespace, facts: ModelFacts, work: Path) -> dict[str, str]:
    """Run the model on the example; return what was left out, and why."""
    path = getattr(args, "torch_model", None)
    variant = facts.variants[0]
    if path is None:
        if variant.backend != "torch":
            raise ConfigurationError(
                f"{facts.folder} holds no torch model, and only that says which tokens it drops; name the one that it "
                "was made of with --torch-model"
            )
        path = str(facts.folder / variant.subfolder)
    budget = getattr(args, "budget", None) or _dropping_budget(facts)
    loaded = load_model(path, "torch")
    if not hasattr(loaded.model, "set_budget"):
        raise CheckpointError(f"{path} is a plain {loaded.model.config.model_type!r} model, which drops no tokens")
    loaded.model.config.budgets = dict(variant.budgets)  # those of the folder, which the torch model may not have
    options = window_options(args, loaded.capacity)
    example = trace_example(loaded.model, loaded.tokenizer, args.question, args.context, budget, options)
    (work / EXAMPLE_PAGE).write_text(example_html(example), encoding="utf-8")
    try:
        plot_example(example, work / EXAMPLE_PICTURE)
    except MissingExtraError as error:
        return {EXAMPLE_PICTURE: str(error)}
    return {}


def _dropping_budget(facts: ModelFacts) -> str:
    """Choose the budget that drops most."""
    budgets: dict[str, Any] = facts.variants[0].budgets
    smallest = {name: min(one["retention"][: one.get("exit_layer")]) for name, one in budgets.items()}
    dropping = [name for name, ratio in smallest.items() if ratio < 1.0]
    if not dropping:
        raise ConfigurationError(
            f"no budget of {facts.folder} drops tokens; give ratios with --budget, such as 1,1,0.8,0.8,0.5,0.5"
        )
    return min(dropping, key=lambda name: smallest[name])
