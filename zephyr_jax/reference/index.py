"""Log-prob sums and target counts by key, in sorted arrays: 24 bytes an entry, a binary search a look-up. Never imports jax."""

from binascii import unhexlify
from dataclasses import dataclass, field

import numpy as np

_DIGITS = 32
CODE = np.dtype(f"S{_DIGITS // 2}")
"""A key's bytes. NumPy drops zeros at their end when it prints one, and compares them all the same."""
_TEXT, _ASCII = np.dtype(f"U{_DIGITS}"), np.dtype(f"S{_DIGITS}")
_AT_ONCE = 2**16  # keys that are converted together


def _none(kind: np.typing.DTypeLike) -> np.ndarray:
    return np.zeros(0, kind)


@dataclass(frozen=True)
class Entries:
    """N entries in the order of their keys, each key once, every sum finite."""

    codes: np.ndarray = field(default_factory=lambda: _none(CODE))
    """S16 [N]: the keys' bytes, ascending."""
    sums: np.ndarray = field(default_factory=lambda: _none(np.float32))
    """float32 [N]."""
    counts: np.ndarray = field(default_factory=lambda: _none(np.int32))
    """int32 [N]."""

    def __len__(self) -> int:
        return len(self.codes)

    def find(self, keys: np.ndarray) -> np.ndarray:
        """int64 of the shape of `keys` (str): each one's place here, -1 where it is not. Raises ValueError as `codes_of`."""
        flat = keys.reshape(-1)
        if flat.size <= _AT_ONCE:
            return self._find(codes_of(flat)).reshape(keys.shape)
        pieces = [self._find(codes_of(flat[start : start + _AT_ONCE])) for start in range(0, flat.size, _AT_ONCE)]
        return np.concatenate(pieces).reshape(keys.shape)

    def _find(self, codes: np.ndarray) -> np.ndarray:
        if not len(self):
            return np.full(len(codes), -1)
        places = self.codes.searchsorted(codes)
        places[places == len(self)] = 0
        places[self.codes[places] != codes] = -1
        return places

    def slice(self, start: int, stop: int) -> "Entries":
        """Those from `start` to before `stop`."""
        return Entries(self.codes[start:stop], self.sums[start:stop], self.counts[start:stop])


def merged(pieces: list[Entries]) -> Entries:
    """All entries of pieces in any order, which are used up: of a key that several have, the last finite one.

    A sum that is not finite counts as missing.
    """
    columns = [np.concatenate([getattr(piece, name) for piece in [Entries(), *pieces]]) for name in _NAMES]
    pieces.clear()  # at a million entries, each copy less is 24 MB
    finite = np.isfinite(columns[1])
    if not finite.all():
        columns = [column[finite] for column in columns]
    order = np.argsort(columns[0], kind="stable")
    ordered = columns[0][order]
    last = np.ones(len(ordered), np.bool_)
    last[:-1] = ordered[1:] != ordered[:-1]
    if last.all():
        del ordered
    else:
        order = order[last]
    for index, column in enumerate(columns):
        columns[index] = column[order]
    return Entries(*columns)


_NAMES = ("codes", "sums", "counts")


def with_more(old: Entries, new: Entries) -> Entries:
    """Both; of a key that both have, the new one. Cheaper than `merged` where few are new."""
    if not len(old):
        return new
    places = np.searchsorted(old.codes, new.codes)
    known = old.codes[np.minimum(places, len(old) - 1)] == new.codes
    columns = []
    for name in _NAMES:
        column = getattr(old, name).copy()
        column[places[known]] = getattr(new, name)[known]
        columns.append(np.insert(column, places[~known], getattr(new, name)[~known]))
    return Entries(*columns)


def codes_of(keys: np.ndarray | list[str]) -> np.ndarray:
    """S16 [N] of keys [N] of 32 hexadecimal digits. Raises ValueError for others."""
    given = np.asarray(keys, np.str_)
    if not given.size:
        return _none(CODE)
    if given.dtype != _TEXT:
        raise ValueError(f"a key has {given.dtype.itemsize // 4} letters; it needs {_DIGITS} hexadecimal digits")
    return codes_from(given.astype(_ASCII).tobytes())


def codes_from(digits: bytes | memoryview) -> np.ndarray:
    """S16 [N] of N * 32 hexadecimal digits in a row. Raises ValueError for anything else."""
    return np.frombuffer(unhexlify(digits), CODE)
