"""The preference losses and their metrics."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import Loaded, load, packed_rows, random_segments
from zephyr_jax.batch import PairBatch
from zephyr_jax.config.training_sections import DpoOptions
from zephyr_jax.objective.dpo import LOSSES, PairLogRatio, dpo_loss
from zephyr_jax.objective.example_loss import make_objective
from zephyr_jax.objective.logprob import sequence_logprob

SMOOTHING = {"sigmoid": 0.0, "sigmoid_smooth": 0.1, "ipo": 0.0, "ipo_sum": 0.0, "hinge": 0.0, "robust": 0.1}


@pytest.mark.parametrize("name", SMOOTHING)
def test_losses_and_gradients_equal_the_oracle(golden: Path, name: str) -> None:
    """Per-pair losses, and gradients of their mean, against torch in float64."""
    numbers = np.load(golden / "dpo.npz")
    loss_of = LOSSES[name.removesuffix("_smooth")]

    def losses(chosen, rejected):
        ratio = PairLogRatio(
            chosen - numbers["reference_chosen"],
            rejected - numbers["reference_rejected"],
            jnp.asarray(numbers["chosen_count"], jnp.float32),
            jnp.asarray(numbers["rejected_count"], jnp.float32),
        )
        return loss_of(ratio, 0.1, SMOOTHING[name])

    policy = jnp.asarray(numbers["policy_chosen"]), jnp.asarray(numbers["policy_rejected"])
    np.testing.assert_allclose(losses(*policy), numbers[f"loss_{name}"], rtol=2e-5, atol=2e-5)
    gradients = jax.grad(lambda *sums: jnp.mean(losses(*sums)), argnums=(0, 1))(*policy)
    for side, gradient in zip(("chosen", "rejected"), gradients, strict=True):
        np.testing.assert_allclose(gradient, numbers[f"grad_{side}_{name}"], rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def gqa(golden: Path) -> Loaded:
    return load(golden / "models" / "gqa")


def pair_batch(loaded: Loaded, swapped: bool = False) -> PairBatch:
    """Three pairs in two rows; the reference is the model itself."""
    a, b, c, d, e, f = random_segments([9, 12, 7, 8, 15, 6])
    pairs = [(a, b), (c, d), (e, f)]
    sides = [(second, first) if swapped else (first, second) for first, second in pairs]
    rows = packed_rows([[*sides[0], *sides[1]], [*sides[2]]], 40)
    found = sequence_logprob(loaded.model.definition, loaded.parameters, rows, segments=4, chunk=8)
    return PairBatch(rows, found.sum, jnp.array([[True, True], [True, False]]))


def objective(loaded: Loaded, **options):
    return make_objective(dpo_loss, loaded.model.definition, DpoOptions(**options), segments=4, chunk=8)


def test_step_zero_is_log_two(gqa: Loaded) -> None:
    """With the policy as its own reference: loss ln 2, margins and rewards 0, accuracy 0 (strictly greater)."""
    loss, metrics = objective(gqa)(gqa.parameters, pair_batch(gqa))
    assert loss.weight == 3
    np.testing.assert_allclose(loss.value, np.log(2), atol=1e-6)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"):
        assert abs(metrics[name].value) < 1e-6


def test_gradient_raises_chosen_and_lowers_rejected(gqa: Loaded) -> None:
    """One small step down the gradient."""
    batch = pair_batch(gqa)
    loss, slope = jax.value_and_grad(lambda p: objective(gqa)(p, batch)[0].value)(gqa.parameters)
    moved = jax.tree.map(lambda p, g: p - 1e-3 * g, gqa.parameters, slope)
    after, metrics = objective(gqa)(moved, batch)
    assert after.value < loss
    assert metrics["rewards/chosen"].value > 0 > metrics["rewards/rejected"].value


def test_gradient_equals_finite_differences(gqa: Loaded) -> None:
    """Along a random direction, with a reference that is not the policy."""
    batch = pair_batch(gqa)
    batch = batch._replace(reference=batch.reference + jnp.array([[3.0, -2.0, 1.0, 4.0]]))
    rng = np.random.default_rng(1)
    direction = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), gqa.parameters)

    @jax.jit
    def along(t):
        moved = jax.tree.map(lambda p, d: p + t * d, gqa.parameters, direction)
        return objective(gqa)(moved, batch)[0].value

    slope = jax.grad(along)(0.0)
    numeric = (along(1e-3) - along(-1e-3)) / 2e-3
    np.testing.assert_allclose(slope, numeric, rtol=2e-2)


def test_swapping_the_pair_flips_the_margin(gqa: Loaded) -> None:
    """Chosen for rejected: rewards change places."""
    shift = jnp.array([[3.0, -2.0, 1.0, 4.0]])
    batch, swapped = pair_batch(gqa), pair_batch(gqa, swapped=True)
    flipped = shift.reshape(-1, 2)[:, ::-1].reshape(1, -1)
    _, one = objective(gqa)(gqa.parameters, batch._replace(reference=batch.reference + shift))
    _, two = objective(gqa)(gqa.parameters, swapped._replace(reference=swapped.reference + flipped))
    np.testing.assert_allclose(one["rewards/margins"].value, -two["rewards/margins"].value, atol=1e-5)
    np.testing.assert_allclose(one["rewards/chosen"].value, two["rewards/rejected"].value, atol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_empty_slots_add_nothing(gqa: Loaded, loss: str) -> None:
    """A row with one pair in a plan of two: no NaN anywhere, and no gradient from the empty slot."""
    batch = pair_batch(gqa)
    one_row = jax.tree.map(lambda leaf: leaf[1:], batch)
    exact, slope = jax.value_and_grad(lambda p: objective(gqa, loss=loss)(p, one_row)[0].sum)(gqa.parameters)
    rows = one_row.rows._replace(
        **{name: jnp.pad(leaf, ((0, 1), (0, 0))) for name, leaf in one_row.rows._asdict().items()}
    )
    padded = PairBatch(rows, jnp.pad(one_row.reference, ((0, 1), (0, 0))), jnp.pad(one_row.present, ((0, 1), (0, 0))))
    more, more_slope = jax.value_and_grad(lambda p: objective(gqa, loss=loss)(p, padded)[0].sum)(gqa.parameters)
    np.testing.assert_allclose(exact, more, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), slope, more_slope)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))


def test_the_sft_term_is_the_mean_nll_per_token(gqa: Loaded) -> None:
    """sft_weight adds it to the loss, averaged over pairs."""
    batch = pair_batch(gqa)
    plain, metrics = objective(gqa)(gqa.parameters, batch)
    mixed, _ = objective(gqa, sft_weight=0.5)(gqa.parameters, batch)
    found = sequence_logprob(gqa.model.definition, gqa.parameters, batch.rows, segments=4, chunk=8)
    nll = -np.array(
        [
            found.sum[0, 0] / found.num_targets[0, 0],
            found.sum[0, 2] / found.num_targets[0, 2],
            found.sum[1, 0] / found.num_targets[1, 0],
        ]
    )
    np.testing.assert_allclose(mixed.value - plain.value, 0.5 * nll.mean(), rtol=1e-5)
