"""Draws that depend on a seed and on words, never on a place in a file or on what else is drawn."""

from collections.abc import Iterable
from hashlib import blake2b


def draw(seed: int, *words: str) -> int:
    """A number of 63 bits."""
    text = "\x00".join((str(seed), *words)).encode(errors="replace")
    return int.from_bytes(blake2b(text, digest_size=8).digest()) >> 1


def shuffled(items: Iterable[str], seed: int, *words: str) -> list[int]:
    """Places of items in an order of their own: it depends on what they are, not on how they stood."""
    keyed = sorted((draw(seed, *words, item), place) for place, item in enumerate(items))
    return [place for _, place in keyed]
