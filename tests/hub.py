"""A small Hugging Face hub on loopback: the routes that huggingface_hub calls to create a model repository, and to upload and
download a folder.

Files live in memory. It offers LFS and not Xet. `fault` may answer any request itself.
"""

import hashlib
import json
import re
import threading
from base64 import b64decode
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

type Fault = Callable[[str, str], int | None]
"""(method, path) -> a status to answer with, or None: serve the request. It may block."""

WRITER, READER = "hf_" + "w" * 34, "hf_" + "r" * 34
"""Tokens: WRITER may write to the owner `lab`, READER may only read."""


@dataclass
class Repository:
    """One model repository."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)
    """Messages, oldest first."""


@dataclass
class HubState:
    """All repositories and stored LFS objects."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    """(method, path) of requests that were served."""
    bodies: list[bytes] = field(default_factory=list)
    fault: Fault | None = None
    lock: threading.RLock = field(default_factory=threading.RLock)


class Refused(Exception):
    """A response with an error status."""

    def __init__(self, status: int, message: str, **fields: str):
        super().__init__(message)
        self.status, self.fields = status, fields


class Hub:
    """The server; `with` starts and ends it."""

    def __init__(self) -> None:
        self.state = HubState()
        handler = type("Handler", (Handler,), {"state": self.state})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "Hub":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def uploads(self) -> list[str]:
        """SHA-256 of each LFS object that was sent, in order."""
        return [path.rpartition("/")[2] for method, path in self.state.requests if method == "PUT"]


class Handler(BaseHTTPRequestHandler):
    """One request after another on one connection."""

    state: HubState
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        """No access log."""

    def handle(self) -> None:
        """A killed client closes its connection without an error here."""
        with suppress(ConnectionError):
            super().handle()

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = self._read_chunks()
        path = unquote(urlsplit(self.path).path)
        status = self.state.fault(self.command, path) if self.state.fault else None
        try:
            if status:
                raise Refused(status, f"status {status} by the test")
            answer: Any = 200, self._route(self.command, path, body)
        except Refused as refused:
            answer = refused.status, {"error": str(refused), **refused.fields}
        with self.state.lock:
            self.state.requests.append((self.command, path))
            self.state.bodies.append(body)
        status, content = answer
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json" if data is not content else "application/octet-stream")
        self.send_header("Content-Length", str(len(data)))
        if data is content:
            self.send_header("ETag", f'"{_blob_id(data)}"')
            self.send_header("X-Repo-Commit", path.split("/")[4])
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_HEAD = do_POST = do_PUT = _serve

    def _read_chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _route(self, method: str, path: str, body: bytes) -> Any:
        if method == "PUT":
            return self._store(path.rpartition("/")[2], body)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in (WRITER, READER):
            raise Refused(401, "Invalid username or password.")
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            return self._create(json.loads(body), token)
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            return self._download(*match.groups())
        name, rest = self._repository_of(path)
        if method == "GET":
            return self._read(name, rest)
        if token != WRITER or not name.startswith("lab/"):
            raise Refused(403, f"You don't have the rights to write to {name}")
        return self._write(name, rest, body)

    def _repository_of(self, path: str) -> tuple[str, str]:
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)(/.*)?|/([^/]+/[^/]+)\.git(/.*)", path)
        name = match and (match[1] or match[3])
        if not match or not name or name not in self.state.repositories:
            raise Refused(404, f"Repository not found: {path}")
        return name, match[2] or match[4] or ""

    def _download(self, name: str, file: str) -> bytes:
        files = self.state.repositories[name].files if name in self.state.repositories else {}
        if file not in files:
            raise Refused(404, f"no such file: {name}/{file}")
        return files[file]

    def _create(self, content: dict[str, Any], token: str) -> Any:
        name = f"{content['organization']}/{content['name']}"
        if token != WRITER or content["organization"] != "lab":
            raise Refused(403, f'You don\'t have the rights to create a model under the namespace "{name}"')
        url = f"http://{self.headers['Host']}/{name}"
        with self.state.lock:
            if name in self.state.repositories:
                raise Refused(409, "You already created this model repo", url=url)
            self.state.repositories[name] = Repository(private=content.get("visibility") == "private")
        return {"url": url}

    def _read(self, name: str, rest: str) -> Any:
        repository = self.state.repositories[name]
        if rest.startswith("/tree/"):
            files = repository.files.items()
            return [{"type": "file", "path": path, "size": len(data), "oid": _blob_id(data)} for path, data in files]
        pinned = re.fullmatch(r"/revision/([0-9a-f]{40})", rest)
        head = pinned[1] if pinned else f"{len(repository.commits):040x}"
        siblings = [{"rfilename": path} for path in repository.files]
        return {"id": name, "private": repository.private, "sha": head, "siblings": siblings, "tags": []}

    def _write(self, name: str, rest: str, body: bytes) -> Any:
        repository = self.state.repositories[name]
        if rest.startswith("/preupload/"):
            return {"files": [self._mode(repository, file["path"]) for file in json.loads(body)["files"]]}
        if rest == "/info/lfs/objects/batch":
            return {"transfer": "basic", "objects": [self._action(item) for item in json.loads(body)["objects"]]}
        if rest.startswith("/commit/"):
            return self._commit(name, [json.loads(line) for line in body.splitlines()])
        raise Refused(404, f"no such route: {rest}")

    def _mode(self, repository: Repository, path: str) -> dict[str, Any]:
        large, data = path.endswith(".safetensors"), repository.files.get(path)
        oid = None if data is None else hashlib.sha256(data).hexdigest() if large else _blob_id(data)
        return {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}

    def _action(self, item: dict[str, Any]) -> dict[str, Any]:
        known = {"oid": item["oid"], "size": item["size"]}
        if item["oid"] in self.state.objects:
            return known
        return {**known, "actions": {"upload": {"href": f"http://{self.headers['Host']}/objects/{item['oid']}"}}}

    def _store(self, oid: str, body: bytes) -> Any:
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refused(400, "the content is not what its SHA-256 promises")
        with self.state.lock:
            self.state.objects[oid] = body
        return {}

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> Any:
        repository = self.state.repositories[name]
        files, message = dict(repository.files), ""
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.state.objects:
                    raise Refused(400, f"missing LFS object of {value['path']}")
                files[value["path"]] = self.state.objects[value["oid"]]
            else:
                assert line["key"] == "deletedFile"
                del files[value["path"]]
        with self.state.lock:
            repository.files = files
            repository.commits.append(message)
        oid = f"{len(repository.commits):040x}"
        return {"commitUrl": f"http://{self.headers['Host']}/{name}/commit/{oid}", "commitOid": oid, "success": True}


def _blob_id(data: bytes) -> str:
    """Git's SHA-1 of a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
