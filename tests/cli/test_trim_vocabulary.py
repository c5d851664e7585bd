from __future__ import annotations

import pytest
from transformers import AutoModelForQuestionAnswering, AutoTokenizer


@pytest.fixture
def trim(qala, tiny_folder, tmp_path):
    def run(*flags, model=tiny_folder):
        return qala(
            "trim-vocabulary", "--model", model, "--output", tmp_path / "trimmed", *flags
        ), tmp_path / "trimmed"

    return run


def test_scores_stay_at_every_budget(trim, qala, tiny_folder, tiny_data):
    outcome, folder = trim("--data", tiny_data, "--json")
    before, after = outcome.json["before"], outcome.json["after"]
    assert all(after[name] < before[name] for name in before)
    assert outcome.json["num_changed_texts"] == 0
    model = AutoModelForQuestionAnswering.from_pretrained(folder)
    assert model.config.vocab_size == after["vocab_size"] == len(AutoTokenizer.from_pretrained(folder))
    assert model.num_parameters() == after["parameters"]
    assert sorted(model.config.budgets) == ["accurate", "fast"]
    answers = [
        qala("predict", "--model", path, "--data", tiny_data, "--budget", "fast") for path in (tiny_folder, folder)
    ]
    assert answers[0].out == answers[1].out != ""


def test_several_corpora_and_rare_tokens(trim, tiny_data, tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("two rivers\n", encoding="utf-8")
    outcome, folder = trim("--data", tiny_data, "--data", corpus, "--min-frequency", 2)
    assert outcome.code == 0, outcome.err
    assert "texts are cut as before; model written to" in outcome.out
    vocab = AutoTokenizer.from_pretrained(folder).get_vocab()
    assert "anna" in vocab
    assert "two" not in vocab


def test_bad_input_leaves_no_output(trim, tmp_path, tiny_data):
    outcome, folder = trim("--data", tmp_path / "no.txt")
    assert outcome.code == 1
    assert "no.txt does not exist" in outcome.error
    outcome, _ = trim("--data", tiny_data, "--min-frequency", 0)
    assert "min_frequency 0 is not a positive integer" in outcome.error
    assert not folder.exists()
