"""A Hub on the loopback address: the part of the protocol that `huggingface_hub` speaks to load and push models.

Repositories live in memory. Weights and graphs are LFS files, which are uploaded before the commit that names them and
downloaded from another address; there is no Xet. As on the Hub, an unknown token is refused everywhere, a private
repository looks as if it did not exist to those without access, a gated one shows its list of files and gives them out
to nobody, and writing takes a token that may write.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.hub_rules import card_errors


@dataclass(frozen=True)
class Commit:
    """One commit: everything that the repository holds after it."""

    oid: str
    title: str
    files: dict[str, bytes]


LFS_SUFFIXES = (".safetensors", ".bin")
FIRST_COMMIT = Commit(hashlib.sha1(b"first").hexdigest(), "initial commit", {".gitattributes": b"\n"})


@dataclass
class Repository:
    """A repository: for each branch its commits, the oldest first."""

    private: bool = False
    gated: bool = False
    branches: dict[str, list[Commit]] = field(default_factory=lambda: {"main": [FIRST_COMMIT]})

    def head(self, revision: str = "main") -> Commit | None:
        """Return the commit that a branch or a commit id names, if there is one."""
        if revision in self.branches:
            return self.branches[revision][-1]
        every = (commit for commits in self.branches.values() for commit in commits)
        return next((commit for commit in every if commit.oid == revision), None)

    def commit(self, branch: str, title: str, files: dict[str, bytes], deleted: tuple[str, ...] = ()) -> Commit:
        """Add a commit to a branch, which starts at main if it is new."""
        commits = self.branches.setdefault(branch, list(self.branches["main"]))
        kept = {path: data for path, data in commits[-1].files.items() if path not in deleted}
        oid = hashlib.sha1(f"{branch} {len(commits)} {title}".encode()).hexdigest()
        commits.append(Commit(oid, title, {**kept, **files}))
        return commits[-1]


@dataclass(frozen=True)
class Request:
    """A request that came, for tests that ask what a client sent."""

    method: str
    path: str
    token: str | None
    status: int


class Refusal(Exception):
    """An answer that is an error."""

    def __init__(
        self, status: int, message: str, code: str | None = None, commit: str | None = None, **content: Any
    ) -> None:
        super().__init__(message)
        headers = {"X-Error-Message": message, "X-Error-Code": code, "X-Repo-Commit": commit}
        self.status, self.headers = status, {name: value for name, value in headers.items() if value is not None}
        self.content = {"error": message, **content}


class HubServer:
    """The server; use it as a context manager.

    Args:
        tokens: Token -> "write" or "read".
    """

    def __init__(self, tokens: dict[str, str]) -> None:
        self.tokens = tokens
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self.objects: dict[str, bytes] = {}  # LFS: sha256 -> content
        self.breaks: dict[str, int] = {}  # part of a path -> requests with it whose connection will die
        self.lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def add(
        self, repo_id: str, folder: Path, *, branch: str = "main", private: bool = False, gated: bool = False
    ) -> Commit:
        """Put the files of a folder into a repository, without any client."""
        repository = self.repositories.setdefault(repo_id, Repository(private, gated))
        files = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        return repository.commit(branch, f"Add {folder.name}", files)

    def requests_for(self, repo_id: str) -> list[Request]:
        """Return the requests about a repository, in the order in which they were answered."""
        return [request for request in self.requests if f"/{repo_id}/" in f"{request.path}/"]

    def role(self, token: str | None) -> str | None:
        """Return what a token allows, None for nobody; unknown tokens are refused."""
        if token is not None and token not in self.tokens:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return None if token is None else self.tokens[token]

    def find(self, repo_id: str, token: str | None, *, write: bool = False) -> Repository:
        """Return a repository, if the token opens it."""
        role, repository = self.role(token), self.repositories.get(repo_id)
        if repository is None or (repository.private and role is None):
            raise Refusal(401 if role is None else 404, "Repository not found", "RepoNotFound")
        if write:
            self.check_write(role)
        return repository

    @staticmethod
    def check_write(role: str | None) -> None:
        if role is None:
            raise Refusal(401, "Invalid username or password.")
        if role != "write":
            raise Refusal(403, "you must use a write token to make changes")


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def log_message(self, *_: Any) -> None:
        """Say nothing: `HubServer.requests` has it all."""

    def _answer(self) -> None:
        path = urlsplit(self.path).path
        length = int(self.headers.get("Content-Length") or 0)
        if self._dies(path):
            self.rfile.read(length // 2)
            self.close_connection = True
            return
        body = self._chunks() if self.headers.get("Transfer-Encoding") == "chunked" else self.rfile.read(length)
        authorization = self.headers.get("Authorization")
        token = None if authorization is None else authorization.removeprefix("Bearer ")
        # Split first, since a revision such as refs%2Fpr%2F1 or a path in a folder is one part.
        parts = [unquote(part) for part in path.strip("/").split("/")]
        try:
            with self.hub.lock:
                headers, content = self._route(parts, body, token)
            status = 302 if "Location" in headers else 200
        except Refusal as refusal:
            status, headers, content = refusal.status, refusal.headers, json.dumps(refusal.content).encode()
        with self.hub.lock:
            self.hub.requests.append(Request(self.command, unquote(path), token, status))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _dies(self, path: str) -> bool:
        """Tell whether this is a request that `HubServer.breaks` lets down."""
        with self.hub.lock:
            for part, left in self.hub.breaks.items():
                if left and part in f"{self.command} {unquote(path)}":
                    self.hub.breaks[part] -= 1
                    return True
        return False

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _route(self, parts: list[str], body: bytes, token: str | None) -> tuple[dict[str, str], bytes]:
        match self.command, parts:
            case "GET" | "HEAD", [owner, name, "resolve", revision, *path]:
                return self._file(f"{owner}/{name}", revision, "/".join(path), token)
            case "GET", ["api", "models", owner, name, *rest]:
                return _json(self._read(f"{owner}/{name}", rest, token))
            case "POST", ["api", "models", owner, name, *rest]:
                return _json(self._write(f"{owner}/{name}", rest, body, token))
            case "POST", ["api", "repos", "create"]:
                return _json(self._create(json.loads(body), token))
            case _, [owner, name, "info", "lfs", "objects", "batch"]:
                return _json(self._batch(f"{owner}/{name.removesuffix('.git')}", json.loads(body), token))
            case _, [owner, name, "lfs", oid, *rest]:
                return self._object(oid, rest, body)
            case "POST", ["api", "validate-yaml"]:
                return _json({"errors": _card_errors(json.loads(body)), "warnings": []})
            case "GET", ["api", "agent-harnesses"]:
                return _json({"standardEnvVars": [], "harnesses": {}})
        raise Refusal(501, f"this Hub does not know {self.command} {self.path}")

    def _commit_of(self, repo_id: str, revision: str, token: str | None) -> Commit:
        commit = self.hub.find(repo_id, token).head(revision)
        if commit is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def _file(self, repo_id: str, revision: str, path: str, token: str | None) -> tuple[dict[str, str], bytes]:
        commit = self._commit_of(repo_id, revision, token)
        if self.hub.repositories[repo_id].gated:
            raise Refusal(403, "Access to this model is restricted. Ask for access on its page.", "GatedRepo")
        if path not in commit.files:
            raise Refusal(404, "Entry not found", "EntryNotFound", commit.oid)
        data = commit.files[path]
        headers = {"ETag": f'"{_blob_id(data)}"', "X-Repo-Commit": commit.oid}
        if path.endswith(LFS_SUFFIXES):
            oid = hashlib.sha256(data).hexdigest()
            self.hub.objects[oid] = data
            headers |= {"Location": f"{self.hub.endpoint}/{repo_id}/lfs/{oid}"}
            return {**headers, "X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(data))}, b""
        return {**headers, "Content-Type": "application/octet-stream"}, data

    def _read(self, repo_id: str, rest: list[str], token: str | None) -> Any:
        match rest:
            case [] | ["revision", _]:
                commit = self._commit_of(repo_id, rest[1] if rest else "main", token)
                siblings = [{"rfilename": path} for path in sorted(commit.files)]
                private = self.hub.repositories[repo_id].private
                return {"id": repo_id, "sha": commit.oid, "private": private, "tags": [], "siblings": siblings}
            case ["tree", revision, *path]:
                commit, folder = self._commit_of(repo_id, revision, token), "".join(f"{part}/" for part in path)
                files = {name: data for name, data in commit.files.items() if name.startswith(folder)}
                if folder and not files:
                    raise Refusal(404, "Entry not found", "EntryNotFound", commit.oid)
                return [
                    {"type": "file", "path": name, "size": len(data), "oid": _blob_id(data)}
                    for name, data in sorted(files.items())
                ]
        raise Refusal(501, f"this Hub does not know GET {self.path}")

    def _object(self, oid: str, rest: list[str], body: bytes) -> tuple[dict[str, str], bytes]:
        """Take, verify or give out an LFS object."""
        if self.command == "PUT":
            if hashlib.sha256(body).hexdigest() != oid:
                raise Refusal(400, "the content is not what was announced")
            self.hub.objects[oid] = body
            return _json({})
        if oid not in self.hub.objects:
            raise Refusal(404, "no such object")
        return _json({}) if rest else ({"Content-Type": "application/octet-stream"}, self.hub.objects[oid])

    def _batch(self, repo_id: str, payload: dict[str, Any], token: str | None) -> Any:
        self.hub.find(repo_id, token, write=True)
        objects = []
        for entry in payload["objects"]:
            href = f"{self.hub.endpoint}/{repo_id}/lfs/{entry['oid']}"
            actions = {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}
            objects.append({**entry, **({} if entry["oid"] in self.hub.objects else {"actions": actions})})
        return {"transfer": "basic", "objects": objects}

    def _create(self, payload: dict[str, Any], token: str | None) -> Any:
        self.hub.check_write(self.hub.role(token))
        repo_id = f"{payload['organization'] or 'user'}/{payload['name']}"
        url = f"{self.hub.endpoint}/{repo_id}"
        if repo_id in self.hub.repositories:
            raise Refusal(409, "You already created this model repo", url=url)
        self.hub.repositories[repo_id] = Repository(private=payload.get("visibility") == "private")
        return {"url": url}

    def _write(self, repo_id: str, rest: list[str], body: bytes, token: str | None) -> Any:
        repository = self.hub.find(repo_id, token, write=True)
        match rest:
            case ["branch", branch]:
                if branch in repository.branches:
                    raise Refusal(409, f"Reference already exists: {branch}")
                repository.branches[branch] = list(repository.branches["main"])
                return {}
            case ["preupload", revision]:
                stored = self._commit_of(repo_id, revision, token).files
                return {
                    "files": [
                        {
                            "path": file["path"],
                            "uploadMode": "lfs" if file["path"].endswith(LFS_SUFFIXES) else "regular",
                            "shouldIgnore": False,
                            "oid": _oid(file["path"], stored[file["path"]]) if file["path"] in stored else None,
                        }
                        for file in json.loads(body)["files"]
                    ]
                }
            case ["commit", revision]:
                return self._commit(repo_id, repository, revision, body)
        raise Refusal(501, f"this Hub does not know POST {self.path}")

    def _commit(self, repo_id: str, repository: Repository, revision: str, body: bytes) -> Any:
        if revision not in repository.branches:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        header, *operations = (json.loads(line) for line in body.splitlines())
        files = {
            operation["value"]["path"]: base64.b64decode(operation["value"]["content"])
            for operation in operations
            if operation["key"] == "file"
        }
        for operation in operations:
            if operation["key"] == "lfsFile":
                files[operation["value"]["path"]] = self.hub.objects[operation["value"]["oid"]]
        deleted = tuple(operation["value"]["path"] for operation in operations if operation["key"] == "deletedFile")
        answer = {}
        if "create_pr=1" in urlsplit(self.path).query:
            pull_requests = sum(branch.startswith("refs/pr/") for branch in repository.branches)
            revision = f"refs/pr/{pull_requests + 1}"
            answer["pullRequestUrl"] = f"{self.hub.endpoint}/{repo_id}/discussions/{pull_requests + 1}"
        commit = repository.commit(revision, header["value"]["summary"], files, deleted)
        return {"commitUrl": f"{self.hub.endpoint}/{repo_id}/commit/{commit.oid}", "commitOid": commit.oid, **answer}


def _card_errors(card: dict[str, Any]) -> list[dict[str, str]]:
    errors = [{"message": message} for message in card_errors(card["content"])]
    if errors:
        raise Refusal(400, errors[0]["message"], errors=errors)
    return errors


def _json(answer: Any) -> tuple[dict[str, str], bytes]:
    return {"Content-Type": "application/json"}, json.dumps(answer).encode()


def _oid(path: str, data: bytes) -> str:
    return hashlib.sha256(data).hexdigest() if path.endswith(LFS_SUFFIXES) else _blob_id(data)


def _blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
