from __future__ import annotations

import json
import shutil

import pytest

from optimum_qala import QuaLAMiniLMForQuestionAnswering


def test_model_is_scored_at_every_budget_from_slow_to_fast(qala, tiny_folder, tiny_data):
    result = qala("evaluate", "--model", tiny_folder, "--data", tiny_data, "--json").json
    assert list(result["budgets"]) == ["full", "accurate", "fast"]
    assert result["backend"] == "torch"
    assert {scores["num_questions"] for scores in result["budgets"].values()} == {12}
    assert result["budgets"]["fast"]["retention"] == [0.5, 0.5, 0.25, 0.25]
    assert "f1" not in result


def test_budgets_that_stop_early_are_scored_and_shown(qala, tiny_folder, tiny_data, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "exits")
    model = QuaLAMiniLMForQuestionAnswering.from_pretrained(tiny_folder, span_heads=True)
    model.config.budgets["shallow"] = {"retention": [1.0, 1.0, 1.0, 1.0], "exit_layer": 1}
    model.save_pretrained(folder)
    result = qala("evaluate", "--model", folder, "--data", tiny_data, "--json").json
    assert list(result["budgets"]) == ["full", "accurate", "fast", "shallow"]
    assert result["budgets"]["shallow"]["exit_layer"] == 1
    assert "exit_layer" not in result["budgets"]["fast"]


def test_single_budget_is_also_at_the_top(qala, tiny_folder, tiny_data):
    result = qala("evaluate", "--model", tiny_folder, "--data", tiny_data, "--budget", "fast", "--json").json
    assert list(result["budgets"]) == ["fast"]
    assert result["f1"] == result["budgets"]["fast"]["f1"]
    assert result["num_questions"] == 12


def test_several_budgets_and_ratios_are_accepted(qala, tiny_folder, tiny_data):
    arguments = ("evaluate", "--model", tiny_folder, "--data", tiny_data)
    result = qala(*arguments, "--budget", "full", "--budget", "1,1,0.5,0.2", "--json").json
    assert list(result["budgets"]) == ["full", "1,1,0.5,0.2"]


def test_without_json_a_table_is_printed(qala, tiny_folder, tiny_data):
    outcome = qala("evaluate", "--model", tiny_folder, "--data", tiny_data)
    lines = outcome.out.splitlines()
    assert lines[0].split() == ["f1", "exact_match", "num_questions"]
    assert [line.split()[0] for line in lines[2:]] == ["full", "accurate", "fast"]


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(["--max-answer-length", 1], id="max-answer-length"),
        pytest.param(["--allow-no-answer", "--null-threshold", "-100"], id="null-threshold"),
        pytest.param(["--limit", 5], id="limit"),
        pytest.param(["--max-length", 20, "--doc-stride", 2], id="max-length"),
    ],
)
def test_option_changes_the_scores(qala, tiny_folder, tiny_data, flags):
    arguments = ("evaluate", "--model", tiny_folder, "--data", tiny_data, "--budget", "full", "--json")
    plain, changed = qala(*arguments).json, qala(*arguments, *flags).json
    assert [plain[key] for key in ("f1", "num_questions")] != [changed[key] for key in ("f1", "num_questions")]


def test_questions_without_answer_are_pointed_out(qala, tiny_folder, tiny_data, tmp_path):
    document = json.loads(tiny_data.read_text())
    for paragraph in document["data"][0]["paragraphs"][:5]:
        paragraph["qas"][0] |= {"answers": [], "is_impossible": True}
    data = tmp_path / "v2.json"
    data.write_text(json.dumps(document))
    arguments = ("evaluate", "--model", tiny_folder, "--data", data, "--budget", "full", "--json")
    plain, allowed = qala(*arguments), qala(*arguments, "--allow-no-answer")
    (warning,) = (line for line in plain.err.splitlines() if line.startswith("warning: "))
    assert "5 of 12 questions have no answer" in warning
    assert "--allow-no-answer" in warning
    assert plain.json["num_questions"] == 12
    assert "have no answer" not in allowed.err
    assert "have no answer" not in qala("evaluate", "--model", tiny_folder, "--data", tiny_data, "--json").err


def test_predictions_are_scored_without_a_model(qala, tiny_data, tmp_path):
    file = tmp_path / "predictions.json"
    file.write_text(json.dumps({f"q{index}": "paris" if index < 4 else "the Rome!" for index in range(12)}))
    result = qala("evaluate", "--predictions", file, "--data", tiny_data, "--json").json
    # q0 to q3 are paris and q8 to q11 rome; case, punctuation and articles do not count.
    assert result["exact_match"] == pytest.approx(100 * 8 / 12)
    assert result["f1"] == pytest.approx(100 * 8 / 12)
    assert result["num_questions"] == 12


def test_output_of_predict_is_scored_like_the_model_itself(qala, tiny_folder, tiny_data, tmp_path):
    lines = tmp_path / "answers.jsonl"
    lines.write_text(qala("predict", "--model", tiny_folder, "--data", tiny_data, "--budget", "fast").out)
    from_file = qala("evaluate", "--predictions", lines, "--data", tiny_data, "--json").json
    from_model = qala("evaluate", "--model", tiny_folder, "--data", tiny_data, "--budget", "fast", "--json").json
    assert from_file["f1"] == from_model["f1"]
    assert from_file["exact_match"] == from_model["exact_match"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('["paris"]', "are a JSON list; expected an object of id -> text"),
        ('{"q0": 3}', "the answer 3 of question 'q0' is not a text"),
        ('{"id": "q0", "answer": "x"}\n{"id": "q1"}', "line 2: expected an object of id -> text, or lines"),
        ('{"q99": "paris"}', "none of the 1 predictions belongs to any of the 12 records"),
    ],
)
def test_bad_predictions_are_refused(qala, tiny_data, tmp_path, text, message):
    file = tmp_path / "predictions.json"
    file.write_text(text)
    outcome = qala("evaluate", "--predictions", file, "--data", tiny_data)
    assert outcome.code == 1
    assert message in outcome.error


def test_predictions_that_are_not_text_are_refused(qala, tiny_data, tmp_path):
    file = tmp_path / "predictions.json"
    file.write_bytes(b"\xff\xfe\x00")
    assert "are not UTF-8 text (byte 0)" in qala("evaluate", "--predictions", file, "--data", tiny_data).error


@pytest.mark.parametrize(
    "flags", [["--max-length", 64], ["--truncate-question"], ["--revision", "v2"]], ids=lambda flags: flags[0]
)
def test_model_flag_with_predictions_is_refused(qala, tiny_data, flags):
    outcome = qala("evaluate", "--predictions", "p.json", "--data", tiny_data, *flags)
    assert (outcome.code, outcome.out) == (1, "")
    assert f"{flags[0]} needs --model" in outcome.error


def test_unknown_budget_names_those_there_are(qala, tiny_folder, tiny_data):
    outcome = qala("evaluate", "--model", tiny_folder, "--data", tiny_data, "--budget", "fastest")
    assert outcome.code == 1
    assert "no budget 'fastest'; it has ['accurate', 'fast', 'full']" in outcome.error


def test_budget_for_another_number_of_layers_is_refused(qala, tiny_folder, tiny_data):
    outcome = qala("evaluate", "--model", tiny_folder, "--data", tiny_data, "--budget", "1,0.5")
    assert "has 2 ratios, but the model has 4 layers" in outcome.error


def test_repeated_budget_is_refused(qala, tiny_folder, tiny_data):
    outcome = qala("evaluate", "--model", tiny_folder, "--data", tiny_data, "--budget", "fast", "--budget", "fast")
    assert "budget 'fast' is given twice" in outcome.error


def test_missing_data_is_named_before_the_model_is_loaded(qala):
    outcome = qala("evaluate", "--model", "./absent", "--data", "absent.json")
    assert outcome.code == 1
    assert "absent.json does not exist" in outcome.error


class TestLoading:
    """What `--model` may be; every command loads alike."""

    def test_absent_folder(self, qala, tiny_data):
        assert (
            "model folder ./absent does not exist"
            in qala("evaluate", "--model", "./absent", "--data", tiny_data).error
        )

    def test_file(self, qala, tiny_data):
        assert f"model {tiny_data} is a file" in qala("evaluate", "--model", tiny_data, "--data", tiny_data).error

    def test_unreachable_repository(self, qala, tiny_data):
        outcome = qala("evaluate", "--model", "nobody/nothing", "--data", tiny_data)
        assert outcome.code == 1
        assert "model nobody/nothing is no folder here and no repository" in outcome.error

    def test_folder_without_model(self, qala, tiny_data, tmp_path):
        outcome = qala("evaluate", "--model", tmp_path, "--data", tiny_data)
        assert f"{tmp_path} holds no model for --backend torch: it has none of model.safetensors" in outcome.error

    def test_folder_without_model_for_openvino(self, qala, tiny_data, tmp_path):
        outcome = qala("evaluate", "--model", tmp_path, "--data", tiny_data, "--backend", "openvino")
        assert "no model for --backend openvino: it has none of openvino_model.xml" in outcome.error

    def test_torch_checkpoint_runs_on_openvino_in_float32(self, qala, tiny_folder, tiny_data):
        arguments = ("evaluate", "--model", tiny_folder, "--data", tiny_data, "--json", "--budget", "fast")
        result = qala(*arguments, "--backend", "openvino").json
        assert result["backend"] == "openvino"
        assert result["f1"] == qala(*arguments).json["f1"]

    def test_folder_without_tokenizer(self, qala, tiny_folder, tiny_data, tmp_path):
        for name in ("config.json", "model.safetensors"):
            shutil.copy(tiny_folder / name, tmp_path)
        assert f"{tmp_path} has no tokenizer" in qala("evaluate", "--model", tmp_path, "--data", tiny_data).error

    def test_truncated_weights(self, qala, tiny_folder, tiny_data, tmp_path):
        copy = shutil.copytree(tiny_folder, tmp_path / "copy")
        weights = (copy / "model.safetensors").read_bytes()
        (copy / "model.safetensors").write_bytes(weights[: len(weights) // 2])
        assert f"model {copy} cannot be loaded" in qala("evaluate", "--model", copy, "--data", tiny_data).error

    def test_backbone_without_span_head(self, qala, tiny_model, tiny_tokenizer, tiny_data, tmp_path):
        tiny_model.base_model.save_pretrained(tmp_path)
        tiny_tokenizer.save_pretrained(tmp_path)
        assert (
            f"{tmp_path} has no trained span head" in qala("evaluate", "--model", tmp_path, "--data", tiny_data).error
        )

    @pytest.mark.parametrize("command", ["evaluate", "predict"])
    def test_checkpoint_without_the_graph_is_no_model_for_inc(self, qala, tiny_folder, tiny_data, command):
        outcome = qala(command, "--model", tiny_folder, "--data", tiny_data, "--backend", "inc")
        assert outcome.code == 1
        assert "holds no model for --backend inc: it has none of inc_graph.json" in outcome.error


def test_pad_to_lengthens_every_batch(qala, tiny_folder, tiny_data, monkeypatch):
    lengths = set()
    forward = QuaLAMiniLMForQuestionAnswering.forward

    def spy(self, input_ids, *arguments, **options):
        lengths.add(input_ids.shape[1])
        return forward(self, input_ids, *arguments, **options)

    monkeypatch.setattr(QuaLAMiniLMForQuestionAnswering, "forward", spy)
    arguments = ("evaluate", "--model", tiny_folder, "--data", tiny_data, "--budget", "full", "--max-length", 96)
    plain = qala(*arguments, "--json").json
    assert max(lengths) < 96
    lengths.clear()
    padded = qala(*arguments, "--pad-to", 96, "--json").json
    assert lengths == {96}
    assert padded["f1"] == plain["f1"]
