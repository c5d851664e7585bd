"""A torch model goes to the Hub and comes back in another process, which has imported optimum_qala and no more."""

from __future__ import annotations

import pytest
import torch

from tests.hub import client as steps
from tests.hub.conftest import BUDGETS, READER


pytestmark = pytest.mark.timeout(600)  # the first test waits for the processes that the others share


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


def test_push_makes_one_commit_for_the_model_and_one_for_the_tokenizer(hub, pushed):
    assert pushed["torch"] == {}
    first, model, tokenizer = hub.repositories["org/quala"].branches["main"]
    assert set(model.files) - set(first.files) == {"README.md", "config.json", "model.safetensors"}
    assert {"tokenizer.json", "tokenizer_config.json"} <= set(tokenizer.files)
    assert tokenizer.files["model.safetensors"] == model.files["model.safetensors"]


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
    names = {request.path.rpartition("/")[2] for request in asked if request.status == 200}
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
    assert message in pushed[step]["message"]


def test_offline_asks_nothing_and_names_what_it_lacks(hub, loaded, request):
    before = len(hub.requests)
    offline = request.getfixturevalue("offline")
    assert len(hub.requests) == before
    assert "OSError" in offline["never loaded"]["error"]
    assert "couldn't find them in the cached files" in offline["never loaded"]["message"]
