"""Reference tables: filled, verified, listed and tidied."""

from dataclasses import dataclass

from zephyr_jax.config.checks import check_not_negative, check_positive, require
from zephyr_jax.config.training import DpoConfig


@dataclass(frozen=True)
class ReferenceConfig(DpoConfig):
    """The frozen weights' log-probs of every pair, once, into a table; it takes the card of `dpo`."""

    verify_pairs: int = 0
    """When the table is full, compute so many of its pairs anew, as `reference verify` does; 0: none."""

    def check(self) -> None:
        """Raise InputError for settings that are missing or cannot hold together."""
        super().check()
        check_not_negative(verify_pairs=self.verify_pairs)


@dataclass(frozen=True)
class ReferenceVerifyConfig(DpoConfig):
    """Compute pairs of a reference table anew and compare; it takes the card of `dpo`, and writes nothing."""

    num_pairs: int = 100
    """How many pairs, drawn by `seed`. The digests of all parts are checked in any case."""

    def check(self) -> None:
        """Raise InputError for settings that are missing or cannot hold together."""
        super().check()
        check_positive(num_pairs=self.num_pairs)


@dataclass(frozen=True)
class ReferenceLsConfig:
    """The reference tables of a folder: identity, entries, bytes, parts, when last written, and what is damaged."""

    reference: str = ""
    """Folder that `zephyr-jax reference` writes to."""

    def check(self) -> None:
        """Raise InputError when no folder is named."""
        require(self.reference, "reference", "the folder of the reference tables")


@dataclass(frozen=True)
class ReferenceGcConfig(ReferenceLsConfig):
    """Tidy the reference tables of a folder while no pass runs: unfinished files go, small parts become one."""

    keep: tuple[str, ...] = ()
    """Delete every table but these; names as `reference ls` shows them."""
    older_than_days: float | None = None
    """Delete tables that were last written so many days ago or earlier (with `keep`: of the others)."""
    apply: bool = False
    """Do it; off: only say what would be done."""

    def check(self) -> None:
        """Raise InputError for settings that are missing or cannot hold."""
        super().check()
        check_not_negative(older_than_days=self.older_than_days or 0.0)
