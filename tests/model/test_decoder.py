"""Laws of the decoder."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models import Loaded, load, logits, packed_rows, random_segments, whole_rows
from zephyr_jax.config.sections import Remat
from zephyr_jax.model.attention.dense import SegmentInfo


@pytest.fixture(scope="module")
def gqa(golden: Path) -> Loaded:
    return load(golden / "models" / "gqa")


def test_no_logit_depends_on_a_later_token(gqa: Loaded) -> None:
    """Causality, by gradient: the derivative of a logit by every later embedding is exactly zero, and not by its own."""
    tokens = jnp.arange(12)[None]  # token t is id t, so row t of the embedding is token t's own
    where = SegmentInfo(jnp.ones((1, 12), jnp.int32), tokens)

    def at_five(embedding):
        model = nnx.merge(gqa.model.definition, {**gqa.parameters, "embedding": embedding})
        return jnp.sum(model(tokens, where)[0, 5] ** 2)

    gradient = jax.jit(jax.grad(at_five))(gqa.parameters["embedding"])
    np.testing.assert_array_equal(gradient[6:], 0)
    assert np.abs(gradient[:6]).max(axis=1).min() > 0


def test_segments_of_a_row_cannot_see_each_other(gqa: Loaded) -> None:
    """Changing every token of the second segment leaves the first one's logits bit-equal, and the other way round."""
    first, second, other = random_segments([9, 8, 8])
    one = logits(gqa, packed_rows([[first, second]], 20))
    two = logits(gqa, packed_rows([[first, other]], 20))
    np.testing.assert_array_equal(one[:, :9], two[:, :9])
    assert np.abs(one[:, 9:17] - two[:, 9:17]).max() > 0.1
    three = logits(gqa, packed_rows([[other[:8], second]], 20))
    four = logits(gqa, packed_rows([[second[:8], second]], 20))
    np.testing.assert_array_equal(three[:, 8:16], four[:, 8:16])


def test_positions_restart_in_every_segment(gqa: Loaded) -> None:
    """A segment gives the same logits alone and behind another one."""
    first, second = random_segments([7, 11])
    packed = logits(gqa, packed_rows([[first, second]], 20))
    np.testing.assert_allclose(packed[:, 7:18], logits(gqa, whole_rows(second[None])), atol=2e-5)


def test_the_window_is_the_last_w_tokens(golden: Path) -> None:
    """With window 7 and two layers, logits depend on the last 13 tokens and on nothing before."""
    loaded = load(golden / "models" / "window")
    tokens = random_segments([24])[0]
    changed = tokens.copy()
    changed[10] = tokens[10] % 90 + 4
    one, two = (logits(loaded, whole_rows(each[None])) for each in (tokens, changed))
    reach = 2 * (7 - 1)
    assert np.abs(one[0, 10 : 11 + reach] - two[0, 10 : 11 + reach]).max(axis=-1).min() > 1e-6
    np.testing.assert_array_equal(one[0, 11 + reach :], two[0, 11 + reach :])


def test_what_is_kept_changes_memory_and_nothing_else(golden: Path) -> None:
    """All policies give equal gradients, from programs that really differ."""
    batch = whole_rows(np.stack(random_segments([16, 16])))
    gradients, programs = [], []
    policies = tuple(Remat)
    for remat in policies:
        loaded = load(golden / "models" / "gqa", remat=remat)

        def loss(parameters, loaded=loaded):
            model = nnx.merge(loaded.model.definition, parameters)
            return jnp.mean(model(batch.tokens, SegmentInfo(batch.segments, batch.positions)) ** 2)

        gradients.append(jax.jit(jax.grad(loss))(loaded.parameters))
        programs.append(str(jax.make_jaxpr(jax.grad(loss))(loaded.parameters)))
    for other in gradients[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), gradients[0], other)
    assert len(set(programs)) == len(policies)


def test_bfloat16_computes_in_bfloat16_and_scores_in_float32(golden: Path) -> None:
    """Hidden states are bfloat16, logits float32, weights float32, and the result near float32's."""
    loaded = load(golden / "models" / "gqa", dtype="bfloat16")
    batch = whole_rows(np.stack(random_segments([16, 16])))
    model = nnx.merge(loaded.model.definition, loaded.parameters)
    hidden = model(batch.tokens, SegmentInfo(batch.segments, batch.positions))
    assert hidden.dtype == jnp.bfloat16
    assert model.logits(hidden).dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(loaded.parameters))
    exact = logits(load(golden / "models" / "gqa"), batch)
    assert 0 < np.abs(model.logits(hidden) - exact).max() < 0.15


def test_weights_used_in_float32_are_named_norm(gqa: Loaded) -> None:
    """`gradient_slots` keeps their gradients in float32 by the name that the declaration `norm_scale` implies."""
    model = nnx.merge(gqa.model.definition, gqa.parameters)
    for path, parameter in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        assert parameter.get_metadata("in_float32") == str(path[-1]).endswith("norm"), path
