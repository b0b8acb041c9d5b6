"""A lock on a file or folder on disk, released when its process ends, even by a kill.

Cloud Storage has no locks: two processes that share an output folder there overwrite each other's journals.
"""

import fcntl
import os
import pathlib
import weakref
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from zephyr_jax.errors import InputError
from zephyr_jax.storage.cloud import is_remote


@dataclass
class _Held:
    """A lock that this process holds."""

    handle: int
    uses: int = 0


_held: dict[pathlib.Path, _Held] = {}


@dataclass(eq=False)
class Lock:
    """Held until this object is collected or the process ends; one process may take a lock several times.

    The lock of `path` is a hidden file: `.NAME.lock` beside a file or `.lock` in a folder.

    Raises:
        InputError: Another process holds it; the message names its process id.
    """

    path: str | os.PathLike[str]
    _release: "weakref.finalize[..., Any] | None" = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if is_remote(self.path):
            return
        target = pathlib.Path(self.path).absolute()
        file = target / ".lock" if target.is_dir() else target.with_name(f".{target.name}.lock")
        held = _held.get(file) or _held.setdefault(file, _Held(_lock_file(file, target)))
        held.uses += 1
        self._release = weakref.finalize(self, _release_lock, file)


def _lock_file(file: pathlib.Path, target: pathlib.Path) -> int:
    """A descriptor with the lock on the file that has this name now. Raises InputError."""
    while True:
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(handle, 20).decode(errors="replace").strip() or "unknown"
            os.close(handle)
            if not isinstance(error, BlockingIOError | PermissionError):
                raise
            raise InputError(
                f"{target} is in use by process {holder}: expected one writer at a time. Wait until that process ends, or choose "
                "another output."
            ) from error
        if _is_named(handle, file):
            os.ftruncate(handle, 0)
            os.write(handle, str(os.getpid()).encode())
            return handle
        os.close(handle)  # the process that held it has removed the file


def _is_named(handle: int, file: pathlib.Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), file.stat())
    except FileNotFoundError:
        return False


def _release_lock(file: pathlib.Path) -> None:
    held = _held[file]
    held.uses -= 1
    if not held.uses:
        with suppress(OSError):
            file.unlink()
        os.close(held.handle)
        del _held[file]
