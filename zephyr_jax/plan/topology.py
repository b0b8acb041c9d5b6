"""TPU topologies on paper: devices to compile against without hardware, and what each chip can hold and do."""

from dataclasses import dataclass
from importlib.util import find_spec

import jax
from jax.experimental import topologies

from zephyr_jax.errors import InputError, join_items

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """Published limits of one chip."""

    hbm: float
    """GiB that a program may use."""
    flops: float
    """Peak bfloat16 operations a second."""
    ici: float
    """Bytes a second over all links to other chips of a slice together."""
    dcn: float
    """Bytes a second to other slices, a chip's share of its host's network."""
    host: float
    """Bytes a second to the host's memory, a chip's share of its PCIe link."""
    bandwidth: float
    """Bytes a second from and to HBM."""


CHIPS = {
    "v4": Chip(32.0, 275e12, 300e9, 6.25e9, 16e9, 1.228e12),
    "v5e": Chip(15.75, 197e12, 200e9, 3.125e9, 16e9, 0.819e12),
    "v5p": Chip(95.0, 459e12, 600e9, 6.25e9, 16e9, 2.765e12),
    "v6e": Chip(31.25, 918e12, 448e9, 12.5e9, 32e9, 1.64e12),
}
"""By the part of a topology's name before the colon. HBM: what the compiler allows (v5e, v6e) or the data sheet says."""


def topology_devices(name: str, slices: int = 1) -> list[jax.Device]:
    """Devices of so many slices of a topology such as `v5e:2x4` (8 chips), to compile against; they cannot run anything.

    Raises InputError for an unknown name, or when libtpu is not installed.
    """
    if name.partition(":")[0] not in CHIPS:
        raise InputError(
            f"{name!r} names no TPU topology. It is one of {join_items(CHIPS)}, a colon and a grid, such as v5e:2x4 or v5p:2x2x1."
        )
    if find_spec("libtpu") is None:
        raise InputError(
            "To plan, the TPU compiler is needed, and libtpu, which holds it, is not installed. Run it as `uv run --extra tpu "
            "zephyr-jax plan ...`; no TPU is needed."
        )
    try:
        more: dict[str, object] = {"num_slices": slices} if slices > 1 else {}
        if name.startswith("v4:"):
            more["chip_config_name"] = "megacore"  # the two cores of a chip as one device, as real slices have it
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **more).devices)
    except Exception as error:  # libtpu and jax raise several kinds here
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"The topology {name!r} cannot be had from the TPU compiler: {reason} Check the grid (v5e:2x4, v5e:4x4, v6e:2x4, "
            "v5p:2x2x1)."
        ) from error


def chip_of(name: str) -> Chip:
    """Limits of the chips of a topology."""
    return CHIPS[name.partition(":")[0]]
