"""Pushing to the Hub: one commit for everything that belongs together, one line for what goes wrong."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from fnmatch import fnmatch
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from httpx import HTTPError
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from transformers.utils import logging

from .errors import ConfigurationError, HubError
from .hub_card import CARD_NAME, Repository, add_metadata, card_writer, check_metadata, read_new_card
from .hub_files import check_places, replaced_files


logger = logging.get_logger(__name__)


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
        """Upload the model in one commit.

        Files of the repository that have other names stay, but for weights that would be loaded in place of these.

        Args:
            repo_id: Repository, made if it does not exist.
            tokenizer: Tokenizer to upload along, to the root of the repository.
            readme: Model card to upload along: its text, or the Path of its file, from beside which the pictures and
                pages that it shows are uploaded too. What was changed on the Hub in a card that this package made
                stays. By default the card that the repository has, with its generated part made again if that would
                show other measurements than the model has, or a new card of what was measured.
            subfolder: Folder of the repository for the model; the root if None. `from_pretrained` looks into
                "openvino" and "inc" by itself.
            commit_message: Message of the commit.
            commit_description: More about it.
            private: Make a new repository private. One that exists stays as it is, with a warning.
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
            ConfigurationError: If the sub-folder is outside the repository or holds another back end's model there, an
                argument is unknown, the repository id is none, or the card is no file, the name of one where its text
                is expected, or has metadata that the Hub cannot read.
            DataError: If the generated part of a card begins and does not end.
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
        ConfigurationError: If the repository id is none, a folder holds another back end's model in the repository, or
            the card is no file, the name of one where its text is expected, or has metadata that cannot be read.
        DataError: If the generated part of a card begins and does not end.
        HubError: If the Hub refuses the token, does not answer or breaks off.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ConfigurationError(f"{repo_id!r} is no repository id; give one as 'your-name/your-model'") from error
    new = read_new_card(readme, folder)
    api = HfApi(token=token)
    with hub_errors(repo_id, revision, pushes=True):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        warn_of_visibility(api, repo_id, private)
        if revision is not None and not create_pr and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        stored = _read_card(api, repo_id, revision)
        repository = _open(api, repo_id, revision)
        left_out = (".git/*", ".cache/*", *ignore_patterns)
        check_places(repo_id, _names(folder, left_out), repository.sizes)
        card = _choose_card(folder, new, stored, repository)
    (folder / CARD_NAME).write_text(card_writer().sign(add_metadata(card, tags or ())), encoding="utf-8")
    names = _names(folder, left_out)
    additions = [CommitOperationAdd(name, folder / name) for name in names]
    with hub_errors(repo_id, revision, pushes=True), _card_errors():
        # Not upload_folder, which may make several commits: a graph must not come without its weights.
        return api.create_commit(
            repo_id,
            [*additions, *(CommitOperationDelete(name) for name in replaced_files(names, repository.sizes))],
            commit_message=commit_message,
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
        )


def warn_of_visibility(api: HfApi, repo_id: str, private: bool | None) -> None:
    """Say that a repository which exists is not made private, or public, by a push.

    Args:
        api: The client.
        repo_id: The repository, which exists.
        private: What was asked for; None for nothing.
    """
    if private is not None and bool(api.model_info(repo_id).private) != private:
        logger.warning(
            f"{repo_id} exists and stays {'public' if private else 'private'}: private={private} is for new "
            f"repositories; HfApi().update_repo_settings({repo_id!r}, private={private}) changes this one"
        )


def read_stored_card(repo_id: str, revision: str | None = None, token: str | bool | None = None) -> str:
    """Read the card that a push to a branch will find.

    Args:
        repo_id: Repository, which exists.
        revision: Branch, which may be new.
        token: Access token.

    Returns:
        The card, "" if there is none.

    Raises:
        HubError: If the Hub refuses the token or does not answer.
    """
    api = HfApi(token=token)
    with hub_errors(repo_id, revision, pushes=True):
        try:
            return _read_card(api, repo_id, revision)
        except RevisionNotFoundError:  # made of main by the push
            return _read_card(api, repo_id, None)


def _read_card(api: HfApi, repo_id: str, revision: str | None) -> str:
    try:
        return _download(api, repo_id, revision, CARD_NAME).read_text(encoding="utf-8")
    except RemoteEntryNotFoundError:
        return ""


def _download(api: HfApi, repo_id: str, revision: str | None, name: str) -> Path:
    try:
        return Path(api.hf_hub_download(repo_id, name, revision=revision))
    except LocalEntryNotFoundError as error:  # no answer: a card that nobody saw must not be replaced
        raise _hub_error(error.__cause__ or error, repo_id, revision, pushes=True) from error


def _open(api: HfApi, repo_id: str, revision: str | None) -> Repository:
    tree = api.list_repo_tree(repo_id, recursive=True, revision=revision)
    sizes = {entry.path: entry.size for entry in tree if isinstance(entry, RepoFile)}
    return Repository(repo_id, sizes, partial(_download, api, repo_id, revision))


def _choose_card(folder: Path, new: str | None, stored: str, repository: Repository) -> str:
    """Return the card to push: the one given, the folder's own, the repository's, or a new one."""
    writer = card_writer()
    if stored:
        check_metadata(stored, f"{CARD_NAME} of {repository.repo_id}")
    if new is not None:
        return writer.merge(stored, new, repository.repo_id) if stored else new
    if stored:
        return writer.renew(stored, folder, repository)
    return writer.write(folder, repository.repo_id)


def _names(folder: Path, left_out: Sequence[str]) -> list[str]:
    every = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    return [name for name in every if not any(fnmatch(name, pattern) for pattern in left_out)]


@contextlib.contextmanager
def _card_errors() -> Iterator[None]:
    """Say in one line what the Hub does not accept in the metadata of a card."""
    try:
        yield
    except ValueError as error:
        if not str(error).startswith("Invalid metadata"):
            raise
        problem = " ".join(str(error).partition("\n")[2].replace("- ", "").split())
        raise ConfigurationError(f"the Hub does not accept the metadata of {CARD_NAME}: {problem}") from error


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


__all__ = ["HubModel", "hub_errors", "push_folder", "read_stored_card", "warn_of_visibility"]
