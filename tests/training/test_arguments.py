from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import HfArgumentParser

from optimum_qala import QuaLATrainingArguments
from optimum_qala.errors import ConfigurationError


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_random_sub_models": -1}, "num_random_sub_models -1 is negative"),
        ({"drop_ratio_bound": 1.0}, r"drop_ratio_bound 1.0 is not in \[0, 1\)"),
        ({"layer_drop_prob": -0.1}, r"layer_drop_prob -0.1 is not in \[0, 1\)"),
        ({"sub_model_label_weight": 1.5}, r"sub_model_label_weight 1.5 is not in \[0, 1\]"),
        ({"teacher_weight": -0.5}, r"teacher_weight -0.5 is not in \[0, 1\]"),
        ({"early_exit_prob": 1.5}, r"early_exit_prob 1.5 is not in \[0, 1\]"),
        ({"min_exit_layer": 0}, "min_exit_layer 0 is less than 1"),
        ({"relation_heads": 0}, "relation_heads 0 is less than 1"),
        ({"relation_heads": "8"}, "relation_heads '8' is not a whole number"),
        ({"num_random_sub_models": 1.0}, "num_random_sub_models 1.0 is not a whole number"),
        ({"temperature": None}, "temperature None is not a number"),
        ({"teacher_weight": "0.7"}, "teacher_weight '0.7' is not a number"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor 0.1 has no effect on the loss of spans; leave it"),
        (
            {"auxiliary_losses": ["hidden_states"]},
            r"auxiliary_losses \['hidden_states'\] has no weights; give a mapping, or text such as hidden_states=1",
        ),
        ({"auxiliary_losses": "hidden=1"}, "auxiliary_losses names 'hidden', which is none of"),
        (
            {"sub_model_auxiliary_losses": {"minilm": -1.0}},
            "sub_model_auxiliary_losses gives 'minilm' the weight -1.0",
        ),
        ({"mutual_information_alpha": -0.1}, r"alpha -0\.1 of the mutual information is not in \[0, 1\]"),
        ({"mutual_information_tokens": 1}, "1 tokens are too few for the mutual information"),
        ({"deep_supervision_weight": -1.0}, "deep_supervision_weight -1.0 is not a number of at least 0"),
        ({"deep_supervision_weight": float("nan")}, "deep_supervision_weight nan is not a number of at least 0"),
        ({"eval_budgets": "fast"}, r"eval_budgets 'fast' is one text; give a list, such as \['fast'\]"),
        ({"divergence": "jensen"}, "divergence 'jensen' is not one of"),
        ({"temperature": -1.0}, "temperature -1.0 is not from 0.001 to 1000.0; beyond, losses"),
        ({"skew": 0.0}, "skew 0.0 is not between 0 and 1"),
        ({"skew": 0.2, "divergence": "reverse"}, "skew 0.2 has no effect without divergence='skew'; leave it out, or"),
        ({"weight_bits": 3}, r"weight_bits 3 is not one of \[8, 4, 2\]"),
        ({"outlier_factor": 1.0}, "outlier_factor 1.0 is not above 1; 0 rounds the activations of all neurons"),
        ({"outlier_factor": float("inf")}, "outlier_factor inf is not above 1"),
        ({"range_averaging": 0.0}, r"range_averaging 0.0 is not in \(0, 1\]"),
        ({"weight_bits": 4}, "weight_bits 4 has no effect without quantization_aware=True; leave it out, or turn"),
        ({"range_averaging": 0.2}, "range_averaging 0.2 has no effect without quantization_aware=True"),
        ({"relation_heads": 4}, "relation_heads 4 has no effect without one of the losses .'relations'.; leave"),
        (
            {"mutual_information_alpha": 0.9, "auxiliary_losses": "relations=1"},
            "mutual_information_alpha 0.9 has no effect without one of the losses .'mutual_information'.; leave",
        ),
        (
            {"mutual_information_tokens": 9},
            "mutual_information_tokens 9 has no effect without one of the losses .'mut",
        ),
        ({"quantization_aware": True, "torch_compile": True}, "which torch_compile=True hides; turn one of them off"),
    ],
)
def test_illegal_values_are_refused(tmp_path: Path, settings: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        QuaLATrainingArguments(output_dir=str(tmp_path), use_cpu=True, **settings)


def test_default_that_has_no_effect_is_legal(tmp_path: Path) -> None:
    arguments = QuaLATrainingArguments(output_dir=str(tmp_path), use_cpu=True, skew=0.1, divergence="reverse")
    assert arguments.skew == 0.1


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 2),
        ({"smallest_sub_model": False}, 1),
        ({"num_random_sub_models": 3}, 4),
        ({"smallest_sub_model": False, "num_random_sub_models": 0}, 0),
        ({"drop_ratio_bound": 0.0}, 0),
        ({"drop_ratio_bound": 0.0, "layer_drop_prob": 0.2}, 2),
        ({"drop_ratio_bound": 0.0, "early_exit_prob": 0.5}, 2),
    ],
)
def test_num_sub_models_counts_the_passes(tmp_path: Path, settings: dict[str, float], expected: int) -> None:
    assert QuaLATrainingArguments(output_dir=str(tmp_path), use_cpu=True, **settings).num_sub_models == expected


@pytest.mark.parametrize("has_accelerator", [False, True])
def test_memory_is_pinned_only_for_an_accelerator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_accelerator: bool
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: has_accelerator)
    arguments = QuaLATrainingArguments(output_dir=str(tmp_path), dataloader_pin_memory=True)
    assert arguments.dataloader_pin_memory is has_accelerator


def test_hf_argument_parser_reads_every_own_field(tmp_path: Path) -> None:
    parser = HfArgumentParser(QuaLATrainingArguments)
    (args,) = parser.parse_args_into_dataclasses(
        [
            "--output_dir",
            str(tmp_path),
            "--use_cpu",
            "--drop_ratio_bound",
            "0.4",
            "--eval_budgets",
            "fast",
            "1,0.5,0.5",
            "--auxiliary_losses",
            "hidden_states=1,relations=0.5",
            "--teacher_layers",
            "1",
            "3",
            "--relation_heads",
            "4",
        ]
    )
    assert args.drop_ratio_bound == 0.4
    assert args.eval_budgets == ["fast", "1,0.5,0.5"]
    assert args.auxiliary_losses == {"hidden_states": 1.0, "relations": 0.5}
    assert args.sub_model_auxiliary_losses == {}
    assert (args.teacher_layers, args.relation_heads) == ([1, 3], 4)
