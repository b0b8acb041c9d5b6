"""Work that is written down as it is done: lines of JSON under a header that says what work it is.

On disk each line outlives a kill when `add` returns; that all of them also outlive a loss of power is waited for once a second,
and at the end. On Cloud Storage, where nothing can be appended to, the whole is written every half minute and at the end. A line
that was cut is dropped.
"""

import json
import os
import pathlib
import time
from typing import Any

from zephyr_jax.errors import InputError, listing, shown
from zephyr_jax.storage.files import is_remote, open_path, patience, write_whole

_EVERY = 30.0  # seconds between two writings of a remote journal
_SETTLED = 1.0  # seconds between two waits for the disk


class Journal:
    """The lines of a journal so far, and more to come.

    Raises InputError when the file belongs to other work: `header` differs. One of the same kind in which no work is written
    down yet is begun anew.
    """

    def __init__(self, path: str | os.PathLike[str], header: dict[str, Any]):
        self._path, self._header = open_path(path), header
        with patience(path, "reading"):
            found = _whole_lines(self._path.read_text()) if self._path.exists() else []
        begun = len(found) > 1 or (bool(found) and found[0].keys() != header.keys())
        if begun and found[0] != header:
            names = [name for name in header.keys() | found[0].keys() if header.get(name) != found[0].get(name)]
            differences = [
                f"{name} was {shown(found[0].get(name))}, is {shown(header.get(name))}" for name in sorted(names)
            ]
            raise InputError(
                f"{path} belongs to other work: {listing(differences, 4)}. Put the settings back to go on with it, or move "
                "the file away to begin anew."
            )
        self.lines: list[dict[str, Any]] = found[1:]
        self._clock = time.monotonic()
        self._write_all()

    def add(self, line: dict[str, Any]) -> None:
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
        write_whole(self._path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        self._clock = time.monotonic()


def _whole_lines(text: str) -> list[dict[str, Any]]:
    """The objects in the lines of a text, up to the first that is none."""
    found = []
    for line in text.split("\n")[:-1]:
        try:
            content = json.loads(line)
        except ValueError:
            break
        if not isinstance(content, dict):
            break
        found.append(content)
    return found
