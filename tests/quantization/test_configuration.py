from __future__ import annotations

import json

import pytest

from optimum_qala import INCQuaLAConfig, OVQuaLAConfig
from optimum_qala.errors import CheckpointError, ConfigurationError
from optimum_qala.quantization.stored_configuration import choose_configuration


def test_saved_config_is_read_back(tmp_path):
    config = OVQuaLAConfig(
        num_samples=5,
        preset="performance",
        smooth_quant_alpha=None,
        overflow_fix="enable",
        fast_bias_correction=False,
        budgets=("full", "fast"),
        quantize_embeddings=False,
        ignored_names=("a",),
        ignored_patterns=("b.*",),
        drop_layers="budgets",
        precision="bf16",
        seed=1,
        applied={"overflow_fix": "enable"},
        versions={"nncf": "0"},
        accuracy={"full": {"int8": {"f1": 1.0}}},
    )
    file = config.save_pretrained(tmp_path)
    assert file.name == "openvino_quala_config.json"
    assert OVQuaLAConfig.from_pretrained(tmp_path) == config
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_samples", 0, "num_samples 0 is not a positive integer"),
        ("num_samples", True, "num_samples True is not a positive integer"),
        ("preset", "fast", r"preset 'fast' is not one of \['performance', 'mixed'\]"),
        ("smooth_quant_alpha", 1.5, r"smooth_quant_alpha 1.5 is not in \[0, 1\]"),
        ("outlier_factor", 1.0, "outlier_factor 1.0 is not above 1; None keeps all neurons in int8"),
        ("overflow_fix", "maybe", r"overflow_fix 'maybe' is not one of \['auto', 'enable', 'disable'\]"),
        ("drop_layers", "all", r"drop_layers 'all' is not one of \['model', 'budgets'\]"),
        ("precision", "f16", r"precision 'f16' is not one of \['f32', 'bf16'\]"),
        ("budgets", (), "budgets is empty"),
        ("budgets", "fast", "budgets 'fast' is not a list"),
        ("ignored_names", "MatMul", "ignored_names 'MatMul' is not a list"),
        (
            "ignored_patterns",
            ["a", "b("],
            r"ignored_patterns holds 'b\(', which is no regular expression \(missing \)",
        ),
    ],
)
def test_illegal_value_is_refused(field, value, message):
    with pytest.raises(ConfigurationError, match=message):
        OVQuaLAConfig(**{field: value})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"openvino_quala_config\.json is not JSON"),
        ("[]", "holds a list, not an object"),
        ('{"preset": "slow"}', r"openvino_quala_config\.json: preset 'slow' is not one of"),
    ],
)
def test_damaged_file_is_named(tmp_path, content, message):
    (tmp_path / "openvino_quala_config.json").write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=message):
        OVQuaLAConfig.from_pretrained(tmp_path)


def test_field_of_a_newer_version_is_ignored_with_a_warning(tmp_path, monkeypatch):
    messages = []
    monkeypatch.setattr("optimum_qala.quantization.stored_configuration.logger.warning", messages.append)
    file = tmp_path / "openvino_quala_config.json"
    file.write_text('{"bits": 4, "num_samples": 7}', encoding="utf-8")
    assert OVQuaLAConfig.from_pretrained(tmp_path) == OVQuaLAConfig(num_samples=7)
    assert messages == [f"{file} holds ['bits'], which this version of optimum-qala does not know"]


@pytest.mark.parametrize(("kind", "other"), [(OVQuaLAConfig, INCQuaLAConfig), (INCQuaLAConfig, OVQuaLAConfig)])
def test_file_of_the_other_back_end_is_refused(tmp_path, kind, other):
    file = other().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=rf"so it is of another back end; .* {kind.__name__}\.save_pretrained"):
        kind.from_json_file(file)


@pytest.mark.parametrize(("kind", "other"), [(OVQuaLAConfig, INCQuaLAConfig), (INCQuaLAConfig, OVQuaLAConfig)])
def test_configuration_of_the_other_back_end_is_refused(kind, other):
    assert choose_configuration(kind, None) == kind()
    given = kind(num_samples=7)
    assert choose_configuration(kind, given) is given
    with pytest.raises(ConfigurationError, match=f"a {other.__name__}; this quantizer takes a {kind.__name__}"):
        choose_configuration(kind, other())


def test_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"openvino_quala_config\.json cannot be read \(No such file"):
        OVQuaLAConfig.from_pretrained(tmp_path)


def test_file_is_plain_json(tmp_path):
    content = json.loads(OVQuaLAConfig().save_pretrained(tmp_path).read_text(encoding="utf-8"))
    assert content["num_samples"] == OVQuaLAConfig().num_samples
    assert content["budgets"] is None
