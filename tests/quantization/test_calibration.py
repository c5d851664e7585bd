from __future__ import annotations

import numpy as np
import pytest

from optimum_qala.errors import DataError, UnknownBudgetError
from optimum_qala.models.length_config import LengthConfig
from optimum_qala.quantization.calibration import calibration_budgets, calibration_samples
from optimum_qala.question_answering.records import QARecord
from tests.conftest import tiny_config
from tests.quantization.conftest import WINDOWS


FULL_AND_FAST = [None, LengthConfig((0.8, 0.4))]


def _samples(records, tokenizer, config, **options):
    options = {"num_samples": 6, "window_options": WINDOWS} | options
    return calibration_samples(records, tokenizer, config, options.pop("budgets", FULL_AND_FAST), **options)


def test_budgets_are_full_length_and_all_named(torch_model):
    assert calibration_budgets(torch_model.config) == {
        "full": None,
        "fast": LengthConfig((0.8, 0.4)),
        "late": LengthConfig((1.0, 0.5)),
    }
    assert calibration_budgets(torch_model.config, ["late"]) == {"late": LengthConfig((1.0, 0.5))}
    assert calibration_budgets(torch_model.config, ["1,0.3"]) == {"1,0.3": LengthConfig((1.0, 0.3))}


def test_model_without_budgets_is_calibrated_at_even_ones():
    budgets = calibration_budgets(tiny_config(drop_layers=[1, 3]))
    assert list(budgets) == ["full", "1,0.9,0.9,0.81", "1,0.8,0.8,0.64"]


def test_unknown_budget_is_refused(torch_model):
    with pytest.raises(UnknownBudgetError, match="no budget 'slow'"):
        calibration_budgets(torch_model.config, ["slow"])


def test_samples_take_budgets_in_turn(torch_model, tiny_tokenizer, records):
    samples = _samples(records, tiny_tokenizer, torch_model.config)
    assert np.allclose([sample["retention"] for sample in samples], [[1.0, 1.0], [0.8, 0.4]] * 3)
    assert samples[0]["retention"].dtype == np.float32


def test_samples_carry_the_sizes_of_their_budget(torch_model, tiny_tokenizer, records):
    samples = _samples(records, tiny_tokenizer, torch_model.config)
    for index, sample in enumerate(samples):
        num_tokens = sample["input_ids"].shape[1]
        config = FULL_AND_FAST[index % 2] or LengthConfig((1.0, 1.0))
        num_rows = sample["input_ids"][0].tolist().index(3) + 1
        assert sample["sizes"].tolist() == [num_rows, *config.num_tokens(num_tokens, num_rows + 1)]
        assert sample["sizes"].dtype == np.int64


def test_budgets_that_stop_early_are_named(tiny_tokenizer):
    config = tiny_config(num_hidden_layers=2, token_scoring="answer")
    assert calibration_budgets(config, ["0.5,0.5@1"]) == {"0.5,0.5@1": LengthConfig((0.5, 0.5), 1)}


def test_retention_names_only_layers_that_drop(torch_model, tiny_tokenizer, records):
    config = tiny_config(num_hidden_layers=2, drop_layers=[1], vocab_size=len(tiny_tokenizer))
    samples = _samples(records, tiny_tokenizer, config, budgets=[LengthConfig((1.0, 0.5))])
    assert samples[0]["retention"].tolist() == [0.5]


def test_samples_are_single_windows_without_padding(torch_model, tiny_tokenizer, records):
    samples = _samples(records, tiny_tokenizer, torch_model.config)
    assert {sample["input_ids"].shape[0] for sample in samples} == {1}
    assert all(sample["attention_mask"].all() for sample in samples)
    assert len({sample["input_ids"].shape[1] for sample in samples}) > 1


def test_number_of_samples_and_seed_choose(torch_model, tiny_tokenizer, records):
    def ids(**options):
        return [
            sample["input_ids"].tolist() for sample in _samples(records, tiny_tokenizer, torch_model.config, **options)
        ]

    assert len(ids(num_samples=3)) == 3
    assert len(ids(num_samples=100)) == len(records)
    assert ids(seed=1) == ids(seed=1)
    assert ids(seed=1) != ids(seed=2)


def test_segments_are_given_to_models_that_tell_them_apart(torch_model, tiny_tokenizer, records):
    assert "token_type_ids" in _samples(records, tiny_tokenizer, torch_model.config)[0]
    one_segment = tiny_config(num_hidden_layers=2, type_vocab_size=1, vocab_size=len(tiny_tokenizer))
    assert "token_type_ids" not in _samples(records, tiny_tokenizer, one_segment)[0]


def test_no_records_are_refused(torch_model, tiny_tokenizer):
    with pytest.raises(DataError, match="no calibration records, got 0"):
        _samples([], tiny_tokenizer, torch_model.config)


@pytest.mark.parametrize("context", ["", " \n "])
def test_records_without_any_context_are_refused(torch_model, tiny_tokenizer, records, context):
    empty = [QARecord(str(index), "who wrote ?", context) for index in range(3)]
    with pytest.raises(DataError, match="none of the 3 calibration windows, of which record '[012]' gave the first"):
        _samples(empty, tiny_tokenizer, torch_model.config)
    assert len(_samples([*empty, records[0]], tiny_tokenizer, torch_model.config)) == 4
