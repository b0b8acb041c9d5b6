"""The projections that an adapter can be attached to: Hugging Face's module names and the parameters that they stand for."""

from collections.abc import Iterable
from fnmatch import fnmatchcase

from zephyr_jax.errors import InputError, join_items, truncate_repr
from zephyr_jax.model.config import ModelConfig
from zephyr_jax.model.families.registry import tensors_of
from zephyr_jax.model.families.tensors import HfTensor

_STACK = "decoder"
_UNSUPPORTED = ("embed_tokens", "lm_head")


def projections_of(config: ModelConfig) -> dict[str, HfTensor]:
    """The projections of all layers, in the model's order: dotted name below `decoder` (`attention.query`) -> tensor."""
    return {
        ".".join(tensor.path[1:]): tensor
        for tensor in tensors_of(config)
        if tensor.path[0] == _STACK and tensor.stacked and tensor.inputs
    }


def module_name(tensor: HfTensor) -> str:
    """Name of a projection's module inside a layer, such as `self_attn.q_proj`."""
    return tensor.module.partition("{}.")[2]


def target_names(targets: Iterable[str], config: ModelConfig) -> str:
    """Projections, of dotted parameter names, as `adapter.targets` takes them, for messages: `q_proj, v_proj`."""
    projections = projections_of(config)
    return join_items(module_name(projections[target]).rpartition(".")[2] for target in targets)


def resolve_targets(patterns: tuple[str, ...], config: ModelConfig) -> tuple[str, ...]:
    """The projections that an adapter's `targets` select.

    Args:
        patterns: Globs over Hugging Face's module names, each with or without its parent: `q_proj`, `self_attn.q_proj`, `*_proj`.
            A fused module (`qkv_proj`) stands for all of its projections.
        config: The model's configuration.

    Returns:
        Dotted parameter names below `decoder`, such as `attention.query`, in the model's order.

    Raises:
        InputError: A pattern matches no projection; lists those of the model.
    """
    projections = projections_of(config)
    modules = {name: module_name(tensor) for name, tensor in projections.items()}
    fused = {name: tensor.name.partition("{}.")[2].removesuffix(".weight") for name, tensor in projections.items()}
    available = join_items(dict.fromkeys(module.rpartition(".")[2] for module in modules.values()))
    if not patterns:
        raise InputError(f"Invalid targets of the adapter: expected globs over {available}, got an empty list.")
    selected: set[str] = set()
    for pattern in patterns:
        matches = {name for name in modules if _matches(pattern, modules[name]) or _matches(pattern, fused[name])}
        if not matches:
            embeddings = [name for name in _UNSUPPORTED if _matches(pattern, f"model.{name}")]
            reason = f" Adapters of {join_items(embeddings)} are not supported." if embeddings else ""
            raise InputError(
                f"Invalid target {truncate_repr(pattern)} of the adapter: expected a glob that matches one of {available}, got "
                f"one that matches none of them.{reason} Remove it or correct it."
            )
        selected |= matches
    return tuple(name for name in modules if name in selected)


def _matches(pattern: str, module: str) -> bool:
    return fnmatchcase(module, pattern) or fnmatchcase(module.rpartition(".")[2], pattern)
