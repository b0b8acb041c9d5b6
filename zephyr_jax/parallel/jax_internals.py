"""The only module that uses private JAX modules (`jax._src`): an upgrade of JAX that breaks one is fixed here.

Nothing here has a public counterpart in the pinned version of JAX.
"""

from collections.abc import Sequence
from typing import Any

from jax._src import cloud_tpu_init, clusters, distributed, hardware_utils, xla_bridge


def distributed_client() -> Any | None:
    """The client of JAX's coordination service (key-value store, barriers), or None before this process joined a cluster.

    The public `jax.distributed` offers neither, and `jax.process_count()` would start the devices.
    """
    return distributed.global_state.client


def process_id() -> int:
    """Index of this process; 0 before it joined a cluster. Starts no device."""
    return int(distributed.global_state.process_id)


def detect_cluster(
    address: str | None, count: int | None, process: int | None, local_devices: Sequence[int] | None, timeout: int
) -> tuple[str | None, int | None, int | None, Sequence[int] | None]:
    """Fill in what the environment (TPU pod, SLURM, ...) knows about arguments given as None.

    Raises whatever a metadata server, a file or a variable fails with.
    """
    detect = clusters.ClusterEnv.auto_detect_unset_distributed_params
    return detect(address, count, process, local_devices, None, timeout)


def on_tpu_vm() -> bool:
    """Whether this machine is a Cloud TPU VM."""
    return bool(cloud_tpu_init.running_in_cloud_tpu_vm)


def num_tpu_chips() -> int:
    """TPU chips on the PCI bus of this machine, whether or not JAX can use them."""
    return int(hardware_utils.num_available_tpu_chips_and_device_id()[0])


def has_nvidia_gpu() -> bool:
    """Whether this machine has an NVIDIA GPU, whether or not JAX can use it."""
    return bool(hardware_utils.has_visible_nvidia_gpu())


def backend_error(platform: str) -> str | None:
    """Why a platform's plugin did not start; None when no plugin was tried."""
    error = xla_bridge._backend_errors.get(platform)
    return None if error is None else str(error)
