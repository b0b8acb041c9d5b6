"""The device mesh, with axes data, fsdp, context where rows are split, and tensor.

Several TPU slices have a fast network inside each (ICI) and a slow one between them (DCN). `data` spans the slices, the
other axes stay inside one, so that only gradient and metric sums cross slices.
"""

import math
import os
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental.mesh_utils import create_device_mesh
from jax.sharding import AxisType, Mesh

from zephyr_jax.config.sections import MeshOptions
from zephyr_jax.errors import InputError

AXES = ("data", "fsdp", "context", "tensor")


def emulate_devices(count: int | None) -> None:
    """Emulate `count` devices on the CPU; None changes nothing. Must run before the first use of a device."""
    if count is None:
        return
    # XLA runs independent collectives of a program at a time, each with a thread per device. With its default of one thread a
    # device, devices on busy cores may wait for each other in two collectives, until XLA aborts the process after 40 s.
    os.environ.setdefault("NPROC", str(4 * count))
    jax.config.update("jax_platforms", "cpu")
    if jax.config.jax_num_cpu_devices != count:
        try:
            jax.config.update("jax_num_cpu_devices", count)
        except RuntimeError as error:
            raise InputError(
                f"mesh.emulated_devices: expected {jax.device_count()}, the number that this process started with, got "
                f"{count}. Start a new process."
            ) from error


def make_mesh(options: MeshOptions, devices: list[jax.Device] | None = None) -> Mesh:
    """Mesh over all devices, ordered so that mesh neighbors are close on a TPU torus.

    Args:
        options: Sizes within one slice; with s slices `data` gets s times as large. A `context` of 1 adds no axis.
        devices: Default: all.

    Raises InputError when the sizes do not multiply to the number of devices of a slice.
    """
    slices: dict[int, list[jax.Device]] = {}
    for device in jax.devices() if devices is None else devices:
        slices.setdefault(getattr(device, "slice_index", 0), []).append(device)
    axes = tuple(axis for axis in AXES if axis != "context" or options.context > 1)
    parts = [_arrange(slices[index], _sizes(options, axes, len(slices[index]))) for index in sorted(slices)]
    return Mesh(np.concatenate(parts), axes, axis_types=(AxisType.Auto,) * len(axes))


def _arrange(devices: list[jax.Device], sizes: tuple[int, ...]) -> np.ndarray:
    if devices[0].platform != "tpu":
        return np.array(devices).reshape(sizes)
    origin = np.min([device.coords for device in devices], axis=0)
    shifted = [_ShiftedDevice(device, tuple((device.coords - origin).tolist())) for device in devices]
    arranged = create_device_mesh(sizes, shifted, allow_split_physical_axes=True)
    return np.array([one.device for one in arranged.flat]).reshape(sizes)


@dataclass(frozen=True)
class _ShiftedDevice:
    """A TPU device in a block of devices, as if that were at the origin of its slice.

    JAX orders a block at the origin as a ring and others otherwise. Sums over devices are rounded in the order of the mesh, and
    must be the same bits on every host that has a mesh over its own devices.
    """

    device: Any
    coords: tuple[int, ...]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.device, name)


def _sizes(options: MeshOptions, axes: tuple[str, ...], count: int) -> tuple[int, ...]:
    sizes = {axis: getattr(options, axis) for axis in axes}
    free = [axis for axis, size in sizes.items() if size == -1]
    text = " x ".join(f"{axis} {size}" for axis, size in sizes.items())
    if len(free) > 1 or any(size == 0 or size < -1 for size in sizes.values()):
        raise InputError(
            f"mesh: expected sizes of at least 1, with at most one -1 (the remaining devices), got {text}."
        )
    known = math.prod(size for size in sizes.values() if size != -1)
    if count % known or (not free and known != count):
        raise InputError(
            f"mesh: expected sizes whose product is {count}, the number of devices, got {text} ({known}). One size may be -1 "
            "(the remaining devices)."
        )
    return tuple(count // known if size == -1 else size for size in sizes.values())
