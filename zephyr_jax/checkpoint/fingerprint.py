"""Fingerprints of weights: a hash of their bits that does not depend on sharding, device count or file format.

Every weight's bits (as float32) are mixed with its index and its tensor's name, and the mixed words are summed modulo 2^32 in
four lanes. Integer addition is exact in any order, so the sum is computed where the shards are; one changed bit changes it. It
detects mix-ups and damage; it is not a cryptographic hash.
"""

from collections.abc import Iterable
from typing import Any
from zlib import crc32

import jax
import jax.numpy as jnp
from jax import Array

_LANES = (0x9E3779B9, 0x85EBCA6B, 0xC2B2AE35, 0x27D4EB2F)


def weights_fingerprint(parameters: Any) -> str:
    """Fingerprint of a pytree of arrays, as 32 hex digits. Integers count as 32 bits, floats as float32."""
    leaves = jax.tree_util.tree_leaves_with_path(parameters)
    total = [0] * len(_LANES)
    for path, leaf in leaves:
        name = ".".join(map(_key_name, path))
        words = jax.device_get(_fingerprint(_on_device(leaf), jnp.uint32(crc32(f"{name}{leaf.shape}".encode()))))
        total = [(old + int(new)) % 2**32 for old, new in zip(total, words, strict=True)]
    return "".join(f"{word:08x}" for word in total)


def joint_fingerprint(fingerprints: Iterable[str]) -> str:
    """Fingerprint of all weights from those of disjoint parts, whose weights keep their names."""
    parts = [
        [int(fingerprint[lane * 8 : lane * 8 + 8], 16) for lane in range(len(_LANES))] for fingerprint in fingerprints
    ]
    return "".join(f"{sum(words) % 2**32:08x}" for words in zip(*parts, strict=True))


def _key_name(key: Any) -> str:
    """One key of a pytree path: a dict key, an attribute name or an index."""
    return str(next(getattr(key, name) for name in ("key", "name", "idx") if hasattr(key, name)))


def _on_device(leaf: Array) -> Array:
    """The array in device memory; moments may be in pinned host memory."""
    sharding = getattr(leaf, "sharding", None)
    if sharding is None or sharding.memory_kind != "pinned_host":
        return leaf
    result: Array = jax.device_put(leaf, sharding.with_memory_kind("device"))
    return result


@jax.jit
def _fingerprint(x: Array, salt: Array) -> Array:
    floats = jnp.issubdtype(x.dtype, jnp.floating)
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32) if floats else x.astype(jnp.uint32)
    index = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
        index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    return jnp.stack([jnp.sum(_mix(bits ^ _mix(index + salt ^ jnp.uint32(lane))), dtype=jnp.uint32) for lane in _LANES])


def _mix(x: Array) -> Array:
    """The finalizer of MurmurHash3: every input bit affects every output bit."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
