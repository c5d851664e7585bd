"""Commands pass `--revision` on to what loads the model; tests/hub loads another branch."""

from __future__ import annotations

import pytest

from optimum_qala._compat import is_available


@pytest.mark.parametrize(
    "command",
    [
        ["train"],
        ["search"],
        ["search", "--backend", "torch"],
        pytest.param(
            ["quantize", "--backend", "openvino"],
            marks=pytest.mark.skipif(not is_available("openvino"), reason="needs the extra openvino"),
        ),
        ["benchmark"],
        ["pseudo-label"],
        ["shrink", "--layers", "1"],
        ["trim-vocabulary"],
        ["distill"],
        ["evaluate"],
        ["predict"],
    ],
    ids=" ".join,
)
def test_folder_has_no_revision(command, qala, tiny_data, tiny_folder, tmp_path):
    name = command[0]
    model = ("--teacher" if name == "distill" else "--model", tiny_folder)
    data = () if name == "shrink" else ("--data", tiny_data)
    output = () if name == "evaluate" else ("--output", tmp_path / "new.json")
    outcome = qala(*command, *model, *data, *output, "--revision", "v2")
    assert outcome.code == 1
    assert outcome.error.endswith(
        f"--revision v2 is one of a repository on the Hub, but {tiny_folder} is a folder here"
    )
