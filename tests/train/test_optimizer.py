"""Update rule and schedule equal PyTorch's and Hugging Face's, step by step."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zephyr_jax.config.sections import MeshOptions
from zephyr_jax.config.training_sections import OptimizerOptions
from zephyr_jax.parallel.mesh import make_mesh
from zephyr_jax.parallel.sharding import ShardingRules
from zephyr_jax.train.optimizer import learning_rate, make_optimizer
from zephyr_jax.train.state import initial_state, state_shardings


@pytest.mark.parametrize(
    ("schedule", "total", "peak"),
    [("cosine", 50, 2e-5), ("linear", 50, 2e-5), ("cosine", 37, 5e-7), ("linear", 37, 5e-7)],
)
def test_schedules_equal_hugging_face(golden: Path, schedule: str, total: int, peak: float) -> None:
    """Every step; step 0 has rate 0, and the warm-up is rounded up."""
    expected = np.load(golden / "schedule.npz")[f"{schedule}_{total}"]
    rate = learning_rate(OptimizerOptions(learning_rate=peak, lr_schedule=schedule), total)
    found = np.array([rate(step) for step in range(total)])
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=peak * 1e-6)
    assert found[0] == 0


def test_constant_schedule_without_warm_up_is_constant() -> None:
    rate = learning_rate(OptimizerOptions(learning_rate=1e-3, lr_schedule="constant", warmup_ratio=0), 5)
    np.testing.assert_allclose([rate(step) for step in range(5)], 1e-3)


@pytest.mark.parametrize("name", ["adamw", "rmsprop"])
def test_trajectories_equal_torch(golden: Path, name: str) -> None:
    """Eight steps with gradients above and below the clipping norm."""
    numbers = np.load(golden / "optimizer.npz")
    decay = 0.1 if name == "adamw" else 0.0
    options = OptimizerOptions(
        name=name, learning_rate=1e-2, lr_schedule="constant", warmup_ratio=0, weight_decay=decay, max_grad_norm=1.0
    )
    optimizer = make_optimizer(options, 8)
    parameters = jnp.asarray(numbers["start"], jnp.float32)
    state = optimizer.init(parameters)
    for gradient, expected in zip(numbers["grads"], numbers[name], strict=True):
        updates, state = optimizer.update(jnp.asarray(gradient, jnp.float32), state, parameters)
        parameters = optax.apply_updates(parameters, updates)
        np.testing.assert_allclose(parameters, expected, atol=2e-6)


def test_moments_are_kept_in_the_dtypes_asked_for(golden: Path) -> None:
    """bfloat16 moments take half the bytes, and the path stays near float32's."""
    numbers = np.load(golden / "optimizer.npz")
    paths = {}
    for dtype in ("float32", "bfloat16"):
        options = OptimizerOptions(
            learning_rate=1e-2,
            lr_schedule="constant",
            warmup_ratio=0,
            first_moment_dtype=dtype,
            second_moment_dtype=dtype,
        )
        optimizer = make_optimizer(options, 8)
        parameters = jnp.asarray(numbers["start"], jnp.float32)
        state = optimizer.init(parameters)
        kinds = {leaf.dtype.name for leaf in jax.tree.leaves(state) if leaf.ndim}
        assert kinds == {dtype}
        for gradient in numbers["grads"]:
            updates, state = optimizer.update(jnp.asarray(gradient, jnp.float32), state, parameters)
            parameters = optax.apply_updates(parameters, updates)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(state) if leaf.ndim} == {dtype}
        paths[dtype] = parameters
    np.testing.assert_allclose(paths["bfloat16"], paths["float32"], atol=5e-3)
    assert np.abs(paths["bfloat16"] - paths["float32"]).max() > 0


def test_moments_on_the_host_give_the_same_path_and_stay_there() -> None:
    """AdamW with decay and clipping over a tree of sharded weights: equal but for how sums are fused, and in pinned memory."""
    rules = ShardingRules(make_mesh(MeshOptions(fsdp=4), jax.devices()[:4]))
    shape = {"a": (8, 4), "b": {"c": (4,), "d": (4, 8)}}
    axes = {"a": ("embed", None), "b": {"c": (None,), "d": ("embed", None)}}
    shardings = jax.tree.map(lambda each: rules.sharding(*each), axes, is_leaf=lambda each: isinstance(each, tuple))
    generator = np.random.default_rng(0)

    def draw(scale: float) -> Any:
        return jax.tree.map(
            lambda sizes, to: jax.device_put(scale * generator.normal(size=sizes).astype(np.float32), to),
            shape, shardings, is_leaf=lambda each: isinstance(each, tuple),
        )  # fmt: skip

    start, gradients = draw(1.0), [draw(scale) for scale in (0.01, 3.0, 0.3)]
    paths = {}
    for on_host in (False, True):
        options = OptimizerOptions(learning_rate=1e-2, weight_decay=0.1, offload_moments=on_host)
        optimizer = make_optimizer(options, 8)
        placed = state_shardings(start, shardings, optimizer, rules, on_host)
        state, parameters = initial_state(start, optimizer, placed).optimizer_state, start
        for gradient in gradients:
            updates, state = jax.jit(optimizer.update, out_shardings=(None, placed.optimizer_state))(
                gradient, state, parameters
            )
            parameters = optax.apply_updates(parameters, updates)
        kinds = {leaf.sharding.memory_kind for leaf in jax.tree.leaves(state) if leaf.ndim}
        assert kinds == {"pinned_host" if on_host else "device"}
        paths[on_host] = parameters
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), paths[False], paths[True])
