"""The settings of `reference`, `reference verify`, `reference ls` and `reference gc`."""

from dataclasses import dataclass
from typing import ClassVar

from zephyr_jax.config.constraints import NonNegativeFloat, NonNegativeInt, PositiveInt
from zephyr_jax.config.sections import DATA, MODEL
from zephyr_jax.config.training import DpoConfig

_TABLE = {"reference": "the folder of the reference tables"}


@dataclass(frozen=True)
class ReferenceConfig(DpoConfig):
    """Compute the reference model's log-probs of every pair once, into a table; it takes the card of `dpo`."""

    REQUIRED: ClassVar[dict[str, str]] = {"model.path": MODEL, "data.path": DATA, **_TABLE}

    verify_pairs: NonNegativeInt = 0
    """Number of pairs to recompute once the table is full, as `reference verify` does; 0: none."""


@dataclass(frozen=True)
class ReferenceVerifyConfig(DpoConfig):
    """Recompute pairs of a reference table and compare; it takes the card of `dpo`, and writes nothing."""

    REQUIRED: ClassVar[dict[str, str]] = ReferenceConfig.REQUIRED

    num_pairs: PositiveInt = 100
    """Number of pairs, drawn by `seed`. The digests of all shards are checked in any case."""


@dataclass(frozen=True)
class ReferenceLsConfig:
    """List the reference tables of a folder: identity, entries, bytes, shards, time of the last write, and damage."""

    REQUIRED: ClassVar[dict[str, str]] = _TABLE

    reference: str = ""
    """Folder that `zephyr-jax reference` writes to."""


@dataclass(frozen=True)
class ReferenceGcConfig(ReferenceLsConfig):
    """Clean up a folder of reference tables while no pass runs: remove unfinished files, merge small shards."""

    keep: tuple[str, ...] = ()
    """Delete all tables but these; names as in `reference ls`."""
    older_than_days: NonNegativeFloat | None = None
    """Delete tables whose last write was at least this many days ago (with `keep`: of the others)."""
    apply: bool = False
    """Apply the changes; off: only list them."""
