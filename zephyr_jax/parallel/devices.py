"""Start the devices of the platform, with one clear error when that fails."""

from functools import cache

import jax

from zephyr_jax.errors import InputError, truncate_repr
from zephyr_jax.parallel import jax_internals

_PLATFORMS = {"cuda": "gpu", "rocm": "gpu"}
"""Names in JAX_PLATFORMS -> the platform that their devices report."""
_FIXES = {
    "tpu": "Check that libtpu is installed (`uv sync --extra tpu`), that this host has TPU chips, and that no other process "
    "holds them (a TPU serves one process at a time)",
    "gpu": "Check `nvidia-smi`, and that JAX's CUDA plugin is installed, matches jaxlib's version and supports the driver (pip "
    "install 'jax[cuda12]' with the same jax)",
}
_CPU_FIX = "JAX_PLATFORMS=cpu runs on the CPU"


def start_devices() -> list[jax.Device]:
    """All devices of all processes.

    Raises:
        InputError: The platform does not start, it is not the first one of JAX_PLATFORMS, or this machine has an accelerator
            and JAX fell back to the CPU although JAX_PLATFORMS does not ask for it.
    """
    requested = (jax.config.jax_platforms or "").split(",")[0].strip()
    try:
        devices = list(jax.devices())
    except Exception as error:  # plugins raise many kinds, and JAX an AssertionError where no platform is left
        reason = " ".join(str(error).split())
        for advice in (" (set JAX_PLATFORMS", " (you may need to"):
            reason = reason.partition(advice)[0]
        reason = reason.rstrip(". ")[:400] or "it has no devices"
        name = truncate_repr(requested) if requested else "any"
        raise InputError(f"JAX could not start platform {name}: {reason}. {_fix(requested)}.") from error
    platform = devices[0].platform
    if requested and platform != _PLATFORMS.get(requested, requested):
        raise InputError(
            f"JAX_PLATFORMS={truncate_repr(jax.config.jax_platforms)}: expected platform `{requested}`, got `{platform}`: "
            f"`{requested}` has no devices. {_fix(requested)}."
        )
    accelerator = _unused_accelerator() if platform == "cpu" and not requested else None
    if accelerator:
        kind, description = accelerator
        error_text = jax_internals.backend_error("cuda" if kind == "gpu" else "tpu") or "no plugin is installed for it"
        raise InputError(
            f"expected JAX to start on {description} of this machine, got the CPU: {' '.join(error_text.split())[:400]}. "
            f"{_fix(kind)}."
        )
    return devices


def describe_devices(devices: list[jax.Device]) -> str:
    """For example `8 x TPU v5 lite (platform tpu, 2 processes)`."""
    processes = len({device.process_index for device in devices})
    suffix = f", {processes} processes" if processes > 1 else ""
    return f"{len(devices)} x {devices[0].device_kind} (platform {devices[0].platform}{suffix})"


def _fix(platform: str) -> str:
    fix = _FIXES.get(_PLATFORMS.get(platform, platform))
    return f"{fix}; {_CPU_FIX}" if fix else _CPU_FIX


@cache
def _unused_accelerator() -> tuple[str, str] | None:
    """Platform and description of an accelerator of this machine; called only where JAX started on the CPU."""
    if chips := jax_internals.num_tpu_chips():
        return "tpu", f"the {chips} TPU chips"
    return ("gpu", "the NVIDIA GPU") if jax_internals.has_nvidia_gpu() else None
