"""Initial values of a new adapter, which leave the outputs of the model as they are."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial, reduce
from typing import Any, Literal
from zlib import crc32

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import NamedSharding

from zephyr_jax.checkpoint.convert import copy_to, merge_layer, replicated, zeros
from zephyr_jax.model.config import ModelConfig
from zephyr_jax.model.families.targets import projections_of
from zephyr_jax.model.lora import LORA_A, LORA_B, LoraSpec
from zephyr_jax.objective.logprob import Parameters
from zephyr_jax.storage.files import Path

_OVERSAMPLING, _ITERATIONS = 8, 4  # of the randomized SVD: the leading singular values are exact to about 1e-3


@dataclass(frozen=True)
class NewAdapter:
    """How to make an adapter."""

    seed: int
    init: Literal["lora", "pissa"] = "lora"
    initial: Path | None = None
    """Folder with the initial adapter, where the run has saved it (PiSSA)."""

    def saved_in(self, folder: Path) -> "NewAdapter":
        """The same of a run that is resumed, with the adapter that it saved in `folder`, if its `init` saves one."""
        return replace(self, initial=folder) if self.init == "pissa" else self


def initial_adapter(seed: int, shapes: Any) -> Parameters:
    """A uniform in +-1/sqrt(number of inputs), as torch's kaiming_uniform_ with a = sqrt(5) in peft; B zero.

    The values depend on the seed and the weights' names and sizes, not on the mesh.

    Args:
        seed: Random seed.
        shapes: Nested dicts of `lora_a` [Y, *inputs, rank] and `lora_b` [Y, rank, *outputs]: shapes with shardings.
    """

    def initial(path: tuple[Any, ...], shape: jax.ShapeDtypeStruct) -> Array:
        if path[-1].key == LORA_B:
            return zeros(shape.shape, jnp.float32, shape.sharding)()
        return _uniform(shape.shape, shape.sharding)(_key(seed, tuple(str(part.key) for part in path)))

    adapter: Parameters = jax.tree_util.tree_map_with_path(initial, shapes)
    return adapter


def _key(seed: int, path: tuple[str, ...]) -> Array:
    return jax.random.fold_in(jax.random.key(seed), crc32(".".join(path).encode()))


@lru_cache
def _uniform(sizes: tuple[int, ...], sharding: NamedSharding) -> Callable[[Array], Array]:
    bound = 1 / math.sqrt(math.prod(sizes[1:-1]))
    draw = partial(jax.random.uniform, shape=sizes, dtype=jnp.float32, minval=-bound, maxval=bound)
    return jax.jit(draw, out_shardings=sharding)


class PissaSplit:
    """PiSSA (arXiv 2404.02948): the adapter takes the largest singular values of a weight, and the base keeps the rest.

    A `LayerChange`: each weight that is loaded becomes its rest, and its adapter is collected.
    """

    def __init__(self, seed: int, spec: LoraSpec, config: ModelConfig):
        self._seed, self._spec = seed, spec
        self._inputs = {tensor.path: tensor.inputs for tensor in projections_of(config).values()}
        self._parts: dict[tuple[str, ...], list[Array]] = {}

    def has(self, path: tuple[str, ...]) -> bool:
        """Whether the weight at `path` has an adapter."""
        return ".".join(path[1:]) in self._spec.targets

    def apply(self, path: tuple[str, ...], layer: int, weight: Array) -> Array:
        """The rest of one layer's weight, float32 [*inputs, *outputs]."""
        everywhere, scale = replicated(weight), self._spec.scale
        key = jax.random.fold_in(_key(self._seed, path), layer)
        split = _split_function(self._inputs[path], self._spec.rank, everywhere)
        lora_a, lora_b = split(copy_to(everywhere, weight), key, scale)
        for name, part in ((LORA_A, lora_a), (LORA_B, lora_b)):
            self._parts.setdefault((*path, name), []).append(part)
        return merge_layer(weight, lora_a, lora_b, -scale, jnp.float32)

    def adapter(self, shapes: Any) -> Parameters:
        """The collected A and B of all layers, placed as `shapes`: nested dicts of shapes with shardings."""
        adapter: Parameters = {}
        for path, parts in self._parts.items():
            shape = reduce(lambda tree, key: tree[key], path, shapes)
            *parents, name = path
            node = reduce(lambda tree, key: tree.setdefault(key, {}), parents, adapter)
            node[name] = jax.jit(lambda *layers: jnp.stack(layers), out_shardings=shape.sharding)(*parts)
        return adapter


@lru_cache
def _split_function(inputs: int, rank: int, everywhere: NamedSharding) -> Callable[..., tuple[Array, Array]]:
    """(weight [*inputs, *outputs], key, scale) -> A [*inputs, rank] and B [rank, *outputs] with scale A B = its rank-r part."""

    def split(weight: Array, key: Array, scale: float) -> tuple[Array, Array]:
        in_sizes, out_sizes = weight.shape[:inputs], weight.shape[inputs:]
        matrix = weight.reshape(math.prod(in_sizes), math.prod(out_sizes))
        # Randomized subspace iteration (arXiv 0909.4061, algorithm 4.4): a full SVD of a 7B model's weights takes hours.
        width = min(rank + _OVERSAMPLING, *matrix.shape)
        basis, _ = jnp.linalg.qr(matrix @ jax.random.normal(key, (matrix.shape[1], width), jnp.float32))
        for _ in range(_ITERATIONS):
            other, _ = jnp.linalg.qr(matrix.T @ basis)
            basis, _ = jnp.linalg.qr(matrix @ other)
        left, singular, right = jnp.linalg.svd(basis.T @ matrix, full_matrices=False)
        root = jnp.sqrt(singular[:rank] / scale)
        lora_a, lora_b = (basis @ left[:, :rank]) * root, root[:, None] * right[:rank]
        return lora_a.reshape(*in_sizes, rank), lora_b.reshape(rank, *out_sizes)

    with_precision = jax.default_matmul_precision("highest")(split)
    return jax.jit(with_precision, out_shardings=everywhere)
