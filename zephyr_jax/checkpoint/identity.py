"""The identity of weights: a fingerprint of their float32 bits that no sharding, device count or file format changes.

Every weight's bits are mixed with its index and its tensor's name, and the mixed words are added up modulo 2^32 in four
lanes. Integer addition is exact in any order, so the sum may be computed where the shards are; one changed bit anywhere
changes it. It guards against mix-ups, not against someone who wants to forge it.
"""

from typing import Any
from zlib import crc32

import jax
import jax.numpy as jnp
from jax import Array

_LANES = (0x9E3779B9, 0x85EBCA6B, 0xC2B2AE35, 0x27D4EB2F)


def weights_fingerprint(parameters: Any) -> str:
    """32 hex digits for a pure dict of float32 arrays; equal weights give equal digits on every mesh."""
    leaves = jax.tree_util.tree_leaves_with_path(parameters)
    total = [0] * len(_LANES)
    for path, leaf in leaves:
        name = ".".join(str(key.key) for key in path)
        words = jax.device_get(_fingerprint(leaf, jnp.uint32(crc32(f"{name}{leaf.shape}".encode()))))
        total = [(old + int(new)) % 2**32 for old, new in zip(total, words, strict=True)]
    return "".join(f"{word:08x}" for word in total)


@jax.jit
def _fingerprint(x: Array, salt: Array) -> Array:
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    place = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    return jnp.stack([jnp.sum(_mix(bits ^ _mix(place + salt ^ jnp.uint32(lane))), dtype=jnp.uint32) for lane in _LANES])


def _mix(x: Array) -> Array:
    """The finaliser of MurmurHash3: every input bit reaches every output bit."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
