"""A step: exact under accumulation, whatever falls where."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import Loaded, load, packed_rows, random_segments
from zephyr_jax.batch import PairBatch, empty_rows
from zephyr_jax.checkpoint.opened import abstract_of
from zephyr_jax.config.sections import MeshOptions, ModelOptions, Remat
from zephyr_jax.config.training import DpoConfig, SftConfig
from zephyr_jax.config.training_sections import AnomalyOptions, DpoOptions, OptimizerOptions, PairAnomalyOptions
from zephyr_jax.methods.dpo import DPO
from zephyr_jax.methods.sft import SFT
from zephyr_jax.objective.dpo import dpo_loss
from zephyr_jax.objective.example_loss import make_objective
from zephyr_jax.objective.sft import sft_loss
from zephyr_jax.parallel.mesh import make_mesh
from zephyr_jax.parallel.sharding import ShardingRules
from zephyr_jax.plan.shape import MISTRAL_7B
from zephyr_jax.train.anomalies import StepLimits
from zephyr_jax.train.optimizer import learning_rate, make_optimizer
from zephyr_jax.train.state import abstract_state, initial_state, state_shardings
from zephyr_jax.train.step import accumulate, make_step

NO_LIMITS = StepLimits(np.float32(np.inf), np.bool_(False))


@pytest.fixture(scope="module")
def gqa(golden: Path) -> Loaded:
    return load(golden / "models" / "gqa", remat=Remat.NONE)


def uneven_rows():
    """Four rows with 25, 3, 0 and 11 targets."""
    a, b, c, d, e = random_segments([14, 17, 6, 9, 8])
    return packed_rows([[a, b], [c], [], [d, e]], 32)


def split(batch, microbatches: int):
    return jax.tree.map(lambda leaf: leaf.reshape(microbatches, -1, *leaf.shape[1:]), batch)


@pytest.mark.parametrize("microbatches", [2, 4])
def test_microbatches_equal_one_big_batch_in_tokens(gqa: Loaded, microbatches: int) -> None:
    """SFT: gradients of the sum, loss and weights, though targets fall unevenly and one microbatch may be empty."""
    objective = make_objective(sft_loss, gqa.model.definition, None, segments=2, chunk=16)
    batch = uneven_rows()
    whole, metrics = accumulate(objective, gqa.parameters, split(batch, 1), gqa.model.shardings)
    parts, part_metrics = jax.jit(lambda p, b: accumulate(objective, p, b, gqa.model.shardings))(
        gqa.parameters, split(batch, microbatches)
    )
    assert metrics["loss"].weight == part_metrics["loss"].weight == 39
    np.testing.assert_allclose(metrics["loss"].value, part_metrics["loss"].value, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a / 39, b / 39, atol=1e-5), whole, parts)
    assert part_metrics["targets"].sum == 39
    if microbatches == 2:  # with four, the empty microbatch is skipped and adds neither tokens nor slots
        np.testing.assert_allclose(part_metrics["padding"].value, 1 - 54 / 128, rtol=1e-6)


def test_microbatches_equal_one_big_batch_in_pairs(gqa: Loaded) -> None:
    """DPO: two pairs in one row, one in another, none in the last two."""
    a, b, c, d, e, f = random_segments([9, 12, 7, 8, 15, 6])
    rows = packed_rows([[a, b, c, d], [e, f], [], []], 40)
    reference = jnp.asarray(np.random.default_rng(0).normal(-30, 5, (4, 4)), jnp.float32)
    present = jnp.array([[True, True], [True, False], [False, False], [False, False]])
    batch = PairBatch(rows, reference, present)
    objective = make_objective(dpo_loss, gqa.model.definition, DpoOptions(), segments=4, chunk=16)
    whole, metrics = accumulate(objective, gqa.parameters, split(batch, 1), gqa.model.shardings)
    parts, part_metrics = accumulate(objective, gqa.parameters, split(batch, 4), gqa.model.shardings)
    assert metrics["loss"].weight == part_metrics["loss"].weight == 3
    for name in metrics:
        if name not in ("padding", "targets"):
            np.testing.assert_allclose(metrics[name].value, part_metrics[name].value, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5), whole, parts)


def test_bfloat16_gradients_lose_nothing_but_storage(golden: Path) -> None:
    """Same loss to the last bit; gradients differ from float32 ones by bfloat16's rounding; sums over microbatches and
    norms' gradients are float32."""
    loaded = load(golden / "models" / "gqa", dtype="bfloat16")
    objective = make_objective(sft_loss, loaded.model.definition, None, segments=2, chunk=16)
    batch = uneven_rows()

    def gradient(dtype: str, microbatches: int):
        return accumulate(objective, loaded.parameters, split(batch, microbatches), loaded.model.shardings, dtype)

    wide, metrics = gradient("float32", 1)
    narrow, narrow_metrics = gradient("bfloat16", 1)
    assert metrics["loss"].sum == narrow_metrics["loss"].sum
    assert jax.tree.structure(narrow) == jax.tree.structure(loaded.parameters)
    assert {leaf.dtype for leaf in jax.tree.leaves(wide)} == {jnp.dtype("float32")}
    assert narrow["embedding"].dtype == narrow["decoder"]["attention"]["query"].dtype == jnp.bfloat16
    assert narrow["norm"].dtype == narrow["decoder"]["attention"]["norm"].dtype == jnp.float32
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b.astype(jnp.float32), rtol=2**-8, atol=1e-6), wide, narrow)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient("bfloat16", 2)[0])} == {jnp.dtype("float32")}


def test_one_step_moves_state_and_gives_buffers_away(gqa: Loaded) -> None:
    """The logged learning rate is that of the step; the old state's arrays are donated."""
    options = OptimizerOptions(learning_rate=1e-2, warmup_ratio=0.5)
    optimizer = make_optimizer(options, 4)
    shardings = state_shardings(gqa.model.parameters, gqa.model.shardings, optimizer, gqa.rules)
    copy = jax.tree.map(jnp.array, gqa.parameters)
    state = initial_state(copy, optimizer, shardings)
    step = make_step(
        make_objective(sft_loss, gqa.model.definition, None, segments=2, chunk=16),
        optimizer,
        learning_rate(options, 4),
        shardings,
        AnomalyOptions(),
    )
    rates = []
    for expected in (1, 2):
        before = state
        state, metrics, _ = step(state, split(uneven_rows(), 1), NO_LIMITS)
        assert int(state.step) == expected
        assert before.trainable["embedding"].is_deleted()
        rates.append(float(metrics["learning_rate"].value))
        assert float(metrics["grad_norm"].value) > 0
    assert rates == [0.0, pytest.approx(5e-3)]


@pytest.mark.parametrize("pairs", [False, True])
def test_a_step_of_seven_billion_weights_can_be_traced(pairs: bool) -> None:
    """Mistral-7B's sizes, abstractly: counts of more than 32 bits, shapes and dtypes hold together; nothing is computed."""
    rules = ShardingRules(make_mesh(MeshOptions(fsdp=4, tensor=2), jax.devices()))
    model = abstract_of(MISTRAL_7B, ModelOptions(path="none"), rules)
    options = OptimizerOptions(grad_dtype="bfloat16", first_moment_dtype="bfloat16")
    optimizer = make_optimizer(options, 100)
    shardings = state_shardings(model.parameters, model.shardings, optimizer, rules)
    method, config = (DPO, DpoConfig()) if pairs else (SFT, SftConfig())
    objective = method.objective(model.definition, config, examples_per_row=2, chunk=256)
    health = PairAnomalyOptions() if pairs else AnomalyOptions()
    step = make_step(objective, optimizer, learning_rate(options, 100), shardings, health, "bfloat16")
    rows = jax.tree.map(lambda leaf: np.zeros((2, 8, 2048), leaf.dtype), empty_rows(8, 2048))
    batch = PairBatch(rows, np.zeros((2, 8, 4), np.float32), np.zeros((2, 8, 2), bool)) if pairs else rows
    state = abstract_state(model.parameters, optimizer, shardings)
    after, metrics, signs = jax.eval_shape(step, state, batch, NO_LIMITS)
    assert sum(leaf.size for leaf in jax.tree.leaves(after.trainable)) > 2**31
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), after) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), state
    )
    assert signs.changed.dtype == metrics["loss"].sum.dtype == jnp.float32


def test_four_conversations_are_learnt_by_heart(golden: Path) -> None:
    """Loss falls to almost nothing: masks, shift, gradients and updates pull together."""
    loaded = load(golden / "models" / "gqa", remat=Remat.NONE)
    options = OptimizerOptions(learning_rate=2e-2, warmup_ratio=0.1, lr_schedule="cosine")
    optimizer = make_optimizer(options, 120)
    shardings = state_shardings(loaded.model.parameters, loaded.model.shardings, optimizer, loaded.rules)
    state = initial_state(loaded.parameters, optimizer, shardings)
    objective = make_objective(sft_loss, loaded.model.definition, None, segments=2, chunk=32)
    step = make_step(objective, optimizer, learning_rate(options, 120), shardings, AnomalyOptions())
    segments = random_segments([14, 16, 15, 13])
    batch = split(packed_rows([segments[:2], segments[2:]], 32), 1)
    for _ in range(120):
        state, metrics, _ = step(state, batch, NO_LIMITS)
    assert float(metrics["loss"].value) < 0.02
