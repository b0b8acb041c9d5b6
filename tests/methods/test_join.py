"""How a command starts: it joins its cluster or ends with one error, and its platform starts or is one error."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from jax._src import cloud_tpu_init
from jax._src.clusters import cloud_tpu_cluster

from tests.methods.hosts import PATIENCE, free_port
from zephyr_jax.errors import InputError
from zephyr_jax.parallel import hosts
from zephyr_jax.parallel.hosts import join_cluster


def run(*words: str, **environment: str) -> tuple[int, str]:
    """A command with this environment beside its own: exit code and stderr."""
    command = [sys.executable, "-m", "zephyr_jax", *words]
    variables = {**os.environ, "JAX_PLATFORMS": "cpu", **environment}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=PATIENCE, check=False)
    return done.returncode, done.stderr


def test_an_unreachable_coordinator_is_an_error_of_the_command(tiny_model: Path, tmp_path: Path) -> None:
    """Exit code 2 and one paragraph, within the timeout, where JAX itself aborts the process."""
    address = f"localhost:{free_port()}"
    names = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
    words = ["export", "--model.path", str(tiny_model), "--output", str(tmp_path / "hf")]
    code, err = run(*words, ZEPHYR_JAX_JOIN_TIMEOUT="1", **names)
    assert code == 2
    assert f"process 1 of 2 could not join the cluster at {address} within 1 s: process 0 does not answer" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("environment", "problem"),
    [
        ({"JAX_COORDINATOR_ADDRESS": "localhost", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}, "expected host:port"),
        ({"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"}, "expected JAX_PROCESS_ID from 0"),
        ({"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES: expected an integer, got 'two'"),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, "JAX_NUM_PROCESSES=None"),
        ({"SLURM_STEP_NUM_TASKS": "many"}, "SLURM_STEP_NUM_TASKS: expected an integer"),
        (
            {
                "JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1",
                "ZEPHYR_JAX_JOIN_TIMEOUT": "soon",
            },
            "ZEPHYR_JAX_JOIN_TIMEOUT: expected seconds",
        ),
    ],
)  # fmt: skip
def test_settings_that_cannot_hold_are_errors(
    environment: dict[str, str], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=re.escape(problem)):
        join_cluster()


@pytest.fixture
def tpu_host(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """This host as one with TPU chips, whose cluster is named as GKE does."""
    monkeypatch.setattr(cloud_tpu_init, "running_in_cloud_tpu_vm", True)
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    monkeypatch.setattr(hosts, "_on_tpu", lambda: True)
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("JAX_COORDINATOR_PORT", str(free_port()))
    monkeypatch.setenv("ZEPHYR_JAX_JOIN_TIMEOUT", "1")
    for name in ("MEGASCALE_COORDINATOR_ADDRESS", "MEGASCALE_NUM_SLICES", "MEGASCALE_SLICE_ID"):
        monkeypatch.setenv(name, "")  # unset, JAX asks Google's metadata server
    return monkeypatch


@pytest.mark.parametrize(
    ("environment", "problem"),
    [
        (
            {"TPU_WORKER_HOSTNAMES": "localhost,localhost", "TPU_WORKER_ID": "1"},
            "could not join the cluster at localhost:",
        ),
        ({"TPU_WORKER_HOSTNAMES": "localhost,localhost"}, "could not detect whether this host is one of several"),
        ({"TPU_PROCESS_ADDRESSES_PATH": "/nowhere"}, "could not detect whether this host is one of several"),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "0", "MEGASCALE_NUM_SLICES": "two"}, "one of several"),
    ],
)
def test_a_host_of_a_pod_never_goes_on_alone(
    environment: dict[str, str], problem: str, tpu_host: pytest.MonkeyPatch
) -> None:
    """Whatever fails while joining is an error."""
    for name, value in environment.items():
        tpu_host.setenv(name, value)
    with pytest.raises(InputError, match=problem):
        join_cluster()


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"TPU_WORKER_HOSTNAMES": "local", "TPU_WORKER_ID": "0"},
        {"TPU_WORKER_HOSTNAMES": "a,b", "JAX_NUM_PROCESSES": "1"},
    ],
)
def test_a_tpu_host_without_others_is_alone(environment: dict[str, str], tpu_host: pytest.MonkeyPatch) -> None:
    """No cluster, one of a single host, or one that is not to be joined: nothing is waited for, not even for its name."""
    for name, value in environment.items():
        tpu_host.setenv(name, value)
    join_cluster()


@pytest.mark.parametrize(
    ("platforms", "problem"),
    [
        ("nonsense", "JAX could not start platform 'nonsense'"),
        ("cuda,cpu", "`cuda` has no devices"),
    ],
)
def test_a_platform_that_does_not_start_is_one_error(
    tiny_model: Path, tmp_path: Path, platforms: str, problem: str
) -> None:
    """Whatever the plugin raises: exit code 2, a paragraph with the platform and the fix, no traceback."""
    words = ["export", "--model.path", str(tiny_model), "--output", str(tmp_path / "hf")]
    code, err = run(*words, JAX_PLATFORMS=platforms)
    assert code == 2
    assert problem in err
    assert "JAX_PLATFORMS=cpu" in err
    assert "Traceback" not in err


def test_a_command_prints_its_devices_once(tiny_model: Path, tmp_path: Path) -> None:
    words = [
        "export",
        "--model.path",
        str(tiny_model),
        "--output",
        str(tmp_path / "hf"),
        "--mesh.emulated_devices",
        "2",
    ]
    code, err = run(*words)
    assert code == 0
    assert re.findall("devices: .*", err) == ["devices: 2 x cpu (platform cpu)"]
