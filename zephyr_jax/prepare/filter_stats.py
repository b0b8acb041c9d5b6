"""The account of a preparation: every row that was read, what became of it, and a few to look at."""

import json
import shutil
from collections import Counter
from contextlib import ExitStack
from hashlib import blake2b
from typing import Any

from zephyr_jax.chat.message import SkippedRow
from zephyr_jax.errors import InputError
from zephyr_jax.storage.files import Path, atomic_file, scratch_file

_SHOWN, _KEPT = 400, 200  # letters of a sample, and of a line about what was set aside


class Ledger:
    """Counts by reason; a line for each thing that was set aside, on scratch disk; samples by the lowest hash of their text.

    Counts and samples do not depend on the order in which things come.
    """

    def __init__(self, samples: int):
        self.read = 0
        self.passed_over: list[str] = []
        """Names in the folder that was read which hold no rows."""
        self.rows: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        self.repairs: Counter[str] = Counter()
        self._first: dict[str, str] = {}
        self._most, self._samples = samples, dict[str, dict[bytes, str]]()
        self._open = ExitStack()
        self._file = self._open.enter_context(scratch_file())

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def copy_to(self, path: Path) -> None:
        """Write the lines so far into a file that appears whole."""
        self._file.seek(0)
        with atomic_file(path) as file:
            shutil.copyfileobj(self._file, file)

    def leave_out(self, place: str, why: SkippedRow, whole: Any, answer: int | None = None) -> None:
        """A row is set aside, or one of its answers (by its number, from 0); `whole` is shown where `why` shows nothing."""
        (self.rows if answer is None else self.answers)[why.reason] += 1
        self._first.setdefault(why.reason, place)
        about = why.excerpt or repr(whole)[:_SHOWN]
        self._sample(why.reason, about)
        line: dict[str, Any] = {"place": place, "reason": why.reason, "about": about[:_KEPT]}
        self._file.write(json.dumps(line if answer is None else {**line, "answer": answer}).encode() + b"\n")

    def repaired(self, kind: str, about: str) -> None:
        """A row is kept, and something about it was put right."""
        self.repairs[kind] += 1
        self._sample(kind, about)

    def samples(self) -> dict[str, list[str]]:
        """A few texts for each kind of removal and repair, in the order of the kinds' names."""
        return {kind: [each[key] for key in sorted(each)] for kind, each in sorted(self._samples.items())}

    def counts(self) -> dict[str, Any]:
        """All numbers, plain."""
        parts = {"rows set aside": self.rows, "answers set aside": self.answers, "repaired": self.repairs}
        counts = {name: dict(sorted(each.items())) for name, each in parts.items()}
        return {"rows read": self.read, **counts, "passed over": self.passed_over}

    def need_rows(self, kept: int, path: str) -> None:
        """Raise InputError when nothing is left."""
        if kept:
            return
        if not self.read:
            raise InputError(f"{path} has no rows. Give a file with at least one.")
        reason, count = self.rows.most_common(1)[0]
        answers = "".join(f" (answers: {why}, {many:,} times)" for why, many in self.answers.most_common(1))
        raise InputError(
            f"{path}: of {self.read:,} rows none is left; {count:,} because: {reason}{answers}; the first is "
            f"{self._first[reason]}. Check that these are the raw rows that this verb reads, or loosen its settings."
        )

    def _sample(self, kind: str, text: str) -> None:
        kept = self._samples.setdefault(kind, {})
        kept[blake2b(text.encode(errors="replace"), digest_size=8).digest()] = text[:_SHOWN]
        if len(kept) > self._most:
            del kept[max(kept)]
