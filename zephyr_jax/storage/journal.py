"""Work that is written down as it is done: lines of JSON under a header that says what work it is.

On disk each line outlives a kill when `add` returns; that all of them also outlive a loss of power is waited for once a second,
and at the end. On Cloud Storage, where nothing can be appended to, the whole is written every half minute and at the end. A last
line that a kill cut is dropped; any other damage is refused by file and line, because the lines after it are paid for. On disk a
journal has one writer at a time (`storage/lock.py`).
"""

import json
import os
import pathlib
import shlex
import time
from collections.abc import Callable
from typing import Any

from zephyr_jax.errors import InputError, join_items, truncate_repr
from zephyr_jax.storage.files import check_regular, is_remote, open_path, slow_io_warning, write_atomic
from zephyr_jax.storage.lock import Lock

_EVERY = 30.0  # seconds between two writings of a remote journal
_SETTLED = 1.0  # seconds between two waits for the disk

type Entry = dict[str, Any]


class Journal:
    """The lines of a journal so far, and more to come.

    Args:
        path: The file; it is made where it is not there.
        header: What work it is. One of the same kind in which no work is written down yet is begun again.
        problem: What is wrong with a line, as the work expects it; empty where nothing is.

    Raises:
        InputError: The file belongs to other work (`header` differs), a line is damaged, or another process writes to it.
    """

    def __init__(
        self, path: str | os.PathLike[str], header: dict[str, Any], problem: Callable[[Entry], str] = lambda _: ""
    ):
        self._path, self._header = open_path(path), header
        check_regular(path)
        self._lock = Lock(self._path)
        with slow_io_warning(path, "reading"):
            content = self._path.read_bytes() if self._path.exists() else b""
        found = [self._parsed(number, line) for number, line in enumerate(content.split(b"\n")[:-1], 1)]
        begun = len(found) > 1 or (bool(found) and found[0].keys() != header.keys())
        if begun and found[0] != header:
            names = [name for name in header.keys() | found[0].keys() if header.get(name) != found[0].get(name)]
            differences = [
                f"{name} was {truncate_repr(found[0].get(name))}, is {truncate_repr(header.get(name))}"
                for name in sorted(names)
            ]
            raise InputError(
                f"{path} belongs to other work: {join_items(differences, 4)}. Put the settings back to go on with it, or move "
                "the file away to begin again."
            )
        for number, line in enumerate(found[1:], 2):
            if wrong := problem(line):
                raise self._damaged(number, wrong)
        self.lines: list[Entry] = found[1:]
        self._clock = time.monotonic()
        self._write_all()

    def add(self, line: Entry) -> None:
        """Write a line down."""
        self.lines.append(line)
        if not is_remote(self._path):
            with pathlib.Path(self._path).open("a") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            if time.monotonic() > self._clock + _SETTLED:
                self._settle()
        elif time.monotonic() > self._clock + _EVERY:
            self._write_all()

    def close(self) -> None:
        """Have everything where it stays."""
        if is_remote(self._path):
            self._write_all()
        elif self._path.exists():
            self._settle()

    def delete(self) -> None:
        """The work is done, and its result is somewhere else."""
        self._path.unlink(missing_ok=True)

    def _settle(self) -> None:
        with pathlib.Path(self._path).open("a") as file:
            os.fsync(file.fileno())
        self._clock = time.monotonic()

    def _write_all(self) -> None:
        lines = [self._header, *self.lines]
        write_atomic(self._path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        self._clock = time.monotonic()

    def _parsed(self, number: int, line: bytes) -> Entry:
        try:
            content = json.loads(line.decode())
        except UnicodeDecodeError as error:
            raise self._damaged(number, f"byte {error.start + 1} of it is not UTF-8") from error
        except (ValueError, RecursionError) as error:
            raise self._damaged(number, f"it is not JSON ({error})") from error
        if not isinstance(content, dict):
            raise self._damaged(number, f"expected an object, got {truncate_repr(content)}")
        return content

    def _damaged(self, number: int, reason: str) -> InputError:
        if number == 1:
            fix = "It names the work that the file belongs to: restore the line, or move the file away to begin again"
        elif is_remote(self._path):
            fix = f"Restore the line, or remove it (download, `sed -i {number}d`, upload): what it held is then asked for again"
        else:
            path = shlex.quote(os.fspath(self._path))
            fix = f"Restore the line, or remove it: `sed -i {number}d {path}`; what it held is then asked for again"
        return InputError(f"{self._path}, line {number}, is damaged: {reason}. {fix}. The other lines are kept.")
