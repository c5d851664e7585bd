from __future__ import annotations

import io
import json
import sys

import pytest


def lines(outcome):
    assert outcome.code == 0, outcome.err
    return [json.loads(line) for line in outcome.out.splitlines()]


def test_answers_come_in_input_order(qala, tiny_folder, tiny_data):
    answers = lines(qala("predict", "--model", tiny_folder, "--data", tiny_data))
    assert [answer["id"] for answer in answers] == [f"q{index}" for index in range(12)]
    context = "anna was born in paris . the old tower of the city is large and red ."
    assert answers[0]["answer"] == context[answers[0]["start"] : answers[0]["end"]]
    assert 0 <= answers[0]["score"] <= 1


def test_standard_input_is_read(qala, tiny_folder, monkeypatch):
    record = {"question": "where was anna born ?", "context": "anna was born in paris ."}
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(record) + "\n"))
    (answer,) = lines(qala("predict", "--model", tiny_folder, "--data", "-"))
    assert answer["question"] == record["question"]


def test_budget_changes_answers(qala, tiny_folder, tiny_data):
    arguments = ("predict", "--model", tiny_folder, "--data", tiny_data)
    assert qala(*arguments).out == qala(*arguments, "--budget", "full").out
    assert qala(*arguments).out != qala(*arguments, "--budget", "fast").out


def test_top_k_lists_the_best_answers(qala, tiny_folder, tiny_data):
    (answer,) = lines(qala("predict", "--model", tiny_folder, "--data", tiny_data, "--limit", 1, "--top-k", 3))
    assert len(answer["answers"]) == 3
    assert answer["answers"][0]["answer"] == answer["answer"]


def test_output_file_holds_the_same_lines(qala, tiny_folder, tiny_data, tmp_path):
    arguments = ("predict", "--model", tiny_folder, "--data", tiny_data)
    result = qala(*arguments, "--output", tmp_path / "answers.jsonl", "--json").json
    assert result == {"output": str(tmp_path / "answers.jsonl"), "num_questions": 12}
    assert (tmp_path / "answers.jsonl").read_text() == qala(*arguments).out
    assert [path.name for path in tmp_path.iterdir()] == ["answers.jsonl"]


def test_existing_output_file_is_kept(qala, tiny_folder, tiny_data, tmp_path):
    (tmp_path / "answers.jsonl").write_text("mine")
    outcome = qala("predict", "--model", tiny_folder, "--data", tiny_data, "--output", tmp_path / "answers.jsonl")
    assert outcome.code == 1
    assert "answers.jsonl exists; nothing was written" in outcome.error
    assert (tmp_path / "answers.jsonl").read_text() == "mine"


def test_answers_before_a_bad_record_are_given_out(qala, tiny_folder, tmp_path):
    data = tmp_path / "data.jsonl"
    good = {"id": "a", "question": "where was anna born ?", "context": "anna was born in paris ."}
    data.write_text(json.dumps(good) + '\n{"id": "b", "question": 1, "context": "x"}\n')
    outcome = qala("predict", "--model", tiny_folder, "--data", data)
    assert outcome.code == 1
    assert [json.loads(line)["id"] for line in outcome.out.splitlines()] == ["a"]
    assert "line 2" in outcome.error


def test_buffer_of_one_answers_before_the_next_question_is_read(qala, tiny_folder, monkeypatch, capsys):
    """A program at the other end of a pipe may wait for an answer before it asks again."""
    record = json.dumps({"question": "where was anna born ?", "context": "anna was born in paris ."})
    seen = []

    def questions():
        yield record
        seen.append(capsys.readouterr().out)
        yield record

    monkeypatch.setattr(sys, "stdin", questions())
    assert qala("predict", "--model", tiny_folder, "--data", "-", "--buffer-size", 1).code == 0
    assert seen[0].count("\n") == 1


@pytest.mark.parametrize("limit", [0, -1])
def test_illegal_limit_is_refused(qala, tiny_folder, tiny_data, limit):
    outcome = qala("predict", "--model", tiny_folder, "--data", tiny_data, "--limit", limit)
    assert f"limit {limit} is not a positive integer" in outcome.error


@pytest.mark.parametrize(("flags", "is_bounded"), [((), True), (("--batch-size", 1), False)])
def test_memory_is_bounded_where_shapes_do_not_repeat(qala, tiny_folder, tiny_data, monkeypatch, flags, is_bounded):
    """OpenVINO keeps operators for every shape it meets, which one window at a time needs and batches do not."""
    pytest.importorskip("openvino", reason="needs the extra openvino")
    from optimum_qala import OVQuaLAMiniLMForQuestionAnswering

    capacities = []
    compile_graph = OVQuaLAMiniLMForQuestionAnswering.compile

    def compile_and_look(self, *arguments):
        compile_graph(self, *arguments)
        capacities.append(self.ov_config.get("CPU_RUNTIME_CACHE_CAPACITY", 5000))  # OpenVINO does not read it back

    monkeypatch.setattr(OVQuaLAMiniLMForQuestionAnswering, "compile", compile_and_look)
    arguments = ("predict", "--model", tiny_folder, "--backend", "openvino", "--data", tiny_data)
    assert len(lines(qala(*arguments, *flags))) == 12
    assert (capacities[0] < 1000) == is_bounded
