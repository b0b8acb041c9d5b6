"""Journals: JSON lines of finished work under a header that identifies the work, so that it resumes where it stopped.

On disk a line survives a kill once `add` returns, and a loss of power within a second or after `close`. Objects on Cloud Storage
cannot be appended to, so the whole journal is written every half minute and on `close`. A last line that a kill cut is dropped;
other damage is refused by file and line, because the lines after it cost money. On disk a journal has one writer at a time.
"""

import json
import os
import pathlib
import shlex
import time
from collections.abc import Callable
from typing import Any

from zephyr_jax.errors import InputError, join_items, truncate_repr
from zephyr_jax.storage.cloud import is_remote, slow_io_warning
from zephyr_jax.storage.files import Path, check_regular, open_path, write_atomic
from zephyr_jax.storage.lock import Lock

_UPLOAD_EVERY = 30.0  # seconds between two uploads of a remote journal
_FSYNC_EVERY = 1.0  # seconds

type Entry = dict[str, Any]


class Journal:
    """An open journal.

    Args:
        path: The file; created if missing.
        header: Identifies the work. A journal without lines whose header has the same names is overwritten.
        problem: Validates a line: why it is invalid, or an empty string.

    Raises:
        InputError: The file belongs to other work (`header` differs), a line is damaged, or another process writes to it.
    """

    def __init__(
        self, path: str | os.PathLike[str], header: dict[str, Any], problem: Callable[[Entry], str] = lambda _: ""
    ):
        self._path, self._header = open_path(path), header
        check_regular(path)
        self._lock = Lock(self._path)
        self.lines = read_journal(path, header, problem)
        self._clock = time.monotonic()
        self._write_all()

    def add(self, line: Entry) -> None:
        """Append a line."""
        self.lines.append(line)
        if not is_remote(self._path):
            with pathlib.Path(self._path).open("a") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            if time.monotonic() > self._clock + _FSYNC_EVERY:
                self._fsync()
        elif time.monotonic() > self._clock + _UPLOAD_EVERY:
            self._write_all()

    def close(self) -> None:
        """Flush all lines to disk or upload them."""
        if is_remote(self._path):
            self._write_all()
        elif self._path.exists():
            self._fsync()

    def delete(self) -> None:
        """Remove the file of finished work."""
        self._path.unlink(missing_ok=True)

    def _fsync(self) -> None:
        with pathlib.Path(self._path).open("a") as file:
            os.fsync(file.fileno())
        self._clock = time.monotonic()

    def _write_all(self) -> None:
        lines = [self._header, *self.lines]
        write_atomic(self._path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        self._clock = time.monotonic()


def read_journal(
    path: str | os.PathLike[str], header: dict[str, Any], problem: Callable[[Entry], str] = lambda _: ""
) -> list[Entry]:
    """The lines of a journal that this process does not write; empty if it is missing. Arguments and errors as `Journal`."""
    file = open_path(path)
    check_regular(path)
    with slow_io_warning(path, "reading"):
        content = file.read_bytes() if file.exists() else b""
    entries = [_parse(file, number, line) for number, line in enumerate(content.split(b"\n")[:-1], 1)]
    started = len(entries) > 1 or (bool(entries) and entries[0].keys() != header.keys())
    if started and entries[0] != header:
        old = entries[0]
        names = sorted(name for name in header.keys() | old.keys() if header.get(name) != old.get(name))
        differences = [
            f"{name} was {truncate_repr(old.get(name))}, is {truncate_repr(header.get(name))}" for name in names
        ]
        raise InputError(
            f"{path} belongs to other work: {join_items(differences, 4)}. Put the settings back to go on with it, or move "
            "the file away to start over."
        )
    for number, line in enumerate(entries[1:], 2):
        if reason := problem(line):
            raise _damaged(file, number, reason)
    return entries[1:]


def _parse(path: Path, number: int, line: bytes) -> Entry:
    try:
        content = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise _damaged(path, number, f"byte {error.start + 1} of it is not UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise _damaged(path, number, f"it is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise _damaged(path, number, f"expected an object, got {truncate_repr(content)}")
    return content


def _damaged(path: Path, number: int, reason: str) -> InputError:
    if number == 1:
        fix = "It names the work that the file belongs to: restore the line, or move the file away to start over"
    elif is_remote(path):
        fix = f"Restore the line, or remove it (download, `sed -i {number}d`, upload): its request is then sent again"
    else:
        quoted = shlex.quote(os.fspath(path))
        fix = f"Restore the line, or remove it: `sed -i {number}d {quoted}`; its request is then sent again"
    return InputError(f"{path}, line {number}, is damaged: {reason}. {fix}. The other lines are kept.")
