"""Sharding rules: the only table from logical axes, which the model names, to mesh axes."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import jax
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from zephyr_jax.batch import Axes
from zephyr_jax.config.sections import ROW_MULTIPLE, MeshOptions
from zephyr_jax.errors import InputError
from zephyr_jax.parallel.compile_cache import enable_compile_cache
from zephyr_jax.parallel.devices import describe_devices, start_devices
from zephyr_jax.parallel.hosts import join_cluster, require_joined
from zephyr_jax.parallel.mesh import emulate_devices, make_mesh

logger = logging.getLogger(__name__)

RULES: dict[str, tuple[str, ...]] = {
    # activations
    "microbatch": (),
    "batch": ("data", "fsdp"),
    "length": ("context",),
    "model": (),
    # embedding lookup and loss: devices that share one copy of the weights work on each other's tokens
    "tokens": ("data", "fsdp", "context"),
    "copy": ("data",),
    "embed_of_part": ("fsdp",),
    "split_vocab": ("fsdp", "context", "tensor"),
    # weights
    "layers": (),
    "norm": (),
    "head_dim": (),
    "rank": (),
    "embed": ("fsdp", "context"),
    "embed_of_undivided_vocab": ("fsdp", "context", "tensor"),
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
}
"""Mesh axes by logical axis; none: not sharded. An axis that a mesh lacks (`context`) splits nothing."""


@dataclass(frozen=True)
class ShardingRules:
    """The table applied to one mesh. Hashable, so that it can be a static argument of a jitted function."""

    mesh: Mesh

    def sharding(self, *axes: str | None) -> NamedSharding:
        """Sharding of an array with these logical axes, one per dimension (None: replicated).

        Raises InputError for an axis that the table lacks.
        """
        unknown = [axis for axis in axes if axis is not None and axis not in RULES]
        if unknown:
            raise InputError(f"expected logical axes of the table in {__name__}, got {unknown}. Add them to the table.")
        names = [self._mesh_axes(axis) if axis else () for axis in axes]
        return NamedSharding(self.mesh, PartitionSpec(*(_spec(mesh_axes) for mesh_axes in names)))

    def constrain(self, x: Array, *axes: str | None) -> Array:
        """Constrain the sharding of an array inside a jitted function."""
        result: Array = jax.lax.with_sharding_constraint(x, self.sharding(*axes))
        return result

    def shard_map(self, function: Callable[..., Array], inputs: tuple[Axes, ...], output: Axes) -> Callable[..., Array]:
        """`jax.shard_map` with logical axes: each device runs `function` on its own shards of the arguments.

        Args:
            function: Takes and returns arrays; may use collectives over the mesh axes.
            inputs: Logical axes of each argument.
            output: Logical axes of the result.
        """
        specs = tuple(self.sharding(*axes).spec for axes in inputs)
        return jax.shard_map(
            function, mesh=self.mesh, in_specs=specs, out_specs=self.sharding(*output).spec, check_vma=False
        )

    def stored_axes(self, axes: Axes, sizes: tuple[int, ...]) -> Axes:
        """Logical axes along which a weight of these sizes is stored.

        They are its own axes, unless the mesh does not divide its vocabulary. Stored arrays must divide evenly, so such a weight
        replicates its vocabulary and splits its `embed` dimension over the mesh axes of both, where that divides. Jitted
        functions still compute with the vocabulary split: the compiler pads it to the next multiple and masks the padding
        (`constrain` accepts uneven sizes), so no stored array has padded rows.

        Args:
            axes: Logical axes of the weight, one per dimension.
            sizes: Its shape.
        """
        if "vocab" not in axes or sizes[axes.index("vocab")] % self.num_shards("vocab") == 0:
            return axes
        spread = sizes[axes.index("embed")] % self.num_shards("embed_of_undivided_vocab") == 0
        stored = {"vocab": None, "embed": "embed_of_undivided_vocab" if spread else "embed"}
        return tuple(stored.get(axis, axis) if axis else axis for axis in axes)

    def num_shards(self, axis: str) -> int:
        """Number of shards that a logical axis is split into."""
        return math.prod(self.mesh.shape[name] for name in self._mesh_axes(axis))

    def gather(self, x: Array, axis: str, dimension: int) -> Array:
        """The shards of `x` of all devices along a logical axis, concatenated; only inside a `shard_map`."""
        result: Array = jax.lax.all_gather(x, self._mesh_axes(axis), axis=dimension, tiled=True)
        return result

    def shard_index(self, axis: str) -> Array:
        """int32 []: index of this device's shard along a logical axis; only inside a `shard_map`."""
        return jax.lax.axis_index(self._mesh_axes(axis))

    def _mesh_axes(self, axis: str) -> tuple[str, ...]:
        return tuple(name for name in RULES[axis] if name in self.mesh.shape)

    def check_divides(self, axis: str, size: int, name: str) -> None:
        """Raise InputError unless the mesh splits `axis` of this size evenly; `name` is the setting or weight."""
        shards = self.num_shards(axis)
        if size % shards:
            raise InputError(
                f"{name}: expected a multiple of {shards}, got {size}: the mesh "
                f"({' x '.join(f'{axis} {count}' for axis, count in self.mesh.shape.items())}) splits `{axis}` into {shards} "
                "shards. Change it or the mesh."
            )

    def check_unsplit_rows(self) -> None:
        """Raise InputError if the mesh splits rows, which generation cannot."""
        if self.num_shards("length") > 1:
            raise InputError(
                f"mesh.context: expected 1, got {self.num_shards('length')}: generation works token by token and splits no rows. "
                "Use mesh.data or mesh.tensor."
            )

    @property
    def row_multiple(self) -> int:
        """What the length of a row must be a multiple of; 1 unless the mesh splits rows."""
        shards = self.num_shards("length")
        return 1 if shards == 1 else 2 * ROW_MULTIPLE * shards

    def check_row_length(self, length: int) -> None:
        """Raise InputError unless the mesh splits rows of this length into pieces of whole attention blocks."""
        multiple = self.row_multiple
        if length % multiple:
            raise InputError(
                f"data.row_length: expected a multiple of {multiple} ({2 * ROW_MULTIPLE} for each of the "
                f"{self.num_shards('length')} parts of mesh.context), got {length}. Change it or mesh.context."
            )


def _spec(names: tuple[str, ...]) -> str | tuple[str, ...] | None:
    return names if len(names) > 1 else names[0] if names else None


def init_devices(options: MeshOptions, *, local: bool = False) -> ShardingRules:
    """Start everything that needs devices, once per command, and return the sharding rules over the resulting mesh.

    In this order, because each step must precede the first use of a device: emulate CPU devices if asked, enable the compile
    cache, join the cluster, start the devices, make the mesh. Logs the devices.

    Args:
        options: Sizes of the mesh.
        local: Make the mesh over this process's devices only, for processes that compute independently of each other.

    Raises:
        InputError: The devices do not start, or the sizes do not fit their number.
    """
    emulate_devices(options.emulated_devices)
    enable_compile_cache()
    join_cluster()
    devices = start_devices()
    require_joined(devices)
    if jax.process_index() == 0:
        _log_devices(describe_devices(devices))
    return ShardingRules(make_mesh(options, jax.local_devices() if local else devices))


@cache
def _log_devices(devices: str) -> None:
    """Cached: a command that makes several meshes logs the devices once."""
    logger.info("devices: %s", devices)


class StoredArray(Protocol):
    """What a sharding is made from; `model.weight_format.StoredWeight` is one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the dimensions."""

    @property
    def axes(self) -> Axes:
        """Their logical axes."""


def parameter_shardings(weights: Any, rules: ShardingRules) -> Any:
    """Shardings of parameters, in the same nested dicts.

    Args:
        weights: Nested dicts of `StoredArray`s.
        rules: Of the mesh.

    Raises:
        InputError: A dimension other than the vocabulary does not divide by its mesh axis.
    """

    def weight_sharding(path: tuple[Any, ...], weight: StoredArray) -> NamedSharding:
        axes = rules.stored_axes(weight.axes, weight.shape)
        name = ".".join(str(getattr(key, "key", key)) for key in path)
        for axis, size in zip(axes, weight.shape, strict=True):
            if axis is not None:
                rules.check_divides(axis, size, f"axis `{axis}` of weight {name}")
        return rules.sharding(*axes)

    shardings: Any = jax.tree_util.tree_map_with_path(weight_sharding, weights)
    return shardings
