"""Optimizer moments in pinned host memory: transferred to the device, updated and transferred back one weight at a time."""

from collections.abc import Callable
from typing import Any

import jax
import optax

_HOST, _DEVICE = jax.memory.Space.Host, jax.memory.Space.Device


def offload_moments(inner: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """`inner` with its moments in host memory between updates; the results are bit-identical.

    `inner` must treat each weight separately, so clipping by the global norm comes before.
    """

    def update(grads: Any, state: Any, parameters: Any = None, **extra: Any) -> tuple[Any, Any]:
        leaves, tree = _flatten(grads)
        updates: list[Any] = []
        states: list[Any] = []
        for index, (grad, weight) in enumerate(zip(leaves, tree.flatten_up_to(parameters), strict=True)):
            host_state = _state_of_weight(tree, state, index)
            if states:
                # The barrier makes the transfer of these moments depend on the previous weight's update. Without it, the
                # compiler starts all transfers at once, all moments are on the device together, and nothing is saved.
                host_state, states[-1] = jax.lax.optimization_barrier((host_state, states[-1]))
            [new], new_state = inner.update([grad], _transfer(host_state, _DEVICE), [weight], **extra)
            updates.append(new)
            states.append(_transfer(new_state, _HOST))
        return tree.unflatten(updates), _join_states(tree, state, states)

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _moments(tree: Any, state: Any) -> tuple[list[Any], Any]:
    """The state's parts, where each with the structure of the parameters counts as one part."""
    return _flatten(state, lambda node: jax.tree.structure(node) == tree)


def _flatten(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> tuple[list[Any], Any]:
    return jax.tree.flatten(tree, is_leaf=is_leaf)


def _state_of_weight(tree: Any, state: Any, index: int) -> Any:
    parts, structure = _moments(tree, state)
    return structure.unflatten(
        [[jax.tree.leaves(part)[index]] if jax.tree.structure(part) == tree else part for part in parts]
    )


def _join_states(tree: Any, state: Any, states: list[Any]) -> Any:
    parts, structure = _moments(tree, state)
    by_weight = [structure.flatten_up_to(weight_state) for weight_state in states]
    joined = [
        tree.unflatten([weight_parts[index][0] for weight_parts in by_weight])
        if jax.tree.structure(part) == tree
        else by_weight[-1][index]
        for index, part in enumerate(parts)
    ]
    return structure.unflatten(joined)


def _transfer(state: Any, memory: Any) -> Any:
    """Moments to a memory space; scalars, such as the step count, stay on the device."""
    return jax.tree.map(lambda leaf: jax.device_put(leaf, memory) if leaf.ndim else leaf, state)
