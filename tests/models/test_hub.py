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
from optimum_qala.inference.files import MODEL_FILES, SUBFOLDERS
from optimum_qala.models import hub, hub_card
from optimum_qala.models.hub import HubModel, hub_errors, push_folder
from optimum_qala.models.hub_card import CardWriter, add_metadata, set_card_writer
from optimum_qala.models.hub_files import MODEL_MARKS, RECORDS, check_places, replaced_files
from optimum_qala.quantization.configuration import CONFIG_NAME, IR_NAME


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
        refusal = None  # of a commit

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

        def list_repo_tree(self, repo_id, recursive, revision):
            return []

        def create_commit(self, repo_id, operations, **options):
            if Api.refusal is not None:
                raise Api.refusal
            paths = {operation.path_in_repo: Path(operation.path_or_fileobj) for operation in operations}
            files = {name: path.read_text(errors="replace") for name, path in paths.items()}
            made.append({"repo": repo_id, "token": self.token, "files": files, **options})

    monkeypatch.setattr(hub, "HfApi", Api)
    monkeypatch.setattr(hub_card, "_make_writer", CardWriter)  # the other reads models, of which there are none here
    made.append(Api)
    return made


def http_error(kind, status, **headers):
    response = httpx.Response(status, headers=headers, request=httpx.Request("GET", "http://hub/org/model"))
    return kind("a long story\nin lines", response=response, server_message="no.")


def test_sub_folder_gets_the_model_and_the_root_the_card(commits):
    Model().push_to_hub("model", subfolder="openvino", commit_description="why", token="secret", revision="next")
    branch, commit = commits[1:]
    assert branch == {"branch": "next"}
    assert commit.pop("files") == {"openvino/graph": "graph", "README.md": hub_card.DEFAULT_CARD.format(name="model")}
    assert ModelCard(hub_card.DEFAULT_CARD).data.library_name == hub_card.LIBRARY_NAME, (
        "as in the card of what was measured"
    )
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


@pytest.mark.parametrize("repo_id", ["not/a/valid/id", "org/..", "a b"])
def test_what_is_no_repository_id_is_refused(repo_id, commits):
    with pytest.raises(
        ConfigurationError, match=f"'{repo_id}' is no repository id; give one as 'your-name/"
    ) as caught:
        Model().push_to_hub(repo_id)
    assert "\n" not in str(caught.value)
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
        for name in ("card.txt", "my card.md", "a/b.rst"):
            with pytest.raises(ConfigurationError, match=f"readme '{name}' is not the text of a card; give a file as"):
                self.push(tmp_path, readme=name)
        assert commits[1:] == []

    @pytest.mark.parametrize("block", ["bad: [", "- a", "model-index: [{name: x, results: [{}]}]"])
    def test_metadata_that_cannot_be_read_are_refused_before_the_hub_is_asked(self, tmp_path, commits, block):
        create_repo, commits[0].create_repo = commits[0].create_repo, None
        with pytest.raises(
            ConfigurationError, match=r"the metadata of the card cannot be read \(.+\); mend"
        ) as caught:
            self.push(tmp_path, readme=f"---\n{block}\n---\nText", tags=["t"])
        assert "\n" not in str(caught.value)
        commits[0].create_repo = create_repo
        commits[0].card = tmp_path / "stored"
        commits[0].card.write_text(f"---\n{block}\n---\nText")
        with pytest.raises(ConfigurationError, match=r"the metadata of README.md of org/model cannot be read"):
            self.push(tmp_path)

    def test_what_the_hub_does_not_accept_is_one_line(self, tmp_path, commits):
        commits[0].refusal = ValueError('Invalid metadata in README.md.\n- "license" must be one of\n- no tags')
        message = 'the Hub does not accept the metadata of README.md: "license" must be one of no tags'
        with pytest.raises(ConfigurationError, match=f"^{message}$"):
            self.push(tmp_path, readme="---\nlicense: x\n---\nText")
        commits[0].refusal = ValueError("of another kind")
        with pytest.raises(ValueError, match="^of another kind$"):
            self.push(tmp_path)

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
    def asked(self, commits):
        """What the card writer was asked for."""
        seen = []

        class Writer:
            def write(self, folder, repo_id):
                return seen.append((sorted(path.name for path in folder.iterdir()), repo_id)) or "written"

            def merge(self, stored, new, repo_id):
                return f"{stored} and {new} of {repo_id}"

            def renew(self, stored, folder, repository):
                return f"{stored} for {repository.repo_id}"

            def sign(self, card):
                return f"{card}, signed"

        set_card_writer(Writer)
        return seen

    def test_card_is_written_where_there_is_none(self, tmp_path, commits, asked):
        (tmp_path / "config.json").write_text("{}")
        self.push(tmp_path)
        assert asked == [(["config.json"], "org/model")]
        assert commits[-1]["files"]["README.md"] == "written, signed"

    def test_card_of_the_repository_is_renewed_or_merged(self, tmp_path, commits, asked):
        commits[0].card = tmp_path / "stored"
        commits[0].card.write_text("of a user")
        (tmp_path / "pushed").mkdir()
        self.push(tmp_path / "pushed")
        assert commits[-1]["files"]["README.md"] == "of a user for org/model, signed"
        (tmp_path / "pushed" / "README.md").write_text("of the folder")
        self.push(tmp_path / "pushed")
        assert commits[-1]["files"]["README.md"] == "of a user and of the folder of org/model, signed"
        assert asked == []

    def test_metadata_are_set_where_they_are_given(self):
        assert add_metadata("Text", ["a"], license="mit", language=None) == "---\nlicense: mit\ntags:\n- a\n---\nText"
        assert add_metadata("---\nlicense: x\n---\nText", license="mit") == "---\nlicense: mit\n---\nText"
        assert add_metadata("Text", license=None) == "Text"

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


class TestFiles:
    def test_names_are_those_of_the_back_ends(self):
        for back_end, marks in MODEL_MARKS.items():
            assert marks[0] == MODEL_FILES[back_end][0]
        assert {marks[0]: back_end for back_end, marks in MODEL_MARKS.items() if back_end != "torch"} == SUBFOLDERS
        assert {IR_NAME: CONFIG_NAME} == RECORDS

    @pytest.mark.parametrize(
        ("pushed", "stored", "replaced"),
        [
            (["model-00001-of-00002.safetensors", "model.safetensors.index.json"], ["model.safetensors"], True),
            (["model.safetensors"], ["model-00001-of-00002.safetensors", "model.safetensors.index.json"], True),
            (["model-00001-of-00002.safetensors"], ["model-00001-of-00003.safetensors"], True),
            (["a/model.safetensors"], ["a/model.safetensors.index.json"], True),
            (["model.fp16.safetensors"], ["model.safetensors.index.fp16.json"], True),
            (["model.fp16-00001-of-00002.safetensors"], ["model.fp16.safetensors"], True),
            (["openvino/openvino_model.xml"], ["openvino/openvino_quala_config.json"], True),
            (["model.fp16.safetensors"], ["model.safetensors", "model-00001-of-00003.safetensors"], False),
            (["model.safetensors"], ["model.fp16.safetensors", "a/model.safetensors.index.json"], False),
            (["model.safetensors"], ["model.py", "mymodel.safetensors", "tokenizer.json"], False),
            (["inc/openvino_model.xml"], ["openvino/openvino_quala_config.json"], False),
        ],
    )
    def test_files_that_would_be_loaded_in_place_of_the_pushed_ones_go(self, pushed, stored, replaced):
        assert replaced_files(pushed, [*stored, *pushed]) == (stored if replaced else [])

    @pytest.mark.parametrize(
        ("pushed", "stored", "message"),
        [
            (["openvino_model.xml"], "model.safetensors", "config.json this push would replace; pass subfolder='open"),
            (["inc_graph.json"], "openvino_model.xml", "config.json this push would replace; pass subfolder='inc'"),
            (["model.safetensors"], "inc_graph.json", "replace; delete inc_graph.json first, or name another rep"),
            (["openvino/inc_graph.json"], "openvino/openvino_model.xml", "delete openvino/openvino_model.xml first"),
        ],
    )
    def test_config_of_another_back_end_is_not_replaced(self, pushed, stored, message):
        config = [str(Path(name).with_name("config.json")) for name in pushed]
        with pytest.raises(ConfigurationError, match=f"org/m holds {stored}, whose .*{message}"):
            check_places("org/m", [*pushed, *config], [stored])
        check_places("org/m", [*pushed, *config, stored], [stored])
        check_places("org/m", [f"other/{name}" for name in [*pushed, *config]], [stored])
        check_places("org/m", ["config.json"], [stored])


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
