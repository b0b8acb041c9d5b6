"""Devices that do not start are one error with the platform, the reason and the fix."""

import jax
import pytest
from jax._src import hardware_utils, xla_bridge

from zephyr_jax.errors import InputError
from zephyr_jax.parallel import devices
from zephyr_jax.parallel.devices import describe_devices, start_devices


def refuse(error: Exception) -> list[jax.Device]:
    raise error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            RuntimeError(
                "Unable to initialize backend 'tpu': ABORTED: The TPU is already in use by process with pid 42. (set "
                "JAX_PLATFORMS='' to automatically choose an available backend)"
            ),
            "already in use by process with pid 42. Check that libtpu is installed",
        ),
        (RuntimeError("Unable to initialize backend 'tpu': NOT_FOUND:\n No jellyfish device found."), "No jellyfish"),
        (ImportError("libtpu.so: cannot open shared object file"), "cannot open shared object file"),
        (AssertionError(), "it has no devices"),
    ],
)
def test_whatever_a_plugin_raises_is_one_error(monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str) -> None:
    monkeypatch.setattr(jax, "devices", lambda: refuse(error))
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", "tpu,cpu")
    try:
        with pytest.raises(InputError, match="JAX could not start platform 'tpu'") as found:
            start_devices()
    finally:
        jax.config.update("jax_platforms", before)
    assert reason in str(found.value)
    assert "JAX_PLATFORMS=cpu" in str(found.value)


@pytest.mark.parametrize(("chips", "gpu", "named"), [(4, False, "the 4 TPU chips"), (0, True, "the NVIDIA GPU")])
def test_no_fallback_to_the_cpu_beside_an_accelerator(
    monkeypatch: pytest.MonkeyPatch, chips: int, gpu: bool, named: str
) -> None:
    """Unless the CPU is asked for."""
    monkeypatch.setattr(hardware_utils, "num_available_tpu_chips_and_device_id", lambda: (chips, None))
    monkeypatch.setattr(hardware_utils, "has_visible_nvidia_gpu", lambda: gpu)
    monkeypatch.setattr(xla_bridge, "_backend_errors", {"cuda": "driver 470 is older than CUDA 13"})
    before = jax.config.jax_platforms
    start_devices()
    jax.config.update("jax_platforms", None)
    devices._unused_accelerator.cache_clear()
    try:
        with pytest.raises(InputError, match=f"expected JAX to start on {named} of this machine, got the CPU") as found:
            start_devices()
    finally:
        jax.config.update("jax_platforms", before)
        devices._unused_accelerator.cache_clear()
    assert ("driver 470" if gpu else "no plugin is installed") in str(found.value)


def test_devices_in_one_phrase() -> None:
    assert describe_devices(jax.devices()) == f"{jax.device_count()} x cpu (platform cpu)"
