"""What may be asked of Intel Neural Compressor, and the file that says what was."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest

from optimum_qala import INCQuaLAConfig
from optimum_qala.errors import CheckpointError, ConfigurationError


CHANGED = INCQuaLAConfig(
    approach="dynamic",
    num_samples=7,
    weight_granularity="per_tensor",
    outlier_factor=None,
    ignored_modules=("qa_outputs",),
    quantize_embeddings=False,
    budgets=("fast",),
    drop_layers="budgets",
    tolerable_loss=0.5,
    criterion="absolute",
    max_trials=3,
    seed=1,
    applied={"num_samples": 7},
    versions={"torch": "2.13.0"},
    accuracy={"full": {"int8": {"f1": 1.0, "em": 1.0}}},
)


@pytest.mark.parametrize("config", [INCQuaLAConfig(), CHANGED], ids=["defaults", "changed"])
def test_file_gives_back_what_was_saved(tmp_path, config):
    assert config.save_pretrained(tmp_path) == tmp_path / "inc_config.json"
    assert INCQuaLAConfig.from_pretrained(tmp_path) == config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"approach": "weights"}, r"approach 'weights' is not one of \['static', 'dynamic', 'qat'\]"),
        ({"num_samples": 0}, "num_samples 0 is not a positive integer"),
        ({"max_trials": 0}, "max_trials 0 is not a positive integer"),
        ({"criterion": "strict"}, r"criterion 'strict' is not one of \['relative', 'absolute'\]"),
        ({"tolerable_loss": -0.1}, "tolerable_loss -0.1 is not a share of F1 from 0 to below 1, which the criterion"),
        ({"tolerable_loss": 1.0}, "tolerable_loss 1.0 is not a share of F1 from 0 to below 1"),
        ({"tolerable_loss": float("nan")}, "tolerable_loss nan is not a share of F1"),
        (
            {"tolerable_loss": 100, "criterion": "absolute"},
            "tolerable_loss 100 is not points of F1 from 0 to below 100",
        ),
        ({"num_samples": True}, "num_samples True is not a positive integer"),
        ({"activation_algorithm": "mse"}, r"activation_algorithm 'mse' is not one of \['minmax', 'kl'\]"),
        ({"weight_granularity": "per_row"}, r"weight_granularity 'per_row' is not one of"),
        ({"drop_layers": [1]}, r"drop_layers \[1\] is not one of"),
        ({"outlier_factor": 1.0}, "outlier_factor 1.0 is not above 1; None keeps all neurons in int8"),
        ({"budgets": ()}, "budgets is empty"),
        ({"budgets": "fast"}, "budgets 'fast' is not a list"),
        ({"ignored_modules": "qa"}, "ignored_modules 'qa' is not a list"),
        (
            {"ignored_modules": ["["]},
            r"ignored_modules holds '\[', which is no regular expression \(unterminated .* as in",
        ),
        ({"ignored_modules": [3]}, "ignored_modules holds 3, which is no regular expression"),
        (
            {"approach": "dynamic", "activation_algorithm": "kl"},
            "activation_algorithm 'kl' has no effect in the approach 'dynamic'",
        ),
        ({"approach": "dynamic", "activation_symmetric": True}, "activation_symmetric True has no effect"),
        (
            {"approach": "qat", "outlier_factor": None},
            "outlier_factor None has no effect in the approach 'qat', which takes what training settled; leave it out",
        ),
        ({"criterion": "absolute"}, "criterion 'absolute' has no effect without tolerable_loss; leave it out, or say"),
        ({"max_trials": 3}, "max_trials 3 has no effect without tolerable_loss"),
        ({"approach": "qat", "weight_granularity": "per_tensor"}, "weight_granularity 'per_tensor' has no effect"),
        ({"approach": "qat", "quantize_embeddings": False}, "quantize_embeddings False has no effect"),
    ],
)
def test_illegal_value_is_named(options, message):
    with pytest.raises(ConfigurationError, match=message):
        INCQuaLAConfig(**options)


def test_default_that_has_no_effect_is_legal():
    assert INCQuaLAConfig(approach="dynamic", criterion="relative", max_trials=10) == INCQuaLAConfig(
        approach="dynamic"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"inc_config.json cannot be read \(No such file or directory\); was the model quantized\?"),
        ("{", "is not JSON"),
        ("[]", "holds a list, not an object"),
        ('{"num_samples": 0}', "inc_config.json: num_samples 0 is not a positive integer"),
    ],
)
def test_damaged_file_is_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "inc_config.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        INCQuaLAConfig.from_pretrained(tmp_path)


def test_field_of_a_newer_version_is_left_out_with_a_warning(tmp_path, caplog):
    (tmp_path / "inc_config.json").write_text(json.dumps({"seed": 3, "new": 1}))
    assert INCQuaLAConfig.from_pretrained(tmp_path) == INCQuaLAConfig(seed=3)


def test_every_field_is_documented():
    for item in fields(INCQuaLAConfig):
        assert f"        {item.name}: " in INCQuaLAConfig.__doc__
