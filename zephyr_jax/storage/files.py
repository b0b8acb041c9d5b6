"""One path type for disk and Cloud Storage, and atomic writes."""

import atexit
import json
import os
import pathlib
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import blake2b
from typing import IO, Any

from etils import epath

from zephyr_jax.errors import InputError
from zephyr_jax.storage.cloud import (
    check_bucket,
    check_writable,
    client,
    configure_clients,
    is_remote,
    slow_io_warning,
    split_bucket,
)

type Path = epath.Path
_CHUNK = 32 * 2**20  # bytes of one request


def open_path(path: str | os.PathLike[str]) -> epath.Path:
    """A path on disk, or on Cloud Storage when it starts with `gs://`. Raises InputError for a `gs://` without a bucket."""
    if is_remote(path):
        configure_clients()
        if not split_bucket(path)[0]:
            raise InputError(f"{os.fspath(path)!r} has no bucket. Expected gs://BUCKET/FOLDER.")
    return epath.Path(path)


def absolute_path(path: str | os.PathLike[str]) -> epath.Path:
    """The same path, not relative to the working directory."""
    return open_path(path) if is_remote(path) else open_path(pathlib.Path(path).absolute())


def check_readable(path: str | os.PathLike[str]) -> None:
    """Raise InputError for a `gs://` path that cannot be listed (bucket, permission, credentials, network), and for a local path
    (or an entry of a local folder) that is neither a file nor a folder."""
    if is_remote(path):
        check_bucket(path)
        return
    check_regular(path)
    if os.path.isdir(path):
        with os.scandir(path) as entries:
            for entry in entries:
                if not entry.is_file() and not entry.is_dir():
                    check_regular(entry.path)


def check_regular(path: str | os.PathLike[str]) -> None:
    """Raise InputError for a FIFO, a device or a socket: reading one may never end. A path that is not there passes."""
    if is_remote(path):
        return
    try:
        mode = os.stat(os.path.expanduser(path)).st_mode
    except (OSError, ValueError):  # the error is reported when the file is read
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise InputError(
            f"{os.fspath(path)} is not a regular file (a pipe, device or socket). Expected a file: write the content to one, "
            "and give its path."
        )


def check_folder_creatable(folder: str | os.PathLike[str], checkpoints: bool = False) -> None:
    """Raise InputError unless `folder` is, or can become, a folder that we may write to; nothing is made.

    `checkpoints`: whether it is to hold checkpoints.
    """
    if is_remote(folder):
        open_path(folder)
        check_writable(folder, checkpoints)
        return
    local = pathlib.Path(folder)
    for ancestor in (local, *local.parents):
        if ancestor.exists():
            if not ancestor.is_dir():
                raise InputError(f"Cannot create the folder {local}: {ancestor} is a file. Choose another.")
            return


def check_file_creatable(file: str | None) -> None:
    """Raise InputError for an output file whose folder does not exist, before any work is done for it."""
    if file and is_remote(file):
        check_folder_creatable(open_path(file).parent)
    elif file and not pathlib.Path(file).parent.is_dir():
        raise InputError(f"Cannot write {file}: its folder does not exist. Create it or choose another.")


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a file for writing; it appears, complete, when the block ends without an error, and is unchanged otherwise."""
    with _upload(path) if is_remote(path) else _replacement(pathlib.Path(path)) as file:
        yield file


@contextmanager
def _replacement(path: pathlib.Path) -> Iterator[IO[bytes]]:
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with scratch.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
        _fsync_folder(path.parent)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


@contextmanager
def scratch_file() -> Iterator[IO[bytes]]:
    """An unnamed file in TMPDIR, which disappears with the process even if that is killed."""
    with tempfile.TemporaryFile("w+b") as file:
        yield file


def remove_stale_scratch(folder: Path) -> None:
    """Remove unfinished files of killed processes from a local folder."""
    for scratch in () if is_remote(folder) else pathlib.Path(folder).glob(".*.tmp"):
        writer = scratch.name.split(".")[-2]
        if writer.isdigit() and not _is_running(int(writer)):
            scratch.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _fsync_folder(folder: pathlib.Path) -> None:
    """Flush a folder's entries to disk, where the system supports that."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def _upload(path: str | os.PathLike[str]) -> Iterator[Any]:
    with slow_io_warning(path, "writing"):
        file = client().open(os.fspath(path), "wb", block_size=_CHUNK)
        try:
            yield file
            file.close()
        except BaseException:
            with suppress(Exception):  # the first error is raised
                file.discard()
            file.closed = True  # otherwise it would be finished when it is collected
            raise


def create_folder(path: str | os.PathLike[str]) -> Path:
    """Create an output folder. Raises InputError."""
    folder = open_path(path)
    check_folder_creatable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON Lines atomically; creates the folder. Without rows, no file is left."""
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if content:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content)
    else:
        path.unlink(missing_ok=True)


def write_atomic(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a small file atomically."""
    with atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_chunked(file: IO[bytes], view: memoryview) -> None:
    """Write many bytes in chunks, so that no intermediate buffer grows to their size."""
    for start in range(0, len(view), _CHUNK):
        file.write(view[start : start + _CHUNK])


def local_copy(folder: Path, names: Iterable[str]) -> pathlib.Path:
    """A local folder with those of a folder's files that exist: the folder itself, or copies that this process removes at "
    "exit."""
    if not is_remote(folder):
        return pathlib.Path(folder)
    copy = pathlib.Path(tempfile.mkdtemp(prefix="zephyr-jax-"))
    atexit.register(shutil.rmtree, copy, ignore_errors=True)
    with slow_io_warning(folder, "reading"):
        existing = {path.name for path in folder.iterdir()}
        for name in sorted(existing.intersection(names)):
            _copy_here(folder / name, copy / name)
    return copy


def _copy_here(source: Path, target: pathlib.Path) -> None:
    if not source.is_dir():
        target.write_bytes(source.read_bytes())
        return
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())


def cached_copy(path: str | os.PathLike[str]) -> pathlib.Path:
    """A `gs://` file on this machine's disk, copied again only when it has changed; a local path as it is."""
    if not is_remote(path):
        return pathlib.Path(path)
    home = pathlib.Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    with slow_io_warning(path, "copying"):
        version = f"{os.fspath(path)} {client().info(os.fspath(path))['generation']}"
        folder = home / "zephyr-jax" / blake2b(version.encode(), digest_size=16).hexdigest()
        copy = folder / pathlib.PurePosixPath(path).name
        if not copy.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with atomic_file(copy) as file, client().open(os.fspath(path), "rb", block_size=_CHUNK) as source:
                shutil.copyfileobj(source, file, _CHUNK)
    return copy


def cache_folder(name: str) -> pathlib.Path:
    """Folder of this project's caches on this machine."""
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(home) / "zephyr-jax" / name


def remove_folder(folder: Path) -> None:
    """Remove a folder of files, local or gs://; nothing happens where it does not exist."""
    for name in list_names(folder) if folder.exists() else ():
        (folder / name).unlink()
    if not is_remote(folder) and folder.exists():
        folder.rmdir()


def move_folder(source: Path, target: Path) -> None:
    """Move a folder to a path that does not exist."""
    if is_remote(source):
        with slow_io_warning(source, "moving"):
            client().copy(os.fspath(source), os.fspath(target), recursive=True)
            client().rm(os.fspath(source), recursive=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    source.rename(target)


def list_names(folder: Path) -> list[str]:
    """Sorted names in a folder; empty if it does not exist."""
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir())
