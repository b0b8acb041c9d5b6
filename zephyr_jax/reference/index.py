"""Log-prob sums and target counts by key as sorted arrays: 24 bytes per entry, binary search. Never imports jax."""

from binascii import unhexlify
from dataclasses import dataclass, field

import numpy as np

KEY = np.dtype("S16")
"""Bytes of a key. NumPy hides zero bytes at the end when it prints one, but compares all 16."""
_HEX_DIGITS = 2 * KEY.itemsize


def _empty(dtype: np.typing.DTypeLike) -> np.ndarray:
    return np.zeros(0, dtype)


@dataclass(frozen=True)
class LogprobIndex:
    """N entries in ascending order of their distinct keys, every sum finite."""

    keys: np.ndarray = field(default_factory=lambda: _empty(KEY))
    """S16 [N]."""
    sums: np.ndarray = field(default_factory=lambda: _empty(np.float32))
    """float32 [N]: sum of the target log-probs of a segment."""
    counts: np.ndarray = field(default_factory=lambda: _empty(np.int32))
    """int32 [N]: number of its targets."""

    def __len__(self) -> int:
        return len(self.keys)

    def find(self, hex_keys: np.ndarray) -> np.ndarray:
        """Positions of keys.

        Args:
            hex_keys: str array of any shape, 32 hexadecimal digits each.

        Returns:
            int64 of the same shape; -1 for a key that is missing.

        Raises:
            ValueError: for other strings.
        """
        keys = parse_keys(hex_keys.reshape(-1))
        if not len(self):
            return np.full(hex_keys.shape, -1)
        positions = np.minimum(self.keys.searchsorted(keys), len(self) - 1)
        return np.where(self.keys[positions] == keys, positions, -1).reshape(hex_keys.shape)

    def slice(self, start: int, stop: int) -> "LogprobIndex":
        """Entries from `start` to before `stop`."""
        return LogprobIndex(self.keys[start:stop], self.sums[start:stop], self.counts[start:stop])


def merge(pieces: list[LogprobIndex]) -> LogprobIndex:
    """Merge unsorted pieces. Of a key in several of them the last finite sum wins; entries that are not finite are dropped."""
    pieces = [LogprobIndex(), *pieces]
    sums = np.concatenate([piece.sums for piece in pieces])
    last_first = np.flatnonzero(np.isfinite(sums))[::-1]
    keys = np.concatenate([piece.keys for piece in pieces])
    _, first = np.unique(keys[last_first], return_index=True)
    order = last_first[first]
    return LogprobIndex(keys[order], sums[order], np.concatenate([piece.counts for piece in pieces])[order])


def parse_keys(hex_keys: np.ndarray | list[str]) -> np.ndarray:
    """S16 [N] of N strings of 32 hexadecimal digits. Raises ValueError for other strings."""
    strings = np.asarray(hex_keys, np.str_)
    if not strings.size:
        return _empty(KEY)
    if strings.dtype.itemsize != 4 * _HEX_DIGITS:
        raise ValueError(
            f"expected keys of {_HEX_DIGITS} hexadecimal digits, got {strings.dtype.itemsize // 4} characters"
        )
    return np.frombuffer(unhexlify(strings.astype(f"S{_HEX_DIGITS}").tobytes()), KEY)
