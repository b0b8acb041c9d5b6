"""Weights that a run does not train: its checkpoints leave them out, and loading takes them from the model it started from."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from zephyr_jax.checkpoint.fingerprint import weights_fingerprint
from zephyr_jax.errors import InputError
from zephyr_jax.objective.logprob import Parameters
from zephyr_jax.storage.files import Path

FROZEN = "frozen"
"""Key of a step's progress: names and fingerprint of the weights that it leaves out; missing when it has all weights."""

type IsTrainable = Callable[[str], bool]
"""Name of a weight, such as `decoder.attention.query` -> whether it trains."""


def merge(trainable: Parameters, frozen: Parameters) -> Parameters:
    """The model's weights from both parts, which share no weight; no copies."""
    if _is_empty(frozen):
        return trainable
    if _is_empty(trainable):
        return frozen
    return {name: merge(trainable.get(name, {}), frozen.get(name, {})) for name in sorted({*trainable, *frozen})}


def split(weights: Parameters, is_trainable: IsTrainable, prefix: str = "") -> tuple[Parameters, Parameters]:
    """Trainable and frozen parts of nested dicts: the inverse of `merge`. Empty dicts are left out."""
    trainable: Parameters = {}
    frozen: Parameters = {}
    for name, node in weights.items():
        if isinstance(node, Mapping):
            parts = split(dict(node), is_trainable, f"{prefix}{name}.")
        else:
            parts = (node, {}) if is_trainable(prefix + name) else ({}, node)
        for target, part in zip((trainable, frozen), parts, strict=True):
            if not _is_empty(part):
                target[name] = part
    return trainable, frozen


def select(tree: Any, like: Any) -> Any:
    """The part of `tree` with the structure of the nested dicts `like`."""
    return {name: select(tree[name], node) for name, node in like.items()} if isinstance(like, Mapping) else tree


def frozen_record(frozen: Parameters) -> dict[str, Any]:
    """What a step's progress holds under `FROZEN`."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(frozen)]
    return {"names": [".".join(str(key.key) for key in path) for path in paths], "weights": weights_fingerprint(frozen)}


def check_frozen(saved: Mapping[str, Any], frozen: Parameters, run: Path) -> None:
    """Raise InputError unless these are the frozen weights that the run started with.

    Args:
        saved: Progress of a step of the run.
        frozen: The weights that the step leaves out.
        run: Folder of the run.
    """
    expected, current = saved.get(FROZEN, {"weights": None}), frozen_record(frozen)
    if current != expected:
        raise InputError(
            f"The frozen weights of {run} are those of {saved['config']['model']['path']}: expected weights "
            f"{expected['weights']}, got {current['weights']}. Put the model back that the run started from, or name a copy of "
            f"it (`--model.path COPY --model.adapter {run}`)."
        )


def _is_empty(node: Any) -> bool:
    """Whether a node is a dict without weights; arrays have no truth value."""
    return isinstance(node, Mapping) and not node
