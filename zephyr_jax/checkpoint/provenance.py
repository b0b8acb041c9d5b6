"""Provenance of weights: every run and export has a record that contains the record of the model it started from.

The complete chain is stored beside the weights, so it survives moving the folder.
"""

import json
import platform
import re
import subprocess
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path as LocalPath
from typing import Any

from zephyr_jax.checkpoint.record_fields import check_record
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


def make_record(command: str, parent: Record, **facts: Any) -> Record:
    """The record of a run or export.

    Args:
        command: The command that makes it.
        parent: Record of the model it starts from.
        facts: Further fields, such as config, data and seed.
    """
    import jax  # here alone: records are read without it, in less time

    devices, processes = jax.devices(), jax.process_count()
    return {
        "made_by": command,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        **facts,
        "devices": f"{len(devices)} x {devices[0].device_kind} in {processes} process{'' if processes == 1 else 'es'}",
        "processes": processes,
        "versions": {"python": platform.python_version(), **_versions()},
        "commit": _commit(),
        "parent": parent,
    }


def read_record(folder: Path | LocalPath) -> Record | None:
    """The record of a run or an export, of which every field that is there has its type; None for weights from elsewhere.

    Raises InputError for a damaged record.
    """
    path = folder / FILE
    if not path.exists():
        return None
    record = read_json(path)
    check_record(record, path)
    return record


def write_record(folder: Path, record: Record) -> None:
    """Write the record into a run or an export."""
    write_atomic(folder / FILE, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def chain(record: Record) -> list[Record]:
    """The record and its ancestors, oldest first."""
    links = [record]
    while links[-1].get("parent"):
        links.append(links[-1]["parent"])
    return links[::-1]


def stage_kind(record: Record) -> str:
    """The command that made a link of a chain; `adapter` or `base` for an adapter or a model from elsewhere."""
    return str(record.get("made_by") or ("adapter" if record.get("parent") else "base"))


def _versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def _commit() -> str | None:
    """Commit of the checkout (with `+` for local changes) or of the archive that this package runs from; None elsewhere."""
    root = LocalPath(__file__).parents[2]
    if not (root / ".git").exists():
        archived = root / "launch" / "commit"
        commit = archived.read_text().strip() if archived.exists() else ""
        return commit if re.fullmatch("[0-9a-f]{40,64}", commit) else None
    try:
        commit, changes = _git(root, "rev-parse", "HEAD"), _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+" if changes else "")


def _git(root: LocalPath, *words: str) -> str:
    return subprocess.run(
        ["git", "-C", str(root), *words], capture_output=True, text=True, check=True, timeout=10
    ).stdout.strip()
