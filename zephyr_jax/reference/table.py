"""The reference table: for each segment, by the hash of its tokens and targets, its log-prob sum and target count.

One folder may hold tables of several identities (weights, tokenizer and template, dtype, arithmetic), each in a folder of
its own with a manifest, so nothing is ever mixed up or overwritten. Order, subset, beta, loss and learning rate are no
part of a key. Parts are written whole or not at all, so a killed pass goes on where it stopped.
"""

import json
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet

from zephyr_jax.errors import InputError, listing


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


class ReferenceTable:
    """The table of one identity under `root`; entries are read at once and looked up by key."""

    def __init__(self, root: Path, identity: Identity):
        self.folder = root / identity.name
        self.identity = identity
        self._sums: dict[str, float] = {}
        for part in sorted(self.folder.glob("part-*.parquet")):
            self._read(part)

    def _read(self, part: Path) -> None:
        try:
            content = pyarrow.parquet.read_table(part, columns=["key", "sum"])
        except (OSError, pyarrow.ArrowException) as error:
            raise InputError(
                f"The reference table's file {part} cannot be read: {error}. Delete that file and run `zephyr-jax reference` "
                "again: only its entries are computed anew."
            ) from error
        self._sums |= dict(zip(content.column("key").to_pylist(), content.column("sum").to_pylist(), strict=True))

    def __len__(self) -> int:
        return len(self._sums)

    def missing(self, keys: np.ndarray) -> np.ndarray:
        """bool [N]: which examples have a segment that is not (finitely) in the table; `keys` is str [N, segments]."""
        known = [[np.isfinite(self._sums.get(key, np.nan)) for key in row] for row in keys.tolist()]
        return ~np.array(known, np.bool_).reshape(keys.shape).all(axis=1)

    def look_up(self, keys: np.ndarray) -> np.ndarray:
        """float32 sums of the shape of `keys`. Raises KeyError for a key that is not there."""
        return np.array([[self._sums[key] for key in row] for row in keys.tolist()], np.float32).reshape(keys.shape)

    def add(self, part: str, keys: list[str], sums: np.ndarray, counts: np.ndarray) -> None:
        """Append entries as one file named after `part`, whole or not at all. Raises InputError when sums are not finite."""
        if not np.isfinite(sums).all():
            raise InputError(
                f"{int((~np.isfinite(sums)).sum())} of {len(sums)} reference log-probs are not finite. The weights or the "
                "compute dtype are unsound: check model.path, or try model.compute_dtype float32."
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write_manifest()
        content = pyarrow.table({"key": keys, "sum": sums.astype(np.float32), "count": counts.astype(np.int32)})
        target = self.folder / f"part-{part}.parquet"
        scratch = target.with_suffix(".tmp")
        pyarrow.parquet.write_table(content, scratch)
        scratch.replace(target)
        self._sums |= dict(zip(keys, sums.astype(float).tolist(), strict=True))

    def _write_manifest(self) -> None:
        manifest = self.folder / "manifest.json"
        if not manifest.exists():
            scratch = manifest.with_suffix(".tmp")
            scratch.write_text(json.dumps(asdict(self.identity), indent=2) + "\n")
            scratch.replace(manifest)


def require_complete(root: Path, table: ReferenceTable, keys: np.ndarray, ids: list[str], command: str) -> np.ndarray:
    """float32 [N, 2] sums of all pairs. Raises InputError when the table is of other weights or rules, or lacks entries.

    `command` is the command line that fills the table.
    """
    absent = table.missing(keys)
    if not absent.any():
        return table.look_up(keys)
    others = [manifest for manifest in sorted(root.glob("*/manifest.json")) if manifest.parent != table.folder]
    if len(table) == 0 and others:
        raise InputError(f"{_mismatch(others, table.identity)} To compute the right table: {command}")
    raise InputError(
        f"The reference table in {root} lacks {int(absent.sum())} of {len(keys)} pairs "
        f"(ids {listing([ids[int(index)] for index in np.flatnonzero(absent)[:3]])}). "
        f"To compute what is missing: {command}"
    )


def _mismatch(manifests: list[Path], wanted: Identity) -> str:
    """What differs between the wanted identity and the nearest of those that are there, with both values."""
    need = asdict(wanted)
    found = []
    for manifest in manifests:
        try:
            found.append(json.loads(manifest.read_text()))
        except ValueError as error:
            raise InputError(
                f"{manifest} is not valid JSON ({error}). Delete its folder and run `zephyr-jax reference` again."
            ) from error
    different = min(({k for k in need if have.get(k) != need[k]} for have in found), key=len)
    nearest = next(have for have in found if {k for k in need if have.get(k) != need[k]} == different)
    pairs = "; ".join(f"{name} is {nearest.get(name)!r} there and {need[name]!r} here" for name in sorted(different))
    return f"The reference table does not belong to this run: {pairs}."
