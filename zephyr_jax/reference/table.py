"""The reference table: for each segment, by the hash of its tokens and targets, its log-prob sum and target count.

One folder may hold tables of several identities (weights, tokenizer and template, dtype, arithmetic), each in a folder of
its own with a manifest, so nothing is ever mixed up or overwritten. Order, subset, beta, loss and learning rate are no
part of a key. Parts are written whole or not at all, so a killed pass goes on where it stopped, and are verified when they
are read. Where parts share a key, the last part by name wins. Never imports jax.
"""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import date
from hashlib import blake2b
from typing import Any

import numpy as np

from zephyr_jax.errors import InputError, join_items, truncate_repr
from zephyr_jax.reference.index import Entries, codes_of, merged, with_more
from zephyr_jax.reference.shards import PREFIX, SUFFIX, packed, read_part
from zephyr_jax.storage.files import Path, list_names, open_path, slow_io_warning, write_atomic
from zephyr_jax.storage.strict_json import parse_json

MANIFEST = "manifest.json"
DAY = "template_date"
"""Field of a manifest: the day, YYYY-MM-DD, that the chat template prints. The identity holds its text instead."""


@dataclass(frozen=True)
class Identity:
    """Everything that a reference log-prob depends on besides the segment itself."""

    weights: str
    """Fingerprint of the weights' bits."""
    tokenizer: str
    """Fingerprint of tokenizer and chat template."""
    length_rule: str
    """How over-long pairs were cut."""
    compute_dtype: str
    logprob_version: int

    @property
    def name(self) -> str:
        """Folder name: a hash of all fields."""
        return blake2b(json.dumps(asdict(self), sort_keys=True).encode(), digest_size=8).hexdigest()

    def manifest(self, day: str | None = None) -> bytes:
        """The manifest's content, to the byte; `day` is the date that the chat template prints, where it prints one."""
        fields = asdict(self) | ({DAY: day} if day else {})
        return (json.dumps(fields, indent=2) + "\n").encode()


class ReferenceTable:
    """The table of one identity under `root`; entries are read, and verified, at once and looked up by key.

    `command` is the command line that fills it, for errors; `day` is the date that the chat template prints, if it prints
    one. Raises InputError for a damaged part or manifest.
    """

    def __init__(self, root: Path, identity: Identity, command: str = "zephyr-jax reference", day: str | None = None):
        self._day = day
        self.folder = open_path(root) / identity.name
        self.identity = identity
        with slow_io_warning(self.folder, "reading"):
            self._check_manifest(command)
            self.parts = part_names(self.folder)
            self.entries = merged([read_part(self.folder / name, command) for name in self.parts])

    def _check_manifest(self, command: str) -> None:
        manifest = self.folder / MANIFEST
        if not manifest.exists():
            return
        fields = read_manifest(manifest)
        other = _difference(fields, asdict(self.identity))
        if other:
            raise InputError(
                f"{manifest} is of another table: {other}. Folders of tables must not be renamed: move it back, or delete it "
                f"and run `{command}` again. If only that file is damaged, delete it alone: nothing is computed anew."
            )
        if manifest.read_bytes() != self.identity.manifest(fields.get(DAY)):
            raise InputError(
                f"{manifest} is not as it was written. Delete that file and run `{command}` again: it is written anew, and "
                "nothing is computed."
            )

    def __len__(self) -> int:
        return len(self.entries)

    def missing(self, keys: np.ndarray) -> np.ndarray:
        """bool [N]: which examples have a segment that is not (finitely) in the table; `keys` is str [N, segments]."""
        return (self.entries.find(keys) < 0).any(axis=1)

    def look_up(self, keys: np.ndarray) -> np.ndarray:
        """float32 sums of the shape of `keys`. Raises KeyError for a key that is not there."""
        places = self.entries.find(keys)
        if (places < 0).any():
            raise KeyError(str(keys[places < 0][0]))
        return self.entries.sums[places] if places.size else np.zeros(keys.shape, np.float32)

    def add(self, part: str, keys: list[str], sums: np.ndarray, counts: np.ndarray) -> None:
        """Append entries as one file named after `part`, whole or not at all.

        `keys` are N texts of 32 hexadecimal digits; a key that is there already gets the new value. Raises InputError when
        sums are not finite, ValueError for other keys.
        """
        if not np.isfinite(sums).all():
            raise InputError(
                f"{int((~np.isfinite(sums)).sum())} of {len(sums)} reference log-probs are not finite. The weights or the "
                "compute dtype are unsound: check model.path, or try model.compute_dtype float32."
            )
        new = merged([Entries(codes_of(keys), sums.astype(np.float32), counts.astype(np.int32))])
        self.folder.mkdir(parents=True, exist_ok=True)
        self.write_manifest()
        name = f"{PREFIX}{part}{SUFFIX}"
        write_atomic(self.folder / name, packed(new))
        self.parts.append(name)
        self.entries = with_more(self.entries, new)

    def write_manifest(self) -> None:
        """Write the manifest where the folder has none; nothing where there is no folder yet."""
        manifest = self.folder / MANIFEST
        if self.folder.exists() and not manifest.exists():
            write_atomic(manifest, self.identity.manifest(self._day))


def recorded_days(folder: str | None) -> list[tuple[date, str]]:
    """(day, fingerprint of tokenizer and template) of each table in a folder whose template prints a date, newest first."""
    root = open_path(folder) if folder else None
    manifests = [root / name / MANIFEST for name in list_names(root)] if root and root.is_dir() else []
    days = []
    for manifest in manifests:
        with suppress(InputError, ValueError):
            fields = read_manifest(manifest) if manifest.exists() else {}
            if DAY in fields:
                days.append((date.fromisoformat(str(fields[DAY])), str(fields.get("tokenizer"))))
    return sorted(days, reverse=True)


def part_names(folder: Path) -> list[str]:
    """The parts of a table's folder, in the order in which they count."""
    return [name for name in list_names(folder) if name.startswith(PREFIX) and name.endswith(SUFFIX)]


def require_complete(root: Path, table: ReferenceTable, keys: np.ndarray, ids: list[str], command: str) -> np.ndarray:
    """float32 [N, 2] sums of all pairs. Raises InputError when the table is of other weights or rules, or lacks entries.

    `command` is the command line that fills the table.
    """
    absent = table.missing(keys)
    if not absent.any():
        return table.look_up(keys)
    others = _other_manifests(root, table)
    if len(table) == 0 and others:
        nearest = _nearest([read_manifest(manifest) for manifest in others], table.identity)
        raise InputError(
            f"The reference table does not belong to this run: {_difference(nearest, asdict(table.identity))}. "
            f"To compute the right table: {command}"
        )
    raise InputError(
        f"The reference table in {root} lacks {int(absent.sum())} of {len(keys)} pairs "
        f"(ids {join_items([ids[int(index)] for index in np.flatnonzero(absent)[:3]])}). "
        f"To compute what is missing: {command}"
    )


def why_anew(root: Path, table: ReferenceTable, pairs: int) -> str:
    """Why an empty table is no help though the folder has others: the fields that differ from the nearest; else ``.

    Other tables whose manifests cannot be read are passed over.
    """
    found = []
    for manifest in _other_manifests(root, table) if len(table) == 0 else []:
        try:
            found.append(read_manifest(manifest))
        except InputError:
            continue
    if not found:
        return ""
    nearest, here = _nearest(found, table.identity), asdict(table.identity)
    fields = "; ".join(
        f"{name} was {truncate_repr(nearest.get(name))} there, is {truncate_repr(here[name])} here"
        for name in differing_fields(nearest, here)
    )
    return f"{fields}: all {pairs:,} pairs are computed anew"


def _other_manifests(root: Path, table: ReferenceTable) -> list[Path]:
    folders = [open_path(root) / name for name in list_names(open_path(root)) if name != table.folder.name]
    return [folder / MANIFEST for folder in folders if (folder / MANIFEST).exists()]


def _nearest(manifests: list[dict[str, Any]], wanted: Identity) -> dict[str, Any]:
    return min(manifests, key=lambda have: len(differing_fields(have, asdict(wanted))))


def _difference(there: dict[str, Any], here: dict[str, Any]) -> str:
    names = differing_fields(there, here)
    return "; ".join(
        f"{name} is {truncate_repr(there.get(name))} there and {truncate_repr(here[name])} here" for name in names
    )


def differing_fields(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """Names of the fields of an identity that two tables do not share."""
    return sorted(name for name in here if there.get(name) != here[name])


def read_manifest(manifest: Path) -> dict[str, Any]:
    """The fields in a manifest. Raises InputError when it is no JSON object."""
    try:
        content = parse_json(manifest.read_bytes())
        if not isinstance(content, dict):
            raise ValueError(f"it holds {truncate_repr(content)}, not an object")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{manifest} is not valid JSON ({error}). Delete that file and run `zephyr-jax reference` again."
        ) from error
    return content
