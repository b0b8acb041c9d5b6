"""Rematerialization (activation checkpointing): what each policy of `model.remat` saves of a layer, and what that costs.

The model takes its checkpoint policy from here, `plan` the recomputed operations and `plan --fit` the saved bytes, so that
the three cannot disagree.
"""

from collections.abc import Callable
from typing import Any

import jax

from zephyr_jax.config.sections import Remat
from zephyr_jax.model.attention.dense import ATTENTION
from zephyr_jax.model.config import ModelConfig
from zephyr_jax.model.linear import PROJECTION

INPUT = "input"
"""Checkpoint name of a layer's input."""
_CUDNN_FORWARD = "dot_product_attention_fwd"

_SAVED: dict[Remat, frozenset[str]] = {
    Remat.FULL: frozenset(),
    Remat.FULL_OFFLOAD: frozenset(),
    Remat.SAVE_ATTENTION: frozenset({ATTENTION}),
    Remat.SAVE_DOTS: frozenset({ATTENTION, PROJECTION}),
    Remat.NONE: frozenset({ATTENTION, PROJECTION}),
}
"""Checkpoint names that a policy saves besides the layer's input."""


def checkpointed[**P, T](layer: Callable[P, T], remat: Remat) -> Callable[P, T]:
    """The layer, whose backward pass recomputes what `remat` does not save."""
    return layer if remat == Remat.NONE else jax.checkpoint(layer, policy=_policy(remat))


def _policy(remat: Remat) -> Callable[..., Any]:
    policies = jax.checkpoint_policies
    policy: Callable[..., Any]
    if remat == Remat.FULL_OFFLOAD:
        policy = policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=[INPUT],
            offload_src="device",
            offload_dst="pinned_host",
        )
    elif _SAVED[remat]:
        policy = policies.save_from_both_policies(policies.save_only_these_names(*_SAVED[remat]), _is_cudnn_forward)
    else:
        policy = policies.nothing_saveable
    return policy


def _is_cudnn_forward(primitive: Any, *_: Any, **__: Any) -> bool:
    # A name on cuDNN's output does not spare its forward kernel: the softmax statistics are a second output, which JAX's
    # rule leaves without a name, and the kernel would run again for them. Saving by primitive saves both outputs.
    return str(primitive.name).startswith(_CUDNN_FORWARD)


def recomputed_flops(config: ModelConfig, remat: Remat, keys_seen: float) -> float:
    """Matmul FLOPs per token that the backward pass repeats, over all layers.

    Args:
        config: Sizes of the model.
        remat: The policy.
        keys_seen: Number of keys that a query attends to, on average.
    """
    # The down projection is never repeated: its product is the next layer's input or the model's output, and no gradient
    # reads it.
    projections = (
        config.d_model * config.head_dim * 2 * (config.num_heads + config.num_kv_heads)
        + 2 * config.d_model * config.d_ff
    )
    attention = 2 * config.num_heads * config.head_dim * keys_seen
    repeated = (0 if PROJECTION in _SAVED[remat] else projections) + (0 if ATTENTION in _SAVED[remat] else attention)
    return 2 * config.num_layers * repeated


def saved_bytes(config: ModelConfig, remat: Remat, itemsize: int, tensor: int = 1) -> float:
    """Bytes of HBM per token, layer and chip that are saved between forward and backward pass.

    Args:
        config: Sizes of the model.
        remat: The policy. For `none` a lower bound: elementwise results are not counted.
        itemsize: Bytes of a number in the compute dtype.
        tensor: Size of the mesh's `tensor` axis, which shards heads and feed-forward, not hidden states.
    """
    replicated = 0 if remat == Remat.FULL_OFFLOAD else config.d_model
    sharded, statistics = 0, 0
    if ATTENTION in _SAVED[remat]:
        sharded += config.num_heads * config.head_dim
        statistics += 4 * config.num_heads  # float32 logsumexp per head
    if PROJECTION in _SAVED[remat]:
        replicated += config.d_model
        sharded += (config.num_heads + 2 * config.num_kv_heads) * config.head_dim + 2 * config.d_ff
    return itemsize * (replicated + sharded / tensor) + statistics / tensor
