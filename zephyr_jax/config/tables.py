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
    """Number of pairs to recompute and compare once the table is full, as `reference verify` does. 0: none."""


@dataclass(frozen=True)
class ReferenceVerifyConfig(DpoConfig):
    """Recompute pairs of a reference table and compare; it takes the card of `dpo`, and writes nothing."""

    REQUIRED: ClassVar[dict[str, str]] = ReferenceConfig.REQUIRED

    num_pairs: PositiveInt = 100
    """Number of pairs to recompute, drawn by `seed`. The digests of all shards are checked in any case."""


@dataclass(frozen=True)
class ReferenceLsConfig:
    """List the reference tables of a folder: identity, entries, bytes, shards, time of the last write, and damage."""

    REQUIRED: ClassVar[dict[str, str]] = _TABLE

    reference: str = ""
    """Folder of reference tables, which `zephyr-jax reference` wrote."""


@dataclass(frozen=True)
class ReferenceGcConfig(ReferenceLsConfig):
    """Clean up a folder of reference tables while no pass runs: remove unfinished files, merge small shards."""

    keep: tuple[str, ...] = ()
    """Names of the tables to keep, as in `reference ls`; all others are deleted. Default: all tables, unless
    `older_than_days` is set."""
    older_than_days: NonNegativeFloat | None = None
    """Minimum age in days, since the last write, of tables to delete (with `keep`: of the others). Default: the age does
    not count."""
    apply: bool = False
    """Delete and merge files; off: only list the changes."""
