"""The two errors that users meet. Each message is one paragraph: what was got, what is needed, what to do."""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


class InputError(ValueError):
    """Something the user gave (a file, a row, a setting) cannot be used; the command line prints it and exits 2."""


class TrainingError(RuntimeError):
    """A run had to stop (a loss that is not finite, say); the command line prints it and exits 3."""


def suggestion(word: str, known: Iterable[str], prefix: str = "") -> str:
    """Return ` Did you mean ...?` for the nearest known word, or the sorted known words when none is near."""
    names = sorted(known)
    near = get_close_matches(word, names, n=1, cutoff=0.6)
    return (
        f" Did you mean `{prefix}{near[0]}`?" if near else f" Known here: {listing(prefix + name for name in names)}."
    )


def listing(items: Iterable[object], limit: int = 12) -> str:
    """Join items with commas, cut after `limit` with a count of the rest."""
    names = [str(item) for item in items]
    cut = f", ... ({len(names) - limit} more)" if len(names) > limit else ""
    return ", ".join(names[:limit]) + cut


def check_can_be_written(file: str | None) -> None:
    """Raise InputError when a file is asked for in a folder that is not there, before any work is done for it."""
    if file and not Path(file).parent.is_dir():
        raise InputError(f"{file} cannot be written: its folder is not there. Make it or choose another.")


def check_can_be_made(folder: Path) -> None:
    """Raise InputError unless `folder` is, or can become, a folder; nothing is made."""
    for each in (folder, *folder.parents):
        if each.exists():
            if not each.is_dir():
                raise InputError(f"The folder {folder} cannot be made: {each} is a file. Choose another.")
            return
