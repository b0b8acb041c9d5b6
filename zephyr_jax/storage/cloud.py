"""Cloud Storage: its client, its refusals as InputError, and a word now and then while it keeps us waiting."""

import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import fsspec

from zephyr_jax.errors import InputError
from zephyr_jax.log import silence_library_logs

SCHEME = "gs://"
_SAY_EVERY = 30  # seconds
_CONNECT, _SILENCE = 10, 60  # seconds until a connection, or one that sends nothing, is given up and tried again

_ACCOUNT = (
    "On a TPU VM give its service account the role, elsewhere run `gcloud auth application-default login` or set "
    "GOOGLE_APPLICATION_CREDENTIALS."
)
_KINDS = {
    "account": (
        "nobody is logged in, or the login is over",
        "Reading needs the role Storage Object Viewer, writing Storage Object Admin and Storage Legacy Bucket Reader. "
        + _ACCOUNT,
    ),
    "permission": (
        "this account may not do that",
        "Reading needs the role Storage Object Viewer, writing Storage Object Admin and Storage Legacy Bucket Reader. "
        + _ACCOUNT,
    ),
    "bucket": (
        "there is no such bucket",
        "Check the spelling, or make it with `gcloud storage buckets create`.",
    ),
    "gone": (
        "something that must be there is not",
        "Check the path; if files were deleted by hand, put them back or start from an older checkpoint.",
    ),
    "network": (
        "it cannot be reached, and trying again did not help",
        "Check the network (and STORAGE_EMULATOR_HOST, where it is set), then run the same command again: what was complete "
        "before stays, and training goes on from its newest checkpoint.",
    ),
    "other": ("it refused", "Check the path; what was complete before stays."),
}
_WORDS = (
    ("account", r"UNAUTHENTICATED|Unauthenticated|invalid_grant|Invalid Cred|Anonymous caller|\b401\b|default credentials"),
    ("permission", r"PERMISSION_DENIED|Permission denied|Forbidden|\b403\b"),
    ("bucket", r"bucket does not exist|Invalid GCS bucket name|Invalid bucket name"),
    ("network", r"UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CURL|Connection|connect|\b(408|429|50[0-4])\b|timed? ?out|Timeout"),
    ("gone", r"NOT_FOUND|Not Found|No such object|\b404\b"),
)  # fmt: skip


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path is on Cloud Storage."""
    return os.fspath(path).startswith(SCHEME)


@cache
def configure_clients() -> None:
    """Settle, before the first use, how every client in this process talks to Cloud Storage."""
    import aiohttp
    from gcsfs.core import GCSFileSystem

    for name in ("gcs", "gs"):  # the plain JSON API; gcsfs's other class asks for each bucket's kind by gRPC first
        fsspec.register_implementation(name, GCSFileSystem, clobber=True)
    # Other processes write too, so no listing is remembered.
    options = fsspec.config.conf.setdefault("gcs", {})
    options.setdefault("use_listings_cache", False)
    options.setdefault("requests_timeout", aiohttp.ClientTimeout(sock_connect=_CONNECT, sock_read=_SILENCE))
    _silence_client_threads()


def _silence_client_threads() -> None:
    """No tracebacks from threads of the clients whose errors are raised again, and explained, in the main one."""
    in_threads = threading.excepthook

    def thread(what: threading.ExceptHookArgs) -> None:
        if not (isinstance(what.exc_value, Exception) and _kind(what.exc_value)):
            in_threads(what)

    threading.excepthook = thread
    silence_library_logs()


def client() -> Any:
    """The file system of `gs://` paths."""
    configure_clients()
    return fsspec.filesystem("gcs")


@contextmanager
def translate_cloud_errors(path: str | os.PathLike[str] = "") -> Iterator[None]:
    """Turn what Cloud Storage's clients raise into InputError; everything else passes. Also a decorator.

    `path` is named in the message where the error itself names none.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        message = _message(error, os.fspath(path))
        if message is None:
            raise
        raise InputError(message) from error


def _message(error: Exception, path: str) -> str | None:
    kind = _kind(error)
    if kind is None:
        return None
    reason = " ".join(re.sub(r"\[(http_response|tensorstore_spec).*", "", str(error), flags=re.DOTALL).split())[:300]
    reason = reason or type(error).__name__
    what, advice = _KINDS[kind]
    return f"Cloud Storage{f', {path}' if path else ''}: {what} ({reason}). {advice}"


def is_unreachable(error: Exception) -> bool:
    """Whether an error says that Cloud Storage could not be asked, and nothing about what is there."""
    return _kind(error) in ("account", "permission", "bucket", "network")


def _kind(error: Exception) -> str | None:
    """What sort of trouble an error of Cloud Storage's clients is; None: it is not of theirs."""
    text, origin = f"{type(error).__name__} {error}", type(error).__module__.partition(".")[0]
    found = next((kind for kind, words in _WORDS if re.search(words, text)), None)
    if type(error).__module__.startswith("google.auth"):
        return "account"
    if type(error).__module__.startswith(("gcsfs", "google.")):
        return found or "other"
    if origin in ("aiohttp", "requests", "urllib3"):
        return "network"
    if isinstance(error, FileNotFoundError) and not error.filename and re.search(r"\bb/|gs://", text):
        return "gone"
    if isinstance(error, OSError) and str(error).startswith("Forbidden"):
        return found
    if isinstance(error, ValueError | RuntimeError) and re.search(r"gs://|[Gg][Cc][Ss]|storage/v1", text):
        return found or "other"  # tensorstore's
    return None


@contextmanager
def slow_io_warning(path: str | os.PathLike[str], doing: str) -> Iterator[None]:
    """Explain errors, and say every half minute that we still wait; for local paths nothing but the work itself."""
    if not is_remote(path):
        yield
        return
    done = threading.Event()

    def say() -> None:
        start = time.monotonic()
        while not done.wait(_SAY_EVERY):
            seconds = time.monotonic() - start
            print(f"still {doing} {os.fspath(path)} after {seconds:.0f} s ...", file=sys.stderr, flush=True)

    thread = threading.Thread(target=say, daemon=True)
    thread.start()
    try:
        with translate_cloud_errors(path):
            yield
    finally:
        done.set()


def split_bucket(path: str | os.PathLike[str]) -> tuple[str, str]:
    """Bucket and object name of a `gs://` path."""
    bucket, _, name = os.fspath(path).removeprefix(SCHEME).partition("/")
    return bucket, name.rstrip("/")


def check_bucket(path: str | os.PathLike[str]) -> None:
    """Raise InputError unless the bucket is there and its objects may be listed."""
    bucket, name = split_bucket(path)
    with slow_io_warning(path, "asking for"):
        try:
            client().call("GET", "b/{}/o", bucket, prefix=name or None, maxResults=1)
        except FileNotFoundError as error:
            raise InputError(f"There is no bucket {SCHEME}{bucket}. {_KINDS['bucket'][1]}") from error


def check_writable(folder: str | os.PathLike[str], checkpoints: bool) -> None:
    """Raise InputError unless objects may be made under a `gs://` folder: an upload is begun and given up.

    `checkpoints`: whether orbax will write there, which reads the bucket's own properties too.
    """
    check_bucket(folder)
    bucket, name = split_bucket(folder)
    with slow_io_warning(folder, "asking whether we may write to"):
        if checkpoints:
            client().call("GET", "b/{}", bucket)
        uploads = client().base.replace("/storage/v1/", "/upload/storage/v1/")
        headers, _ = client().call(
            "POST", uploads + "b/{}/o", bucket, uploadType="resumable", name=f"{name}/.writable", json={}
        )
        client().call("DELETE", headers["Location"])
