"""Pushing again: what happens to the files and to the card that the repository has. In one process with the Hub."""

from __future__ import annotations

import json
import re
import shutil
from functools import partial

import pytest
import torch
import yaml
from huggingface_hub import HfApi
from transformers import Trainer

from optimum_qala import QuaLAMiniLMForQuestionAnswering
from optimum_qala.errors import ConfigurationError
from optimum_qala.models import hub as pushing
from optimum_qala.models.hub import push_folder
from optimum_qala.reporting import pushed_cards
from optimum_qala.reporting.card_parts import END
from optimum_qala.reporting.model_card import write_model_card
from optimum_qala.training import hub as training
from tests.hub_server import HubServer
from tests.reporting.folders import INT8, make_folder, measured, write
from tests.reporting.reports import report
from tests.training.runs import make_trainer


WRITER = "hf_writer"
REPOSITORY = "org/quala"


@pytest.fixture(scope="module")
def server():
    with HubServer({WRITER: "write"}) as made:
        yield made


@pytest.fixture
def hub(server, tmp_path, monkeypatch):
    """The server, without repositories."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    for module in (pushing, training):
        monkeypatch.setattr(module, "HfApi", partial(HfApi, endpoint=server.endpoint))
    server.repositories.clear()
    return server


@pytest.fixture
def warnings(monkeypatch):
    messages = []
    for module in (pushing, training, pushed_cards):
        monkeypatch.setattr(module.logger, "warning", messages.append)
    return messages


@pytest.fixture
def folder(tmp_path):
    """A model of which all is known, with its card."""
    made = make_folder(tmp_path / "model", budgets=measured())
    write(made / "training.json", {"model": "org/minilm", "data": "squad:train", "steps": 1200})
    write(made / "benchmark.json", report())
    write_model_card(made, repo_id=REPOSITORY)
    return made


def push(folder, **options):
    return push_folder(folder, REPOSITORY, commit_message="push", token=WRITER, **options)


def copy(folder, *names):
    """A folder with some of the files of another one."""
    target = folder.with_name("part")
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, target / name)
    return target


def files(hub, branch="main"):
    return hub.repositories[REPOSITORY].head(branch).files


def card(hub):
    return files(hub)["README.md"].decode()


def metadata(text):
    return yaml.safe_load(text.split("---\n")[1])


def edit(hub, *changes):
    """Edit the card on the Hub."""
    text = card(hub)
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    hub.repositories[REPOSITORY].commit("main", "Edit", {"README.md": text.encode()})


TITLE = ("# quala\n", "# quala\n\nWritten on the Hub.\n")
LICENSE = ("---\n", "---\nlicense: mit\n")


def load(hub, target):
    for name, data in files(hub).items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(data)
    return QuaLAMiniLMForQuestionAnswering.from_pretrained(target)


class TestFiles:
    def test_weights_in_other_files_replace_those_before(self, hub, tiny_model, tmp_path):
        tiny_model.push_to_hub(REPOSITORY, token=WRITER)
        for change, options in ((5.0, {"max_shard_size": "20KB"}), (1.0, {})):
            with torch.no_grad():
                tiny_model.qa_outputs.bias += change
            tiny_model.push_to_hub(REPOSITORY, token=WRITER, **options)
            assert ("model.safetensors" in files(hub)) != bool(options)
            loaded = load(hub, tmp_path / f"loaded-{change:g}")
            torch.testing.assert_close(loaded.qa_outputs.bias, tiny_model.qa_outputs.bias)
        assert [name for name in files(hub) if "model-0" in name or "index" in name] == []

    def test_weights_of_another_folder_and_other_files_stay(self, hub, folder):
        hub.add(REPOSITORY, make_folder(folder.with_name("other") / "sub").parent)
        push(folder)
        assert {"sub/model.safetensors", ".gitattributes", "model.safetensors"} <= files(hub).keys()

    def test_record_of_a_quantized_graph_goes_with_it(self, hub, tmp_path):
        push(make_folder(tmp_path / "int8" / "openvino", "openvino", quantization=INT8).parent)
        assert "openvino/openvino_quala_config.json" in files(hub)
        push(make_folder(tmp_path / "float" / "openvino", "openvino").parent)
        assert "openvino/openvino_quala_config.json" not in files(hub)
        assert "int8" not in card(hub)

    def test_graph_at_the_root_of_a_torch_model_is_refused(self, hub, folder):
        push(folder)
        graph = make_folder(folder.with_name("graph"), "openvino", budgets={})
        message = "org/quala holds model.safetensors, whose config.json this push would replace; pass subfolder='openv"
        with pytest.raises(ConfigurationError, match=message):
            push(graph)
        assert json.loads(files(hub)["config.json"])["budgets"] == measured()


class TestVisibility:
    def test_existing_repository_stays_as_it_is_with_a_warning(self, hub, folder, warnings):
        push(folder, private=False)
        assert warnings == []
        push(folder, private=True)
        (message,) = warnings
        assert message.startswith("org/quala exists and stays public: private=True is for new repositories; HfApi()")
        assert "update_repo_settings('org/quala', private=True)" in message
        hub.repositories[REPOSITORY].private = True
        push(folder, private=True)
        push(folder)
        assert len(warnings) == 1
        push(folder, private=False)
        assert "stays private" in warnings[-1]


class TestGivenCard:
    def test_what_was_changed_on_the_hub_stays_and_numbers_are_new(self, hub, folder, warnings):
        push(folder, readme=folder / "README.md")
        edit(hub, TITLE, LICENSE, ("- quala-minilm\n", "- quala-minilm\n- mine\n"))
        (folder / "benchmark.json").unlink()
        make_folder(folder, budgets=measured(f1=12.34))
        write_model_card(folder, repo_id=REPOSITORY)
        push(folder, readme=folder / "README.md")
        text = card(hub)
        assert "Written on the Hub." in text
        assert metadata(text)["license"] == "mit"
        assert metadata(text)["tags"] == ["quala-minilm", "mine", "length-adaptive"]
        assert "| fast | 12.34 |" in text
        assert "## Benchmark" not in text
        assert text.count(END) == 1
        assert metadata(text)["model-index"][0]["results"][0]["metrics"][0]["value"] != 73.0
        assert warnings == []

    def test_folders_own_card_is_merged_too(self, hub, folder):
        push(folder)
        edit(hub, TITLE, LICENSE)
        push(folder)
        assert "Written on the Hub." in card(hub)
        assert "Written on the Hub." in (folder / "README.md").read_text(), "which is what was pushed"

    def test_text_that_was_changed_here_only_is_pushed(self, hub, folder, warnings):
        push(folder, readme=folder / "README.md")
        first = (folder / "README.md").read_text()
        mine = first.replace("# quala\n", "# quala\n\nWritten here.\n").replace("---\n", "---\nlicense: mit\n", 1)
        for text in (mine, mine.replace("license: mit", "license: apache-2.0").replace("here", "anew")):
            (folder / "README.md").write_text(text)
            write_model_card(folder, repo_id=REPOSITORY)
            push(folder, readme=folder / "README.md")
        assert "Written anew." in card(hub)
        assert metadata(card(hub))["license"] == "apache-2.0"
        (folder / "README.md").write_text(first)
        push(folder, readme=folder / "README.md")
        assert "license" not in metadata(card(hub))
        assert warnings == []

    def test_text_that_was_changed_in_both_places_stays_with_a_warning(self, hub, folder, warnings):
        given = folder.with_name("card.md")
        text = (folder / "README.md").read_text()
        given.write_text(text.replace("---\n", "---\nlicense: cc-by-4.0\n", 1))
        push(folder, readme=given)
        edit(hub, TITLE, ("license: cc-by-4.0\n", ""))
        given.write_text(given.read_text().replace("# quala\n", "# quala\n\nWritten here.\n"))
        push(folder, readme=given)
        assert "Written on the Hub." in card(hub)
        assert "Written here." not in card(hub)
        assert "license" not in metadata(card(hub)), "it was removed on the Hub"
        (message,) = warnings
        assert message.startswith("The text of the card was changed on the Hub and in the card to push: org/quala ke")

    def test_card_without_a_generated_part_is_pushed_as_it_is(self, hub, folder):
        push(folder)
        push(folder, readme="Mine.\n")
        assert card(hub) == "Mine.\n"
        generated = (folder.with_name("model") / "README.md").read_text()
        assert generated == "Mine.\n", "it is the folder's now"

    def test_pushing_the_same_again_makes_no_commit(self, hub, folder):
        push(folder)
        edit(hub, TITLE)
        push(folder)
        before = len(hub.repositories[REPOSITORY].branches["main"])
        push(folder)
        assert len(hub.repositories[REPOSITORY].branches["main"]) == before


class TestStoredCard:
    @pytest.fixture
    def part(self, folder, hub):
        """The model alone, after a push with the card of a report."""
        write(folder / "tokens.png", "picture")
        write_model_card(folder, repo_id=REPOSITORY)
        push(copy(folder, "config.json", "model.safetensors"), readme=folder / "README.md")
        shutil.rmtree(folder.with_name("part"))
        return copy(folder, "config.json", "model.safetensors")

    def test_it_stays_where_it_shows_what_is_pushed(self, hub, part, warnings):
        before = card(hub)
        assert "## Training" in before
        push(part)
        assert card(hub) == before
        assert warnings == []

    def test_other_measurements_are_shown(self, hub, part, warnings):
        edit(hub, TITLE, LICENSE)
        budgets = {"tiny": {**measured()["fast"], "f1": 99.0}}
        push(make_folder(part, budgets=budgets))
        text = card(hub)
        assert "Written on the Hub." in text
        assert metadata(text)["license"] == "mit"
        assert "| tiny | 99.00 |" in text
        assert re.findall("fast|## Benchmark|tokens.png|75.50", text) == []
        (message,) = warnings
        assert message.startswith("The card of org/quala showed other measurements and was made again, without Bench")
        assert "Training" in message

    def test_other_models_of_the_repository_stay_on_it(self, hub, tmp_path, warnings):
        int8 = make_folder(tmp_path / "graph" / "openvino", "openvino", budgets=measured(f1=61.0), quantization=INT8)
        push(make_folder(tmp_path / "torch"))
        push(int8.parent)
        assert warnings == []
        assert "| fast | 71.23 |" in card(hub)
        assert "### OpenVINO int8" in card(hub)
        assert "| fast | 61.00 |" in card(hub)
        assert "OpenVINO int8 0.0 MB" in card(hub)
        push(make_folder(tmp_path / "anew", budgets=measured(f1=80.0)))
        assert "| fast | 80.00 |" in card(hub)
        assert "| fast | 61.00 |" in card(hub)
        assert "calibrated with | 300 windows" in card(hub)

    def test_it_stays_with_a_warning_where_a_new_model_would_cost_what_is_true(self, hub, part, warnings):
        before = card(hub)
        push(make_folder(part.with_name("graph") / "openvino", "openvino", quantization=INT8).parent)
        assert card(hub) == before
        assert [message.partition(";")[0] for message in warnings] == [
            "The card of org/quala stays without the model that is pushed"
        ]

    def test_a_card_of_its_owner_stays(self, hub, part):
        hub.repositories[REPOSITORY].commit("main", "Edit", {"README.md": b"Mine."})
        push(make_folder(part, budgets={}))
        assert card(hub) == "Mine."


class TestTrainer:
    @pytest.fixture
    def trainer(self, tmp_path, tiny_model, tiny_tokenizer, hub):
        tiny_model.config.budgets = {"fast": {"retention": [1.0, 0.7, 0.5, 0.3], "f1": 61.5, "dataset": "dev.json"}}
        made = make_trainer(tmp_path, tiny_model, tiny_tokenizer, [], hub_token=WRITER)
        HfApi(endpoint=hub.endpoint, token=WRITER).create_repo(REPOSITORY)
        made.hub_model_id, made.push_in_progress = REPOSITORY, None
        return made

    def test_card_says_what_was_measured_and_trained(self, trainer, hub, tmp_path):
        write(tmp_path / "out" / "training.json", {"model": "org/minilm", "data": "squad:train", "steps": 1200})
        trainer.push_to_hub(tags="tower", license="mit", finetuned_from="org/base", dataset_tags="squad")
        found, text = metadata(card(hub)), card(hub)
        assert found["tags"][0] == "tower"
        assert (found["license"], found["base_model"], found["datasets"]) == ("mit", "org/base", ["squad"])
        assert found["pipeline_tag"] == "question-answering"
        assert "| fast | 61.50 |" in text
        assert "| Steps | 1,200 |" in text
        assert "pipeline(" in text

    def test_text_of_the_folder_and_of_the_hub_is_kept(self, trainer, hub, tmp_path):
        hub.repositories[REPOSITORY].commit("main", "Edit", {"README.md": b"# Mine\n"})
        trainer.push_to_hub()
        assert "\n# Mine\n" in card(hub)
        edit(hub, ("# Mine\n", "# Mine\n\nWritten on the Hub.\n"))
        trainer.model.config.budgets["fast"]["f1"] = 62.5
        trainer.push_to_hub()
        assert "Written on the Hub." in card(hub)
        assert "| fast | 62.50 |" in card(hub)
        assert (tmp_path / "out" / "README.md").read_bytes() == card(hub).encode()

    def test_card_that_checkpoints_take_along_is_that_of_the_hub(self, trainer, hub, tmp_path, monkeypatch, warnings):
        trainer.push_to_hub()
        edit(hub, TITLE)
        monkeypatch.setattr(
            Trainer, "init_hf_repo", lambda *_: None
        )  # which asks the Hub of huggingface_hub's settings
        trainer.args.hub_private_repo = True
        trainer.init_hf_repo()
        assert [message.partition(":")[0] for message in warnings] == ["org/quala exists and stays public"]
        assert "Written on the Hub." in (tmp_path / "out" / "README.md").read_text()

    def test_training_is_told_without_a_record_too(self, trainer, hub, tmp_path):
        trainer.state.global_step = 3
        trainer.push_to_hub()
        assert "| Steps | 3 |" in card(hub)
        (tmp_path / "out" / "trainer_state.json").unlink()
        write(tmp_path / "out" / "training.json", {"steps": 4})
        trainer.push_to_hub()
        assert "| Steps | 4 |" in card(hub)
        assert not (tmp_path / "out" / "trainer_state.json").exists()

    def test_draft_of_transformers_is_replaced(self, trainer, hub, tmp_path):
        write(tmp_path / "out" / "README.md", f"# out\n\n{training.DRAFT} You\n")
        trainer.push_to_hub(revision="next")
        text = files(hub, "next")["README.md"].decode()
        assert "# quala" in text
        assert training.DRAFT not in text

    def test_code_goes_along_on_request(self, trainer, hub):
        trainer.push_to_hub()
        assert "modeling_quala_minilm.py" not in files(hub)
        trainer.push_to_hub(remote_code=True)
        assert "modeling_quala_minilm.py" in files(hub)
        assert "trust_remote_code=True" in card(hub)

    def test_arguments_that_the_card_does_not_take_are_named(self, trainer, hub, warnings):
        trainer.push_to_hub(tasks="question-answering", dataset_args=None)
        assert warnings == ["The model card does not take tasks: it says what it was made of by itself"]
        with pytest.raises(ConfigurationError, match="push_to_hub of QuaLATrainer has no argument 'nonsense'"):
            trainer.push_to_hub(nonsense=1)
