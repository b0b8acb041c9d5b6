"""Moments that live in the host's memory: brought to the device, used and taken back one weight at a time."""

from collections.abc import Callable
from typing import Any

import jax
import optax

_HOST, _DEVICE = jax.memory.Space.Host, jax.memory.Space.Device


def on_host(inner: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """`inner`, whose moments are in the host's memory between updates; the same numbers.

    `inner` must treat each weight by itself (clipping by the global norm comes before). The moments of a weight wait for
    the update before: left to itself, the compiler would bring all of them at once, and nothing would be saved.
    """

    def update(gradients: Any, state: Any, parameters: Any = None, **more: Any) -> tuple[Any, Any]:
        leaves, tree = _flat(gradients)
        updates: list[Any] = []
        states: list[Any] = []
        for index, (gradient, weight) in enumerate(zip(leaves, tree.flatten_up_to(parameters), strict=True)):
            far = _of_one(tree, state, index)
            if states:
                far, states[-1] = jax.lax.optimization_barrier((far, states[-1]))
            [new], left = inner.update([gradient], _moved(far, _DEVICE), [weight], **more)
            updates.append(new)
            states.append(_moved(left, _HOST))
        return tree.unflatten(updates), _of_all(tree, state, states)

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _moments(tree: Any, state: Any) -> tuple[list[Any], Any]:
    """The state's parts, where each that has the parameters' structure counts as one part."""
    return _flat(state, lambda node: jax.tree.structure(node) == tree)


def _flat(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> tuple[list[Any], Any]:
    return jax.tree.flatten(tree, is_leaf=is_leaf)


def _of_one(tree: Any, state: Any, index: int) -> Any:
    parts, structure = _moments(tree, state)
    return structure.unflatten(
        [[jax.tree.leaves(part)[index]] if jax.tree.structure(part) == tree else part for part in parts]
    )


def _of_all(tree: Any, state: Any, states: list[Any]) -> Any:
    parts, structure = _moments(tree, state)
    each = [structure.flatten_up_to(one) for one in states]
    joined = [
        tree.unflatten([one[place][0] for one in each]) if jax.tree.structure(part) == tree else each[-1][place]
        for place, part in enumerate(parts)
    ]
    return structure.unflatten(joined)


def _moved(state: Any, to: Any) -> Any:
    """Moments to a memory; scalars, such as the count of steps, stay."""
    return jax.tree.map(lambda leaf: jax.device_put(leaf, to) if leaf.ndim else leaf, state)
