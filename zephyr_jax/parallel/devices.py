"""The devices of this process's cluster: started once, with one clear error where the platform does not start."""

from functools import cache

import jax
from jax._src import hardware_utils, xla_bridge

from zephyr_jax.errors import InputError, truncate_repr

_KINDS = {"cuda": "gpu", "rocm": "gpu"}
"""JAX's names in JAX_PLATFORMS -> the platform that devices of it report."""
_FIXES = {
    "tpu": "Check that libtpu is installed (`uv sync --extra tpu`), that this host has TPU chips, and that no other process "
    "holds them (a TPU serves one process at a time)",
    "gpu": "Check `nvidia-smi`, and that JAX's CUDA plugin is installed, has jaxlib's version and fits the driver (pip install "
    "'jax[cuda12]' beside the same jax)",
}
_CPU = "JAX_PLATFORMS=cpu runs on the CPU"


def start_devices() -> list[jax.Device]:
    """All devices of all processes.

    Raises:
        InputError: The platform does not start, it is not the first one of JAX_PLATFORMS, or this machine has an accelerator
            and JAX fell back to the CPU although JAX_PLATFORMS does not ask for it.
    """
    asked = (jax.config.jax_platforms or "").split(",")[0].strip()
    try:
        devices = list(jax.devices())
    except Exception as error:  # plugins raise many kinds, and JAX an AssertionError where no platform is left
        reason = (
            " ".join(str(error).split())
            .partition(" (set JAX_PLATFORMS")[0]
            .partition(" (you may need to")[0]
            .rstrip(". ")
        )
        raise InputError(
            f"JAX cannot start platform {truncate_repr(asked) if asked else 'any'}: {reason[:400] or 'it has no devices here'}. "
            f"{_fix(asked)}."
        ) from error
    platform = devices[0].platform
    if asked and platform != _KINDS.get(asked, asked):
        raise InputError(
            f"JAX_PLATFORMS is {truncate_repr(jax.config.jax_platforms)}, and JAX started on `{platform}`: platform `{asked}` "
            f"has no devices here. {_fix(asked)}."
        )
    absent = _unused_accelerator() if platform == "cpu" and not asked else None
    if absent:
        kind, count = absent
        reason = xla_bridge._backend_errors.get("cuda" if kind == "gpu" else "tpu", "no plugin for it is installed")
        raise InputError(
            f"This machine has {count}, and JAX started on the CPU: {' '.join(str(reason).split())[:400]}. {_fix(kind)}."
        )
    return devices


def describe_devices(devices: list[jax.Device]) -> str:
    """Count, device kind, platform and number of processes in one phrase."""
    processes = len({device.process_index for device in devices})
    joined = f", {processes} processes" if processes > 1 else ""
    return f"{len(devices)} x {devices[0].device_kind} (platform {devices[0].platform}{joined})"


def _fix(platform: str) -> str:
    advice = _FIXES.get(_KINDS.get(platform, platform))
    return f"{advice}; {_CPU}" if advice else _CPU


@cache
def _unused_accelerator() -> tuple[str, str] | None:
    """Platform and description of an accelerator that the machine has; asked for only where JAX started on the CPU."""
    chips, _ = hardware_utils.num_available_tpu_chips_and_device_id()
    if chips:
        return "tpu", f"{chips} TPU chips"
    return ("gpu", "an NVIDIA GPU") if hardware_utils.has_visible_nvidia_gpu() else None
