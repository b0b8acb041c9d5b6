"""The mask rule and the blocked form of attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zephyr_jax.errors import InputError
from zephyr_jax.model.attention import blockwise, cache, splash
from zephyr_jax.model.attention.blockwise import blockwise_attention
from zephyr_jax.model.attention.cache import cache_attention, num_live_slots
from zephyr_jax.model.attention.dense import SegmentInfo, cudnn_attention, dense_attention, visible
from zephyr_jax.model.attention.splash import block_size, splash_attention


def where_of(segments: list[int], positions: list[int]) -> SegmentInfo:
    return SegmentInfo(jnp.array([segments], jnp.int32), jnp.array([positions], jnp.int32))


def naive(q, k, v, where: SegmentInfo, window: int | None, softcap: float | None) -> np.ndarray:
    """Brute force in float64: for each query, softmax over the keys that the rule's words allow."""
    q, k, v = (np.asarray(each, np.float64) for each in (q, k, v))
    segments, positions = np.asarray(where.segments), np.asarray(where.positions)
    out = np.zeros_like(q)
    B, L, N, H = q.shape
    group = N // k.shape[2]
    for b in range(B):
        for i in range(L):
            keys = [
                j
                for j in range(L)
                if segments[b, j] == segments[b, i] > 0
                and positions[b, j] <= positions[b, i]
                and (window is None or positions[b, j] > positions[b, i] - window)
            ]
            for n in range(N):
                if keys:
                    scores = np.array([q[b, i, n] @ k[b, j, n // group] for j in keys]) / np.sqrt(H)
                    scores = scores if softcap is None else softcap * np.tanh(scores / softcap)
                    weights = np.exp(scores - scores.max())
                    out[b, i, n] = weights / weights.sum() @ np.stack([v[b, j, n // group] for j in keys])
    return out


def test_the_mask_rule() -> None:
    """Two segments and padding, window 2: exactly these keys."""
    where = where_of([1, 1, 1, 2, 2, 0], [0, 1, 2, 0, 1, 0])
    expected = [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 0],
    ]
    np.testing.assert_array_equal(visible(where, where, 2)[0].astype(int), expected)


@pytest.mark.parametrize(("window", "softcap"), [(None, None), (5, None), (11, None), (None, 0.5), (5, 1.5)])
def test_blocks_equal_brute_force(monkeypatch: pytest.MonkeyPatch, window: int | None, softcap: float | None) -> None:
    """Rows longer than a block, with packed segments, windows that end inside and across blocks, and capped scores."""
    monkeypatch.setattr(blockwise, "_BLOCK", 8)
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, 21, heads, 4)), jnp.float32) for heads in (4, 2, 2))
    where = SegmentInfo(
        jnp.asarray([[1] * 13 + [2] * 6 + [0] * 2, [1] * 21], jnp.int32),
        jnp.asarray([[*range(13), *range(6), 0, 0], [*range(21)]], jnp.int32),
    )
    real = np.asarray(where.segments) > 0
    options = {"window": window, "softcap": softcap}

    def whole(q, k, v):
        return dense_attention(q, k, v, where, where, **options)

    def rows(q, k, v):
        return blockwise_attention(q, k, v, where, **options)

    expected = naive(q, k, v, where, window, softcap)[real]
    np.testing.assert_allclose(rows(q, k, v)[real], expected, atol=1e-5)

    def loss(form, q, k, v):
        return jnp.sum(jnp.where(real[..., None, None], form(q, k, v), 0) ** 2)

    for one, other in zip(
        jax.grad(loss, argnums=(1, 2, 3))(rows, q, k, v), jax.grad(loss, argnums=(1, 2, 3))(whole, q, k, v), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_scores_of_long_rows_stay_small() -> None:
    """At 8,192 tokens forward and backward need a few blocks of scores, not a whole L x L (which alone is 256 MiB)."""
    L = 8192
    row = jax.ShapeDtypeStruct((1, L, 1, 8), jnp.float32)
    where = SegmentInfo(*(jax.ShapeDtypeStruct((1, L), jnp.int32),) * 2)

    def loss(q, k, v, where):
        return jnp.sum(blockwise_attention(q, k, v, where, None))

    compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(row, row, row, where).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 80 * 2**20


def test_the_tpu_kernel_says_which_rows_it_takes() -> None:
    row = jnp.zeros((1, 200, 1, 128))
    where = SegmentInfo(jnp.ones((1, 200), jnp.int32), jnp.arange(200)[None])
    with pytest.raises(InputError, match="multiple of 128 .*got 200"):
        splash_attention(row, row, row, where, None, interpret=True)


@pytest.mark.parametrize(
    ("length", "chip", "expected"),
    [(2048, "TPU v5 lite", 512), (8192, "TPU v5 lite", 1024), (8192, "TPU v6 lite", 2048), (8192, "TPU v4", 512)]
    + [(2048, "TPU v6 lite", 512), (640, "TPU v6 lite", 128), (128, "", 128), (32768, "a chip to come", 512)],
)
def test_blocks_grow_with_row_and_chip(length: int, chip: str, expected: int) -> None:
    """At least four a row where rows allow it, and never more than the chip's working memory holds."""
    assert block_size(length, chip) == expected
    assert length % expected == 0
    either, both = block_size(length, chip, 1), block_size(length, chip, 2)
    assert either == min(expected, 1024)
    assert both == min(expected, 1024 if chip == "TPU v6 lite" else 512)  # what the TPU compiler refuses above


@pytest.mark.parametrize("window", [None, 5])
def test_the_fused_form_follows_the_same_rule(window: int | None) -> None:
    """What a GPU runs, in its XLA implementation: forward and gradients of packed rows with grouped queries."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, 21, heads, 4)), jnp.float32) for heads in (4, 2, 2))
    where = SegmentInfo(
        jnp.asarray([[1] * 13 + [2] * 6 + [0] * 2, [1] * 21], jnp.int32),
        jnp.asarray([[*range(13), *range(6), 0, 0], [*range(21)]], jnp.int32),
    )
    real = (np.asarray(where.segments) > 0)[..., None, None]

    def loss(form, q, k, v):
        out = jnp.where(real, form(q, k, v), 0)
        return jnp.sum(out**2), out

    def fused(q, k, v):
        return cudnn_attention(q, k, v, where, window, implementation="xla")

    def whole(q, k, v):
        return dense_attention(q, k, v, where, where, window)

    gradient = jax.grad(loss, argnums=(1, 2, 3), has_aux=True)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradient(fused, q, k, v), gradient(whole, q, k, v)
    )


@pytest.mark.parametrize(("window", "softcap"), [(None, None), (100, None), (100, 3.0)])
def test_the_tpu_kernel_equals_the_xla_form(window: int | None, softcap: float | None) -> None:
    """Interpreted on the CPU: grouped queries, packed segments, a small window, a cap; forward and gradients."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, 256, heads, 128)), jnp.float32) for heads in (4, 2, 2))
    segments = np.array([[1] * 150 + [2] * 90 + [0] * 16, [1] * 256], np.int32)
    positions = np.array([[*range(150), *range(90), *[0] * 16], [*range(256)]], np.int32)
    where = SegmentInfo(jnp.asarray(segments), jnp.asarray(positions))
    real = jnp.asarray(segments > 0)[..., None, None]

    def loss(form, q, k, v):
        out = jnp.where(real, form(q, k, v), 0)
        return jnp.sum(out**2), out

    def by_kernel(q, k, v):
        return splash_attention(q, k, v, where, window, scale=0.2, softcap=softcap, interpret=True)

    def by_xla(q, k, v):
        return blockwise_attention(q, k, v, where, window, scale=0.2, softcap=softcap)

    gradient = jax.grad(loss, argnums=(1, 2, 3), has_aux=True)
    slopes, out = gradient(by_kernel, q, k, v)
    expected_slopes, expected = gradient(by_xla, q, k, v)
    np.testing.assert_allclose(out, expected, atol=2e-5)
    for one, other in zip(slopes, expected_slopes, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-4)


@pytest.mark.parametrize("window", [None, 200])
def test_skipping_blocks_without_a_common_segment_changes_no_bit(
    monkeypatch: pytest.MonkeyPatch, window: int | None
) -> None:
    """Two rows of four blocks that differ in their segments, interpreted on the CPU: forward and gradients."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, 512, heads, 128)), jnp.bfloat16) for heads in (2, 1, 1))
    segments = np.array([[1] * 130 + [2] * 200 + [3] * 100 + [0] * 82, [1] * 256 + [2] * 256], np.int32)
    where = SegmentInfo(jnp.asarray(segments), jnp.zeros((2, 512), jnp.int32))
    real = jnp.asarray(segments > 0)[..., None, None]

    def loss(q, k, v):
        out = jnp.where(real, splash_attention(q, k, v, where, window, interpret=True), 0)
        return jnp.sum(out.astype(jnp.float32) ** 2), out

    gradient = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)
    skipping = gradient(q, k, v)
    monkeypatch.setattr(splash, "_without_disjoint_blocks", lambda kernel, *segments: kernel)
    jax.tree.map(np.testing.assert_array_equal, skipping, gradient(q, k, v))


def test_only_blocks_with_a_visible_key_run() -> None:
    """The tables of both passes, against the mask rule: blocks of 128 of three packed rows, one of them with padding."""
    lengths = ([300, 200, 400, 124], [640, 384], [100, 500, 200])
    segments = np.zeros((3, 1024), np.int32)
    for row, of_row in zip(segments, lengths, strict=True):
        row[: sum(of_row)] = np.repeat(np.arange(1, len(of_row) + 1), of_row)
    columns = jnp.tile(jnp.arange(1024), (3, 1))
    for rows in (slice(0, 1), slice(2, 3), slice(0, 3)):
        # Padding is a segment for the kernel, which divides by the softmax denominator of every query.
        where = SegmentInfo(jnp.asarray(segments[rows] + 1), columns[rows])
        seen = np.asarray(visible(where, where, None)).any(axis=0)
        expected = seen.reshape(8, 128, 8, 128).any(axis=(1, 3))
        whole = splash._kernel(1024, 1, None, None, 128, True)
        kernel = splash._without_disjoint_blocks(whole, segments[rows], segments[rows])
        for tables in (kernel.fwd_mask_info, kernel.dkv_mask_info):
            np.testing.assert_array_equal(tables.block_mask[0] > 0, expected)
        # A computed block fetches its own keys or queries.
        order = np.arange(8)
        assert (np.where(expected, kernel.fwd_mask_info.data_next[0] - order, 0) == 0).all()
        assert (np.where(expected, kernel.dkv_mask_info.data_next[0] - order[:, None], 0) == 0).all()


def test_cudnn_refuses_a_soft_cap() -> None:
    """It would compute other scores without an error."""
    row = jnp.zeros((1, 8, 1, 8))
    info = SegmentInfo(jnp.ones((1, 8), jnp.int32), jnp.arange(8)[None])
    with pytest.raises(InputError, match="soft cap"):
        cudnn_attention(row, row, row, info, None, softcap=2.0, implementation="xla")


@pytest.mark.parametrize(("window", "softcap"), [(None, None), (9, None), (None, 2.0)])
def test_attention_to_a_cache_equals_attention_to_all_slots(
    monkeypatch: pytest.MonkeyPatch, window: int | None, softcap: float | None
) -> None:
    """Blocks that divide the slots and blocks that do not; rows of several lengths, one of them idle; a ring that has wrapped."""
    rng = np.random.default_rng(0)
    q = jnp.asarray(rng.normal(size=(4, 3, 4, 8)), jnp.float32)
    keys, values = (jnp.asarray(rng.normal(size=(4, 2, 30, 8)), jnp.float32) for _ in range(2))
    filled = np.array([5, 19, 12, 30])
    positions = np.tile(np.arange(30), (4, 1))
    positions[3, :7] += 30  # the newest of 37 tokens took the slots of the first
    slots = SegmentInfo(jnp.asarray(np.arange(30) < filled[:, None], jnp.int32), jnp.asarray(positions, jnp.int32))
    last = np.array([4, 18, 11, 36])[:, None] + np.arange(-2, 1)
    for rows in ([1, 1, 0, 0], [1, 1, 0, 1]):
        query = SegmentInfo(jnp.repeat(jnp.asarray(rows, jnp.int32)[:, None], 3, axis=1), jnp.asarray(last, jnp.int32))
        live = num_live_slots(query, slots)
        assert int(live) == (30 if rows[3] else 19)
        whole = dense_attention(
            q, *(x.transpose(0, 2, 1, 3) for x in (keys, values)), query, slots, window, softcap=softcap
        )
        real = np.array(rows, bool)
        for size in (8, 10, 256):
            monkeypatch.setattr(cache, "_BLOCK", size)
            found = cache_attention(q, keys, values, query, slots, live, window, softcap=softcap)
            np.testing.assert_allclose(found[real], whole[real], atol=1e-5)
            assert jnp.isfinite(found).all()


def test_a_row_does_not_depend_on_the_slots_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: bit for bit, though a long neighbor makes the loop over blocks longer."""
    monkeypatch.setattr(cache, "_BLOCK", 8)
    rng = np.random.default_rng(0)
    q = jnp.asarray(rng.normal(size=(2, 1, 4, 8)), jnp.bfloat16)
    keys, values = (jnp.asarray(rng.normal(size=(2, 2, 64, 8)), jnp.bfloat16) for _ in range(2))
    found = []
    for neighbor in (1, 60):
        filled = np.array([13, neighbor])[:, None]
        slots = SegmentInfo(jnp.asarray(np.arange(64) < filled, jnp.int32), jnp.tile(jnp.arange(64), (2, 1)))
        query = SegmentInfo(jnp.ones((2, 1), jnp.int32), jnp.asarray(filled - 1, jnp.int32))
        found.append(cache_attention(q, keys, values, query, slots, num_live_slots(query, slots), None)[0])
    np.testing.assert_array_equal(*found)
