"""Meshes of TPU devices, which need the TPU compiler and no TPU."""

import importlib.util

import numpy as np
import pytest

from zephyr_jax.config.sections import MeshOptions
from zephyr_jax.parallel.mesh import make_mesh
from zephyr_jax.plan.topology import topology_devices

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (the `tpu` extra)"
)


@pytest.mark.parametrize("name", ["v5e:4x4", "v5p:2x2x4"])
def test_every_host_of_a_slice_arranges_its_own_devices_alike(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a slice of one host would, so that sums over devices have the same bits."""
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "true")
    devices = topology_devices(name)
    arranged = []
    for process in range(4):
        own = [device for device in devices if device.process_index == process]
        mesh = make_mesh(MeshOptions(fsdp=1, tensor=4), own).devices.flatten()
        assert set(mesh) == set(own)
        arranged.append(
            np.array([device.coords for device in mesh]) - np.min([device.coords for device in own], axis=0)
        )
    assert all(np.array_equal(coords, arranged[0]) for coords in arranged)
