"""The registry: what each name computes from two traces, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from optimum_qala.distillation.attention import attention_map_kl, attention_score_mse, attention_scores
from optimum_qala.distillation.auxiliary import (
    AUXILIARY_LOSSES,
    AuxiliaryLoss,
    HeadCounts,
    LossOptions,
    parse_loss_weights,
    register_auxiliary_loss,
)
from optimum_qala.distillation.mutual_information import ContrastOptions, mutual_information_loss
from optimum_qala.distillation.relations import relation_kl
from optimum_qala.distillation.states import state_mse
from optimum_qala.distillation.traces import EMBEDDINGS, LayerTrace, Places
from optimum_qala.errors import ConfigurationError


ROWS, COLUMNS = torch.tensor([[1, 1, 0]]), torch.tensor([[1, 1, 1, 1]])
OPTIONS = LossOptions(HeadCounts(attention=2, relation=4), ContrastOptions(alpha=0.25))


def make_trace(seed: int) -> LayerTrace:
    generator = torch.Generator().manual_seed(seed)
    rows = {
        part: torch.randn(1, 3, 8, generator=generator) for part in ("hidden_states", "attention_outputs", "queries")
    }
    columns = {part: torch.randn(1, 4, 8, generator=generator) for part in ("keys", "values")}
    return LayerTrace(rows | columns, Places(ROWS), Places(COLUMNS))


def expected_loss(name: str, teacher: dict[str, Any], student: dict[str, Any]) -> torch.Tensor:
    scores = [attention_scores(states["queries"], states["keys"], ROWS, COLUMNS, 2) for states in (teacher, student)]
    masks = {"queries": ROWS, "keys": COLUMNS, "values": COLUMNS}

    def relation(part: str, heads: int) -> torch.Tensor:
        return relation_kl(teacher[part], student[part], masks[part], heads)

    if name in ("embeddings", "hidden_states"):
        return state_mse(teacher["hidden_states"], student["hidden_states"], ROWS)
    if name == "attention_outputs":
        return state_mse(teacher[name], student[name], ROWS)
    if name == "attention_scores":
        return attention_score_mse(*scores, ROWS, COLUMNS)
    if name == "attention_maps":
        return attention_map_kl(*scores, ROWS, COLUMNS)
    if name == "mutual_information":
        return mutual_information_loss(teacher["hidden_states"], student["hidden_states"], ROWS, OPTIONS.contrast)
    if name == "minilm":
        return attention_map_kl(*scores, ROWS, COLUMNS) + relation("values", 2)
    return (relation("queries", 4) + relation("keys", 4) + relation("values", 4)) / 3


@pytest.mark.parametrize("name", AUXILIARY_LOSSES)
def test_every_name_computes_its_loss_from_the_parts_it_declares(name: str) -> None:
    teacher, student = make_trace(0), make_trace(1)
    loss = AUXILIARY_LOSSES[name]
    declared = [
        LayerTrace({part: trace.states[part] for part in loss.parts}, trace.rows, trace.columns)
        for trace in (teacher, student)
    ]
    result = loss.compute(*declared, OPTIONS)
    torch.testing.assert_close(result, expected_loss(name, teacher.states, student.states))
    assert abs(result) > 0.01


@pytest.mark.parametrize("name", AUXILIARY_LOSSES)
def test_every_name_acts_on_its_layers(name: str) -> None:
    layers = [layer for layer in range(EMBEDDINGS, 4) if AUXILIARY_LOSSES[name].acts_on(layer, 4)]
    expected = {"embeddings": [EMBEDDINGS], "minilm": [3], "relations": [3]}
    assert layers == expected.get(name, [0, 1, 2, 3])


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        (None, {}),
        ("", {}),
        ({}, {}),
        ("hidden_states=1,relations=0.5", {"hidden_states": 1.0, "relations": 0.5}),
        (" minilm = 2 , ", {"minilm": 2.0}),
        ({"embeddings": 1}, {"embeddings": 1.0}),
    ],
)
def test_weights_are_read(weights: Any, expected: dict[str, float]) -> None:
    assert parse_loss_weights("losses", weights) == expected


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("hidden=1", r"losses names 'hidden', which is none of \['attention_maps', 'attention_outputs', "),
        ({"hidden": 1.0}, "losses names 'hidden', which is none of"),
        ("minilm", "losses holds 'minilm'; write NAME=WEIGHT"),
        ("minilm=1,minilm=2", "losses names 'minilm' twice"),
        ("minilm=much", "losses gives 'minilm' the weight 'much', which is not a positive number"),
        ({"minilm": None}, "losses gives 'minilm' the weight None, which is not a positive number"),
        ({"minilm": 0.0}, "losses gives 'minilm' the weight 0.0, which is not a positive number"),
        ({"minilm": float("inf")}, "losses gives 'minilm' the weight inf, which is not a positive number"),
    ],
)
def test_illegal_weights_are_refused(weights: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        parse_loss_weights("losses", weights)


def test_registered_loss_can_be_weighted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optimum_qala.distillation.auxiliary.AUXILIARY_LOSSES", {})
    register_auxiliary_loss("mine", AuxiliaryLoss(lambda *_: torch.zeros(()), ("values",)))
    assert parse_loss_weights("losses", "mine=3") == {"mine": 3.0}


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("minilm", {}, "auxiliary loss 'minilm' is registered already"),
        ("My", {}, "auxiliary loss name 'My' must be lower-case letters"),
        ("a=b", {}, "auxiliary loss name 'a=b' must be lower-case letters"),
        (
            "mine",
            {"parts": ("logits",)},
            r"auxiliary loss 'mine' reads 'logits', which is none of \['attention_outputs'",
        ),
        (
            "mine",
            {"scope": "first"},
            r"scope 'first' of auxiliary loss 'mine' is not in \('all', 'last', 'embeddings'\)",
        ),
        ("mine", {"parts": ("keys", "values"), "projected": True}, "'mine' is projected, so it must read one part"),
        ("mine", {"parts": ("keys", "values"), "critic": True}, "'mine' is projected, so it must read one part"),
        ("mine", {"projected": True, "critic": True}, "'mine' is projected by its critic; leave projected out"),
    ],
)
def test_illegal_registration_is_refused(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        register_auxiliary_loss(name, AuxiliaryLoss(**{"compute": lambda *_: None, "parts": ("values",)} | settings))
