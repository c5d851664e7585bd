"""Pushing to the Hub: one commit for everything that belongs together, one line for what goes wrong."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from httpx import HTTPError
from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, ModelCard
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from .errors import ConfigurationError, HubError


CARD_NAME = "README.md"
# What loads a model, for the Hub: transformers alone does so only with the code of the repository.
LIBRARY_NAME = "optimum-qala"
DEFAULT_CARD = f"""---
library_name: {LIBRARY_NAME}
pipeline_tag: question-answering
tags:
- optimum-qala
---

# {{name}}

A QuaLA-MiniLM for question answering: `pip install optimum-qala` to load it and to choose a budget in each call.
"""

# The folder that is about to be pushed, and the repository id -> the card.
CardWriter = Callable[[Path, str], str]
_card_writer: CardWriter | None = None


def set_card_writer(writer: CardWriter | None) -> None:
    """Choose what writes the model card of a push, where neither the caller, the folder nor the repository has one.

    Args:
        writer: Gets the folder that is about to be pushed, which has the layout of the repository and lacks what
            other pushes put there, and the repository id; returns the text. None writes a card of a few lines.
    """
    global _card_writer
    _card_writer = writer


class MissingRepositoryError(HubError, RepositoryNotFoundError):
    """There is no such repository, or the token does not open it."""


class GatedRepositoryError(HubError, GatedRepoError):
    """The repository is gated, and the token has no access."""


class MissingRevisionError(HubError, RevisionNotFoundError):
    """The repository has no such branch, tag or commit."""


class RefusedError(HubError, HfHubHTTPError):
    """The Hub refuses the token or the request."""


class HubModel:
    """What `push_to_hub` is to every back end: `save_pretrained` into a folder, then one commit."""

    save_pretrained: Callable[..., Any]
    save_options: Collection[str] = ()  # arguments of save_pretrained that push_to_hub takes too

    def push_to_hub(
        self,
        repo_id: str,
        *,
        tokenizer: Any = None,
        readme: str | Path | None = None,
        subfolder: str | None = None,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        tags: str | Sequence[str] | None = None,
        **options: Any,
    ) -> CommitInfo:
        """Upload the model in one commit. Files of the repository that have other names stay.

        Args:
            repo_id: Repository, made if it does not exist.
            tokenizer: Tokenizer to upload along, to the root of the repository.
            readme: Model card to upload along: its text, or the Path of its file, from beside which the pictures and
                pages that it shows are uploaded too. By default the card that the repository has, or a new one of what
                was measured.
            subfolder: Folder of the repository for the model; the root if None. `from_pretrained` looks into
                "openvino" and "inc" by itself.
            commit_message: Message of the commit.
            commit_description: More about it.
            private: Make a new repository private.
            token: Access token; the stored one by default.
            revision: Branch to commit to, made if it does not exist.
            create_pr: Open a pull request instead.
            tags: Tags to add to the model card, like those of `add_model_tags`.
            options: Arguments of `save_pretrained`, for a torch model: `remote_code=True`, `max_shard_size`.

        Returns:
            The commit; `pr_url` is that of the pull request.

        Raises:
            HubError: If the Hub refuses the token, does not answer or breaks off. Nothing half-done stays there. The
                error is also the one that huggingface_hub raised, for example a `RepositoryNotFoundError`.
            ConfigurationError: If the sub-folder is outside the repository, an argument is unknown, or the card is no
                file or the name of one where its text is expected.
        """
        if unknown := sorted(set(options) - set(self.save_options)):
            raise ConfigurationError(f"push_to_hub of {type(self).__name__} has no argument {unknown[0]!r}")
        inside = PurePosixPath(subfolder or "")
        if inside.is_absolute() or ".." in inside.parts:
            raise ConfigurationError(f"subfolder {subfolder!r} is outside the repository; give a name, as 'openvino'")
        given = [tags] if isinstance(tags, str) else tags or ()
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            self.save_pretrained(folder / inside, **options)
            if tokenizer is not None:
                tokenizer.save_pretrained(folder)
            return push_folder(
                folder,
                repo_id,
                readme=readme,
                tags=[*(getattr(self, "model_tags", None) or ()), *given],
                commit_message=commit_message or f"Upload {type(self).__name__}",
                commit_description=commit_description,
                private=private,
                token=token,
                revision=revision,
                create_pr=create_pr,
            )


def push_folder(
    folder: Path,
    repo_id: str,
    *,
    commit_message: str,
    commit_description: str | None = None,
    readme: str | Path | None = None,
    tags: Sequence[str] | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    ignore_patterns: Sequence[str] = (),
) -> CommitInfo:
    """Upload a folder in one commit, with a model card, which is written into the folder.

    Args:
        folder: The folder, as the repository is to be.
        repo_id: As in `HubModel.push_to_hub`, like everything below.
        commit_message: Message of the commit.
        commit_description: More about it.
        readme: Model card, as in `HubModel.push_to_hub`; by default the folder's own, that of the repository, or a new
            one of what was measured.
        tags: Tags to add to the card.
        private: Make a new repository private.
        token: Access token.
        revision: Branch.
        create_pr: Open a pull request instead.
        ignore_patterns: Files to leave out.

    Returns:
        The commit.

    Raises:
        ConfigurationError: If the card is no file, or the name of one where its text is expected.
        HubError: If the Hub refuses the token, does not answer or breaks off.
    """
    given = _read_given(readme, folder)
    api = HfApi(token=token)
    with hub_errors(repo_id, revision, pushes=True):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not create_pr and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        stored = _read_card(api, repo_id, revision)
    card = _choose_card(folder, given, stored, repo_id)
    if card:
        (folder / CARD_NAME).write_text(_add_tags(card, tags), encoding="utf-8")
    every = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    left_out = (".git/*", ".cache/*", *ignore_patterns)
    names = [name for name in every if not any(fnmatch(name, pattern) for pattern in left_out)]
    with hub_errors(repo_id, revision, pushes=True):
        # Not upload_folder, which may make several commits: a graph must not come without its weights.
        return api.create_commit(
            repo_id,
            [CommitOperationAdd(name, folder / name) for name in names],
            commit_message=commit_message,
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
        )


def is_shown(name: str, card: str) -> bool:
    """Tell whether a model card shows a file that lies beside it, as a picture or by a link."""
    return f'"{name}"' in card or f"({name})" in card


def _read_given(readme: str | Path | None, folder: Path) -> str | None:
    """Return the card that was given, if one was; what it shows of the files beside it goes into the folder."""
    if isinstance(readme, str) and readme.endswith(".md") and "\n" not in readme:
        raise ConfigurationError(f"readme {readme!r} is not the text of a card; give a file as Path({readme!r})")
    if not isinstance(readme, Path):
        return readme
    if not readme.is_file():
        raise ConfigurationError(f"readme {readme} is no file; `optimum-cli qala report` writes a card")
    text = readme.read_text(encoding="utf-8")
    for file in readme.parent.iterdir():
        if file.is_file() and is_shown(file.name, text) and not (folder / file.name).exists():
            shutil.copyfile(file, folder / file.name)
    return text


def _read_card(api: HfApi, repo_id: str, revision: str | None) -> str:
    """Return the card of a repository, "" if it has none."""
    try:
        return Path(api.hf_hub_download(repo_id, CARD_NAME, revision=revision)).read_text(encoding="utf-8")
    except RemoteEntryNotFoundError:
        return ""
    except LocalEntryNotFoundError as error:  # no answer: a card that nobody saw must not be replaced
        raise _hub_error(error.__cause__ or error, repo_id, revision, pushes=True) from error


def _choose_card(folder: Path, readme: str | None, stored: str, repo_id: str) -> str:
    """Return the card to push: the one given, the folder's own, the repository's, or a new one."""
    if readme is not None:
        return readme
    own = folder / CARD_NAME
    if own.is_file():
        return own.read_text(encoding="utf-8")
    if stored:
        return stored
    return (_card_writer or _default_card)(folder, repo_id)


def _default_card(folder: Path, repo_id: str) -> str:
    return DEFAULT_CARD.format(name=repo_id.rpartition("/")[2])


def _add_tags(text: str, tags: Sequence[str] | None) -> str:
    if not tags:
        return text
    card = ModelCard(text)
    data: Any = card.data
    data.tags = list(dict.fromkeys([*(data.tags or []), *tags]))
    return str(card)


@contextlib.contextmanager
def hub_errors(repo_id: Any, revision: str | None = None, *, pushes: bool = False) -> Iterator[None]:
    """Say in one line what the Hub refused, and what to do; a missing file stays huggingface_hub's own error.

    Args:
        repo_id: Repository that the block talks about.
        revision: Revision that it asks for.
        pushes: The block writes.

    Raises:
        HubError: If the Hub refuses, does not answer or breaks off. It is of huggingface_hub's class too.
    """
    try:
        yield
    except EntryNotFoundError:
        raise
    except (HTTPError, OfflineModeIsEnabled) as error:
        raise _hub_error(error, repo_id, revision, pushes) from error
    except RuntimeError as error:  # what the client makes of an upload that failed
        if not pushes:
            raise
        raise _hub_error(error.__cause__ or error, repo_id, revision, pushes) from error


def _hub_error(error: BaseException, repo_id: Any, revision: str | None, pushes: bool) -> HubError:
    login = "pass token=... or run `hf auth login`"
    reason = str(getattr(error, "server_message", None) or error).strip().partition("\n")[0].rstrip(".")
    if isinstance(error, OfflineModeIsEnabled):
        return HubError(f"{repo_id} cannot be reached, for offline mode is enabled; unset HF_HUB_OFFLINE")
    if not isinstance(error, HfHubHTTPError):
        doing, rest = ("pushing to", "nothing half-done shows there, ") if pushes else ("loading", "")
        reason = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
        return HubError(f"{doing} {repo_id} broke off ({reason}); {rest}so try again")
    kind: type[Any] = RefusedError
    status = error.response.status_code
    if isinstance(error, GatedRepoError):
        kind, message = GatedRepositoryError, "is gated, and the token has no access; ask for it on the page of the "
        message = f"{repo_id} {message}repository, then {login}"
    elif isinstance(error, RepositoryNotFoundError):
        kind = MissingRepositoryError
        message = f"the Hub has no repository {repo_id}, or the token does not open it; check the name, or {login}"
    elif isinstance(error, RevisionNotFoundError):
        kind, message = MissingRevisionError, f"{repo_id} has no revision {revision!r}; name a branch, tag or commit"
    elif status == 401:
        message = f"the Hub does not accept the token for {repo_id} ({reason}); {login}"
    elif status == 403 and pushes:
        message = f"the token may not write to {repo_id} ({reason}); pass one that may as token=..."
    else:
        message = f"the Hub refuses {repo_id} with status {status} ({reason})"
    made: HubError = kind(message, response=error.response, server_message=error.server_message)
    return made


__all__ = ["CARD_NAME", "LIBRARY_NAME", "HubModel", "hub_errors", "is_shown", "push_folder", "set_card_writer"]
