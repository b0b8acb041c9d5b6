"""Parts of a block against plain formulas, and the laws that they follow."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zephyr_jax.model.attention.dense import MASKED, SegmentInfo, dense_attention, visible
from zephyr_jax.model.config import ModelConfig
from zephyr_jax.model.grad_dtype import SlottedWeight, gradient_slots
from zephyr_jax.model.layers import FeedForward, SingleDevice, rms_norm
from zephyr_jax.model.rope import Rope, rotary, rotate

CONFIG = ModelConfig(
    model_type="llama",
    vocab_size=32,
    d_model=16,
    d_ff=24,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_positions=64,
)


def normal(*sizes: int, seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), sizes, jnp.float32)


# ---- norms and rotary embeddings ----


def test_rms_norm_is_its_formula_and_ignores_the_scale_of_its_input() -> None:
    x, scale = normal(2, 3, 16), normal(16, seed=1)
    expected = x / np.sqrt(np.mean(np.square(x), -1, keepdims=True) + 1e-5) * scale
    np.testing.assert_allclose(rms_norm(x, scale, 1e-5), expected, rtol=1e-5)
    np.testing.assert_allclose(rms_norm(100 * x, scale, 0.0), rms_norm(x, scale, 0.0), rtol=1e-5)


def test_rms_norm_squares_in_float32() -> None:
    """Squares of these inputs are beyond float16; the result has the input's dtype."""
    x = jnp.full((1, 1, 4), 300.0, jnp.float16)
    result = rms_norm(x, jnp.ones(4), 1e-5)
    assert result.dtype == jnp.float16
    np.testing.assert_allclose(result, np.ones((1, 1, 4)), rtol=1e-3)


def test_rotation_keeps_lengths_and_position_0() -> None:
    x = normal(1, 6, 4, 8)
    turned = rotate(x, *rotary(jnp.arange(6)[None], Rope(theta=CONFIG.rope_theta), CONFIG.head_dim))
    np.testing.assert_allclose(jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5)
    np.testing.assert_array_equal(turned[:, 0], x[:, 0])


@pytest.mark.parametrize("shift", [1, 37, 4000])
def test_scores_depend_on_the_distance_of_positions_alone(shift: int) -> None:
    """Law of rotary embeddings: q(i) k(j) is a function of i - j."""
    q, k = normal(1, 5, 1, 8), normal(1, 5, 1, 8, seed=1)

    def scores(positions: jax.Array) -> jax.Array:
        cosine, sine = rotary(positions[None], Rope(theta=CONFIG.rope_theta), CONFIG.head_dim)
        return jnp.einsum("blnh,bjnh->blj", rotate(q, cosine, sine), rotate(k, cosine, sine))

    positions = jnp.array([0, 1, 5, 9, 20])
    np.testing.assert_allclose(scores(positions + shift), scores(positions), atol=2e-3)
    assert jnp.abs(scores(2 * positions) - scores(positions)).max() > 0.1


def test_the_slowest_frequency_is_near_the_base() -> None:
    """Pair h turns by theta^(-2h/H) per position: the first by 1, the last by theta^(-(H-2)/H)."""
    cosine, sine = rotary(jnp.array([[1]]), Rope(theta=CONFIG.rope_theta), CONFIG.head_dim)
    angles = np.arctan2(sine[0, 0, 0], cosine[0, 0, 0])
    np.testing.assert_allclose(angles, 1e4 ** -(np.arange(0, 8, 2) / 8), rtol=1e-5)


# ---- feed-forward ----


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
def test_feed_forward_is_its_formula(activation: str) -> None:
    module = FeedForward(replace(CONFIG, activation=activation), nnx.Rngs(0))
    definition, state = nnx.split(module)
    one = jax.tree.map(lambda leaf: leaf[0], state)  # the first layer of the stack
    block = nnx.merge(definition, one)
    x = normal(2, 3, 16)
    gate, up, down = (np.asarray(getattr(module, name)[...][0], np.float64) for name in ("gate", "up", "down"))
    z = np.asarray(x, np.float64) @ gate
    erf = np.vectorize(__import__("math").erf)
    active = {
        "silu": z / (1 + np.exp(-z)),
        "gelu": z * (1 + erf(z / np.sqrt(2))) / 2,
        "gelu_tanh": z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3))) / 2,
    }[activation]
    np.testing.assert_allclose(block(x, SingleDevice()), (active * (x @ up)) @ down, rtol=1e-4, atol=1e-5)


# ---- attention ----


def rows(length: int = 12) -> SegmentInfo:
    """Segments of 5 and 4 tokens, and padding."""
    segments = np.array([[1] * 5 + [2] * 4 + [0] * (length - 9)])
    positions = np.array([[*range(5), *range(4), *[0] * (length - 9)]])
    return SegmentInfo(jnp.asarray(segments), jnp.asarray(positions))


def test_a_group_of_heads_shares_its_keys() -> None:
    """Law: grouped-query attention equals attention with every key and value head repeated."""
    q, k, v = normal(1, 12, 4, 8), normal(1, 12, 2, 8, seed=1), normal(1, 12, 2, 8, seed=2)
    grouped = dense_attention(q, k, v, rows(), rows(), None)
    repeated = dense_attention(q, *(jnp.repeat(x, 2, axis=2) for x in (k, v)), rows(), rows(), None)
    np.testing.assert_allclose(grouped, repeated, rtol=1e-5, atol=1e-6)


def test_the_order_of_keys_does_not_matter() -> None:
    """Law: a cache may hold its slots in any order, as positions and segments go with them."""
    q, k, v, info = normal(1, 12, 4, 8), normal(1, 12, 2, 8, seed=1), normal(1, 12, 2, 8, seed=2), rows()
    order = np.random.default_rng(0).permutation(12)
    moved = SegmentInfo(info.segments[:, order], info.positions[:, order])
    plain = dense_attention(q, k, v, info, info, 3)
    np.testing.assert_allclose(
        dense_attention(q, k[:, order], v[:, order], info, moved, 3)[:, :9], plain[:, :9], atol=1e-5
    )


def test_outputs_are_averages_of_visible_values() -> None:
    """Bounds: with equal values the output is that value; a first token gets its own."""
    q, k = 10 * normal(1, 12, 4, 8), normal(1, 12, 2, 8, seed=1)
    same = dense_attention(q, k, jnp.full((1, 12, 2, 8), 0.7), rows(), rows(), None)
    np.testing.assert_allclose(same[:, :9], np.full((1, 9, 4, 8), 0.7), rtol=1e-5)
    v = normal(1, 12, 2, 8, seed=2)
    first = dense_attention(q, k, v, rows(), rows(), None)[0, [0, 5]]
    np.testing.assert_allclose(first, np.repeat(v[0, [0, 5]], 2, axis=1), rtol=1e-5)


def test_scores_of_any_size_stay_finite() -> None:
    """Also where every score of a row is beyond the mask's own value."""
    q, k, v = 1e15 * normal(1, 12, 4, 8), 1e15 * normal(1, 12, 2, 8, seed=1), normal(1, 12, 2, 8, seed=2)
    assert jnp.isfinite(dense_attention(q, k, v, rows(), rows(), 2)).all()
    assert jnp.isfinite(jnp.float32(MASKED)) and jnp.exp(jnp.float32(MASKED)) == 0


@pytest.mark.parametrize("window", [1, 2, 5, 6])
def test_a_window_sees_its_size(window: int) -> None:
    """Token i of a segment sees min(i + 1, window) keys, padding none."""
    counts = np.asarray(visible(rows(), rows(), window).sum(-1))[0]
    assert counts.tolist() == [min(i + 1, window) for i in (*range(5), *range(4))] + [0] * 3
    whole = np.asarray(visible(rows(), rows(), None))
    assert (np.asarray(visible(rows(), rows(), window)) <= whole).all()
    assert window < 5 or (np.asarray(visible(rows(), rows(), window)) == whole).all()


# ---- gradients in another dtype ----


def test_gradients_of_slots_are_those_of_the_weights() -> None:
    """Law: in float32 the same bits; in bfloat16 that dtype, norms apart; the forward value is the cast weight."""
    weights = {"query": normal(16, 8), "attention_norm": normal(8, seed=1)}
    x = normal(4, 16, seed=2)

    def loss(query: jax.Array, norm: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin((x.astype(query.dtype) @ query).astype(jnp.float32) * norm))

    plain = jax.grad(lambda w: loss(w["query"], w["attention_norm"]))(weights)

    def slotted(dtype: str) -> dict[str, jax.Array]:
        def of_slots(slots: dict[str, jax.Array]) -> jax.Array:
            read = jax.tree.map(SlottedWeight, weights, slots)
            return loss(read["query"][...], read["attention_norm"][...])

        gradients: dict[str, jax.Array] = jax.grad(of_slots)(gradient_slots(weights, dtype))
        return gradients

    for name, gradient in slotted("float32").items():
        np.testing.assert_array_equal(gradient, plain[name])
    narrow = slotted("bfloat16")
    assert {name: str(gradient.dtype) for name, gradient in narrow.items()} == {
        "query": "bfloat16",
        "attention_norm": "float32",
    }
    np.testing.assert_allclose(narrow["query"].astype(jnp.float32), plain["query"], atol=0.2)
