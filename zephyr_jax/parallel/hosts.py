"""Multi-host runs: join the cluster, agree on decisions, and stop together.

The cluster is found on TPU pods and SLURM, or named by environment variables. All processes run the same command (SPMD):
each sees every device of the mesh and reads only its own rows. An error on one host ends all processes with that host's
message; a host that disappears is detected within a minute.
"""

import atexit
import logging
import math
import os
import re
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from zephyr_jax import log
from zephyr_jax.errors import InputError
from zephyr_jax.parallel import jax_internals
from zephyr_jax.parallel.devices import start_devices
from zephyr_jax.parallel.rendezvous import HINT, Cluster, wait_for_cluster

logger = logging.getLogger(__name__)

_LOOKUP_TIMEOUT = 30  # seconds of one attempt to resolve the coordinator's name
_MAX_JOIN_TIMEOUT = 7 * 24 * 3600
_HEARTBEAT_TIMEOUT = 20  # seconds
_POLL_SECONDS = 0.5
_ABORT_KEY = "zephyr_jax_abort"


def join_cluster() -> None:
    """Join the cluster that the environment names, if any. Must run before devices are used.

    Read are JAX_COORDINATOR_ADDRESS with JAX_NUM_PROCESSES and JAX_PROCESS_ID, SLURM's variables, and TPU metadata. The wait
    for the other processes is logged and ends after ZEPHYR_JAX_JOIN_TIMEOUT seconds (default: 1,800).

    Raises:
        InputError: The others cannot be reached, the variables contradict each other, or this is a TPU host whose metadata
            does not reveal whether it is one of several.
    """
    if jax_internals.distributed_client() is not None or not (_has_cluster_variables(os.environ) or _on_tpu()):
        return
    detected = _detect_cluster(os.environ)
    if detected is None:
        return
    cluster, local_devices = detected
    if cluster.count > 1:
        wait_for_cluster(cluster, _join_timeout(os.environ))
    try:
        jax.distributed.initialize(
            cluster.address,
            cluster.count,
            cluster.process,
            local_devices,
            cluster_detection_method="deactivate",
            heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT,
        )
    except (RuntimeError, ValueError) as error:
        raise InputError(f"process {cluster.process} could not join the cluster: {_reason(error)}. {HINT}") from error
    start_devices()
    log.set_host(jax.process_index(), jax.process_count())
    if jax.process_count() > 1:
        done = threading.Event()
        client = jax_internals.distributed_client()
        watcher = threading.Thread(target=_watch_for_aborts, args=(client, done), daemon=True)
        watcher.start()
        # atexit runs in reverse order: first end the watcher, then wait for it, before JAX closes the client it polls.
        atexit.register(watcher.join)
        atexit.register(done.set)


def require_joined(devices: list[jax.Device]) -> None:
    """Raise InputError when the devices belong to several hosts and this process has not joined their cluster."""
    hosts = len({device.process_index for device in devices})
    if hosts > 1 and jax_internals.distributed_client() is None:
        raise InputError(
            f"expected a cluster of {hosts} hosts (a TPU pod), got a process that has not joined one. Set "
            f"JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES={hosts} and JAX_PROCESS_ID on every host."
        )


def abort_all_hosts(message: str, code: int) -> None:
    """End all processes: send the others `message`, end this one with `code`. Returns when it is the only one.

    A normal exit would hang: JAX's shutdown waits for the others, and these may be inside a collective that waits for this
    process.
    """
    client = jax_internals.distributed_client()
    if client is None or jax.process_count() == 1:
        return
    client.key_value_set(f"{_ABORT_KEY}/{jax.process_index()}", message, allow_overwrite=True)
    time.sleep(4 * _POLL_SECONDS)  # until the others have polled: process 0 holds the key-value store
    os._exit(code)


def require_single_process(command: str) -> None:
    """Raise InputError when this process is one of several."""
    if jax.process_count() > 1:
        raise InputError(
            f"`{command}`: expected a single process, got {jax.process_count()}. Run it on one host alone: "
            f"env -u JAX_COORDINATOR_ADDRESS JAX_PLATFORMS=cpu zephyr-jax {command} ..."
        )


def interrupt_on_sigterm() -> None:
    """Let SIGTERM interrupt this process of a cluster as Ctrl-C does, which ends all of them.

    JAX's preemption service records the signal and ignores it otherwise; `preemption.StopRequest` is for commands that save.
    """
    if jax.process_count() > 1 and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def is_host0() -> bool:
    """Whether this is process 0, or the only one. Starts no device."""
    return jax_internals.process_id() == 0


def broadcast_from_host0[T: (bool, int)](value: T) -> T:
    """Process 0's bool or 32-bit integer, in every process: disks and clocks may differ. Starts no device when alone."""
    if jax_internals.distributed_client() is None or jax.process_count() == 1:
        return value
    return type(value)(multihost_utils.broadcast_one_to_all(np.int32(value)))


def all_hosts_agree(answer: bool) -> bool:
    """Whether `answer` is true in every process; the same result in every process."""
    if jax.process_count() == 1:
        return answer
    return bool(np.all(multihost_utils.process_allgather(np.int32(answer))))


def barrier(name: str) -> None:
    """Wait until every process has reached the barrier of this name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def _has_cluster_variables(environment: Mapping[str, str]) -> bool:
    """Whether a coordinator is named, or SLURM has started several tasks."""
    tasks = _integer(environment, "SLURM_STEP_NUM_TASKS")
    return bool(environment.get("JAX_COORDINATOR_ADDRESS")) or (tasks or 1) > 1


def _on_tpu() -> bool:
    """Whether this host has TPU chips to use; other hosts may hold more of the same slice."""
    return jax_internals.on_tpu_vm() and (jax.config.jax_platforms or "tpu").startswith("tpu")


def _detect_cluster(environment: Mapping[str, str]) -> tuple[Cluster, Sequence[int] | None] | None:
    """The cluster and this process's local devices (None: all); None for a single TPU host.

    Raises InputError for variables that contradict each other, and for a TPU host whose metadata cannot be read.
    """
    address = environment.get("JAX_COORDINATOR_ADDRESS") or None
    count, process = (_integer(environment, name) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"))
    if address is None and count == 1:
        return None
    try:
        # "-" keeps JAX from resolving the coordinator's name here: that may take as long as the other host needs to boot.
        _, count, process, local_devices = jax_internals.detect_cluster(
            address or "-", count, process, None, _LOOKUP_TIMEOUT
        )
        if address is None and (count or 1) == 1:
            return None  # a TPU host outside any cluster, such as Colab's
        address = address or _coordinator_address(environment, count, process)
    except InputError:
        raise
    except Exception as error:  # the metadata server, a file or a variable
        raise InputError(
            f"could not detect whether this host is one of several: {_reason(error)}. If it is alone, set JAX_NUM_PROCESSES=1. "
            f"{HINT}"
        ) from error
    if not re.fullmatch(r"\S+:\d{1,5}", address):
        raise InputError(f"JAX_COORDINATOR_ADDRESS: expected host:port of process 0, got {address!r}.")
    if count is None or process is None or not 0 <= process < count:
        raise InputError(
            "expected JAX_PROCESS_ID from 0 to JAX_NUM_PROCESSES - 1, got "
            f"JAX_COORDINATOR_ADDRESS={address!r}, JAX_NUM_PROCESSES={count}, JAX_PROCESS_ID={process}. {HINT}"
        )
    explicit = environment.get("JAX_LOCAL_DEVICE_IDS")  # JAX reads the variable itself
    return Cluster(address, count, process), None if explicit else local_devices


def _coordinator_address(environment: Mapping[str, str], count: int | None, process: int | None) -> str:
    """The coordinator's address on a TPU pod or SLURM, once its name resolves. Raises InputError."""
    timeout = _join_timeout(environment)
    deadline = time.monotonic() + timeout
    while True:
        try:
            return str(jax_internals.detect_cluster(None, count, process, [0], _LOOKUP_TIMEOUT)[0])
        except RuntimeError as error:
            if time.monotonic() > deadline:
                raise InputError(
                    f"process {process} of {count} found no coordinator within {timeout:,.0f} s: {_reason(error)}. {HINT}"
                ) from error
            logger.info("process %s of %s: still looking for the coordinator: %s", process, count, _reason(error))


def _join_timeout(environment: Mapping[str, str]) -> float:
    text = environment.get("ZEPHYR_JAX_JOIN_TIMEOUT", "1800")
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= _MAX_JOIN_TIMEOUT:
        raise InputError(f"ZEPHYR_JAX_JOIN_TIMEOUT: expected seconds from 1 to {_MAX_JOIN_TIMEOUT:,}, got {text!r}.")
    return seconds


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(". ") or type(error).__name__


def _integer(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name)
    if text is None or text.isdecimal():
        return None if text is None else int(text)
    raise InputError(
        f"{name}: expected an integer, got {text!r}. JAX_NUM_PROCESSES is their number, JAX_PROCESS_ID is 0, 1, ..."
    )


def _watch_for_aborts(client: Any, done: threading.Event) -> None:
    """End this process when another one has aborted. A thread: the main one may be inside a collective."""
    own_key = f"{_ABORT_KEY}/{jax.process_index()}"
    while not done.wait(_POLL_SECONDS):
        aborts = [(key, message) for key, message in client.key_value_dir_get(_ABORT_KEY) if not key.endswith(own_key)]
        for key, message in aborts[:1]:
            logger.error("process %s stopped: %s", key.rpartition("/")[2], message)
            # The main thread is about to print a traceback of the broken collective, which would hide this message.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            # Process 0 holds the key-value store, so it leaves last.
            time.sleep(0 if jax.process_index() else 8 * _POLL_SECONDS)
            os._exit(4)
