"""TPU topologies without hardware: devices to compile for, and the published limits of each chip."""

from dataclasses import dataclass
from importlib.util import find_spec

import jax
from jax.experimental import topologies

from zephyr_jax.errors import InputError, join_items

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """Limits of one chip; of v2 and v3, of one of its two cores, which are JAX's devices there."""

    hbm: float
    """GiB that a program may use."""
    flops: float
    """Peak bfloat16 operations a second."""
    ici: float
    """Bytes a second over all links to other chips of a slice together."""
    dcn: float
    """Bytes a second to other slices, a chip's share of its host's network."""
    pcie: float
    """Bytes a second to the host's memory, a chip's share of its PCIe link."""
    bandwidth: float
    """Bytes a second from and to HBM."""


CHIPS = {
    "v2": Chip(7.48, 23e12, 124e9, 1.5e9, 2e9, 0.35e12),
    "v3": Chip(15.48, 61.5e12, 164e9, 1.5e9, 2e9, 0.45e12),
    "v4": Chip(32.0, 275e12, 300e9, 6.25e9, 16e9, 1.228e12),
    "v5e": Chip(15.75, 197e12, 200e9, 3.125e9, 16e9, 0.819e12),
    "v5p": Chip(95.0, 459e12, 600e9, 6.25e9, 16e9, 2.765e12),
    "v6e": Chip(31.25, 918e12, 448e9, 12.5e9, 32e9, 1.64e12),
}
"""By the part of a topology's name before the colon. HBM: the compiler's limit (v2, v3, v5e, v6e) or the data sheet's.

`dcn` and `pcie` of v2 and v3 are estimates without a source."""
CORES = ("v2", "v3")
"""Kinds whose devices are cores."""


def topology_devices(name: str, slices: int = 1) -> list[jax.Device]:
    """Devices to compile for: `slices` slices of a topology such as `v5e:2x4` (8 chips). They cannot run programs.

    Raises InputError for an unknown name, or when libtpu is not installed.
    """
    if name.partition(":")[0] not in CHIPS:
        raise InputError(
            f"expected a TPU topology such as v5e:2x4 or v5p:2x2x1 ({join_items(CHIPS)}, a colon, a grid), got {name!r}."
        )
    if find_spec("libtpu") is None:
        raise InputError(
            "`plan` requires the TPU compiler, which is part of libtpu, and libtpu is not installed. Run `uv run --extra tpu "
            "zephyr-jax plan ...`; it does not need a TPU."
        )
    try:
        options: dict[str, object] = {"num_slices": slices} if slices > 1 else {}
        if name.startswith("v4:"):
            options["chip_config_name"] = "megacore"  # the two cores of a chip as one device, as real slices have it
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices)
    except Exception as error:  # libtpu and jax raise several kinds here
        reason = " ".join(str(error).split())[:200]
        if "lockfile" in reason:
            raise InputError(
                "another process on this machine uses libtpu, such as another `plan`. Wait until it ends, or set "
                "ALLOW_MULTIPLE_LIBTPU_LOAD=1."
            ) from error
        raise InputError(
            f"the TPU compiler does not accept the topology {name!r}: {reason} Check the grid (v5e:1x1, v5e:2x4, v6e:2x4, "
            "v5p:2x2x1)."
        ) from error


def chip_of(name: str) -> Chip:
    """Limits of the chips of a topology."""
    return CHIPS[name.partition(":")[0]]
