"""A small Cloud Storage on loopback: the parts of its JSON API that gcsfs, tensorstore and google-cloud-storage use.

Objects live in memory and appear whole, generations count up, preconditions hold. `fault` may answer any request itself.
"""

import hashlib
import json
import re
import threading
from base64 import b64encode
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

type Fault = Callable[[str, str], int | str | None]
"""(method, path) -> a status to answer with, `drop` (cut the connection), `hang` (never answer), or None: all is well."""


@dataclass(frozen=True)
class Object:
    """Bytes with the number of their version."""

    data: bytes
    generation: int


@dataclass
class Request:
    """What was asked, for tests that count."""

    method: str
    path: str
    sent: int
    """Bytes of content that went out."""


@dataclass
class State:
    """All buckets and uploads."""

    buckets: dict[str, dict[str, Object]] = field(default_factory=dict)
    uploads: dict[str, tuple[str, str, bytearray]] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    fault: Fault | None = None
    generation: int = 0
    lock: threading.RLock = field(default_factory=threading.RLock)


class Refused(Exception):
    """A response with an error status."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class Gcs:
    """The server; `with` starts and ends it."""

    def __init__(self) -> None:
        self.state = State()
        handler = type("Handler", (Handler,), {"state": self.state})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @property
    def environment(self) -> dict[str, str]:
        """Variables that lead every client here, without credentials."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "anyone",
            "FSSPEC_GCS_TOKEN": "anon",
        }

    def __enter__(self) -> "Gcs":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def names(self, bucket: str, prefix: str = "") -> list[str]:
        """Objects of a bucket, in order."""
        with self.state.lock:
            return sorted(name for name in self.state.buckets[bucket] if name.startswith(prefix))


class Handler(BaseHTTPRequestHandler):
    """One request after another on one connection."""

    state: State
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16

    def log_message(self, *_: object) -> None:
        """Silence."""

    def handle(self) -> None:
        """Connections end without ceremony."""
        with suppress(ConnectionError):
            super().handle()

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        broken = self.state.fault(self.command, unquote(self.path)) if self.state.fault else None
        if broken == "hang":
            threading.Event().wait(3600)
        if isinstance(broken, str):
            self.close_connection = True
            self.connection.close()
            return
        try:
            if broken:
                raise Refused(broken, "The caller does not have storage.objects access.")
            answer = self._route(self.command, url.path, query, body)
        except Refused as refused:
            text = json.dumps({"error": {"code": refused.status, "message": str(refused)}}).encode()
            answer = refused.status, {"Content-Type": "application/json"}, text
        self._reply(*answer)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _serve  # noqa: N815

    def _reply(self, status: int, headers: dict[str, str], data: bytes) -> None:
        self.state.requests.append(Request(self.command, unquote(self.path), len(data)))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status not in (204, 304):
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if status not in (204, 304):
            self.wfile.write(data)
        self.wfile.flush()

    def _route(self, method: str, path: str, query: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        if path.startswith("/batch/"):
            return self._batch(body)
        if path.startswith("/upload/resumable/"):
            return self._continue_upload(method, path.rpartition("/")[2], body)
        found = re.fullmatch(r"(?:/upload|/download)?/(?:storage/v1/)?b/([^/]+)(?:/o(?:/(.+))?)?", path)
        if not found:
            raise Refused(404, f"no such method: {path}")
        bucket, name = unquote(found[1]), found[2] and unquote(found[2])
        if bucket not in self.state.buckets:
            raise Refused(404, f"The specified bucket does not exist: {bucket}")
        if path.startswith("/upload/"):
            return self._start_upload(bucket, query, body)
        if name is None:
            whole = {
                "kind": "storage#bucket",
                "name": bucket,
                "id": bucket,
                "location": "HERE",
                "storageClass": "STANDARD",
            }
            return _json(self._list(bucket, query) if path.endswith("/o") else whole)
        if method == "POST":
            return self._combine(bucket, found[2], query, body)
        with self.state.lock:
            held = self._held(bucket, name)
            _check(held, query)
            if held is None:
                raise Refused(404, f"No such object: {bucket}/{name}")
            if method == "DELETE":
                del self.state.buckets[bucket][name]
                return 204, {}, b""
        return self._media(held) if query.get("alt") == "media" else _json(_metadata(bucket, name, held))

    def _held(self, bucket: str, name: str) -> Object | None:
        return self.state.buckets[bucket].get(name)

    def _media(self, held: Object) -> tuple[int, dict[str, str], bytes]:
        marks = {"x-goog-generation": str(held.generation), "x-goog-stored-content-length": str(len(held.data))}
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        if not wanted:
            return 200, marks, held.data
        size = len(held.data)
        start = int(wanted[1]) if wanted[1] else max(size - int(wanted[2]), 0)
        stop = min(int(wanted[2]) + 1, size) if wanted[1] and wanted[2] else size
        if start >= size:
            raise Refused(416, "Requested range not satisfiable")
        marks["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        return 206, marks, held.data[start:stop]

    def _put(self, bucket: str, name: str, data: bytes, query: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        with self.state.lock:
            _check(self._held(bucket, name), query)
            self.state.generation += 1
            held = self.state.buckets[bucket][name] = Object(data, self.state.generation)
        return _json(_metadata(bucket, name, held))

    def _start_upload(self, bucket: str, query: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        kind = query.get("uploadType", "media")
        if kind == "media":
            return self._put(bucket, query["name"], body, query)
        if kind == "multipart":
            head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            first, second = BytesParser().parsebytes(head + body).get_payload()
            mark = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])
            assert mark
            data = re.split(rb"\r?\n\r?\n", body.split(b"--" + mark[1].encode(), 2)[2], maxsplit=1)[1]
            data = re.sub(rb"\r?\n--" + re.escape(mark[1].encode()) + rb"--\s*$", b"", data)
            assert second is not None
            return self._put(bucket, json.loads(first.get_payload())["name"], data, query)
        name = query.get("name") or json.loads(body)["name"]
        with self.state.lock:
            _check(self._held(bucket, name), query)
            self.state.generation += 1
            key = str(self.state.generation)
            self.state.uploads[key] = (bucket, name, bytearray())
        host = self.headers["Host"]
        return 200, {"Location": f"http://{host}/upload/resumable/{key}"}, b""

    def _continue_upload(self, method: str, key: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        if key not in self.state.uploads:
            raise Refused(410, "No such upload")
        bucket, name, data = self.state.uploads[key]
        if method == "DELETE":
            del self.state.uploads[key]
            return 499, {}, b""
        span = re.fullmatch(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)", self.headers.get("Content-Range") or "bytes */*")
        if not span:
            raise Refused(400, "Content-Range")
        if span[1]:
            data[int(span[1]) :] = body
        elif not self.headers.get("Content-Range"):
            data[:] = body
        if span[3] == "*" and self.headers.get("Content-Range"):
            return 308, {"Range": f"bytes=0-{len(data) - 1}"} if data else {}, b""
        del self.state.uploads[key]
        return self._put(bucket, name, bytes(data), {})

    def _list(self, bucket: str, query: dict[str, str]) -> dict[str, Any]:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        first, last = query.get("startOffset", ""), query.get("endOffset")
        limit, after = int(query.get("maxResults", 1000)), query.get("pageToken", "")
        found: dict[str, Object | None] = {}
        with self.state.lock:
            for name in sorted(self.state.buckets[bucket]):
                if not name.startswith(prefix) or name < first or (last and name >= last):
                    continue
                rest = name[len(prefix) :]
                if delimiter and delimiter in rest:
                    found[prefix + rest[: rest.index(delimiter) + 1]] = None
                else:
                    found[name] = self.state.buckets[bucket][name]
        left = sorted(name for name in found if name > after)
        page = left[:limit]
        answer: dict[str, Any] = {
            "kind": "storage#objects",
            "items": [_metadata(bucket, name, held) for name in page if (held := found[name])],
            "prefixes": [name for name in page if found[name] is None],
        }
        return answer | ({"nextPageToken": page[-1]} if len(left) > limit else {})

    def _combine(self, bucket: str, rest: str, query: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        if rest.endswith("/compose"):
            parts = [self._held(bucket, each["name"]) for each in json.loads(body)["sourceObjects"]]
            if None in parts:
                raise Refused(404, "a source object is missing")
            data = b"".join(part.data for part in parts if part)
            return self._put(bucket, unquote(rest.removesuffix("/compose")), data, query)
        found = re.fullmatch(r"(.+)/(?:copyTo|rewriteTo)/b/([^/]+)/o/(.+)", rest)
        held = found and self._held(bucket, unquote(found[1]))
        if not found or not held:
            raise Refused(404, "nothing to copy")
        answer = self._put(unquote(found[2]), unquote(found[3]), held.data, query)
        if "/copyTo/" in rest:
            return answer
        size = len(held.data)
        return _json({"done": True, "objectSize": size, "totalBytesRewritten": size, "resource": json.loads(answer[2])})

    def _batch(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        parts = []
        for number, line in enumerate(re.findall(rb"DELETE (\S+) HTTP", body), 1):
            try:
                status = self._route("DELETE", line.decode().partition("?")[0], {}, b"")[0]
            except Refused as refused:
                status = refused.status
            head = f"--batch\r\nContent-Type: application/http\r\nContent-ID: <response-{number}>\r\n\r\n"
            parts.append(f"{head}HTTP/1.1 {status} said\r\n\r\n\r\n")
        return 200, {"Content-Type": "multipart/mixed; boundary=batch"}, ("".join(parts) + "--batch--").encode()


def _check(held: Object | None, query: dict[str, str]) -> None:
    generation = str(held.generation) if held else "0"
    if query.get("ifGenerationMatch", generation) != generation:
        raise Refused(412, "At least one of the pre-conditions you specified did not hold.")
    if query.get("ifGenerationNotMatch") == generation:
        raise Refused(304, "not modified")


def _metadata(bucket: str, name: str, held: Object) -> dict[str, Any]:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return {
        "kind": "storage#object", "bucket": bucket, "name": name, "id": f"{bucket}/{name}/{held.generation}",
        "size": str(len(held.data)), "generation": str(held.generation), "metageneration": "1",
        "etag": str(held.generation), "md5Hash": b64encode(hashlib.md5(held.data).digest()).decode(),
        "timeCreated": now, "updated": now, "storageClass": "STANDARD", "contentType": "application/octet-stream",
    }  # fmt: skip


def _json(content: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()
