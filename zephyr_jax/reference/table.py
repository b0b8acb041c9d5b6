"""The reference table: log-prob sum and target count of each segment, by a hash of its tokens and targets. Never imports jax.

A root folder holds one folder per identity (weights, tokenizer and template, dtype, arithmetic) with a manifest, so values are
never mixed or overwritten. Row order, subset, beta, loss and learning rate do not matter to a key. Shards are written atomically,
so a killed pass resumes where it stopped, and are verified when they are read.
"""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import date
from hashlib import blake2b
from typing import Any

import numpy as np

from zephyr_jax.errors import InputError, join_items, truncate_repr
from zephyr_jax.reference.index import LogprobIndex, merge, parse_keys
from zephyr_jax.reference.shards import read_shard, shard_names, write_shard
from zephyr_jax.storage.cloud import slow_io_warning
from zephyr_jax.storage.files import Path, list_names, open_path, write_atomic
from zephyr_jax.storage.strict_json import parse_json

MANIFEST = "manifest.json"
TEMPLATE_DATE = "template_date"
"""Field of a manifest: the date, YYYY-MM-DD, that the chat template prints. The identity covers its text instead."""


@dataclass(frozen=True)
class Identity:
    """Everything that a reference log-prob depends on besides the segment itself."""

    weights: str
    """Fingerprint of the weights."""
    tokenizer: str
    """Fingerprint of tokenizer and chat template."""
    length_rule: str
    """How too long pairs were truncated."""
    compute_dtype: str
    logprob_version: int

    @property
    def name(self) -> str:
        """Name of the table's folder: a hash of all fields."""
        return blake2b(json.dumps(asdict(self), sort_keys=True).encode(), digest_size=8).hexdigest()

    def manifest(self, template_date: str | None = None) -> bytes:
        """Content of the manifest, to the byte."""
        fields = asdict(self) | ({TEMPLATE_DATE: template_date} if template_date else {})
        return (json.dumps(fields, indent=2) + "\n").encode()


class ReferenceTable:
    """The table of one identity, read and verified as a whole.

    Args:
        root: Folder of all tables.
        identity: Selects the table below `root`.
        command: Command line that fills the table, for errors.
        template_date: Date that the chat template prints, if any; recorded in the manifest.

    Raises:
        InputError: for a damaged shard or manifest.
    """

    def __init__(
        self,
        root: Path,
        identity: Identity,
        command: str = "zephyr-jax reference",
        template_date: str | None = None,
    ):
        self.folder, self.identity = open_path(root) / identity.name, identity
        self._template_date = template_date
        with slow_io_warning(self.folder, "reading"):
            self._check_manifest(command)
            self.shards = shard_names(self.folder)
            self._pieces = [merge([read_shard(self.folder / name, command) for name in self.shards])]

    def _check_manifest(self, command: str) -> None:
        manifest = self.folder / MANIFEST
        if not manifest.exists():
            return
        fields = read_manifest(manifest)
        if manifest.read_bytes() != self.identity.manifest(fields.get(TEMPLATE_DATE)):
            raise InputError(
                f"{manifest} is not the manifest of this folder's table ({_difference(fields, self.identity) or 'same fields'}). "
                f"Delete a damaged manifest and run `{command}` again: nothing is recomputed. Undo any renaming of the folder."
            )

    @property
    def index(self) -> LogprobIndex:
        """All entries."""
        if len(self._pieces) > 1:
            self._pieces = [merge(self._pieces)]
        return self._pieces[0]

    def __len__(self) -> int:
        return len(self.index)

    def missing(self, keys: np.ndarray) -> np.ndarray:
        """bool [N]: examples with a segment that the table lacks; `keys` is str [N, segments]."""
        return (self.index.find(keys) < 0).any(axis=1)

    def look_up(self, keys: np.ndarray) -> np.ndarray:
        """float32 sums in the shape of `keys`. Raises KeyError for a missing key."""
        positions = self.index.find(keys)
        if (positions < 0).any():
            raise KeyError(str(keys[positions < 0][0]))
        return self.index.sums[positions] if positions.size else np.zeros(keys.shape, np.float32)

    def add(self, name: str, keys: list[str], sums: np.ndarray, counts: np.ndarray) -> None:
        """Write entries as one shard, atomically.

        Args:
            name: Name of the shard; of a key in several shards, the last one by name wins.
            keys: N keys of 32 hexadecimal digits.
            sums: [N] log-prob sums.
            counts: [N] target counts.

        Raises:
            InputError: for sums that are not finite.
            ValueError: for other keys.
        """
        if not np.isfinite(sums).all():
            raise InputError(
                f"Expected finite reference log-probs, got {int((~np.isfinite(sums)).sum())} of {len(sums)} that are NaN or "
                "infinite. Check model.path, or try model.compute_dtype float32."
            )
        new = merge([LogprobIndex(parse_keys(keys), sums.astype(np.float32), counts.astype(np.int32))])
        self.folder.mkdir(parents=True, exist_ok=True)
        self.write_manifest()
        self.shards.append(write_shard(self.folder, name, new))
        self._pieces.append(new)

    def write_manifest(self) -> None:
        """Write a missing manifest into an existing folder."""
        manifest = self.folder / MANIFEST
        if self.folder.exists() and not manifest.exists():
            write_atomic(manifest, self.identity.manifest(self._template_date))


def recorded_template_dates(root: str | None) -> list[tuple[date, str]]:
    """(date, fingerprint of tokenizer and template) of each table whose template prints a date, latest date first."""
    recorded = []
    for manifest in _manifests(open_path(root)) if root else []:
        with suppress(InputError, ValueError):
            fields = read_manifest(manifest)
            if TEMPLATE_DATE in fields:
                recorded.append((date.fromisoformat(str(fields[TEMPLATE_DATE])), str(fields.get("tokenizer"))))
    return sorted(recorded, reverse=True)


def require_complete(root: Path, table: ReferenceTable, keys: np.ndarray, ids: list[str], command: str) -> np.ndarray:
    """Look up all pairs.

    Args:
        root: Folder of all tables.
        table: The table of this run's identity.
        keys: str [N, 2].
        ids: N ids of the pairs, for errors.
        command: Command line that fills the table, for errors.

    Returns:
        float32 [N, 2] log-prob sums.

    Raises:
        InputError: when the table lacks pairs; it names the difference to the nearest table when it has none at all.
    """
    missing = table.missing(keys)
    if not missing.any():
        return table.look_up(keys)
    others = _other_fields(root, table)
    if others:
        raise InputError(
            f"The reference table does not belong to this run: {_difference(_nearest(others, table), table.identity)}. "
            f"To compute the right table: {command}"
        )
    raise InputError(
        f"The reference table in {root} lacks {int(missing.sum())} of {len(keys)} pairs "
        f"(ids {join_items([ids[int(index)] for index in np.flatnonzero(missing)[:3]])}). "
        f"To compute the missing ones: {command}"
    )


def explain_rebuild(root: Path, table: ReferenceTable, num_pairs: int) -> str:
    """Why an empty table is filled although `root` has others: the fields that differ from the nearest; else empty."""
    others = _other_fields(root, table)
    if not others:
        return ""
    return f"{_difference(_nearest(others, table), table.identity)}: computing all {num_pairs:,} pairs"


def _manifests(root: Path) -> list[Path]:
    return [root / name / MANIFEST for name in list_names(root) if (root / name / MANIFEST).exists()]


def _other_fields(root: Path, table: ReferenceTable) -> list[dict[str, Any]]:
    """Fields of the other tables' readable manifests, when `table` is empty."""
    others = []
    for manifest in _manifests(open_path(root)) if len(table) == 0 else []:
        with suppress(InputError):
            if manifest.parent.name != table.folder.name:
                others.append(read_manifest(manifest))
    return others


def _nearest(manifests: list[dict[str, Any]], table: ReferenceTable) -> dict[str, Any]:
    return min(manifests, key=lambda fields: len(differing_fields(fields, asdict(table.identity))))


def _difference(manifest: dict[str, Any], identity: Identity) -> str:
    """Text such as "tokenizer: table has 'a', this run has 'b'"; empty for equal fields."""
    fields = asdict(identity)
    return "; ".join(
        f"{name}: table has {truncate_repr(manifest.get(name))}, this run has {truncate_repr(fields[name])}"
        for name in differing_fields(manifest, fields)
    )


def differing_fields(manifest: dict[str, Any], fields: dict[str, Any]) -> list[str]:
    """Names in `fields` whose values differ in a manifest."""
    return sorted(name for name, value in fields.items() if manifest.get(name) != value)


def read_manifest(manifest: Path) -> dict[str, Any]:
    """The fields of a manifest. Raises InputError unless it is a JSON object."""
    try:
        content = parse_json(manifest.read_bytes())
        if not isinstance(content, dict):
            raise ValueError(f"expected an object, got {truncate_repr(content)}")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{manifest} is not valid JSON ({error}). Delete that file and run `zephyr-jax reference` again."
        ) from error
    return content
