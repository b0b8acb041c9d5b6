"""Random draws keyed by a seed and strings, independent of order and of other draws."""

from collections.abc import Iterable
from hashlib import blake2b


def draw(seed: int, *words: str) -> int:
    """A uniform 63-bit integer."""
    text = "\x00".join((str(seed), *words)).encode(errors="replace")
    return int.from_bytes(blake2b(text, digest_size=8).digest()) >> 1


def shuffled(items: Iterable[str], seed: int, *words: str) -> list[int]:
    """Indices of items in a random order that depends on the seed and the items, not on their input order."""
    keyed = sorted((draw(seed, *words, item), index) for index, item in enumerate(items))
    return [index for _, index in keyed]
