"""The flags of `optimum-cli qala`, in groups. Imports nothing but argparse, as every start of `optimum-cli` reads it.

Flags have no defaults here (`argparse.SUPPRESS`): one that is not given is not passed on, and the dataclass that
receives the others has the only default, against which a test checks the help texts.
"""

from __future__ import annotations

import argparse
from typing import Any


EXIT_CODES = """\
exit codes:
  0 done, 1 error (one line on standard error says what to do), 2 wrong usage,
  70 internal error, 130 interrupted, 141 the reader of standard output went away
  --debug or QALA_DEBUG=1 adds the traceback"""

DATA_HELP = "SQuAD JSON file, JSONL file, or datasets id such as squad:validation"
TEXT_HELP = "file of plain text, one text a line; or SQuAD JSON, JSONL or a datasets id, with texts or contexts"
BUDGET_HELP = "budget name, 'full', or ratios such as 1,1,0.8,0.8,0.5,0.5 or, to stop after 5 layers, 1,1,1,1,1,1@5"


def describe(parser: argparse.ArgumentParser, description: str, examples: str) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.argument_default = argparse.SUPPRESS
    parser.allow_abbrev = False
    parser.description = description
    parser.epilog = f"examples:\n{examples}\n\n{EXIT_CODES}"


def number(parser: argparse._ActionsContainer, flag: str, kind: type, help_text: str, **options: Any) -> None:
    parser.add_argument(flag, type=kind, metavar="N" if kind is int else "X", help=help_text, **options)


def switch(parser: argparse._ActionsContainer, flag: str, dest: str, value: Any, help_text: str) -> None:
    parser.add_argument(flag, dest=dest, action="store_const", const=value, help=help_text)


def common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="write one JSON object to standard output")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def model(parser: argparse.ArgumentParser, required: bool = True) -> None:
    parser.add_argument("--model", required=required, metavar="MODEL", help="model folder or Hub repository id")
    revision(parser)


def revision(parser: argparse.ArgumentParser, flag: str = "--model") -> None:
    parser.add_argument("--revision", metavar="NAME", help=f"branch, tag or commit of {flag}, a repository on the Hub")


def backend(parser: argparse.ArgumentParser, help_text: str = "default: what the folder holds") -> None:
    parser.add_argument("--backend", choices=("torch", "openvino", "inc"), help=help_text)


def data(parser: argparse.ArgumentParser, help_text: str = DATA_HELP, items: str = "questions") -> None:
    parser.add_argument("--data", required=True, metavar="DATA", help=help_text)
    number(parser, "--limit", int, f"use the first N {items} only")


def output(parser: argparse.ArgumentParser, required: bool = True) -> None:
    parser.add_argument(
        "--output", required=required, metavar="FOLDER", help="new folder for the result; must not hold anything yet"
    )


def budgets(parser: argparse.ArgumentParser, help_text: str) -> None:
    parser.add_argument("--budget", action="append", metavar="BUDGET", help=help_text)


def measured_budget(parser: argparse.ArgumentParser, help_text: str, **options: Any) -> None:
    """Declare `--budget` and the flags that choose one by what was measured; only one of them may be given."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--budget", metavar="BUDGET", help=help_text, **options)
    number(group, "--max-latency-ms", float, "the most accurate budget measured at or under X ms on this machine")
    number(group, "--max-f1-loss", float, "the cheapest budget that loses at most this share of the full F1")


def windows(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    group = parser.add_argument_group("windows")
    number(group, "--max-length", int, "tokens of a window (default: 384)")
    number(group, "--doc-stride", int, "tokens that windows share (default: 128)")
    number(group, "--max-question-length", int, "longest question in tokens (default: half a window)")
    group.add_argument("--truncate-question", action="store_true", help="cut a longer question instead of refusing it")
    return group


def decoding(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    group = parser.add_argument_group("answers")
    number(group, "--max-answer-length", int, "longest answer in tokens (default: 30)")
    number(group, "--n-best", int, "spans of a window that compete (default: 20)")
    group.add_argument("--allow-no-answer", action="store_true", help="an empty answer may win (SQuAD v2)")
    number(group, "--null-threshold", float, "how far 'no answer' must exceed the best span to win (default: 0.0)")
    return group


def batching(parser: argparse.ArgumentParser) -> None:
    number(parser, "--batch-size", int, "windows per batch (default: 32)")


def buckets(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "buckets", "Any of these runs an OpenVINO graph of its own for each padded length, compiled on first use."
    )
    group.add_argument("--buckets", action="store_true", help="run in buckets")
    number(group, "--length-multiple", int, "pad to the next multiple of N tokens (default: 32)")
    number(group, "--batch-tokens", int, "tokens of a bulk batch (default: 2048)")
    number(group, "--max-graphs", int, "compiled graphs that are kept (default: 32)")
    switch(group, "--throughput", "performance_hint", "throughput", "run several batches side by side")
    group.add_argument("--cache-dir", metavar="FOLDER", help="keep compiled graphs here for the next start")


def compiling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile an int8 model of Intel Neural Compressor, for this and the next start; needs a C++ compiler",
    )


def peers(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("models to compare with")
    group.add_argument(
        "--peer",
        action="append",
        metavar="MODEL",
        help="measure this model too, at full length and, if it has budgets, at those of --budget; may be repeated",
    )
    group.add_argument(
        "--plain", metavar="MODEL", help="plain torch checkpoint: measure it in float32 and in int8 by optimum-intel"
    )
    group.add_argument("--calibration-data", metavar="DATA", help="calibrate its int8 with these (default: --data)")
    number(group, "--calibration-samples", int, "questions to calibrate with (default: 300)")
    group.add_argument(
        "--depths",
        nargs="+",
        type=int,
        metavar="K",
        help="stop after K layers too: the plain model cut, and a model with early span heads",
    )
    group.add_argument(
        "--bert-base", action="store_true", help="measure a model of BERT-base shape, with random weights and no F1"
    )
    number(group, "--seed", int, "seed of calibration and random weights (default: 42)")


def timing(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("timing")
    number(group, "--batch-size", int, "windows per call; repeatable (default: 1 and 32)", action="append")
    number(group, "--num-windows", int, "windows of the data to time on (default: 64)")
    number(group, "--repeats", int, "timed passes over them (default: 5)")
    number(group, "--warmup", int, "passes before that are not timed (default: 1)")
    number(group, "--slow-batches", int, "batches of a pass that BERT-base runs (default: 8)")
    number(group, "--slow-repeats", int, "timed passes that it runs (default: 2)")
    number(group, "--pad-to", int, "measure with every window padded to N too")
    number(group, "--threads", int, "threads of one call (default: what the back end chooses)")
    group.add_argument("--bulk", action="store_true", help="time all windows in bulk too, as predict runs them")
    number(group, "--bulk-windows", int, "the same for N windows")
    number(group, "--bulk-repeats", int, "timed passes in bulk (default: 1)")


def steps(
    parser: argparse.ArgumentParser,
    rows: str = "windows",
    learning_rate: str = "5e-05",
    weight_decay: str = "0.0",
    warmup_steps: str = "0",
) -> None:
    group = parser.add_argument_group("training")
    number(group, "--num-train-epochs", float, "passes over the data (default: 3.0)")
    number(group, "--max-steps", int, "stop after this many steps")
    number(group, "--batch-size", int, f"{rows} per batch (default: 8)", dest="per_device_train_batch_size")
    number(group, "--gradient-accumulation-steps", int, "batches per optimisation step (default: 1)")
    number(group, "--learning-rate", float, f"highest learning rate (default: {learning_rate})")
    number(group, "--weight-decay", float, f"weight decay (default: {weight_decay})")
    number(group, "--warmup-steps", float, f"steps, or share of all if below 1 (default: {warmup_steps})")
    number(group, "--save-steps", float, "checkpoint every X steps, or share of all if below 1")
    number(group, "--dropout", float, "share of values dropped while training (default: as the model's config says)")
    group.add_argument("--bf16", action="store_true", help="compute in bfloat16 where that is safe")
    number(group, "--seed", int, "seed of everything random (default: 42)")
    group.add_argument(
        "--report-to", choices=("none", "tensorboard"), help="where else losses and scores go (default: none)"
    )


def student(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("student")
    group.add_argument("--student", metavar="MODEL", help="train this encoder further, instead of a new one")
    number(group, "--student-layers", int, "layers of a new student (default: 6)", dest="num_hidden_layers")
    number(group, "--student-hidden-size", int, "its width (default: 384)", dest="hidden_size")
    number(group, "--student-heads", int, "its attention heads (default: 12)", dest="num_attention_heads")
    number(
        group,
        "--student-intermediate-size",
        int,
        "width of its feed-forward layers (default: four times its width)",
        dest="intermediate_size",
    )
    group.add_argument(
        "--init-layers",
        type=layers,
        metavar="I,J,...",
        help="layers of the teacher, from 0, to start from, with its widths and heads (default: random weights)",
    )


def relations(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("distillation")
    group.add_argument(
        "--method",
        choices=("minilmv2", "minilm"),
        help="minilmv2 (relations of one layer) or minilm (attention of the last layer) (default: minilmv2)",
    )
    number(group, "--teacher-layer", int, "layer of the teacher, from 0, to learn from (default: as in the paper)")
    number(group, "--relation-heads", int, "heads that minilmv2 compares (default: as in the paper)")
    group.add_argument(
        "--teacher-cache",
        metavar="FOLDER",
        help="keep what the teacher computes here, so that it runs in one epoch only",
    )


def texts(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("texts")
    number(group, "--max-length", int, "tokens of a row (default: 512, or what teacher and student take)")
    switch(group, "--no-packing", "packing", False, "one text a row, instead of filling every row")


def adaptivity(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("length-adaptive training")
    number(group, "--drop-ratio-bound", float, "most that a layer drops (default: 0.2)")
    number(group, "--num-random-sub-models", int, "random sub-models a step (default: 1)")
    switch(group, "--no-smallest-sub-model", "smallest_sub_model", False, "leave the smallest sub-model out")
    number(group, "--layer-drop-prob", float, "layers that sub-models skip (default: 0.0)")
    number(group, "--deep-supervision-weight", float, "loss of the early span heads, if there are any (default: 1.0)")
    number(group, "--early-exit-prob", float, "random sub-models that stop at an early span head (default: 0.0)")
    number(group, "--min-exit-layer", int, "fewest layers of these; heads before only choose tokens (default: 1)")
    group.add_argument("--divergence", choices=("forward", "reverse", "skew"), help="kind of KL (default: forward)")
    number(group, "--skew", float, "mixture of skew KL (default: 0.1)")
    number(group, "--temperature", float, "divides logits to compare (default: 1.0)")
    number(group, "--sub-model-label-weight", float, "labels in a sub-model's loss (default: 0.0)")
    group.add_argument("--teacher", metavar="MODEL", help="fine-tuned model with the same vocabulary to learn from")
    number(group, "--teacher-weight", float, "its share of the loss (default: 0.5)")
    losses(group, "--auxiliary-losses", "losses between the layers of the model and of the teacher, and their weights")
    losses(group, "--sub-model-auxiliary-losses", "the same between the layers of sub-models and of the full model")
    group.add_argument(
        "--teacher-layers",
        type=layers,
        metavar="I,J,...",
        help="layer of the teacher, from 0, for each layer of the model (default: spread evenly)",
    )
    number(group, "--relation-heads", int, "heads of the loss 'relations' (default: the attention heads)")
    number(group, "--mutual-information-alpha", float, "bound of this loss, 0 NWJ to 1 InfoNCE (default: 0.5)")
    number(group, "--mutual-information-tokens", int, "tokens of a batch that it compares (default: 512)")


def rounding(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("quantization-aware training")
    group.add_argument(
        "--quantization-aware", action="store_true", help="round weights and activations as an int8 model does"
    )
    number(group, "--weight-bits", int, "of the layers' weights: 8, 4, or 2 for ternary (default: 8)")
    number(group, "--outlier-factor", float, "neurons this far above the usual stay float (default: 2.0)")
    switch(group, "--no-outlier-neurons", "outlier_factor", 0.0, "round all neurons")
    number(group, "--range-averaging", float, "weight of a step in the ranges of activations (default: 0.1)")


def losses(parser: argparse._ActionsContainer, flag: str, help_text: str) -> None:
    parser.add_argument(flag, metavar="LOSSES", help=f"{help_text}, as in hidden_states=1,relations=0.5")


def token_selection(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("token selection")
    group.add_argument(
        "--token-scoring", choices=("answer", "attention", "question"), help="score (default: question)"
    )
    number(group, "--score-pooling", int, "neighbours that share a score (default: 4)")
    switch(group, "--span-heads", "span_heads", True, "early span heads, to stop early; always there with answer")
    group.add_argument(
        "--protected-tokens", choices=("question", "cls", "none"), help="tokens that always stay (default: question)"
    )
    number(group, "--min-tokens", int, "tokens that a layer keeps at least (default: 2)")
    group.add_argument(
        "--drop-layers", type=layers, metavar="I,J,...", help="layers that may drop, from 0 (default: all)"
    )


def layers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def search(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("search")
    group.add_argument(
        "--cost",
        choices=("macs", "latency", "measured-latency"),
        help="what to save; latency is predicted from a few measurements (default: macs)",
    )
    group.add_argument("--method", choices=("evolution", "optuna"), help="how to search (default: evolution)")
    number(group, "--iterations", int, "rounds of evolution (default: 30)")
    number(group, "--population-size", int, "configs to start from (default: 20)")
    number(group, "--mutations", int, "new mutants per round (default: 6)")
    number(group, "--crossovers", int, "new crossovers per round (default: 4)")
    number(group, "--mutation-probability", float, "per ratio of a mutant, and for its exit (default: 0.5)")
    number(group, "--merge-probability", float, "that a mutant has a layer stop dropping (default: 0.3)")
    number(group, "--parent-loss", float, "relative F1 loss beyond which a config has no children (default: 0.5)")
    number(group, "--drop-ratio-bound", float, "most that a layer drops (default: 0.4)")
    number(group, "--step", float, "grid of ratios (default: 0.05)")
    exits = group.add_mutually_exclusive_group()
    number(exits, "--min-exit-layer", int, "fewest layers that may run, with early span heads (default: half of them)")
    switch(exits, "--no-exits", "exit_layers", (), "always run all layers")
    number(group, "--max-evaluations", int, "stop after scoring this many configs (default: 72)")
    number(group, "--subset-size", int, "questions that every config is scored on (default: 256)")
    number(group, "--subset-seed", int, "seed of their choice (default: 0)")
    number(group, "--finalists", int, "configs that are then scored on all questions (default: 12)")
    number(group, "--tolerance", float, "how far below the front these may be, in points of F1 (default: 1.0)")
    number(group, "--accurate-loss", float, "relative F1 loss of 'accurate' (default: 0.01)")
    number(group, "--max-loss", float, "relative F1 loss of any budget (default: 0.5)")
    number(group, "--seed", int, "seed of the search (default: 0)")
