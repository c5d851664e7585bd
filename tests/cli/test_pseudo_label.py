from __future__ import annotations

import json

import pytest

from optimum_qala.question_answering.records import load_records


@pytest.fixture(scope="module")
def unlabelled(tiny_data, tmp_path_factory):
    path = tmp_path_factory.mktemp("unlabelled") / "questions.jsonl"
    lines = [{"id": one.id, "question": one.question, "context": one.context} for one in load_records(tiny_data)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def label(qala, tiny_folder, unlabelled, tmp_path):
    def run(*flags, data=unlabelled, name="labelled.json"):
        output = tmp_path / name
        return qala("pseudo-label", "--model", tiny_folder, "--data", data, "--output", output, *flags), output

    return run


def test_labels_are_the_answers_of_the_teacher_and_train(label, qala, tiny_folder, unlabelled, tmp_path):
    outcome, output = label("--json")
    dropped = {"no_span": 0, "margin": 0, "entropy": 0, "agreement": 0}
    counts = {"num_questions": 12, "num_kept": 12, "num_without_answer": 0, "dropped": dropped, "gold": None}
    assert outcome.json == {"output": str(output), **counts}
    predicted = qala("predict", "--model", tiny_folder, "--data", unlabelled).out.splitlines()
    expected = [(line["id"], (line["answer"],), (line["start"],)) for line in map(json.loads, predicted)]
    assert [(one.id, one.answers, one.answer_starts) for one in load_records(output)] == expected
    steps = ("--max-steps", 1, "--output", tmp_path / "student")
    assert qala("train", "--model", tiny_folder, "--data", output, *steps).code == 0


def test_both_forms_hold_the_same(label):
    _, squad = label()
    _, lines = label(name="labelled.jsonl")
    assert load_records(squad) == load_records(lines)
    assert lines.read_text().count("\n") == 12


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--min-margin", 0.05), "margin"),
        (("--max-entropy", 2.99), "entropy"),
        (("--second-budget", "accurate", "--min-agreement", 0.4), "agreement"),
    ],
)
def test_filter_drops_some_and_says_why(label, flags, reason):
    outcome, output = label(*flags, "--json")
    assert 0 < outcome.json["num_kept"] < 12
    assert outcome.json["dropped"][reason] == 12 - outcome.json["num_kept"]
    assert len(load_records(output, require_answers=True)) == outcome.json["num_kept"]


def test_one_candidate_is_enough_where_none_is_compared(label):
    outcome, _ = label("--n-best", 1, "--min-margin", 0, "--json")
    assert outcome.json["num_kept"] == 12


def test_labels_at_a_budget(label):
    (_, full), (_, accurate) = label(), label("--budget", "accurate", name="accurate.json")
    assert [one.answers for one in load_records(full)] != [one.answers for one in load_records(accurate)]


def test_second_model_and_its_threshold(label, plain):
    opinion = ("--second-model", plain, "--json")
    strict, _ = label(*opinion, "--min-agreement", 0.3, name="strict.json")
    loose, _ = label(*opinion, "--min-agreement", 0, name="loose.json")
    assert strict.json["num_kept"] < loose.json["num_kept"] == 12
    assert "no label of 12 passed the filter (agreement 12)" in label(*opinion)[0].error


def test_gold_answers_only_score_the_labels(label, tiny_data):
    outcome, _ = label("--json", data=tiny_data)
    assert outcome.json["gold"].keys() == {"num_questions", "f1", "exact_match"}
    assert outcome.json["gold"]["num_questions"] == 12
    assert outcome.json["num_kept"] == 12


def test_no_answer_can_be_a_label(label):
    outcome, output = label("--allow-no-answer", "--null-threshold", -1000, "--json")
    assert outcome.json["num_without_answer"] == 12
    assert all(record.is_impossible for record in load_records(output))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--max-entropy", 0), "no label of 12 passed the filter (entropy 12); loosen it"),
        (("--min-agreement", 0.5), "--min-agreement compares with a second opinion; give --second-model or"),
        (("--second-budget", "fastest"), "this model has no budget 'fastest'"),
        (("--n-best", 1, "--min-margin", 50), "--n-best 1 leaves one answer, and --min-margin and --max-entropy"),
        (("--n-best", 1, "--max-entropy", 0), "compare several; give --n-best 2 or more"),
        (("--min-margin", -1), "min_margin -1.0 is not a number of at least 0"),
    ],
)
def test_what_cannot_be_done_leaves_no_file(label, tmp_path, flags, message):
    outcome, _ = label(*flags)
    assert outcome.code == 1
    assert message in outcome.error
    assert list(tmp_path.iterdir()) == []


def test_output_of_another_form_is_refused(label):
    outcome, output = label(name="labelled.csv")
    assert f"--output {output} ends in neither of ['.json', '.jsonl'], which name its form" in outcome.error
