"""Pushing, without a Hub: what is refused before it is asked, and what its errors say. tests/hub asks one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from huggingface_hub import ModelCard
from huggingface_hub import errors as hub_client
from transformers import PreTrainedModel

from optimum_qala.errors import ConfigurationError, HubError, QuaLAError
from optimum_qala.models import hub
from optimum_qala.models.hub import HubModel, hub_errors, push_folder, set_card_writer


class Model(HubModel):
    def save_pretrained(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "graph").write_text("graph")


@pytest.fixture
def commits(monkeypatch):
    """What would go to the Hub: one dictionary for each commit, files by name in `files`."""
    made = []

    class Api:
        card = http_error(hub_client.RemoteEntryNotFoundError, 404)

        def __init__(self, token):
            self.token = token

        def create_repo(self, repo_id, **options):
            return SimpleNamespace(repo_id=f"org/{repo_id}")

        def create_branch(self, repo_id, branch, exist_ok):
            made.append({"branch": branch})

        def hf_hub_download(self, repo_id, name, revision):
            if isinstance(Api.card, Exception):
                raise Api.card
            return Api.card

        def create_commit(self, repo_id, operations, **options):
            paths = {operation.path_in_repo: Path(operation.path_or_fileobj) for operation in operations}
            files = {name: path.read_text(errors="replace") for name, path in paths.items()}
            made.append({"repo": repo_id, "token": self.token, "files": files, **options})

    monkeypatch.setattr(hub, "HfApi", Api)
    monkeypatch.setattr(hub, "_card_writer", None)  # it reads models, of which there are none here
    made.append(Api)
    return made


def http_error(kind, status, **headers):
    response = httpx.Response(status, headers=headers, request=httpx.Request("GET", "http://hub/org/model"))
    return kind("a long story\nin lines", response=response, server_message="no.")


def test_sub_folder_gets_the_model_and_the_root_the_card(commits):
    Model().push_to_hub("model", subfolder="openvino", commit_description="why", token="secret", revision="next")
    branch, commit = commits[1:]
    assert branch == {"branch": "next"}
    assert commit.pop("files") == {"openvino/graph": "graph", "README.md": hub.DEFAULT_CARD.format(name="model")}
    assert ModelCard(hub.DEFAULT_CARD).data.library_name == hub.LIBRARY_NAME, "as in the card of what was measured"
    assert commit == {
        "repo": "org/model",
        "token": "secret",
        "commit_message": "Upload Model",
        "commit_description": "why",
        "revision": "next",
        "create_pr": False,
    }


def test_branch_of_a_pull_request_is_not_made(commits):
    Model().push_to_hub("model", revision="next", create_pr=True)
    assert [commit["revision"] for commit in commits[1:]] == ["next"]


@pytest.mark.parametrize("subfolder", ["../other", "a/../../b", "/tmp/qala-outside"])
def test_sub_folder_outside_the_repository_is_refused(subfolder, commits):
    with pytest.raises(ConfigurationError, match=f"subfolder '{subfolder}' is outside the repository"):
        Model().push_to_hub("model", subfolder=subfolder)
    assert commits[1:] == []


def test_unknown_argument_is_refused_before_anything_is_made(commits):
    with pytest.raises(ConfigurationError, match="push_to_hub of Model has no argument 'remote_code'"):
        Model().push_to_hub("model", remote_code=True)
    assert commits[1:] == []


def test_arguments_of_transformers_are_taken(tiny_model, commits):
    tiny_model.add_model_tags(["tiny"])
    tiny_model.push_to_hub("model", max_shard_size="20KB", tags="qa")
    files = commits[-1]["files"]
    assert "model.safetensors.index.json" in files
    assert "\ntags:\n- optimum-qala\n- tiny\n- qa\n" in files["README.md"]
    assert PreTrainedModel.push_to_hub is not type(tiny_model).push_to_hub


class TestCard:
    def push(self, folder, **options):
        push_folder(folder, "model", commit_message="push", **options)

    def test_card_that_is_given_wins(self, tmp_path, commits):
        (tmp_path / "README.md").write_text("of the folder")
        self.push(tmp_path, readme="given")
        assert commits[-1]["files"]["README.md"] == "given"

    def test_card_that_is_a_file_comes_with_what_it_shows(self, tmp_path, commits):
        own, pushed = tmp_path / "own", tmp_path / "pushed"
        pushed.mkdir()
        (pushed / "config.json").write_text("of the model")
        own.mkdir()
        card = '<img src="tokens.png">\n[All](all.json), [sizes](config.json), README.md, secret.txt'
        for name, text in {"README.md": card, "tokens.png": "p", "all.json": "a", "config.json": "c"}.items():
            (own / name).write_text(text)
        (own / "secret.txt").write_text("s")
        (own / "checkpoint-1").mkdir()
        self.push(pushed, readme=own / "README.md")
        assert commits[-1]["files"] == {
            "README.md": card,
            "tokens.png": "p",
            "all.json": "a",
            "config.json": "of the model",
        }

    def test_card_that_is_no_file_is_refused(self, tmp_path, commits):
        with pytest.raises(
            ConfigurationError, match=r"readme .*none/README\.md is no file; `optimum-cli qala report`"
        ):
            self.push(tmp_path, readme=tmp_path / "none" / "README.md")
        with pytest.raises(
            ConfigurationError, match=r"readme 'my/README\.md' is not the text.*Path\('my/README\.md'\)"
        ):
            self.push(tmp_path, readme="my/README.md")
        assert commits[1:] == []

    def test_card_of_the_folder_comes_before_that_of_the_repository(self, tmp_path, commits):
        (tmp_path / "README.md").write_text("of the folder")
        self.push(tmp_path)
        assert commits[-1]["files"]["README.md"] == "of the folder"

    def test_card_of_the_repository_stays(self, tmp_path, commits):
        commits[0].card = tmp_path / "stored"
        commits[0].card.write_text("---\nlicense: mit\n---\nof a user")
        (tmp_path / "pushed").mkdir()
        self.push(tmp_path / "pushed", tags=["b", "a"])
        card = commits[-1]["files"]["README.md"]
        assert card == "---\nlicense: mit\ntags:\n- b\n- a\n---\nof a user"

    @pytest.fixture
    def written(self, commits):
        """What the card writer got."""
        seen = []
        set_card_writer(lambda folder, repo_id: seen.append((sorted(folder.iterdir()), repo_id)) or "measured")
        return seen

    def test_card_is_written_where_there_is_none(self, tmp_path, commits, written):
        (tmp_path / "config.json").write_text("{}")
        self.push(tmp_path)
        assert written == [([tmp_path / "config.json"], "org/model")]
        assert commits[-1]["files"]["README.md"] == "measured"

    def test_card_that_is_there_is_not_written_again(self, tmp_path, commits, written):
        commits[0].card = tmp_path / "stored"
        commits[0].card.write_text("of a user")
        (tmp_path / "pushed").mkdir()
        self.push(tmp_path / "pushed")
        assert commits[-1]["files"]["README.md"] == "of a user"
        (tmp_path / "pushed" / "README.md").write_text("of the folder")
        self.push(tmp_path / "pushed")
        assert commits[-1]["files"]["README.md"] == "of the folder"
        assert written == []

    def test_card_that_cannot_be_read_is_not_replaced(self, tmp_path, commits):
        commits[0].card = hub_client.LocalEntryNotFoundError("no connection")
        with pytest.raises(HubError, match=r"pushing to org/model broke off \(LocalEntryNotFoundError: no conn"):
            self.push(tmp_path)
        assert commits[1:] == []

    def test_patterns_and_caches_stay_out(self, tmp_path, commits):
        for name in ("config.json", "checkpoint-3/model", ".cache/x", "_private", "runs/log"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text("")
        self.push(tmp_path, ignore_patterns=("_*", "checkpoint-*"))
        assert set(commits[-1]["files"]) == {"README.md", "config.json", "runs/log"}


class TestErrors:
    @pytest.mark.parametrize(
        ("error", "kind", "message"),
        [
            (http_error(hub_client.GatedRepoError, 403), hub_client.GatedRepoError, "org/m is gated, and the token"),
            (
                http_error(hub_client.RepositoryNotFoundError, 404),
                hub_client.RepositoryNotFoundError,
                "the Hub has no repository org/m, or the token does not open it; check the name, or pass token",
            ),
            (
                http_error(hub_client.RevisionNotFoundError, 404),
                hub_client.RevisionNotFoundError,
                "org/m has no revision 'v9'; name a branch",
            ),
            (http_error(hub_client.HfHubHTTPError, 401), hub_client.HfHubHTTPError, "does not accept the token for"),
            (http_error(hub_client.HfHubHTTPError, 403), OSError, r"may not write to org/m \(no\); pass one that may"),
            (http_error(hub_client.HfHubHTTPError, 503), OSError, r"the Hub refuses org/m with status 503 \(no\)"),
            (httpx.ConnectError("refused"), OSError, r"pushing to org/m broke off \(ConnectError: refused\); nothing"),
            (httpx.ReadTimeout(""), OSError, r"pushing to org/m broke off \(ReadTimeout\); nothing"),
            (RuntimeError("no\nupload"), OSError, r"pushing to org/m broke off \(RuntimeError: no\); nothing"),
            (hub_client.OfflineModeIsEnabled("offline"), OSError, "org/m cannot be reached, for offline mode"),
        ],
        ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
    )
    def test_error_is_one_line_of_ours_and_of_the_client(self, error, kind, message):
        with pytest.raises(HubError, match=message) as caught, hub_errors("org/m", "v9", pushes=True):
            raise error
        assert isinstance(caught.value, kind)
        assert isinstance(caught.value, QuaLAError)
        assert "\n" not in str(caught.value)
        assert getattr(caught.value, "response", None) is getattr(error, "response", None)

    def test_reading_has_words_of_its_own(self):
        with pytest.raises(HubError, match=r"loading org/m broke off \(ReadError: gone\); so try again"):
            with hub_errors("org/m"):
                raise httpx.ReadError("gone")
        with pytest.raises(HubError, match="the Hub refuses org/m with status 403"), hub_errors("org/m"):
            raise http_error(hub_client.HfHubHTTPError, 403)

    @pytest.mark.parametrize("error", [hub_client.LocalEntryNotFoundError("x"), RuntimeError("x"), KeyError("x")])
    def test_what_the_hub_has_no_part_in_passes(self, error):
        with pytest.raises(type(error), match="x") as caught, hub_errors("org/m"):
            raise error
        assert caught.value is error
