"""A Hub of one's own, in memory: what huggingface_hub asks of huggingface.co to share a model, on a port of this machine.

    with HubServer() as hub:
        token = hub.add_user("me")
        ...  # a process with HF_ENDPOINT=hub.url and HF_TOKEN=token pushes and loads `me/name`

`HF_ENDPOINT` is read when huggingface_hub is imported: what talks to this server is a process of its own, with the variables
that `environment` gives. By hand, with two users, `alice` and `bob`, whose tokens are `hf_alice` and `hf_bob`:

    python -m tests.hub_server --port 8000
    HF_ENDPOINT=http://127.0.0.1:8000 HF_TOKEN=hf_alice HF_HUB_DISABLE_XET=1 python ...

It answers as the Hub does where a client could tell:

- Repositories are made by `POST /api/repos/create`: 409 where there is one, 403 in another user's name or with a token that
  only reads.
- Files go up by `preupload`, git-lfs' `batch` and `PUT`, and `commit`, newline-delimited JSON of which all is done or nothing.
  A commit on a parent that is no longer the branch's head is refused (412). Every revision keeps its files: a branch moves,
  what its old sha names stays.
- Files come down by `resolve`, by branch, tag or sha, with `ETag`, `X-Repo-Commit` and `Content-Length`; large ones from a
  storage behind a redirect, on another host name and with a signature in place of the token, as from the Hub's CDN. Ranges
  are served.
- Errors bear `X-Error-Code`. A private repository can't be told from one that isn't there: 401 without a token, 404 with
  another user's. A gated one is listed, its files are refused. A token that nobody has is refused everywhere, in public
  repositories too.

`cut` makes the network fail: connections end without an answer in the middle of an upload or of a download, or when a commit
has come and is not done yet.

Not there: Xet (clients set `HF_HUB_DISABLE_XET=1`), pull requests, data sets and spaces, and organisations. Only parts of
repositories that a client asks for are described. Nothing is written to disk.
"""

import argparse
import base64
import contextlib
import hashlib
import json
import re
import socket
import struct
import threading
import time
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

LARGE_ENDINGS = (".safetensors", ".bin", ".h5", ".onnx", ".pt", ".gguf", ".msgpack")
LARGE_SIZE = 10 * 2**20  # bytes; beyond it text goes to the large storage too
SHA = re.compile("[0-9a-f]{40}")

Where = Literal["upload", "commit", "download"]


class Refusal(Exception):
    """An answer that ends a request: `status`, the Hub's `X-Error-Code`, and the words of `X-Error-Message`."""

    def __init__(self, status: int, message: str, code: str | None = None, commit: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.commit = commit  # of the revision that lacks a file: clients note for good that it does


class ConnectionCut(Exception):
    """The connection ends here, without an answer."""


@dataclass(frozen=True)
class Blob:
    """The content of one file, as git sees it: the file itself, or for a large one the pointer to it."""

    content: bytes
    is_large: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def oid(self) -> str:
        """Git's name of what lies in the repository, 40 hex digits."""
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n"
        lies_there = pointer.encode() if self.is_large else self.content
        return hashlib.sha1(b"blob %d\0" % len(lies_there) + lies_there).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_large else self.oid


@dataclass(frozen=True)
class Commit:
    """A state of a repository that stays as it is."""

    sha: str
    parent: str | None
    title: str
    files: dict[str, Blob]


@dataclass
class Repository:
    """Commits by their sha, and the names that point to them.

    Attributes:
        owner: the user who may write, and who alone may read a private one.
        readers: users who may read a gated or private one beside its owner.
    """

    name: str
    owner: str
    is_private: bool = False
    is_gated: bool = False
    readers: set[str] = field(default_factory=set)
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rules = "".join(f"*{ending} filter=lfs diff=lfs merge=lfs -text\n" for ending in LARGE_ENDINGS)
        self.commit("main", {".gitattributes": Blob(rules.encode(), is_large=False)}, "initial commit")

    def commit(self, branch: str, files: dict[str, Blob], title: str) -> Commit:
        """Move a branch on to a new commit of these files, all there are."""
        parent = self.branches.get(branch)
        listing = "".join(f"{path} {blob.oid}\n" for path, blob in sorted(files.items()))
        told = f"{self.name} {parent} {len(self.commits)}\n{title}\n{listing}"
        commit = Commit(hashlib.sha1(told.encode()).hexdigest(), parent, title, dict(files))
        self.commits[commit.sha] = commit
        self.branches[branch] = commit.sha
        return commit

    def at(self, revision: str) -> Commit:
        """The commit that a branch, a tag or a sha names."""
        revision = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        sha = self.branches.get(revision) or self.tags.get(revision) or revision
        if sha not in self.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[sha]


@dataclass(frozen=True)
class User:
    """Who a token belongs to, and whether it may write."""

    name: str
    can_write: bool


class HubServer:
    """The Hub on a port of this machine, until `close`; a context manager.

    Attributes:
        url: for `HF_ENDPOINT`.
        repositories: by name, `user/name`.
        requests: every request since the start, such as `GET /api/models/me/name`, without queries.
    """

    def __init__(self, port: int = 0) -> None:
        """Answers from now on.

        Args:
            port: 0 for one that is free.
        """
        self.repositories: dict[str, Repository] = {}
        self.storage: dict[str, bytes] = {}  # what git-lfs holds, by SHA-256; uploaded before it is committed
        self.requests: list[str] = []
        self.lock = threading.RLock()
        self._tokens: dict[str, User] = {}
        self._cuts: dict[Where, int] = {}
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = _Server(("127.0.0.1", port), handler)
        self.port: int = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.storage_url = f"http://localhost:{self.port}/storage"  # another host to a client, the same to this machine
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def __enter__(self) -> "HubServer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop answering; what was pushed is gone with this object."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def add_user(self, name: str, token: str | None = None, can_write: bool = True) -> str:
        """Give a user a token, of several perhaps, and give back the token."""
        token = token or f"hf_{name}{'' if can_write else '_read'}"
        self._tokens[token] = User(name, can_write)
        return token

    def environment(self, token: str | None, home: str) -> dict[str, str]:
        """The variables of a process that talks to this server, with its cache below `home`."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": home,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        } | ({"HF_TOKEN": token} if token else {})

    def cut(self, where: Where, times: int = 1) -> None:
        """Let the network fail at the next `times` places of a kind; 0 mends it.

        Args:
            where: `upload` and `download`, when half of a large file has gone; `commit`, when it has come and isn't done.
        """
        with self.lock:
            self._cuts[where] = times

    def cuts_now(self, where: Where) -> bool:
        """Whether the network fails here; counts."""
        with self.lock:
            left = self._cuts.get(where, 0)
            self._cuts[where] = max(0, left - 1)
            return left > 0

    def user_of(self, authorization: str | None) -> User | None:
        """Who asks; None for anybody."""
        if authorization is None:
            return None
        user = self._tokens.get(authorization.removeprefix("Bearer "))
        if user is None:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return user

    def repository(self, name: str, user: User | None, *, to_write: bool = False, to_read: bool = False) -> Repository:
        """The repository of a name, if this user may know of it, and write or read its files where that is asked."""
        repository = self.repositories.get(name)
        owns = user is not None and repository is not None and user.name == repository.owner
        listed = user is not None and repository is not None and user.name in repository.readers
        if repository is None or (repository.is_private and not owns and not listed):
            if user is None:
                raise Refusal(401, "Invalid username or password.", "RepoNotFound")
            raise Refusal(404, "Repository not found", "RepoNotFound")
        if to_write and user is None:
            raise Refusal(401, "Invalid username or password.")
        if to_write and not (owns and user is not None and user.can_write):
            raise Refusal(403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request", None)
        if to_read and repository.is_gated and not owns and not listed:
            if user is None:
                raise Refusal(
                    401,
                    f"Access to model {name} is restricted. You must have access to it and be authenticated.",
                    "GatedRepo",
                )
            raise Refusal(
                403, f"Access to model {name} is restricted and you are not in the authorized list.", "GatedRepo"
            )
        return repository


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away, or was cut off, is no error of the server's."""


class _Handler(BaseHTTPRequestHandler):
    """One connection. What `_ROUTES` names decides on the answer and gives back what sends it."""

    hub: HubServer
    protocol_version = "HTTP/1.1"
    user: User | None = None
    body: bytes = b""

    def log_message(self, format: str, *arguments: Any) -> None:
        """Requests are kept in `HubServer.requests`."""

    def handle_one_request(self) -> None:
        with contextlib.suppress(ConnectionError, TimeoutError):
            super().handle_one_request()
            return
        self.close_connection = True

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.query = {name: values[-1] for name, values in parse_qs(urlsplit(self.path).query).items()}
        self.hub.requests.append(f"{self.command} {path}")
        try:
            self._read_body(path)
            for method, pattern, action in _ROUTES:
                match = re.fullmatch(pattern, path)
                if match is not None and self.command in method.split():
                    if not path.startswith("/storage/"):  # there a signature counts
                        self.user = self.hub.user_of(self.headers["Authorization"])
                    with self.hub.lock:
                        try:
                            send = action(self, **match.groupdict())
                        except (KeyError, TypeError, IndexError, ValueError) as error:
                            raise Refusal(400, f"Malformed request: {error!r}") from None
                    send()  # not under the lock: clients take their time
                    return
            raise Refusal(404, f"Not Found: {self.command} {path}")
        except Refusal as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": str(refusal), "X-Repo-Commit": refusal.commit}
            self._send(refusal.status, json.dumps({"error": str(refusal)}).encode(), headers)
        except ConnectionCut:
            # With nothing lingering the client gets a reset, not an end of file.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _answer  # noqa: N815 (the names are http.server's)

    def _read_body(self, path: str) -> None:
        length = int(self.headers["Content-Length"] or 0)
        if path.startswith("/storage/") and self.command == "PUT" and self.hub.cuts_now("upload"):
            self.rfile.read(max(1, length // 2))
            raise ConnectionCut
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            pieces = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            self.body = b"".join(pieces)
        else:
            self.body = self.rfile.read(length)

    def _send(self, status: int, content: bytes = b"", headers: dict[str, str | None] | None = None) -> None:
        told: dict[str, str | None] = {"Content-Type": "application/json", "Content-Length": str(len(content))}
        told |= headers or {}
        self.send_response(status)
        for name, value in told.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, content: Any, status: int = 200) -> Callable[[], None]:
        return lambda: self._send(status, json.dumps(content).encode())

    def _file(self, content: bytes, headers: dict[str, str | None]) -> Callable[[], None]:
        """The file, or the bytes of it that `Range` asks for."""
        status, start, end = 200, 0, len(content)
        if asked := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
            first, last = asked.groups()
            start = int(first) if first else max(0, len(content) - int(last))
            end = min(int(last) + 1, len(content)) if first and last else len(content)
            if start >= len(content):
                headers = headers | {"Content-Range": f"bytes */{len(content)}"}
                return lambda: self._send(416, b"", headers)
            status = 206
            headers = headers | {"Content-Range": f"bytes {start}-{end - 1}/{len(content)}"}
        part = content[start:end]
        headers = headers | {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
        if self.command == "GET" and urlsplit(self.path).path.startswith("/storage/") and self.hub.cuts_now("download"):
            return lambda: self._send_half(status, part, headers)
        return lambda: self._send(status, part, headers)

    def _send_half(self, status: int, content: bytes, headers: dict[str, str | None]) -> None:
        self._send(status, content[: len(content) // 2], headers | {"Content-Length": str(len(content))})
        self.close_connection = True  # an end that comes too early, so that the first half arrives

    def _given(self) -> dict[str, Any]:
        """The JSON object of a request."""
        given = json.loads(self.body or b"{}")
        if not isinstance(given, dict):
            raise TypeError("an object is wanted")
        return given

    # Users and repositories

    def whoami(self) -> Callable[[], None]:
        if self.user is None:
            raise Refusal(401, "Invalid username or password.")
        role = "write" if self.user.can_write else "read"
        token = {"displayName": "token", "role": role}
        return self._json(
            {"type": "user", "name": self.user.name, "orgs": [], "auth": {"type": "access_token", "accessToken": token}}
        )

    def create_repository(self) -> Callable[[], None]:
        if self.user is None:
            raise Refusal(401, "Invalid username or password.")
        given = self._given()
        namespace = given.get("organization") or self.user.name
        name = f"{namespace}/{given['name']}"
        if given.get("type", "model") != "model":
            raise Refusal(400, "Models only: this server has no data sets and spaces")
        if namespace != self.user.name or not self.user.can_write:
            message = f'You don\'t have the rights to create a model under the namespace "{namespace}"'
            raise Refusal(403, message)
        url = f"{self.hub.url}/{name}"
        if name in self.hub.repositories:
            return self._json({"error": "You already created this model repo", "url": url}, HTTPStatus.CONFLICT)
        is_private = bool(given.get("private")) or given.get("visibility") == "private"
        self.hub.repositories[name] = Repository(name, namespace, is_private=is_private)
        return self._json({"url": url, "name": name, "id": hashlib.sha1(name.encode()).hexdigest()[:24]})

    def delete_repository(self) -> Callable[[], None]:
        given = self._given()
        name = f"{given.get('organization') or (self.user.name if self.user else '')}/{given['name']}"
        self.hub.repository(name, self.user, to_write=True)
        del self.hub.repositories[name]
        return self._json({})

    def model_info(self, name: str, revision: str = "main") -> Callable[[], None]:
        repository = self.hub.repository(name, self.user)
        commit = repository.at(revision)
        return self._json(
            {
                "id": name,
                "modelId": name,
                "author": repository.owner,
                "sha": commit.sha,
                "private": repository.is_private,
                "gated": "manual" if repository.is_gated else False,
                "disabled": False,
                "tags": [],
                "siblings": [{"rfilename": path} for path in sorted(commit.files)],
            }
        )

    def tree(self, name: str, revision: str, folder: str | None) -> Callable[[], None]:
        repository = self.hub.repository(name, self.user)
        commit = repository.at(revision)
        folder = (folder or "").strip("/")
        prefix = f"{folder}/" if folder else ""
        found = {path: blob for path, blob in commit.files.items() if path.startswith(prefix)}
        if not found and folder:
            raise Refusal(404, f"{folder} does not exist on {revision}", "EntryNotFound", commit.sha)
        rows: dict[str, dict[str, Any]] = {}
        for path, blob in sorted(found.items()):
            below = path.removeprefix(prefix).split("/")
            for depth in range(1, len(below)):
                inner = prefix + "/".join(below[:depth])
                rows[inner] = {
                    "type": "directory",
                    "oid": hashlib.sha1(inner.encode()).hexdigest(),
                    "path": inner,
                    "size": 0,
                }
            rows[path] = {"type": "file", "oid": blob.oid, "size": len(blob.content), "path": path}
            if blob.is_large:
                rows[path]["lfs"] = {"oid": blob.sha256, "size": len(blob.content), "pointerSize": 130}
        deep = self.query.get("recursive", "").lower() in ("true", "1")
        return self._json([row for path, row in rows.items() if deep or "/" not in path.removeprefix(prefix)])

    def refs(self, name: str) -> Callable[[], None]:
        repository = self.hub.repository(name, self.user)

        def listed(kind: str, names: dict[str, str]) -> list[dict[str, str]]:
            return [{"name": ref, "ref": f"refs/{kind}/{ref}", "targetCommit": sha} for ref, sha in names.items()]

        return self._json(
            {"branches": listed("heads", repository.branches), "tags": listed("tags", repository.tags), "converts": []}
        )

    def branch(self, name: str, branch: str) -> Callable[[], None]:
        repository = self.hub.repository(name, self.user, to_write=True)
        if self.command == "DELETE":
            if branch == "main" or branch not in repository.branches:
                raise Refusal(403 if branch == "main" else 404, f"Branch {branch} can't be deleted", "RevisionNotFound")
            del repository.branches[branch]
            return self._json({})
        if branch in repository.branches:
            raise Refusal(409, f"Reference already exists: refs/heads/{branch}")
        repository.branches[branch] = repository.at(self._given().get("startingPoint") or "main").sha
        return self._json({})

    def tag(self, name: str, revision: str) -> Callable[[], None]:
        repository = self.hub.repository(name, self.user, to_write=True)
        if self.command == "DELETE":
            if repository.tags.pop(revision, None) is None:
                raise Refusal(404, f"No tag {revision}", "RevisionNotFound")
            return self._json({})
        tag = self._given()["tag"]
        if tag in repository.tags:
            raise Refusal(409, f"Tag reference exists already: {tag}")
        repository.tags[tag] = repository.at(revision).sha
        return self._json({})

    # Up

    def validate_yaml(self) -> Callable[[], None]:
        return self._json({"errors": [], "warnings": []})

    def preupload(self, name: str, revision: str) -> Callable[[], None]:
        repository = self.hub.repository(name, self.user, to_write=True)
        there = repository.at(revision).files
        rows = []
        for file in self._given()["files"]:
            path = file["path"]
            is_large = path.endswith(LARGE_ENDINGS) or file["size"] > LARGE_SIZE
            row = {"path": path, "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False}
            rows.append(row | ({"oid": there[path].etag} if path in there else {}))
        return self._json({"files": rows})

    def lfs_batch(self, name: str) -> Callable[[], None]:
        self.hub.repository(name, self.user, to_write=True)
        objects = []
        for wanted in self._given()["objects"]:
            row: dict[str, Any] = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.storage:
                upload = f"{self.hub.storage_url}/{wanted['oid']}?signature={_signature(wanted['oid'])}"
                row["actions"] = {"upload": {"href": upload}}
            objects.append(row)
        return self._json({"transfer": "basic", "objects": objects})

    def store(self, oid: str) -> Callable[[], None]:
        self._check_signature(oid)
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refusal(400, "The content is not that of its SHA-256")
        self.hub.storage[oid] = self.body
        return lambda: self._send(200)

    def commit(self, name: str, branch: str) -> Callable[[], None]:
        repository = self.hub.repository(name, self.user, to_write=True)
        if branch not in repository.branches:
            raise Refusal(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        head = repository.at(branch)
        lines = [json.loads(line) for line in self.body.splitlines() if line.strip()]
        header, operations = lines[0]["value"], lines[1:]
        if header.get("parentCommit") not in (None, head.sha):
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        files = dict(head.files)
        for operation in operations:
            self._change(files, operation["key"], operation["value"])
        if self.hub.cuts_now("commit"):
            raise ConnectionCut
        commit = repository.commit(branch, files, header["summary"])
        return self._json(
            {"success": True, "commitOid": commit.sha, "commitUrl": f"{self.hub.url}/{name}/commit/{commit.sha}"}
        )

    def _change(self, files: dict[str, Blob], kind: str, value: dict[str, Any]) -> None:
        """Do one operation of a commit."""
        path = value["path"]
        if kind == "file":
            content = base64.b64decode(value["content"]) if value["encoding"] == "base64" else value["content"].encode()
            files[path] = Blob(content, is_large=False)
        elif kind == "lfsFile":
            content = self.hub.storage.get(value["oid"])
            if content is None or len(content) != value.get("size", len(content)):
                raise Refusal(400, f"`{path}` names a large file that was not uploaded: {value['oid']}")
            files[path] = Blob(content, is_large=True)
        elif kind == "deletedFile":
            if files.pop(path, None) is None:
                raise Refusal(404, f"A file that is not there can't be deleted: {path}", "EntryNotFound")
        elif kind == "deletedFolder":
            for inner in [name for name in files if name.startswith(path.rstrip("/") + "/")]:
                del files[inner]
        else:
            raise Refusal(400, f"Unknown operation: {kind}")

    # Down

    def resolve(self, name: str, revision: str, path: str) -> Callable[[], None]:
        commit = self.hub.repository(name, self.user, to_read=True).at(revision)
        blob = commit.files.get(path)
        if blob is None:
            raise Refusal(404, "Entry not found", "EntryNotFound", commit.sha)
        headers: dict[str, str | None] = {"X-Repo-Commit": commit.sha, "ETag": f'"{blob.etag}"'}
        if not blob.is_large:
            return self._file(blob.content, headers)
        headers |= {
            "Location": f"{self.hub.storage_url}/{blob.sha256}?signature={_signature(blob.sha256)}",
            "X-Linked-ETag": f'"{blob.sha256}"',
            "X-Linked-Size": str(len(blob.content)),
        }
        return lambda: self._send(HTTPStatus.FOUND, b"", headers)

    def stored(self, oid: str) -> Callable[[], None]:
        self._check_signature(oid)
        if oid not in self.hub.storage:
            raise Refusal(404, "No such object")
        return self._file(self.hub.storage[oid], {"ETag": f'"{oid}"'})

    def _check_signature(self, oid: str) -> None:
        if self.headers["Authorization"] is not None:
            raise Refusal(400, "A token was sent to a host that is not the Hub")
        if self.query.get("signature") != _signature(oid):
            raise Refusal(403, "SignatureDoesNotMatch")


def _signature(oid: str) -> str:
    """What lets anybody read or write one object."""
    return hashlib.sha256(f"secret {oid}".encode()).hexdigest()[:16]


_NAME = r"(?P<name>[^/]+/[^/]+)"
_ROUTES: list[tuple[str, str, Callable[..., Callable[[], None]]]] = [
    ("GET", "/api/whoami-v2", _Handler.whoami),
    ("POST", "/api/repos/create", _Handler.create_repository),
    ("DELETE", "/api/repos/delete", _Handler.delete_repository),
    ("POST", "/api/validate-yaml", _Handler.validate_yaml),
    ("GET", f"/api/models/{_NAME}", _Handler.model_info),
    ("GET", f"/api/models/{_NAME}/revision/(?P<revision>.+)", _Handler.model_info),
    ("GET", f"/api/models/{_NAME}/tree/(?P<revision>[^/]+)(?P<folder>/.*)?", _Handler.tree),
    ("GET", f"/api/models/{_NAME}/refs", _Handler.refs),
    ("POST DELETE", f"/api/models/{_NAME}/branch/(?P<branch>.+)", _Handler.branch),
    ("POST DELETE", f"/api/models/{_NAME}/tag/(?P<revision>.+)", _Handler.tag),
    ("POST", f"/api/models/{_NAME}/preupload/(?P<revision>.+)", _Handler.preupload),
    ("POST", f"/api/models/{_NAME}/commit/(?P<branch>.+)", _Handler.commit),
    ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT", "/storage/(?P<oid>[0-9a-f]{64})", _Handler.store),
    ("GET HEAD", "/storage/(?P<oid>[0-9a-f]{64})", _Handler.stored),
    ("GET HEAD", f"/{_NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
]


def main() -> None:
    """Answers until Ctrl-C."""
    parser = argparse.ArgumentParser(description="A Hub in memory, for trying what shares models.")
    parser.add_argument("--port", type=int, default=8000, help="0 for one that is free")
    options = parser.parse_args()
    with HubServer(options.port) as hub:
        tokens = [hub.add_user(name) for name in ("alice", "bob")]
        print(f"export HF_ENDPOINT={hub.url} HF_HUB_DISABLE_XET=1 HF_TOKEN={tokens[0]}   # or {tokens[1]}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(3600)


if __name__ == "__main__":
    main()
