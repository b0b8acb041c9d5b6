"""Where weights come from: a record beside every run and export that holds the record of what it started from.

The chain travels with the weights: nothing has to be looked up elsewhere, and a folder that was moved still knows.
"""

import json
import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path as LocalPath
from typing import Any

import jax

from zephyr_jax.storage.files import Path, write_atomic
from zephyr_jax.storage.strict_json import read_json

FILE = "provenance.json"
_PACKAGES = (
    "zephyr-jax",
    "jax",
    "jaxlib",
    "libtpu",
    "flax",
    "optax",
    "orbax-checkpoint",
    "transformers",
    "tokenizers",
    "datasets",
)

type Record = dict[str, Any]


def make_record(verb: str, parent: Record, **facts: Any) -> Record:
    """What `verb` is about to make, from `parent`; `facts` are what the verb knows: its config, data, seed."""
    devices = jax.devices()
    return {
        "made_by": verb,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        **facts,
        "devices": f"{len(devices)} x {devices[0].device_kind} in {jax.process_count()} process(es)",
        "processes": jax.process_count(),
        "versions": {"python": platform.python_version(), **_versions()},
        "commit": _commit(),
        "parent": parent,
    }


def read_record(folder: Path | LocalPath) -> Record | None:
    """The record of a run or an export, or None for weights that others made. Raises InputError for a damaged one."""
    path = folder / FILE
    return read_json(path) if path.exists() else None


def write_record(folder: Path, record: Record) -> None:
    """Put the record beside what it tells of."""
    write_atomic(folder / FILE, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def chain(record: Record) -> list[Record]:
    """The record and those behind it, oldest first."""
    links = [record]
    while links[-1].get("parent"):
        links.append(links[-1]["parent"])
    return links[::-1]


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    """The commit of this package's checkout, with `+` when files were changed since, or of the archive; None elsewhere."""
    here = LocalPath(__file__).parents[2]
    if not (here / ".git").exists():
        archived = here / "launch" / "commit"
        said = archived.read_text().strip() if archived.exists() else ""
        return said if re.fullmatch("[0-9a-f]{40,64}", said) else None
    try:
        here_now = [_git(here, "rev-parse", "HEAD"), _git(here, "status", "--porcelain", "--untracked-files=no")]
    except (OSError, subprocess.SubprocessError):
        return None
    return here_now[0] + ("+" if here_now[1] else "")


def _git(here: LocalPath, *words: str) -> str:
    return subprocess.run(
        ["git", "-C", str(here), *words], capture_output=True, text=True, check=True, timeout=10
    ).stdout.strip()
