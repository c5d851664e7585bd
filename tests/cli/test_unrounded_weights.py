"""A model that was trained in fewer bits than 8, given to commands that run its float weights."""

from __future__ import annotations

import json
import shutil

import pytest

from optimum_qala import INCQuaLAQuantizer, OVQuaLAQuantizer
from optimum_qala._compat import is_available
from optimum_qala.errors import DataError, QuaLAError


@pytest.fixture
def ternary_folder(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "ternary")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_aware": {"weight_bits": 2}}))
    return folder


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_command_warns(qala, ternary_folder, tiny_folder, tiny_data, command, monkeypatch):
    messages = []
    monkeypatch.setattr("optimum_qala.quantization.qat_record.logger.warning", messages.append)
    for folder in (tiny_folder, ternary_folder):
        outcome = qala(command, "--model", folder, "--backend", "torch", "--data", tiny_data, "--limit", 1)
        assert outcome.code == 0, outcome.err
    assert len(messages) == 1
    assert f"{ternary_folder} was trained for weights of 2 bits" in messages[0]


def test_search_warns(qala, ternary_folder, tiny_data, tmp_path, monkeypatch):
    messages = []

    def stop(*_arguments, **_options):
        raise QuaLAError("that was enough")

    monkeypatch.setattr("optimum_qala.quantization.qat_record.logger.warning", messages.append)
    monkeypatch.setattr("optimum_qala.cli.search.search", stop)
    outcome = qala("search", "--model", ternary_folder, "--data", tiny_data, "--output", tmp_path / "searched")
    assert outcome.error == "error: that was enough"
    assert len(messages) == 1


@pytest.mark.parametrize("quantizer", [OVQuaLAQuantizer, INCQuaLAQuantizer])
def test_quantizer_warns(quantizer, ternary_folder, tmp_path, monkeypatch):
    if not is_available("openvino" if quantizer is OVQuaLAQuantizer else "neural-compressor"):
        pytest.skip("needs the extra of the back end")
    messages = []
    monkeypatch.setattr("optimum_qala.quantization.qat_record.logger.warning", messages.append)
    with pytest.raises(DataError):
        quantizer(ternary_folder).quantize([], tmp_path / "int8")
    assert len(messages) == 1
