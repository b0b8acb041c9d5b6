"""Bytes between real processes, at different times."""

import os
import subprocess
import sys

from tests.methods.hosts import PATIENCE, free_port

SCRIPT = """
import sys, time, jax
from zephyr_jax.config.sections import MeshOptions
from zephyr_jax.parallel.exchange import broadcast_bytes, gather_on_host0
from zephyr_jax.parallel.sharding import init_devices

devices = init_devices(MeshOptions(emulated_devices=2), local=True).mesh.devices.flat
process = jax.process_index()
assert len(devices) == 2 and {device.process_index for device in devices} == {process}
assert jax.device_count() == 4
time.sleep(1.5 * process)  # process 0 waits for longer than one call of the store
parts = gather_on_host0(bytes([process]) * 3_000_001)
assert parts == ([] if process else [bytes([other]) * 3_000_001 for other in range(2)])
assert gather_on_host0(b"") == ([] if process else [b""] * 2)
assert broadcast_bytes(b"from %d" % process) == b"from 0"
print("good")
"""


def test_process_0_has_the_bytes_of_all_and_all_have_its_bytes() -> None:
    """Values of several chunks, empty ones, and a mesh of one process's own devices."""
    environment = {**os.environ, "JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}", "JAX_NUM_PROCESSES": "2"}
    command = [sys.executable, "-c", SCRIPT]
    started = [
        subprocess.Popen(
            command,
            env={**environment, "JAX_PROCESS_ID": str(process)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    try:
        results = [process.communicate(timeout=PATIENCE) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [printed for printed, _ in results] == ["good\n"] * 2, results
