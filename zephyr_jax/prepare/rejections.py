"""What a preparation read, skipped and repaired: counts by reason, samples, and the lines of rejected.jsonl."""

import json
import shutil
from collections import Counter
from contextlib import ExitStack
from hashlib import blake2b
from typing import Any

from zephyr_jax.chat.message import SkippedRow
from zephyr_jax.errors import InputError
from zephyr_jax.storage.files import Path, atomic_file, scratch_file

_SAMPLE_LENGTH, _LINE_LENGTH = 400, 200  # characters of a sample, and of the excerpt in a line of rejected.jsonl


class RejectionLog:
    """Counts by reason, one line per rejected row or answer on scratch disk, and samples by the lowest hash of their text.

    Counts and samples do not depend on the order of the rows.

    Args:
        num_samples: Samples of each reason and each kind of repair.
    """

    def __init__(self, num_samples: int):
        self.rows_read = 0
        self.ignored_names: list[str] = []
        """Names in the data folder that hold no rows."""
        self.skipped_rows: Counter[str] = Counter()
        self.skipped_answers: Counter[str] = Counter()
        self.repairs: Counter[str] = Counter()
        self._first_location: dict[str, str] = {}
        self._num_samples, self._samples = num_samples, dict[str, dict[bytes, str]]()
        self._stack = ExitStack()
        self._file = self._stack.enter_context(scratch_file())

    def __enter__(self) -> "RejectionLog":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def skip(self, location: str, error: SkippedRow, content: Any, answer: int | None = None) -> None:
        """Record a rejected row, or one of its answers.

        Args:
            location: File and line or row.
            error: Reason and excerpt; without an excerpt, the beginning of `content` is recorded.
            content: The row or the answer.
            answer: Index of the answer; None for a whole row.
        """
        (self.skipped_rows if answer is None else self.skipped_answers)[error.reason] += 1
        self._first_location.setdefault(error.reason, location)
        excerpt = error.excerpt or repr(content)[:_SAMPLE_LENGTH]
        self._add_sample(error.reason, excerpt)
        line: dict[str, Any] = {"location": location, "reason": error.reason, "excerpt": excerpt[:_LINE_LENGTH]}
        self._file.write(json.dumps(line if answer is None else {**line, "answer": answer}).encode() + b"\n")

    def repair(self, kind: str, excerpt: str) -> None:
        """Record a repair of a row that is kept."""
        self.repairs[kind] += 1
        self._add_sample(kind, excerpt)

    def copy_to(self, path: Path) -> None:
        """Write the lines so far to a file, atomically."""
        self._file.seek(0)
        with atomic_file(path) as file:
            shutil.copyfileobj(self._file, file)

    def samples(self) -> dict[str, list[str]]:
        """Reason or kind of repair -> sample texts, sorted by name."""
        return {kind: [texts[key] for key in sorted(texts)] for kind, texts in sorted(self._samples.items())}

    def record(self) -> dict[str, Any]:
        """All counts as JSON."""
        return {
            "rows_read": self.rows_read,
            "rows_skipped": dict(sorted(self.skipped_rows.items())),
            "answers_skipped": dict(sorted(self.skipped_answers.items())),
            "repaired": dict(sorted(self.repairs.items())),
            "ignored_names": self.ignored_names,
        }

    def require_rows(self, kept: int, path: str) -> None:
        """Raise InputError with the most frequent reason when no row is left."""
        if kept:
            return
        if not self.rows_read:
            raise InputError(f"{path} has no rows. Give a file with at least one.")
        reason, count = self.skipped_rows.most_common(1)[0]
        answers = "".join(
            f" (answers: {name}, {number:,} times)" for name, number in self.skipped_answers.most_common(1)
        )
        raise InputError(
            f"{path}: all {self.rows_read:,} rows are skipped; {count:,} because: {reason}{answers}; the first is "
            f"{self._first_location[reason]}. Check that these are raw rows for this command, or loosen its settings."
        )

    def _add_sample(self, kind: str, text: str) -> None:
        samples = self._samples.setdefault(kind, {})
        samples[blake2b(text.encode(errors="replace"), digest_size=8).digest()] = text[:_SAMPLE_LENGTH]
        if len(samples) > self._num_samples:
            del samples[max(samples)]
