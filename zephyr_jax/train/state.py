"""What a step changes: weights, optimizer state and the step number. Abstract first, then placed."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from zephyr_jax.objective.logprob import Parameters
from zephyr_jax.parallel.sharding import ShardingRules


class TrainState(NamedTuple):
    """A pytree of global arrays (or of their shapes, or shardings, in the same places)."""

    step: Any
    """int32 scalar: steps done."""
    parameters: Parameters
    """float32 weights."""
    optimizer: Any
    """optax state."""


def state_shardings(
    parameters: Any,
    shardings: Any,
    optimizer: optax.GradientTransformation,
    rules: ShardingRules,
    offload_moments: bool = False,
) -> TrainState:
    """Shardings of a TrainState: moments live where their weights do, or beside in the host's memory; the rest everywhere."""
    everywhere = NamedSharding(rules.mesh, PartitionSpec())
    moments = optax.tree.map_params(
        optimizer,
        lambda _, sharding: sharding.with_memory_kind("pinned_host") if offload_moments else sharding,
        jax.eval_shape(optimizer.init, parameters),
        shardings,
        transform_non_params=lambda _: everywhere,
    )
    return TrainState(everywhere, shardings, moments)


def abstract_state(parameters: Any, optimizer: optax.GradientTransformation, shardings: TrainState) -> TrainState:
    """Shapes, dtypes and shardings of a TrainState; nothing is computed."""
    shapes = TrainState(jax.ShapeDtypeStruct((), jnp.int32), parameters, jax.eval_shape(optimizer.init, parameters))
    return jax.tree.map(lambda leaf, to: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=to), shapes, shardings)


def initial_state(parameters: Parameters, optimizer: optax.GradientTransformation, shardings: TrainState) -> TrainState:
    """Step 0 around loaded weights; the optimizer state is made where it will live."""
    init = jax.jit(optimizer.init, out_shardings=shardings.optimizer)
    return TrainState(jax.device_put(jnp.int32(0), shardings.step), parameters, init(parameters))
