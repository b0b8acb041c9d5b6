"""The train state: trainable and frozen weights, optimizer state and step number."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from zephyr_jax.checkpoint.frozen import IsTrainable, merge, select, split
from zephyr_jax.objective.logprob import Parameters
from zephyr_jax.parallel.sharding import ShardingRules


class TrainState(NamedTuple):
    """A pytree of global arrays; or of their shapes, or shardings, in the same positions.

    The step differentiates, updates and saves `trainable` only. `merge(trainable, frozen)` are the model's weights. When all
    weights train, `frozen` is empty and the compiled step is the same as without it.
    """

    step: Any
    """int32 scalar: number of completed steps."""
    trainable: Parameters
    """float32 weights, as nested dicts."""
    frozen: Parameters
    """Weights that keep the values they were loaded with, as nested dicts."""
    optimizer_state: Any
    """optax state of `trainable`."""

    @property
    def weights(self) -> Parameters:
        """All weights of the model; no copies."""
        return merge(self.trainable, self.frozen)


def state_shardings(
    parameters: Parameters,
    shardings: Parameters,
    optimizer: optax.GradientTransformation,
    rules: ShardingRules,
    offload_moments: bool = False,
    is_trainable: IsTrainable = lambda _: True,
) -> TrainState:
    """Shardings of a TrainState: moments are sharded like their weights, scalars are replicated.

    Args:
        parameters: Shapes of all weights.
        shardings: Their shardings, in the same structure.
        optimizer: Decides which moments exist.
        rules: Of the mesh.
        offload_moments: Keep moments in pinned host memory.
        is_trainable: Which weights train.
    """
    replicated = NamedSharding(rules.mesh, PartitionSpec())
    trainable, frozen = split(shardings, is_trainable)
    moments = optax.tree.map_params(
        optimizer,
        lambda _, sharding: sharding.with_memory_kind("pinned_host") if offload_moments else sharding,
        jax.eval_shape(optimizer.init, split(parameters, is_trainable)[0]),
        trainable,
        transform_non_params=lambda _: replicated,
    )
    return TrainState(step=replicated, trainable=trainable, frozen=frozen, optimizer_state=moments)


def abstract_state(
    parameters: Parameters, optimizer: optax.GradientTransformation, shardings: TrainState
) -> TrainState:
    """Shapes, dtypes and shardings of a TrainState; nothing is computed."""
    trainable = select(parameters, shardings.trainable)
    shapes = TrainState(
        step=jax.ShapeDtypeStruct((), jnp.int32),
        trainable=trainable,
        frozen=select(parameters, shardings.frozen),
        optimizer_state=jax.eval_shape(optimizer.init, trainable),
    )
    result: TrainState = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings
    )
    return result


def initial_state(parameters: Parameters, optimizer: optax.GradientTransformation, shardings: TrainState) -> TrainState:
    """Step 0 with loaded weights, which are not copied; the optimizer state is created with its shardings."""
    trainable = select(parameters, shardings.trainable)
    init = jax.jit(optimizer.init, out_shardings=shardings.optimizer_state)
    return TrainState(
        step=jax.device_put(jnp.int32(0), shardings.step),
        trainable=trainable,
        frozen=frozen_weights(parameters, shardings),
        optimizer_state=init(trainable),
    )


def frozen_weights(parameters: Parameters, shardings: TrainState) -> Parameters:
    """The frozen part of loaded weights."""
    frozen: Parameters = select(parameters, shardings.frozen)
    return frozen
