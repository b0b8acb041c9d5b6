"""The identity of weights: a fingerprint of their bits that no sharding, device count or file format changes.

Every weight's bits (as float32) are mixed with its index and its tensor's name, and the mixed words are added up modulo 2^32
in four lanes. Integer addition is exact in any order, so the sum may be computed where the shards are; one changed bit
anywhere changes it. It guards against mix-ups and damage, not against someone who wants to forge it.
"""

from typing import Any
from zlib import crc32

import jax
import jax.numpy as jnp
from jax import Array

_LANES = (0x9E3779B9, 0x85EBCA6B, 0xC2B2AE35, 0x27D4EB2F)


def weights_fingerprint(parameters: Any) -> str:
    """32 hex digits for a pytree of arrays, such as weights or an optimizer's state; equal bits give equal digits on every
    mesh. Integers count as 32 bits, floats as float32."""
    leaves = jax.tree_util.tree_leaves_with_path(parameters)
    total = [0] * len(_LANES)
    for path, leaf in leaves:
        name = ".".join(map(_spelt, path))
        words = jax.device_get(_fingerprint(_near(leaf), jnp.uint32(crc32(f"{name}{leaf.shape}".encode()))))
        total = [(old + int(new)) % 2**32 for old, new in zip(total, words, strict=True)]
    return "".join(f"{word:08x}" for word in total)


def _spelt(key: Any) -> str:
    """A step of a pytree's path: a dict's key, an attribute's name or a position."""
    return str(next(getattr(key, name) for name in ("key", "name", "idx") if hasattr(key, name)))


def _near(leaf: Array) -> Array:
    """The array in its device's own memory, should it wait in the host's."""
    sharding = getattr(leaf, "sharding", None)
    if sharding is None or sharding.memory_kind != "pinned_host":
        return leaf
    return jax.device_put(leaf, sharding.with_memory_kind("device"))


@jax.jit
def _fingerprint(x: Array, salt: Array) -> Array:
    floats = jnp.issubdtype(x.dtype, jnp.floating)
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32) if floats else x.astype(jnp.uint32)
    place = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    return jnp.stack([jnp.sum(_mix(bits ^ _mix(place + salt ^ jnp.uint32(lane))), dtype=jnp.uint32) for lane in _LANES])


def _mix(x: Array) -> Array:
    """The finaliser of MurmurHash3: every input bit reaches every output bit."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
