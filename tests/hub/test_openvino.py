"""An exported model goes to the Hub in one commit and comes back in another process."""

from __future__ import annotations

import pytest
import torch

from tests.hub.conftest import BUDGETS, CARD, HAS_OPENVINO, READER


pytestmark = [
    pytest.mark.skipif(not HAS_OPENVINO, reason="needs the extra openvino"),
    pytest.mark.timeout(600),  # the first test waits for the processes that the others share
]

GRAPH_FILES = {"config.json", "openvino_model.bin", "openvino_model.xml", "openvino_quala_config.json"}


def added(repository, branch):
    """Files that the last commit of a branch changed or added to the one before."""
    before, after = repository.branches[branch][-2:]
    return {name for name, data in after.files.items() if before.files.get(name) != data}


@pytest.mark.parametrize("process", ["loaded", "offline"])
def test_pushed_graph_gives_the_same_answers_after_loading(process, pushed, request):
    result, original = request.getfixturevalue(process)["openvino"], pushed["openvino"]
    assert result.get("class") == "OVQuaLAMiniLMForQuestionAnswering", result
    assert result["answers"] == original["answers"]
    assert len(set(result["answers"].values())) == 2, "the budget must show"
    assert result["budgets"] == BUDGETS
    assert result["num_samples"] == 7
    for name, logits in original["logits"].items():
        torch.testing.assert_close(torch.tensor(result["logits"][name]), torch.tensor(logits), rtol=1e-4, atol=1e-4)


def test_graph_answers_as_the_torch_model(loaded):
    assert loaded["openvino"]["answers"] == loaded["torch"]["answers"]


def test_push_is_one_commit_with_tokenizer_and_card_in_a_private_repository(hub, pushed):
    repository = hub.repositories["org/quala-int8"]
    _, commit = repository.branches["main"]
    assert commit.oid == pushed["openvino"]["commit"]
    assert commit.title == "Upload QuaLA-MiniLM for OpenVINO"
    assert added(repository, "main") == GRAPH_FILES | {"README.md", "tokenizer.json", "tokenizer_config.json"}
    assert commit.files["README.md"].decode() == CARD
    assert repository.private
    assert not hub.repositories["org/quala"].private


def test_push_to_a_new_branch_leaves_main_alone(hub, pushed, loaded):
    repository = hub.repositories["org/quala"]
    commit = repository.head("openvino")
    assert commit.oid == pushed["openvino on a branch"].get("commit"), pushed["openvino on a branch"]
    assert commit.title == "Add the graph"
    assert added(repository, "openvino") - {"config.json"} == GRAPH_FILES - {"config.json"}
    assert "openvino_model.xml" not in repository.head("main").files
    assert loaded["openvino on a branch"]["num_samples"] == 7


def test_push_as_a_pull_request_leaves_main_alone(hub, pushed):
    repository = hub.repositories["org/quala"]
    assert pushed["openvino as a pull request"]["pull_request"] == f"{hub.endpoint}/org/quala/discussions/1"
    assert repository.head("refs/pr/1").oid == pushed["openvino as a pull request"]["commit"]
    assert len(repository.branches["main"]) == 3  # the first one, the torch model, its tokenizer


def test_repository_without_a_graph_is_exported(loaded):
    result = loaded["openvino from torch"]
    assert result["class"] == "OVQuaLAMiniLMForQuestionAnswering"
    assert result["num_samples"] is None
    assert result["answers"] == loaded["torch"]["answers"]


def test_graph_is_asked_for_with_the_token(hub, loaded):
    assert "error" not in loaded["openvino"], loaded["openvino"]
    asked = [request for request in hub.requests_for("org/quala-int8") if "/resolve/" in request.path]
    assert {request.token for request in asked} == {READER}


def test_loading_what_the_hub_does_not_give_out_says_what_is_wrong(loaded, offline):
    missing, refused = loaded["openvino, missing repository"], loaded["openvino, unknown token"]
    assert {"OSError", "RepositoryNotFoundError"} <= set(missing["error"])
    assert "/org/none/" in missing["message"]
    assert "Invalid credentials in Authorization header" in refused["message"]
    assert offline["openvino, never loaded"]["error"][0] == "CheckpointError"
    assert offline["openvino, never loaded"]["message"].startswith("org/secret is not in the cache")
    assert "offline mode is enabled" in offline["openvino, never loaded"]["message"]


def test_pushing_with_a_read_token_is_refused(pushed):
    assert "you must use a write token" in pushed["openvino with a read token"]["message"]


def test_commands_choose_the_back_end_by_what_the_repository_holds(loaded, offline):
    assert loaded["command"] == {"backend": "torch"}
    assert offline["command"] == {"backend": "openvino"}
