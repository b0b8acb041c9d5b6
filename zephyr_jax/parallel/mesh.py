"""The mesh: axes data, fsdp, tensor. Sizes that do not fit the devices are errors that name axis and number.

Devices of several TPU slices talk over two networks. Copies of the weights (`data`) are spread over the slices and each
copy lies inside one, so that only sums of gradients and metrics leave a slice.
"""

import math

import jax
import numpy as np
from jax.experimental.mesh_utils import create_device_mesh
from jax.sharding import AxisType, Mesh

from zephyr_jax.config.sections import MeshOptions
from zephyr_jax.errors import InputError

AXES = ("data", "fsdp", "tensor")


def emulate_devices(count: int | None) -> None:
    """Let the CPU pose as `count` devices. Must run before anything touches a device; None changes nothing."""
    if count is None:
        return
    jax.config.update("jax_platforms", "cpu")
    if jax.config.jax_num_cpu_devices != count:
        try:
            jax.config.update("jax_num_cpu_devices", count)
        except RuntimeError as error:
            raise InputError(
                f"mesh.emulated_devices is {count}, but this process has started with {jax.device_count()} devices. "
                "Start a new process."
            ) from error


def make_mesh(options: MeshOptions, devices: list[jax.Device] | None = None) -> Mesh:
    """Mesh over all devices (or those given), in an order where neighbours are close on TPU tori.

    The sizes asked for are those of one slice; s slices make `data` s times as large. Raises InputError when the sizes do
    not multiply to the number of devices of a slice.
    """
    slices: dict[int, list[jax.Device]] = {}
    for device in jax.devices() if devices is None else devices:
        slices.setdefault(getattr(device, "slice_index", 0), []).append(device)
    parts = [_arrange(slices[index], _sizes(options, len(slices[index]))) for index in sorted(slices)]
    return Mesh(np.concatenate(parts), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _arrange(devices: list[jax.Device], sizes: tuple[int, ...]) -> np.ndarray:
    if devices[0].platform != "tpu":
        return np.array(devices).reshape(sizes)
    return create_device_mesh(sizes, devices, allow_split_physical_axes=True)


def _sizes(options: MeshOptions, count: int) -> tuple[int, ...]:
    asked = {axis: getattr(options, axis) for axis in AXES}
    free = [axis for axis, size in asked.items() if size == -1]
    bad = [axis for axis, size in asked.items() if size == 0 or size < -1]
    if bad or len(free) > 1:
        raise InputError(
            f"The mesh is {_spelt(asked)}. Sizes are at least 1, and one of them may be -1 (what is left)."
        )
    known = math.prod(size for size in asked.values() if size != -1)
    if count % known or (not free and known != count):
        raise InputError(
            f"The mesh {_spelt(asked)} takes {known} devices per full set and there are {count}. "
            f"The sizes must multiply to {count}; one may be -1, which takes what the others leave."
        )
    return tuple(count // known if size == -1 else size for size in asked.values())


def _spelt(sizes: dict[str, int]) -> str:
    return " x ".join(f"{axis} {size}" for axis, size in sizes.items())
