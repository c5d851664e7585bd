"""The flags of the commands that measure a model and describe it; see `_qala_flags`."""

from __future__ import annotations

import argparse

import optimum.commands.register._qala_flags as flags


def benchmark(parser: argparse.ArgumentParser) -> None:
    flags.describe(
        parser,
        "Measure F1 and milliseconds on the true lengths of a data file, all interleaved in one process, and\n"
        "write results.json, results.md and, with matplotlib, results.png.",
        "  optimum-cli qala benchmark --model int8 --data dev.json --output report\n"
        "  optimum-cli qala benchmark --model int8 --data dev.json --budget full --budget fast --output report\n"
        "  optimum-cli qala benchmark --model int8 --data dev.json --output report --buckets --bulk \\\n"
        "      --plain ./minilm --calibration-data train.json --depths 5 4 3 --bert-base --pad-to 384",
    )
    flags.model(parser)
    flags.data(parser)
    flags.output(parser)
    flags.budgets(parser, f"measure this budget; may be repeated (default: all): {flags.BUDGET_HELP}")
    flags.backend(parser)
    flags.compiling(parser)
    flags.peers(parser)
    flags.timing(parser)
    parser.add_argument("--no-f1", action="store_true", help="leave F1 out, which takes longest on large data")
    flags.buckets(parser)
    flags.windows(parser)
    flags.common(parser)


def report(parser: argparse.ArgumentParser) -> None:
    flags.describe(
        parser,
        "Write README.md, the model card, of what the files of a model folder say was measured, with metadata\n"
        "for the Hub, and with matplotlib latency.png and tokens.png. Text that you wrote is kept. --question\n"
        "and --context add example.png and example.html: which tokens of a text leave at which layer.",
        "  optimum-cli qala report --model int8\n"
        "  optimum-cli qala report --model int8 --benchmark benchmark/results.json --repo-id org/name\n"
        '  optimum-cli qala report --model searched --question "Who wrote it?" --context "Ada wrote it."',
    )
    parser.add_argument(
        "--model",
        required=True,
        metavar="FOLDER",
        help="model folder, or one with models in its sub-folders openvino and inc",
    )
    parser.add_argument("--benchmark", metavar="FILE", help="results.json that benchmark wrote for this model")
    parser.add_argument("--repo-id", metavar="ID", help="what users will load it by (default: the folder's name)")
    parser.add_argument("--base-model", metavar="ID", help="repository that it was made of (default: if known)")
    flags.switch(
        parser, "--remote-code", "remote_code", True, "say how to load what push_to_hub(remote_code=True) will push"
    )
    parser.add_argument(
        "--output", metavar="FOLDER", help="new folder for the result (default: the model folder itself)"
    )
    group = parser.add_argument_group("example")
    group.add_argument("--question", metavar="TEXT", help="question of the example")
    group.add_argument("--context", metavar="TEXT", help="its text")
    group.add_argument("--budget", metavar="BUDGET", help=f"{flags.BUDGET_HELP} (default: the one that drops most)")
    group.add_argument(
        "--torch-model", metavar="MODEL", help="what shows it, where the folder has no torch model itself"
    )
    flags.common(parser)
