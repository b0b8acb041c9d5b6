"""Cloud Storage: its client, its errors as InputError, and a warning while a request is slow."""

import logging
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import fsspec

from zephyr_jax.errors import InputError, Stopped, TrainingError
from zephyr_jax.log import silence_library_logs

logger = logging.getLogger(__name__)

SCHEME = "gs://"
_WARN_EVERY = 30  # seconds
_CONNECT_TIMEOUT, _READ_TIMEOUT = 10, 60  # seconds, then the client retries

_ACCOUNT = (
    "On a TPU VM give its service account the role, elsewhere run `gcloud auth application-default login` or set "
    "GOOGLE_APPLICATION_CREDENTIALS."
)
_MESSAGES = {
    "account": (
        "no credentials, or they have expired",
        "Reading needs the role Storage Object Viewer, writing Storage Object Admin and Storage Legacy Bucket Reader. "
        + _ACCOUNT,
    ),
    "permission": (
        "this account may not do that",
        "Reading needs the role Storage Object Viewer, writing Storage Object Admin and Storage Legacy Bucket Reader. "
        + _ACCOUNT,
    ),
    "bucket": (
        "the bucket does not exist",
        "Check the spelling, or create it with `gcloud storage buckets create`.",
    ),
    "gone": (
        "a required object is missing",
        "Check the path; if files were deleted, restore them or start from an older checkpoint.",
    ),
    "network": (
        "cannot be reached, also after retries",
        "Check the network (and STORAGE_EMULATOR_HOST, if set), then run the same command again: completed files stay, and "
        "training resumes from its newest checkpoint.",
    ),
    "other": ("the request failed", "Check the path; completed files stay."),
}
_PATTERNS = (
    (
        "account",
        r"UNAUTHENTICATED|Unauthenticated|invalid_grant|Invalid Cred|Anonymous caller|\b401\b|default credentials",
    ),
    ("permission", r"PERMISSION_DENIED|Permission denied|Forbidden|\b403\b"),
    ("bucket", r"bucket does not exist|Invalid GCS bucket name|Invalid bucket name"),
    (
        "network",
        r"UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CURL|Connection|connect|\b(408|429|50[0-4])\b|timed? ?out|Timeout",
    ),
    ("gone", r"NOT_FOUND|Not Found|No such object|\b404\b"),
)


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path is on Cloud Storage."""
    return os.fspath(path).startswith(SCHEME)


@cache
def configure_clients() -> None:
    """Configure the Cloud Storage clients of this process, before the first use."""
    import aiohttp
    from gcsfs.core import GCSFileSystem

    for name in ("gcs", "gs"):  # the plain JSON API; gcsfs's other class asks for each bucket's kind by gRPC first
        fsspec.register_implementation(name, GCSFileSystem, clobber=True)
    # Other processes write too, so listings are not cached.
    options = fsspec.config.conf.setdefault("gcs", {})
    options.setdefault("use_listings_cache", False)
    options.setdefault(
        "requests_timeout", aiohttp.ClientTimeout(sock_connect=_CONNECT_TIMEOUT, sock_read=_READ_TIMEOUT)
    )
    _silence_client_threads()


def _silence_client_threads() -> None:
    """Suppress tracebacks of client threads: the same errors are raised, and translated, in the main thread."""
    default_hook = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if not (isinstance(args.exc_value, Exception) and _kind(args.exc_value)):
            default_hook(args)

    threading.excepthook = hook
    silence_library_logs()


def client() -> Any:
    """The file system of `gs://` paths."""
    configure_clients()
    return fsspec.filesystem("gcs")


@contextmanager
def translate_cloud_errors(path: str | os.PathLike[str] = "") -> Iterator[None]:
    """Turn errors of Cloud Storage's clients into InputError naming `path`; others pass. Also a decorator."""
    try:
        yield
    except (InputError, TrainingError, Stopped):  # their texts may name a gs:// path
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
    problem, fix = _MESSAGES[kind]
    return f"Cloud Storage{f', {path}' if path else ''}: {problem} ({reason}). {fix}"


def is_unreachable(error: Exception) -> bool:
    """Whether an error means that Cloud Storage did not answer, so that an object may exist or not."""
    return _kind(error) in ("account", "permission", "bucket", "network")


def _kind(error: Exception) -> str | None:
    """The key in `_MESSAGES` of an error of Cloud Storage's clients; None for other errors."""
    text, origin = f"{type(error).__name__} {error}", type(error).__module__.partition(".")[0]
    matched = next((kind for kind, pattern in _PATTERNS if re.search(pattern, text)), None)
    if type(error).__module__.startswith("google.auth"):
        return "account"
    if type(error).__module__.startswith(("gcsfs", "google.")):
        return matched or "other"
    if origin in ("aiohttp", "requests", "urllib3"):
        return "network"
    if isinstance(error, FileNotFoundError) and not error.filename and re.search(r"\bb/|gs://", text):
        return "gone"
    if isinstance(error, OSError) and str(error).startswith("Forbidden"):
        return matched
    if isinstance(error, ValueError | RuntimeError) and re.search(r"gs://|[Gg][Cc][Ss]|storage/v1", text):
        return matched or "other"  # tensorstore's
    return None


@contextmanager
def slow_io_warning(path: str | os.PathLike[str], doing: str) -> Iterator[None]:
    """Translate errors, and warn every half minute that `doing` still runs; no effect on local paths."""
    if not is_remote(path):
        yield
        return
    done = threading.Event()

    def warn() -> None:
        start = time.monotonic()
        while not done.wait(_WARN_EVERY):
            seconds = time.monotonic() - start
            logger.warning("still %s %s after %.0f s ...", doing, os.fspath(path), seconds)

    thread = threading.Thread(target=warn, daemon=True)
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
    """Raise InputError unless the bucket exists and its objects can be listed."""
    bucket, name = split_bucket(path)
    with slow_io_warning(path, "listing"):
        try:
            client().call("GET", "b/{}/o", bucket, prefix=name or None, maxResults=1)
        except FileNotFoundError as error:
            raise InputError(f"The bucket {SCHEME}{bucket} does not exist. {_MESSAGES['bucket'][1]}") from error


def check_writable(folder: str | os.PathLike[str], checkpoints: bool) -> None:
    """Raise InputError unless objects can be created under a `gs://` folder, by starting and cancelling an upload.

    `checkpoints`: whether orbax will write to it, which also reads the metadata of the bucket.
    """
    check_bucket(folder)
    bucket, name = split_bucket(folder)
    with slow_io_warning(folder, "checking write access to"):
        if checkpoints:
            client().call("GET", "b/{}", bucket)
        uploads = client().base.replace("/storage/v1/", "/upload/storage/v1/")
        headers, _ = client().call(
            "POST", uploads + "b/{}/o", bucket, uploadType="resumable", name=f"{name}/.writable", json={}
        )
        client().call("DELETE", headers["Location"])
