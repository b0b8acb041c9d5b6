"""THE table from logical axes, which the model names, to mesh axes; nothing else decides where an array lives."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
from flax import nnx
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from zephyr_jax.config.sections import MeshOptions
from zephyr_jax.errors import InputError
from zephyr_jax.parallel.compile_cache import keep_programs
from zephyr_jax.parallel.devices import describe_devices, start_devices
from zephyr_jax.parallel.hosts import join_hosts, require_joined
from zephyr_jax.parallel.mesh import emulate_devices, make_mesh

type Axes = tuple[str | None, ...]

RULES: dict[str, str | tuple[str, ...] | None] = {
    # activations
    "microbatch": None,
    "batch": ("data", "fsdp"),
    "length": None,
    "model": None,
    # look-up and loss, where devices that share one copy of the weights work on each other's rows
    "copy": "data",
    "split_vocab": ("fsdp", "tensor"),
    # weights
    "layers": None,
    "norm": None,
    "head_dim": None,
    "embed": "fsdp",
    "embed_of_undivided_vocab": ("fsdp", "tensor"),
    "vocab": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
}


@dataclass(frozen=True)
class Rules:
    """The table applied to one mesh. Hashable, so that it can be part of a jitted function's static arguments."""

    mesh: Mesh

    def sharding(self, *axes: str | None) -> NamedSharding:
        """Sharding of an array whose dimensions carry these logical axes (None: not split).

        Raises InputError for an axis that the table lacks.
        """
        unknown = [axis for axis in axes if axis is not None and axis not in RULES]
        if unknown:
            raise InputError(f"Logical axes {unknown} are not in the table of zephyr_jax/parallel/rules.py; add them.")
        return NamedSharding(self.mesh, PartitionSpec(*(RULES[axis] if axis else None for axis in axes)))

    def constrain(self, x: Array, *axes: str | None) -> Array:
        """Pin an array inside a jitted function to its logical axes."""
        return jax.lax.with_sharding_constraint(x, self.sharding(*axes))

    def per_device(
        self, function: Callable[..., Array], inputs: tuple[Axes, ...], output: Axes
    ) -> Callable[..., Array]:
        """The function mapped over the mesh: each device runs it on its own part of the arguments."""
        specs = tuple(self.sharding(*axes).spec for axes in inputs)
        return jax.shard_map(
            function, mesh=self.mesh, in_specs=specs, out_specs=self.sharding(*output).spec, check_vma=False
        )

    def weight_axes(self, axes: tuple[str | None, ...], sizes: tuple[int, ...]) -> Axes:
        """Logical axes along which a weight of these sizes is stored.

        They are its own, unless it has a vocabulary that the mesh does not divide. Stored arrays must divide evenly, so such
        a weight keeps its vocabulary whole and splits its `embed` dimension over the mesh axes of both, where that divides.
        Programs still compute with the vocabulary split: the compiler pads it to the next multiple and masks the padding
        (`constrain` takes uneven sizes), so no array outside of a program holds a padded row.

        Args:
            axes: logical axes of the weight, one a dimension.
            sizes: its sizes, as many.
        """
        if "vocab" not in axes or sizes[axes.index("vocab")] % self.parts("vocab") == 0:
            return axes
        spread = sizes[axes.index("embed")] % self.parts("embed_of_undivided_vocab") == 0
        stored = {"vocab": None, "embed": "embed_of_undivided_vocab" if spread else "embed"}
        return tuple(stored.get(axis, axis) if axis else axis for axis in axes)

    def parts(self, axis: str) -> int:
        """Number of parts that a logical axis is split into."""
        mesh_axes = RULES[axis] or ()
        names = (mesh_axes,) if isinstance(mesh_axes, str) else mesh_axes
        size = 1
        for name in names:
            size *= self.mesh.shape[name]
        return size

    def check_divides(self, axis: str, number: int, what: str) -> None:
        """Raise InputError unless `number` divides into the parts of `axis`."""
        parts = self.parts(axis)
        if number % parts:
            raise InputError(
                f"{what} is {number}, and the mesh splits `{axis}` into {parts} parts "
                f"({' x '.join(f'{name} {size}' for name, size in self.mesh.shape.items())}). "
                f"Choose a multiple of {parts} or another mesh."
            )


def open_rules(options: MeshOptions) -> Rules:
    """Emulate devices where asked, join the other hosts, start the devices, and apply the table to the mesh over all.

    Process 0 prints platform, device kind and count. Raises InputError.
    """
    emulate_devices(options.emulated_devices)
    keep_programs()
    join_hosts()
    devices = start_devices()
    require_joined(devices)
    if jax.process_index() == 0:
        _announce(describe_devices(devices))
    return Rules(make_mesh(options, devices))


@cache
def _announce(devices: str) -> None:
    """Print the devices; a command that lays out several meshes over them prints them once."""
    print(f"devices: {devices}", file=sys.stderr, flush=True)


def parameter_shardings(parameters: nnx.State, rules: Rules) -> Any:
    """Pure dict of shardings for the abstract parameters of a model (leaves carry their `axes`).

    Raises InputError when a dimension other than the vocabulary does not divide into its mesh axis, naming tensor, axis and
    number.
    """

    def one(path: tuple[Any, ...], variable: nnx.Variable) -> NamedSharding:
        axes = rules.weight_axes(variable.get_metadata("axes"), variable.shape)
        name = ".".join(str(getattr(key, "key", key)) for key in path)
        for axis, number in zip(axes, variable.shape, strict=True):
            if axis is not None:
                rules.check_divides(axis, number, f"The `{axis}` size of weight {name}")
        return rules.sharding(*axes)

    return nnx.to_pure_dict(
        jax.tree_util.tree_map_with_path(one, parameters, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
    )
