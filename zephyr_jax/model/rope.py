"""Rotary embeddings (arXiv 2104.09864) in Hugging Face's layout, with the scalings of their frequencies for long contexts."""

import math
from dataclasses import dataclass
from typing import Protocol

import jax.numpy as jnp
from jax import Array


class RopeScaling(Protocol):
    """A change of the rotary frequencies that extends the context."""

    def frequencies(self, frequency_h: Array, theta: float) -> Array:
        """The scaled frequencies, float32 [h], in radians per position.

        Args:
            frequency_h: Those without scaling: theta^(-2i / 2h).
            theta: Base of the frequencies.
        """

    @property
    def magnitude(self) -> float:
        """Factor of cosine and sine."""


@dataclass(frozen=True, kw_only=True)
class LinearScaling:
    """Position interpolation (arXiv 2306.15595): all frequencies divided by `factor`."""

    factor: float
    magnitude = 1.0

    def frequencies(self, frequency_h: Array, theta: float) -> Array:
        """`RopeScaling.frequencies`."""
        return frequency_h / self.factor


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Llama 3.1's scaling: low frequencies divided by `factor`, high ones kept, interpolated in between.

    Source: `apply_scaling` of meta-llama/llama-models, `_compute_llama3_parameters` of transformers.
    """

    factor: float
    low_freq_factor: float
    """Turns over the original context below which a frequency is low."""
    high_freq_factor: float
    """Turns above which it is high."""
    original_max_positions: int
    magnitude = 1.0

    def frequencies(self, frequency_h: Array, theta: float) -> Array:
        """`RopeScaling.frequencies`."""
        turns_h = self.original_max_positions * frequency_h / (2 * math.pi)
        kept_h = (turns_h - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        kept_h = jnp.clip(kept_h, 0, 1)
        return kept_h * frequency_h + (1 - kept_h) * frequency_h / self.factor


@dataclass(frozen=True, kw_only=True)
class YarnScaling:
    """YaRN (arXiv 2309.00071): as Llama 3.1's, with the ramp over dimensions, and a factor of cosine and sine.

    Source: `_compute_yarn_parameters` of transformers.
    """

    factor: float
    original_max_positions: int
    magnitude: float
    """transformers' `attention_factor`; 0.1 ln(factor) + 1 in the paper."""
    beta_fast: float = 32.0
    """Turns over the original context above which a frequency is kept."""
    beta_slow: float = 1.0
    """Turns below which it is divided by `factor`."""
    truncate: bool = True
    """Whether the ends of the ramp are rounded to whole dimensions."""

    def frequencies(self, frequency_h: Array, theta: float) -> Array:
        """`RopeScaling.frequencies`."""
        half = frequency_h.shape[0]
        low, high = (self._dimension(turns, theta, half) for turns in (self.beta_fast, self.beta_slow))
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, 2 * half - 1)
        width = high - low if high > low else 0.001
        divided_h = jnp.clip((jnp.arange(half, dtype=jnp.float32) - low) / width, 0, 1)
        return divided_h * frequency_h / self.factor + (1 - divided_h) * frequency_h

    def _dimension(self, turns: float, theta: float, half: int) -> float:
        """Index of the frequency that makes this number of turns over the original context."""
        return half * math.log(self.original_max_positions / (turns * 2 * math.pi)) / math.log(theta)


@dataclass(frozen=True, kw_only=True)
class LongRopeScaling:
    """LongRoPE (arXiv 2402.13753) within the original context: each frequency is divided by a factor that was searched for.

    Source: `_compute_longrope_parameters` of transformers.
    """

    short_factors: tuple[float, ...]
    """One per frequency."""
    long_factors: tuple[float, ...]
    """Those of longer sequences, which are not computed; export writes them."""
    original_max_positions: int
    extended_max_positions: int
    """Positions with the long factors, of which the magnitude is computed."""
    magnitude: float

    def frequencies(self, frequency_h: Array, theta: float) -> Array:
        """`RopeScaling.frequencies`."""
        return frequency_h / jnp.asarray(self.short_factors, jnp.float32)


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary embeddings of a layer."""

    theta: float
    """Base of the frequencies."""
    scaling: RopeScaling | None = None


def rotary(positions_BL: Array, rope: Rope | None, dim: int) -> tuple[Array, Array]:
    """Cosine and sine, each float32 [B, L, 1, h] with h = dim / 2.

    Args:
        positions_BL: int32.
        rope: Of the layer; None: no rotary embeddings, cosine 1 and sine 0.
        dim: Rotated dimensions of a head.
    """
    if rope is None:
        zeros = jnp.zeros((*positions_BL.shape, 1, dim // 2), jnp.float32)
        return zeros + 1, zeros
    frequency_h = rope.theta ** (-jnp.arange(0, dim, 2, dtype=jnp.float32) / dim)
    magnitude = 1.0
    if rope.scaling is not None:
        frequency_h, magnitude = rope.scaling.frequencies(frequency_h, rope.theta), rope.scaling.magnitude
    angle_BLh = positions_BL[..., None].astype(jnp.float32) * frequency_h
    cosine_BLh, sine_BLh = jnp.cos(angle_BLh), jnp.sin(angle_BLh)
    if magnitude != 1:
        cosine_BLh, sine_BLh = magnitude * cosine_BLh, magnitude * sine_BLh
    return cosine_BLh[:, :, None], sine_BLh[:, :, None]


def rotate(x_BLNH: Array, cosine: Array, sine: Array) -> Array:
    """Rotate the pairs (i, i + h) of the first 2h dimensions of every head; float32 inside, the result in x's dtype."""
    dim = 2 * cosine.shape[-1]
    first, second = jnp.split(x_BLNH[..., :dim].astype(jnp.float32), 2, axis=-1)
    parts = [first * cosine - second * sine, second * cosine + first * sine]
    rotated = jnp.concatenate(parts, axis=-1).astype(x_BLNH.dtype)
    return rotated if dim == x_BLNH.shape[-1] else jnp.concatenate([rotated, x_BLNH[..., dim:]], axis=-1)
