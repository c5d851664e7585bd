from __future__ import annotations

import json

import pytest

from optimum_qala import QuaLATrainingArguments
from optimum_qala.training.record import training_record


def arguments(tmp_path, **options):
    return QuaLATrainingArguments(output_dir=str(tmp_path), report_to="none", **options)


def test_record_has_what_decides_the_result(tmp_path):
    found = training_record(arguments(tmp_path, learning_rate=1e-3, drop_ratio_bound=0.3, eval_budgets=["0.5"] * 2))
    assert found["arguments"] == {
        "num_train_epochs": 3.0,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-3,
        "seed": 42,
        "drop_ratio_bound": 0.3,
    }
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    ("name", "value"),
    [("weight_decay", 0.1), ("max_steps", 7), ("smallest_sub_model", False), ("auxiliary_losses", {"relations": 0.5})],
)
def test_record_has_what_was_changed(tmp_path, name, value):
    assert name not in training_record(arguments(tmp_path))["arguments"]
    assert training_record(arguments(tmp_path, **{name: value}))["arguments"][name] == value


def test_record_names_the_hardware(tmp_path, monkeypatch):
    options = arguments(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.get_num_threads", lambda: 3)
    assert training_record(options)["hardware"].endswith(", 3 threads")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "A GPU")
    assert training_record(options)["hardware"] == "2 x A GPU"
