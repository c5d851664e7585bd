"""Models go to the Hub and come back in other processes: torch, OpenVINO, Intel Neural Compressor, and all in one.

One file, because its tests share a few processes, each of which takes seconds to import torch.
"""

from __future__ import annotations

import pytest
import torch

from tests.hub import client as steps
from tests.hub.conftest import BUDGETS, CARD, HAS_INC, HAS_OPENVINO, INC_BUDGETS, READER


pytestmark = pytest.mark.timeout(900)  # the first test waits for the processes that the others share

needs_openvino = pytest.mark.skipif(not HAS_OPENVINO, reason="needs the extra openvino")
needs_inc = pytest.mark.skipif(not HAS_INC, reason="needs the extra neural-compressor")
MODEL_FILES = {"README.md", "config.json", "model.safetensors"}
TOKENIZER_FILES = {"tokenizer.json", "tokenizer_config.json"}
TRAINER_FILES = {"trainer_state.json", "training_args.bin"}
GRAPHS = {
    "openvino": {"config.json", "openvino_model.bin", "openvino_model.xml", "openvino_quala_config.json"},
    "inc": {"config.json", "inc_config.json", "inc_graph.json", "inc_weights.safetensors"},
}


def assert_same_logits(found, expected, atol=1e-4):
    for name, logits in expected["logits"].items():
        torch.testing.assert_close(
            torch.tensor(found["logits"][name]), torch.tensor(logits), rtol=1e-4, atol=atol, msg=name
        )


def added(repository, branch):
    """Files that the last commit of a branch changed or added to the one before."""
    before, after = repository.branches[branch][-2:]
    return {name for name, data in after.files.items() if before.files.get(name) != data}


@pytest.fixture(scope="module")
def original(_tiny_model, tiny_tokenizer):
    """What the model says before it travels."""
    inputs = tiny_tokenizer(steps.QUESTION, steps.CONTEXT, return_tensors="pt")
    logits = {}
    for name, budget in (("full", "full"), ("fast", BUDGETS["fast"]["retention"])):
        with torch.no_grad():
            output = _tiny_model(**inputs, budget=budget)
        logits[name] = torch.stack([output.start_logits, output.end_logits])
    assert not torch.allclose(logits["full"], logits["fast"], atol=1e-2), "the budget must show"
    return logits


@pytest.mark.parametrize("process", ["loaded", "offline"])
def test_pushed_model_loads_by_repository_id_with_budgets_and_logits_intact(process, original, request):
    result = request.getfixturevalue(process)["torch"]
    assert result.get("class") == "QuaLAMiniLMForQuestionAnswering", result
    assert result["budgets"] == BUDGETS
    for name, logits in original.items():
        torch.testing.assert_close(torch.tensor(result["logits"][name]), logits, rtol=1e-4, atol=1e-4)


def test_push_is_one_commit_of_model_tokenizer_and_a_card(hub, pushed):
    first, commit = hub.repositories["org/quala"].branches["main"]
    assert pushed["torch"] == {"commit": commit.oid}
    assert set(commit.files) - set(first.files) == MODEL_FILES | TOKENIZER_FILES
    assert commit.title == "Upload QuaLAMiniLMForQuestionAnswering"
    card = commit.files["README.md"].decode()
    assert "pipeline_tag: question-answering" in card
    assert "# quala" in card


def test_weights_go_through_large_file_storage(hub, pushed):
    puts = [request for request in hub.requests_for("org/quala") if request.method == "PUT"]
    assert [request.path.startswith("/org/quala/lfs/") for request in puts] == [True]


def test_transformers_own_push_works_in_two_commits(hub, pushed):
    assert pushed["in parts"] == {}
    first, model, tokenizer = hub.repositories["org/parts"].branches["main"]
    assert set(model.files) - set(first.files) == MODEL_FILES
    assert set(tokenizer.files) >= TOKENIZER_FILES


def test_pushing_again_commits_what_changed_and_keeps_the_card(hub, pushed, loaded, original):
    assert "error" not in pushed["again, changed"], pushed["again, changed"]
    _, first, second = hub.repositories["org/again"].branches["main"]
    assert pushed["again, the same"] == pushed["again, first"] == {"commit": first.oid}
    changed = {name for name, data in second.files.items() if first.files.get(name) != data}
    assert changed == {"model.safetensors", "README.md"}
    assert second.files["README.md"].decode() == CARD.replace("---\nA card", "tags:\n- tower\n---\nA card")
    start, end = loaded["again"]["logits"]["full"]
    torch.testing.assert_close(torch.tensor(start), original["full"][0] + 1.0, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.tensor(end), original["full"][1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("step", ["broken upload", "broken commit"])
def test_push_that_breaks_off_says_so_in_one_line(step, pushed):
    result = pushed[step]
    assert result.get("error", [])[:2] == ["HubError", "QuaLAError"], result
    assert result["message"].startswith("pushing to org/broken broke off (")
    assert result["message"].endswith("nothing half-done shows there, so try again")
    assert "\n" not in result["message"]


def test_push_that_broke_off_leaves_nothing_and_succeeds_again(hub, pushed, loaded, original):
    assert hub.breaks == {"PUT /org/broken/lfs/": 0, "POST /api/models/org/broken/commit/": 0}
    _, commit = hub.repositories["org/broken"].branches["main"]
    assert pushed["after the break"] == {"commit": commit.oid}
    assert set(commit.files) >= MODEL_FILES | TOKENIZER_FILES
    start = torch.tensor(loaded["after the break"]["logits"]["full"][0])
    torch.testing.assert_close(start, original["full"][0] + 2.0, rtol=1e-4, atol=1e-4)


def test_trainer_pushes_checkpoints_and_result_to_the_branch_it_makes(hub, pushed, loaded):
    assert "error" not in pushed["trained"], pushed["trained"]
    repository = hub.repositories["org/trained"]
    assert [commit.title for commit in repository.branches["main"]] == ["initial commit"]
    *_, last = repository.branches["runs"]
    titles = [commit.title for commit in repository.branches["runs"]]
    assert "Training in progress, step 1" in titles
    assert last.title == "End of training"
    assert last.oid == pushed["trained"]["commit"]
    assert set(last.files) - {".gitattributes"} == MODEL_FILES | TOKENIZER_FILES | TRAINER_FILES
    assert "- tower" in last.files["README.md"].decode()
    for field in ("budgets", "answers", "class"):
        assert loaded["trained"][field] == pushed["trained"][field]
    for name, logits in pushed["trained"]["logits"].items():
        found = torch.tensor(loaded["trained"]["logits"][name])
        torch.testing.assert_close(found, torch.tensor(logits), rtol=1e-4, atol=1e-4)


def test_trainer_with_an_unknown_token_says_so_before_it_trains(pushed):
    assert pushed["trained, unknown token"]["error"][:2] == ["RefusedError", "HubError"]
    message = "the Hub does not accept the token for org/trained (Invalid credentials in Authorization header)"
    assert message in pushed["trained, unknown token"]["message"]


@pytest.mark.parametrize("process", ["loaded", "offline"])
def test_plain_bert_converts_by_repository_id_at_its_revision(process, bert, tiny_tokenizer, request):
    result = request.getfixturevalue(process)["plain"]
    assert result.get("class") == "QuaLAMiniLMForQuestionAnswering", result
    assert result["num_hidden_layers"] == 2, "config.json of main has one layer"
    assert result["sep_token_id"] == tiny_tokenizer.convert_tokens_to_ids("."), "only the tokenizer of v2 says so"
    with torch.no_grad():
        logits = bert(torch.arange(4, 24).reshape(1, 20)).start_logits
    torch.testing.assert_close(torch.tensor(result["logits"]), logits, rtol=1e-4, atol=1e-4)


def test_plain_bert_is_asked_for_with_token_and_revision(hub, loaded):
    assert "error" not in loaded["plain"], loaded["plain"]
    asked = [request for request in hub.requests_for("org/bert") if "/resolve/v2/" in request.path]
    assert {request.token for request in asked} == {READER}
    names = {request.path.rpartition("/")[2] for request in asked if request.status in (200, 302)}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def test_plain_bert_without_a_tokenizer_takes_the_usual_separator_and_says_so(loaded):
    result = loaded["plain, missing tokenizer"]
    assert result["num_hidden_layers"] == 1
    assert result["sep_token_id"] == 102
    assert "org/bert: no separator from its tokenizer (there is none), so token 102" in result["warnings"]
    assert loaded["plain"]["warnings"] == ""


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("missing repository", "org/none is not a local folder and is not a valid model identifier"),
        ("missing revision", "v9 is not a valid git identifier"),
        ("no token", "org/secret is not a local folder"),
        ("unknown token", "Invalid credentials in Authorization header"),
        ("gated", "You are trying to access a gated repo"),
    ],
)
def test_loading_what_the_hub_does_not_give_out_says_what_is_wrong(loaded, step, message):
    assert "OSError" in loaded[step]["error"], loaded[step]
    assert message in loaded[step]["message"]


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("no token", "Invalid username or password"),
        ("unknown token", "Invalid credentials in Authorization header"),
        ("read token", "you must use a write token"),
    ],
)
def test_pushing_without_the_right_to_write_is_refused(pushed, step, message):
    assert {"HubError", "HfHubHTTPError", "OSError"} <= set(pushed[step]["error"])
    assert message in pushed[step]["message"]
    assert "\n" not in pushed[step]["message"]


def test_offline_asks_nothing_and_names_what_it_lacks(hub, loaded, request):
    before = len(hub.requests)
    offline = request.getfixturevalue("offline")
    assert len(hub.requests) == before
    assert "OSError" in offline["never loaded"]["error"]
    assert "couldn't find them in the cached files" in offline["never loaded"]["message"]


def test_offline_push_says_what_is_in_its_way(offline):
    assert offline["push"]["error"][:2] == ["HubError", "QuaLAError"]
    assert (
        offline["push"]["message"] == "org/quala cannot be reached, for offline mode is enabled; unset HF_HUB_OFFLINE"
    )


@pytest.mark.parametrize("process", ["loaded", "offline"])
@needs_openvino
def test_pushed_graph_gives_the_same_answers_after_loading(process, pushed, request):
    result, original = request.getfixturevalue(process)["openvino"], pushed["openvino"]
    assert result.get("class") == "OVQuaLAMiniLMForQuestionAnswering", result
    assert result["answers"] == original["answers"]
    assert len(set(result["answers"].values())) == 2, "the budget must show"
    assert result["budgets"] == BUDGETS
    assert result["num_samples"] == 7
    for name, logits in original["logits"].items():
        torch.testing.assert_close(torch.tensor(result["logits"][name]), torch.tensor(logits), rtol=1e-4, atol=1e-4)


@needs_openvino
def test_graph_answers_as_the_torch_model(loaded):
    assert loaded["openvino"]["answers"] == loaded["torch"]["answers"]


@needs_openvino
def test_push_is_one_commit_with_tokenizer_and_card_in_a_private_repository(hub, pushed):
    repository = hub.repositories["org/quala-int8"]
    _, commit = repository.branches["main"]
    assert commit.oid == pushed["openvino"]["commit"]
    assert commit.title == "Upload OVQuaLAMiniLMForQuestionAnswering"
    assert added(repository, "main") == GRAPHS["openvino"] | {"README.md", "tokenizer.json", "tokenizer_config.json"}
    assert commit.files["README.md"].decode() == CARD
    assert repository.private
    assert not hub.repositories["org/quala"].private


@needs_openvino
def test_push_to_a_new_branch_leaves_main_alone(hub, pushed, loaded):
    repository = hub.repositories["org/quala"]
    commit = repository.head("openvino")
    assert commit.oid == pushed["openvino on a branch"].get("commit"), pushed["openvino on a branch"]
    assert commit.title == "Add the graph"
    assert added(repository, "openvino") - {"README.md"} == {f"openvino/{file}" for file in GRAPHS["openvino"]}
    assert b"With OpenVINO" in commit.files["README.md"]
    assert b"With OpenVINO" not in repository.head("main").files["README.md"]
    assert "openvino/openvino_model.xml" not in repository.head("main").files
    assert loaded["openvino on a branch"]["num_samples"] == 7


@needs_openvino
def test_push_as_a_pull_request_leaves_main_alone(hub, pushed):
    repository = hub.repositories["org/quala"]
    assert pushed["openvino as a pull request"]["pull_request"] == f"{hub.endpoint}/org/quala/discussions/1"
    assert repository.head("refs/pr/1").oid == pushed["openvino as a pull request"]["commit"]
    assert len(repository.branches["main"]) == 2  # the first one and the torch model


@needs_openvino
def test_repository_without_a_graph_is_exported(loaded):
    result = loaded["openvino from torch"]
    assert result["class"] == "OVQuaLAMiniLMForQuestionAnswering"
    assert result["num_samples"] is None
    assert result["answers"] == loaded["torch"]["answers"]


@needs_openvino
def test_graph_is_asked_for_with_the_token(hub, loaded):
    assert "error" not in loaded["openvino"], loaded["openvino"]
    asked = [request for request in hub.requests_for("org/quala-int8") if request.path.endswith(".xml")]
    assert {request.token for request in asked} == {READER}


@needs_openvino
def test_loading_a_graph_that_the_hub_does_not_give_out_says_what_is_wrong(loaded, offline):
    missing, refused = loaded["openvino, missing repository"], loaded["openvino, unknown token"]
    assert {"HubError", "OSError", "RepositoryNotFoundError"} <= set(missing["error"])
    assert missing["message"].startswith("the Hub has no repository org/none, or the token does not open it")
    assert {"HubError", "GatedRepoError"} <= set(loaded["openvino, gated"]["error"])
    assert loaded["openvino, gated"]["message"].startswith("org/gated is gated, and the token has no access")
    assert "Invalid credentials in Authorization header" in refused["message"]
    assert offline["openvino, never loaded"]["error"][0] == "CheckpointError"
    assert offline["openvino, never loaded"]["message"].startswith("openvino_model.xml of org/secret is not in the")
    assert "offline mode is enabled" in offline["openvino, never loaded"]["message"]


@pytest.mark.parametrize(
    ("back_end", "graph"),
    [
        pytest.param("openvino", "openvino_model.xml", marks=needs_openvino),
        pytest.param("inc", "inc_graph.json", marks=needs_inc),
    ],
)
def test_torch_model_in_the_cache_does_not_tell_that_there_is_no_graph(back_end, graph, offline):
    result = offline[f"{back_end}, torch only in the cache"]
    assert result["error"][0] == "CheckpointError"
    assert result["message"].startswith(f"{graph} of org/again is not in the cache, and the Hub does not tell whether")


@needs_openvino
def test_pushing_with_a_read_token_is_refused(pushed):
    assert "you must use a write token" in pushed["openvino with a read token"]["message"]


@needs_openvino
def test_commands_choose_the_back_end_by_what_the_repository_holds(loaded, offline):
    assert loaded["command"] == {"backend": "torch"}
    assert offline["command"] == {"backend": "openvino"}


@needs_openvino
def test_commands_load_another_branch(loaded):
    assert loaded["command on a branch"] == {"backend": "openvino"}


def test_commands_load_the_model_and_the_tokenizer_of_a_revision(loaded):
    assert loaded["command at main"] == {"layers": [1, 1, 1], "separator": "[SEP]"}
    assert loaded["command at v2"] == {"layers": [2, 2, 2], "separator": "."}


@needs_inc
def test_commands_name_a_revision_that_is_not_there(loaded):
    assert loaded["command, inc"]["message"].startswith("org/quala has no revision 'v9'; name a branch")


@needs_openvino
@needs_inc
def test_each_push_is_one_commit_and_leaves_the_others_alone(hub, pushed):
    assert "error" not in pushed["all: inc"], pushed["all: inc"]
    repository = hub.repositories["org/all"]
    first, root, openvino, inc = repository.branches["main"]
    assert repository.private
    assert {"model.safetensors", "config.json", "README.md", "tokenizer.json"} <= set(root.files) - set(first.files)
    for before, after, name in ((root, openvino, "openvino"), (openvino, inc, "inc")):
        assert set(after.files) - set(before.files) == {f"{name}/{file}" for file in GRAPHS[name]}
        assert {file: after.files[file] for file in before.files} == before.files
    assert inc.files["README.md"].decode() == CARD


@pytest.mark.parametrize("process", ["loaded", "offline"])
@pytest.mark.parametrize(
    ("back_end", "class_name", "budgets"),
    [
        ("torch", "QuaLAMiniLMForQuestionAnswering", BUDGETS),
        pytest.param("openvino", "OVQuaLAMiniLMForQuestionAnswering", BUDGETS, marks=needs_openvino),
        pytest.param("inc", "INCQuaLAMiniLMForQuestionAnswering", INC_BUDGETS, marks=needs_inc),
    ],
)
def test_repository_loads_in_every_back_end_with_its_own_budgets(
    process, back_end, class_name, budgets, pushed, loaded, request
):
    result = request.getfixturevalue(process)[f"all: {back_end}"]
    assert result.get("class") == class_name, result
    assert result["module"].startswith("optimum_qala."), "not the code of the repository"
    assert result["budgets"] == budgets
    if back_end == "torch":
        assert_same_logits(result, loaded["torch"])
    else:
        assert_same_logits(result, pushed[f"all: {back_end}"], atol=1e-3)


@needs_openvino
@needs_inc
def test_back_ends_give_equal_answers(pushed, loaded):
    assert loaded["all: torch"]["answers"] == loaded["all: openvino"]["answers"]
    assert loaded["all: inc"]["answers"] == pushed["all: inc"]["answers"], "which are rounded to int8"


@needs_openvino
def test_cache_folder_holds_the_sub_folder_for_local_files_only(cache, loaded):
    assert "error" not in loaded["all: here"], loaded["all: here"]
    assert loaded["all: cached"] == loaded["all: here"]
    assert list((cache / "here").glob("models--org--all/snapshots/*/openvino/openvino_model.xml"))


@needs_openvino
def test_sub_folder_that_is_named_wins(loaded):
    assert loaded["all: openvino"]["num_samples"] == 7
    assert loaded["all: root"]["num_samples"] is None, "exported from the torch model at the root"


@needs_inc
def test_inc_model_that_is_not_there_is_named(loaded):
    assert loaded["inc, none there"]["message"].startswith("org/quala holds no inc_graph.json; quantize the torch")
    assert {"HubError", "RevisionNotFoundError"} <= set(loaded["inc, missing revision"]["error"])
    assert loaded["inc, missing revision"]["message"].startswith("org/quala has no revision 'v9'; name a branch")


@needs_openvino
@needs_inc
def test_page_of_the_documentation_runs(hub, pushed):
    classes = ["INCQuaLA", "OVQuaLA", "QuaLA"]
    assert pushed["page"] == {"classes": [f"{name}MiniLMForQuestionAnswering" for name in classes]}
    commits = hub.repositories["your-name/your-model"].branches["main"]
    assert len(commits) == 4
    card = commits[-1].files["README.md"].decode()
    assert card.count("pipeline(") == 3, "the card tells how to use all three"
    assert {commit.files["README.md"] for commit in commits[1:]} == {card.encode()}, "from the first push on"
    assert hub.repositories["your-name/your-model"].private


class TestWithoutPackage:
    def test_nothing_of_the_package_is_imported(self, without_package):
        assert without_package["imported"] == {"modules": []}

    @pytest.mark.parametrize("step", ["torch", "saved again"])
    def test_code_of_the_repository_gives_the_same_logits_and_budgets(self, step, without_package, original):
        result = without_package[step]
        assert "error" not in result, result
        assert result["module"].startswith("transformers_modules.")
        assert result["budgets"] == BUDGETS
        for name, logits in original.items():
            torch.testing.assert_close(torch.tensor(result["logits"][name]), logits, rtol=1e-5, atol=1e-5)

    def test_model_that_is_saved_again_names_its_own_code(self, without_package):
        assert without_package["saved again"]["auto_map"] == {
            "AutoConfig": "configuration_quala_minilm.QuaLAMiniLMConfig",
            "AutoModel": "modeling_quala_minilm.QuaLAMiniLMModel",
            "AutoModelForQuestionAnswering": "modeling_quala_minilm.QuaLAMiniLMForQuestionAnswering",
        }

    def test_code_of_the_card_runs_and_asks_nothing(self, without_package):
        result = without_package["card"]
        assert "error" not in result, result
        assert result["module"].startswith("transformers_modules.")
        assert result["num_scores"] > 3
        assert result["num_questions"] == 0

    def test_encoder_loads_alone(self, without_package):
        assert without_package["encoder"].get("class") == "QuaLAMiniLMModel", without_package["encoder"]

    def test_repository_without_code_needs_the_package(self, without_package):
        assert "does not recognize this architecture" in without_package["no code"]["message"]
