from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import yaml
from huggingface_hub import HfApi, ModelCard

from optimum_qala.errors import DataError
from optimum_qala.models.hub_card import LIBRARY_NAME
from optimum_qala.reporting.card_parts import END
from optimum_qala.reporting.card_sections import describe_budget, describe_conditions
from optimum_qala.reporting.facts import read_facts
from optimum_qala.reporting.model_card import make_model_card, write_model_card
from tests.hub_rules import card_errors
from tests.hub_server import HubServer
from tests.reporting.folders import BUDGETS, INT8, LATENCY, make_folder, measured, write
from tests.reporting.reports import report, row


def card_of(folder, **options):
    return make_model_card(read_facts(folder), **options)


def metadata(card):
    return yaml.safe_load(card.split("---\n")[1])


def section(card, title):
    return card.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


@pytest.fixture
def everything(tmp_path):
    """A folder of which all is known."""
    folder = make_folder(tmp_path / "model", budgets=measured(latency_ms=[LATENCY]))
    make_folder(folder / "openvino", "openvino", quantization=INT8)
    training = {"model": "org/minilm", "data": "squad:train", "num_questions": 9000, "seconds": 7800.0, "steps": 1200}
    write(folder / "training.json", {**training, "arguments": {"learning_rate": 5e-05}, "hardware": "A CPU"})
    write(folder / "search.json", {"method": "evolution", "num_evaluations": 72, "cost": "latency"})
    write(folder / "emissions.csv", "emissions,country_name,cpu_model,gpu_model\n0.0125,Norway,A CPU,\n")
    write(folder / "benchmark.json", report())
    return folder


def test_card_has_the_budgets_with_what_they_were_measured_on(tmp_path):
    card = section(card_of(make_folder(tmp_path, budgets=measured(latency_ms=[LATENCY]))), "Budgets")
    assert "| budget | F1, % | EM, % | ms |\n" in card
    assert "| full | 75.50 | 64.25 |  |\n" in card
    assert "| fast | 71.23 | 60.50 | 4.57 |\n" in card
    assert "| budget | million MACs | what runs |\n" in card
    assert "| full | 23 | 4 layers, all tokens |" in card
    assert "| fast | 12 | 3 of 4 layers, 50 % of the tokens from layer 2 |" in card
    assert "those of dev.json, by the SQuAD rules" in card
    assert (
        "ms: median milliseconds per window; OpenVINO on A CPU, 2 threads, batch 1, floats in f32, padded to a "
        "multiple of 32."
    ) in card


def test_latencies_under_several_conditions_have_columns_of_their_own(tmp_path):
    other = {**LATENCY, "cpu": "B CPU", "median": 9.0}
    card = section(card_of(make_folder(tmp_path, budgets=measured(latency_ms=[LATENCY, other]))), "Budgets")
    assert "| ms (a) | ms (b) |" in card
    assert "| 4.57 | 9.00 |" in card
    assert "ms (b): median milliseconds per window; OpenVINO on B CPU" in card


def test_what_runs_is_said_once_for_models_of_the_same_budgets(tmp_path):
    make_folder(tmp_path, budgets={name: {**one, "f1": None, "em": None} for name, one in BUDGETS.items()})
    make_folder(tmp_path / "openvino", "openvino", quantization=INT8)
    card = section(card_of(tmp_path), "Budgets")
    assert card.count("what runs") == card.count("MACs are") == 1
    assert "### torch" not in card, "of which nothing was measured"
    assert "### OpenVINO int8" in card
    make_folder(tmp_path / "inc", "inc", budgets={"fast": {"retention": [1.0, 0.9, 0.9, 0.9]}}, quantization=INT8)
    card = section(card_of(tmp_path), "Budgets")
    assert card.count("what runs") == 2
    assert "\ntorch, OpenVINO int8:\n" in card
    assert "\nIntel Neural Compressor int8:\n" in card


def test_float_scores_stand_beside_those_of_int8(tmp_path):
    record = {**INT8, "accuracy": {"fast": {"float32": {"f1": 72.0, "em": 61.0}, "int8": {"f1": 71.234, "em": 60.5}}}}
    card = section(card_of(make_folder(tmp_path, "openvino", quantization=record)), "Budgets")
    assert "| fast | 71.23 | 72.00 | 60.50 |" in card
    assert "| full | 75.50 |  | 64.25 |" in card


def test_nothing_is_written_that_is_not_known(tmp_path):
    card = card_of(make_folder(tmp_path, budgets={"fast": {"retention": [1.0, 0.5, 0.5, 0.5]}}))
    assert "| budget | what runs |" in card
    assert re.findall(r"N/A|None|null|nan|F1|Milliseconds|\bms\b|Trained|## Training|## Benchmark", card) == []
    assert metadata(card).keys() == {"library_name", "pipeline_tag", "tags"}
    bare = card_of(make_folder(tmp_path, budgets={}))
    assert "## Budgets" not in bare
    assert "## How to use it" in bare


def test_words_for_budgets_and_conditions():
    assert describe_budget(BUDGETS["fast"], 4) == "3 of 4 layers, 50 % of the tokens from layer 2"
    later = {"retention": [1.0, 0.8, 0.8, 0.455]}
    assert describe_budget(later, 4) == (
        "4 layers, 80 % of the tokens from layer 2, 45.5 % of the tokens from layer 4"
    )
    assert describe_conditions({"threads": 1, "batch": 1, "padding": "longest"}) == "1 thread, batch 1, no padding"
    assert describe_conditions({"cpu": "X", "batch": 8, "padding": "longest"}).endswith("to the longest of the batch")
    assert describe_conditions({}) == ""
    assert describe_conditions({"backend": "inc", "cpu": "X"}, is_int8=True) == "Intel Neural Compressor int8 on X"
    assert describe_conditions({"backend": "new", "threads": 2}) == "new, 2 threads"


def test_everything_that_is_known_is_there(everything):
    card = card_of(everything, repo_id="org/quala")
    assert card.count("\n# ") == 1
    assert "\n# quala\n" in card
    assert "[org/minilm](https://huggingface.co/org/minilm) (fine-tuned)" in card
    assert "torch 0.0 MB, OpenVINO int8 0.0 MB" in card
    assert "### OpenVINO int8" in section(card, "Budgets")
    training = section(card, "Training")
    for line in (
        "| Training data | squad:train |",
        "| Questions | 9,000 |",
        "| `learning\\_rate` | 5e-05 |",
        "| Training time | 2.2 h |",
        "| Trained on | A CPU |",
        "| Carbon, by codecarbon | 12.5 g CO2-equivalent |",
        "| Search of budgets | 72 configurations by evolution, to save latency |",
        "| OpenVINO int8, calibrated with | 300 windows |",
    ):
        assert line.replace("\\", "") in training.replace("\\", ""), line
    limits = section(card, "Limits")
    assert "share 128 tokens" in limits
    assert 'made for CPUs like the one that quantized it: "this CPU has a\\_flag".' in limits
    assert "VNNI" not in limits


def test_benchmark_has_the_peers_and_says_what_was_measured(everything):
    text = section(card_of(everything), "Benchmark")
    first, second = text.split("Batch size 32")[0], section(card_of(everything), "Benchmark")
    assert "Batch size 1, true lengths, OpenVINO, floats in f32, 2 threads:" in first
    assert "|  | ms | times plain int8 | F1, % | EM, % | MB | runs in |" in first
    assert "| full | 9.00 |" in first
    assert "| plain int8 | 10.00 | 1.00 | 73.20 | 63.20 | 22.50 | int8 |" in first
    assert "plain int8, 3 layers" not in second
    assert "BERT-base" not in second
    assert "ms:" not in section(card_of(everything), "Budgets"), "where they would be told twice"
    assert "padded to 200" not in second
    assert "100 questions of dev.json, 180 tokens a window" in second
    assert "on A CPU (avx2), 2026-01-02." in second


def test_benchmark_says_which_rows_were_compiled(everything):
    assert "ompiled:" not in section(card_of(everything), "Benchmark")
    peers = [
        row("by-inc", "peer", 9.0, 73.0, backend="inc", compiled=True),
        row("searched", "peer", 12.0, 73.0, backend="torch", compiled=False),
    ]
    write(everything / "benchmark.json", report(rows=[row("full", "budget", 8.0, 73.0), *peers]))
    text = section(card_of(everything), "Benchmark").replace("\N{NO-BREAK SPACE}", " ")
    assert "| Intel Neural Compressor, compiled |" in text
    assert "| OpenVINO |" in text
    assert "| torch |" in text
    assert "Compiled: machine code that `model.compile()` makes once on a machine" in text
    write(everything / "benchmark.json", report(rows=peers[:1]))
    assert "Batch size 1, true lengths, Intel Neural Compressor, compiled, int8, floats" in card_of(everything)


def test_metadata_are_those_that_the_hub_shows(everything):
    found = metadata(card_of(everything, repo_id="org/quala"))
    assert (found["library_name"], found["pipeline_tag"]) == (LIBRARY_NAME, "question-answering")
    assert found["tags"] == ["quala-minilm", "length-adaptive", "openvino", "int8"]
    assert (found["base_model"], found["base_model_relation"]) == ("org/minilm", "finetune")
    assert found["datasets"] == ["squad"]
    assert found["metrics"] == ["f1", "exact_match"]
    assert found["co2_eq_emissions"] == {
        "emissions": 12.5,
        "source": "codecarbon",
        "training_type": "fine-tuning",
        "geographical_location": "Norway",
        "hardware_used": "A CPU",
    }
    (index,) = found["model-index"]
    assert index["name"] == "quala"
    (result,) = index["results"]
    assert result["dataset"] == {"name": "dev.json", "type": "dev.json"}
    assert result["metrics"][0] == {"type": "f1", "value": 73.0, "name": "F1, full length"}


def test_scores_of_the_budgets_stand_in_for_a_benchmark(everything):
    (everything / "benchmark.json").unlink()
    (result,) = metadata(card_of(everything))["model-index"][0]["results"]
    assert result["dataset"] == {"name": "dev.json", "type": "dev.json", "split": "dev"}
    names = {metric["name"]: metric["value"] for metric in result["metrics"]}
    assert names["F1, budget fast, torch"] == 71.23
    assert names["Exact match, full length, OpenVINO int8"] == 64.25


def test_a_data_set_is_named_as_on_the_hub(tmp_path):
    budgets = {"fast": {**BUDGETS["fast"], "dataset": "org/squad:v2:validation"}}
    (result,) = metadata(card_of(make_folder(tmp_path, budgets=budgets)))["model-index"][0]["results"]
    assert result["dataset"] == {"name": "org/squad", "type": "org/squad", "split": "validation"}


def test_the_hub_accepts_the_card(everything, monkeypatch):
    """Through the real client, which asks the Hub before it commits."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with HubServer({"hf_writer": "write"}) as hub:
        api = HfApi(endpoint=hub.endpoint, token="hf_writer")
        api.create_repo("org/quala")
        file = write_model_card(everything, repo_id="org/quala")
        api.upload_file(path_or_fileobj=file, path_in_repo="README.md", repo_id="org/quala")
        assert hub.repositories["org/quala"].head().files["README.md"] == file.read_bytes()
        assert [request.path for request in hub.requests if "yaml" in request.path] == ["/api/validate-yaml"]
        broken = file.read_text().replace("pipeline_tag: question-answering", "pipeline_tag: nonsense")
        with pytest.raises(ValueError, match=r'"pipeline_tag" must be one of'):
            api.upload_file(path_or_fileobj=broken.encode(), path_in_repo="README.md", repo_id="org/quala")


def test_rules_of_the_hub_find_mistakes():
    bad = "---\nlicense: x\ntags: [1]\ndatasets: ['a b']\nmodel-index: [{results: [{metrics: [{}]}]}]\n---\n"
    errors = " ".join(card_errors(bad))
    for name in ("license", "tags", "datasets", ".name", "task.type", "dataset.type", "metrics"):
        assert name in errors


def test_huggingface_hub_reads_the_card_back(everything):
    card = ModelCard(card_of(everything))
    values = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert values == {"F1, full length": 73.0, "Exact match, full length": 63.0}
    assert card.data.model_name == "model"


def test_a_second_time_changes_nothing(everything):
    file = write_model_card(everything)
    first = file.read_text()
    assert write_model_card(everything).read_text() == first
    assert [path.name for path in everything.iterdir() if path.name.startswith(".")] == []


def test_text_of_the_owner_is_kept(everything):
    file = write_model_card(everything)
    mine = file.read_text().replace("# model\n", "# My title\n\nMy words | <b>.\n") + "\nMore of mine.\n"
    file.write_text(mine)
    (everything / "benchmark.json").unlink()
    again = write_model_card(everything).read_text()
    assert "# My title\n\nMy words | <b>.\n" in again
    assert again.endswith(f"{END}\n\nMore of mine.\n")
    assert again.count(END) == 1
    assert "## Benchmark" not in again


def test_a_card_without_a_generated_part_gets_one_at_its_end(tmp_path):
    folder = make_folder(tmp_path)
    write(folder / "README.md", "---\nlicense: mit\n---\n\n# Mine\n\nWords.\n")
    card = write_model_card(folder).read_text()
    assert card.startswith("---\nlicense: mit\n")
    assert "# Mine\n\nWords.\n\n<!-- optimum-qala: generated part" in card
    write(folder / "README.md", "# No metadata\n")
    assert "\n# No metadata\n\n<!-- optimum" in write_model_card(folder).read_text()


def test_metadata_of_the_owner_win(everything):
    file = write_model_card(everything)
    changes = {"pipeline_tag: question-answering": "pipeline_tag: feature-extraction", "tags:\n": "tags:\n- mine\n"}
    text = file.read_text()
    for old, new in changes.items():
        text = text.replace(old, new, 1)
    file.write_text(
        text.replace("---\n", "---\nlicense: mit\nbase_model: my/base\n", 1).replace("base_model: org/minilm\n", "", 1)
    )
    write(everything / "training.json", {"model": "org/other", "data": "other:train"})
    found = metadata(write_model_card(everything).read_text())
    assert list(found)[:2] == ["license", "base_model"]
    assert (found["license"], found["base_model"], found["pipeline_tag"]) == ("mit", "my/base", "feature-extraction")
    assert found["tags"] == ["mine", "quala-minilm", "length-adaptive", "openvino", "int8"]
    assert found["datasets"] == ["other"]  # generated before and now, so it follows the facts
    assert "[my/base](https://huggingface.co/my/base) (fine-tuned)" in file.read_text()


def test_generated_metadata_go_with_their_facts(everything):
    file = write_model_card(everything)
    for name in ("training.json", "emissions.csv"):
        (everything / name).unlink()
    found = metadata(write_model_card(everything).read_text())
    assert {"datasets", "co2_eq_emissions", "base_model", "base_model_relation"} & found.keys() == set()
    assert "model-index" in metadata(file.read_text())


def test_base_model_can_be_named(tmp_path):
    folder = make_folder(tmp_path, "openvino", quantization=INT8)
    found = metadata(card_of(folder, base_model="org/float"))
    assert (found["base_model"], found["base_model_relation"]) == ("org/float", "quantized")
    found = metadata(card_of(folder, existing=card_of(folder, base_model="org/a"), base_model="org/b"))
    assert found["base_model"] == "org/b"


def test_names_cannot_break_out(tmp_path):
    name = "a|b`<script>x</script>\n<!-- optimum-qala: end of the generated part -->\n"
    folder = make_folder(tmp_path / "<i>x", budgets={name: {**BUDGETS["fast"], "dataset": "<b>|.json"}})
    card = card_of(folder)
    code = section(card, "How to use it").split("```")[1]
    assert "<script>" not in card.replace(code, "").split("---\n")[2]
    assert "<b>" not in card.split("---\n")[2]
    assert card_of(folder, existing=card) == card
    assert "# &lt;i&gt;x" in card


def test_end_of_the_generated_part_must_be_there(tmp_path):
    folder = make_folder(tmp_path)
    file = write_model_card(folder)
    file.write_text(file.read_text().replace(END, ""))
    with pytest.raises(DataError, match=r'README.md has the line that begins .* not the line "<!-- optimum-qala: end'):
        write_model_card(folder)


@pytest.mark.parametrize("block", ["a: [", "- a", "model-index: [{name: x, results: [{}]}]"])
def test_metadata_that_cannot_be_read_are_named(tmp_path, block):
    folder = make_folder(tmp_path)
    write(folder / "README.md", f"---\n{block}\n---\nText.\n")
    with pytest.raises(DataError, match=r"the metadata of README.md cannot be read \(.+\); mend or remove them"):
        write_model_card(folder)
    assert (folder / "README.md").read_text() == f"---\n{block}\n---\nText.\n"


def test_a_changed_marker_makes_metadata_the_owners(tmp_path):
    folder = make_folder(tmp_path)
    card = re.sub(r'\{"library_name[^\n]*\}', "{broken}", card_of(folder)).replace("optimum-qala\np", "mine\np")
    assert metadata(card_of(folder, existing=card))["library_name"] == "mine"


def test_code_of_the_card_runs(tmp_path, tiny_model, tiny_tokenizer):
    """With a real model, in a folder of its own name; the second code is that for transformers alone."""
    folder = tmp_path / "model"
    tiny_model.save_pretrained(folder, remote_code=True)
    tiny_tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    write(folder / "config.json", {**config, "budgets": measured() | {"fast": {"retention": [1.0, 0.5, 0.5, 0.25]}}})
    code, remote_code = re.findall(r"```python\n(.*?)```", card_of(folder, repo_id=str(folder)), re.S)
    names: dict[str, object] = {}
    exec(code, names)
    assert names["model"] == str(folder)
    exec(remote_code, names)
    assert names["output"].start_logits.shape == names["inputs"]["input_ids"].shape


def test_code_for_transformers_alone_needs_the_code_in_the_repository(tmp_path):
    make_folder(tmp_path)
    assert "trust_remote_code" not in card_of(tmp_path)
    classes = {"AutoModelForQuestionAnswering": "modeling_quala_minilm.QuaLAMiniLMForQuestionAnswering"}
    make_folder(tmp_path, auto_map=classes)
    make_folder(tmp_path / "openvino", "openvino", auto_map=classes)
    card = card_of(tmp_path, repo_id="org/q")
    for name in ("AutoModelForQuestionAnswering", "AutoTokenizer"):
        assert card.count(f'{name}.from_pretrained("org/q", trust_remote_code=True)\n') == 1
    assert 'Without optimum-qala (`pip install torch "transformers>=' in card


def test_code_for_transformers_alone_is_there_for_what_will_be_pushed_with_it(tmp_path):
    facts = replace(read_facts(make_folder(tmp_path)), remote_code=True)
    assert make_model_card(facts, repo_id="org/q").count("trust_remote_code=True)\n") == 2


def test_code_of_sub_folders_names_them(tmp_path):
    make_folder(tmp_path / "openvino", "openvino", quantization=INT8)
    make_folder(tmp_path / "inc", "inc", quantization=INT8)
    write(tmp_path / "openvino" / "tokenizer.json", {})
    usage = section(card_of(tmp_path, repo_id="org/q"), "How to use it")
    assert 'OVQuaLAMiniLMForQuestionAnswering.from_pretrained("org/q", subfolder="openvino")' in usage
    assert 'INCQuaLAMiniLMForQuestionAnswering.from_pretrained("org/q", subfolder="inc")' in usage
    assert usage.count('AutoTokenizer.from_pretrained("org/q", subfolder="openvino")') == 2
    assert 'With Intel Neural Compressor (`pip install "optimum-qala"`):' in usage  # torch runs it
    assert "- Intel Neural Compressor needs a CPU with VNNI" in section(card_of(tmp_path), "Limits")


def usage_of(folder):
    return section(card_of(folder, repo_id="org/q"), "How to use it")


def test_code_runs_the_model_as_it_was_measured(tmp_path):
    folder = make_folder(tmp_path / "openvino", "openvino", quantization=INT8, budgets=measured(latency_ms=[LATENCY]))
    usage = usage_of(tmp_path)
    assert 'from_pretrained("org/q", subfolder="openvino", buckets=True)\n' in usage
    assert "padded to a multiple of 32 tokens, and the first one" in usage
    unpadded = {**LATENCY, "padding": "longest"}
    make_folder(folder, "openvino", quantization=INT8, budgets=measured(latency_ms=[unpadded]))
    assert "bucket" not in usage_of(tmp_path)
    in_16 = {"padding": "multiple of 16"}
    rows = [row("fast", "budget", 8.0, 70.0, budget="fast"), row("fast in buckets", "budget", 6.0, 70.0, **in_16)]
    write(tmp_path / "benchmark.json", report(rows=rows))
    usage = usage_of(tmp_path)
    assert "\nfrom optimum_qala import BucketOptions, OVQuaLAMiniLMForQuestionAnswering\n" in usage
    assert 'subfolder="openvino", buckets=BucketOptions(length_multiple=16))\n' in usage
    write(tmp_path / "benchmark.json", report(rows=[{**rows[1], "backend": "torch"}]))
    assert "bucket" not in usage_of(tmp_path), "another model was measured in them"


def test_code_of_a_torch_model_that_was_measured_in_openvino_exports_it(tmp_path):
    make_folder(tmp_path)
    floats = {"arithmetic": "f32", "padding": "multiple of 32"}
    rows = [row("full in buckets", "budget", 9.0, 70.0, **floats), row("plain int8", "plain", 10.0, 70.0)]
    write(tmp_path / "benchmark.json", report(rows=rows))
    usage = usage_of(tmp_path)
    assert '= OVQuaLAMiniLMForQuestionAnswering.from_pretrained("org/q", export=True, buckets=True)\n' in usage
    assert (
        'With OpenVINO, for which it is exported as it was measured (`pip install "optimum-qala[openvino]"`)' in usage
    )
    assert "padded to a multiple of 32 tokens" in usage
    for changes in ({"backend": "torch"}, {"arithmetic": "int8"}):
        write(tmp_path / "benchmark.json", report(rows=[rows[0] | changes, rows[1]]))
        assert "OVQuaLA" not in usage_of(tmp_path), "another model was measured"
    make_folder(tmp_path / "openvino", "openvino", quantization=INT8)
    write(tmp_path / "benchmark.json", report(rows=rows))
    assert usage_of(tmp_path).count("OVQuaLAMiniLMForQuestionAnswering.from_pretrained") == 1


def test_code_of_other_back_ends_has_no_buckets(tmp_path):
    folder = make_folder(tmp_path, budgets=measured(latency_ms=[LATENCY]))
    make_folder(folder / "inc", "inc", quantization=INT8, budgets=measured(latency_ms=[LATENCY]))
    assert "bucket" not in usage_of(folder)
