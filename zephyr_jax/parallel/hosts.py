"""Many processes as one: found by themselves on TPU pods, SLURM and where the environment names a coordinator.

All processes run the same verb. Each sees every device of the mesh, reads only its own rows, and stops when any other does:
an error on one host ends all of them with that host's message, and a host that vanishes is missed within a minute.
"""

import atexit
import math
import os
import re
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax._src import cloud_tpu_init, clusters, distributed
from jax.experimental import multihost_utils

from zephyr_jax import log
from zephyr_jax.errors import InputError
from zephyr_jax.parallel.devices import start_devices
from zephyr_jax.parallel.rendezvous import HINT, Cluster, meet

_LOOK_UP = 30  # seconds of one attempt to resolve the coordinator's name
_LONGEST_JOIN = 7 * 24 * 3600
_HEARTBEAT = 20  # seconds without one: the process is gone
_POLL = 0.5
_STOPPED = "zephyr_jax_stopped"


def join_hosts() -> None:
    """Become one of many processes where the environment names them; alone otherwise. Must run before devices are touched.

    The environment: JAX_COORDINATOR_ADDRESS with JAX_NUM_PROCESSES and JAX_PROCESS_ID; a SLURM step of several tasks; a TPU pod.
    The wait for the others is reported and ends after ZEPHYR_JAX_JOIN_TIMEOUT seconds (default: 1,800).

    Raises:
        InputError: The others cannot be reached, the environment contradicts itself, or this is a TPU host of which it cannot be
            found out whether it is one of several.
    """
    if distributed.global_state.client is not None or not (_names_a_cluster(os.environ) or _on_tpu()):
        return
    found = _find_cluster(os.environ)
    if found is None:
        return
    cluster, local_devices = found
    if cluster.count > 1:
        meet(cluster, _timeout(os.environ))
    try:
        jax.distributed.initialize(
            cluster.address,
            cluster.count,
            cluster.process,
            local_devices,
            cluster_detection_method="deactivate",
            heartbeat_timeout_seconds=_HEARTBEAT,
        )
    except (RuntimeError, ValueError) as error:
        raise InputError(f"This process cannot join the others: {_reason(error)}. {HINT}") from error
    start_devices()
    log.set_host(jax.process_index(), jax.process_count())
    if jax.process_count() > 1:
        done = threading.Event()
        listener = threading.Thread(target=_listen, args=(distributed.global_state.client, done), daemon=True)
        listener.start()
        atexit.register(listener.join)  # runs second
        atexit.register(done.set)


def require_joined(devices: list[jax.Device]) -> None:
    """Raise InputError when the devices belong to several hosts and this process has joined none of them."""
    hosts = len({device.process_index for device in devices})
    if hosts > 1 and distributed.global_state.client is None:
        raise InputError(
            f"This host is one of {hosts} of a TPU pod, and JAX found no cluster to join. Set JAX_COORDINATOR_ADDRESS (host:port "
            f"of process 0), JAX_NUM_PROCESSES={hosts} and JAX_PROCESS_ID on every host."
        )


def stop_all(message: str, code: int) -> None:
    """Tell the other processes to stop with this message, and end this one with `code`; returns when there are no others.

    The usual way out would wait for the others, who may be inside a collective that waits for this process.
    """
    client = distributed.global_state.client
    if client is None or jax.process_count() == 1:
        return
    client.key_value_set(f"{_STOPPED}/{jax.process_index()}", message, allow_overwrite=True)
    time.sleep(4 * _POLL)
    os._exit(code)


def require_alone(verb: str) -> None:
    """Raise InputError when this process is one of many: `verb` is for one."""
    if jax.process_count() > 1:
        raise InputError(
            f"`{verb}` runs in one process, and {jax.process_count()} have joined. Run it on one host alone: "
            f"env -u JAX_COORDINATOR_ADDRESS JAX_PLATFORMS=cpu zephyr-jax {verb} ..."
        )


def as_the_first_says(answer: bool) -> bool:
    """Process 0's answer, in every process: hosts may see different disks."""
    if jax.process_count() == 1:
        return answer
    return bool(multihost_utils.broadcast_one_to_all(np.int32(answer)))


def is_first() -> bool:
    """Whether this is process 0, or alone. Touches no device."""
    return int(distributed.global_state.process_id) == 0


def number_of_the_first(number: int) -> int:
    """Process 0's 32-bit number, in every process: hosts may have different clocks. Touches no device when alone."""
    if distributed.global_state.client is None or jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def all_say(answer: bool) -> bool:
    """Whether every process says yes; the same in every process."""
    if jax.process_count() == 1:
        return answer
    return bool(np.all(multihost_utils.process_allgather(np.int32(answer))))


def wait_for_all(what: str) -> None:
    """A barrier: no process goes on before all are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def _names_a_cluster(environment: Mapping[str, str]) -> bool:
    """Whether a coordinator is named, or SLURM has started several tasks."""
    tasks = _number(environment, "SLURM_STEP_NUM_TASKS")
    return bool(environment.get("JAX_COORDINATOR_ADDRESS")) or (tasks or 1) > 1


def _on_tpu() -> bool:
    """Whether this host has TPU chips that are to be used; others may have more of the slice."""
    return cloud_tpu_init.running_in_cloud_tpu_vm and (jax.config.jax_platforms or "tpu").startswith("tpu")


def _find_cluster(environment: Mapping[str, str]) -> tuple[Cluster, Sequence[int] | None] | None:
    """The cluster and this process's local devices (None: all); None for a TPU host that is alone.

    Raises InputError for settings that contradict each other, and for a TPU host whose cluster cannot be asked for.
    """
    address = environment.get("JAX_COORDINATOR_ADDRESS") or None
    count, own = (_number(environment, name) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"))
    if address is None and count == 1:
        return None
    try:
        detect = clusters.ClusterEnv.auto_detect_unset_distributed_params
        # With an address it only counts: to look for the coordinator may take as long as its host takes to start.
        _, count, own, local_devices = detect(address or "-", count, own, None, None, _LOOK_UP)
        if address is None and (count or 1) == 1:
            return None  # a TPU host that belongs to no cluster, such as Colab's
        address = address or _coordinator(environment, count, own)
    except InputError:
        raise
    except Exception as error:  # the metadata server, a file or a variable; all mean: unknown
        raise InputError(
            f"Cannot find out whether this host is one of several: {_reason(error)}. If it is alone, set JAX_NUM_PROCESSES=1. "
            f"{HINT}"
        ) from error
    if not re.fullmatch(r"\S+:\d{1,5}", address):
        raise InputError(f"JAX_COORDINATOR_ADDRESS is {address!r}. It must be host:port of process 0.")
    if count is None or own is None or not 0 <= own < count:
        raise InputError(
            f"JAX_COORDINATOR_ADDRESS is {address!r}, JAX_NUM_PROCESSES {count} and JAX_PROCESS_ID {own}: expected a number of "
            f"processes, and an id from 0 to one less. {HINT}"
        )
    listed = environment.get("JAX_LOCAL_DEVICE_IDS")
    return Cluster(address, count, own), None if listed else local_devices


def _coordinator(environment: Mapping[str, str], count: int | None, own: int | None) -> str:
    """The coordinator's address as TPU pods and SLURM name it, once its name is known. Raises InputError."""
    end = time.monotonic() + (timeout := _timeout(environment))
    while True:
        try:
            found, *_ = clusters.ClusterEnv.auto_detect_unset_distributed_params(None, count, own, [0], None, _LOOK_UP)
            return str(found)
        except RuntimeError as error:
            if time.monotonic() > end:
                raise InputError(
                    f"Process {own} of {count}: {_reason(error)} within {timeout:,.0f} s. {HINT}"
                ) from error
            print(f"process {own} of {count}: still looking: {_reason(error)}", file=sys.stderr, flush=True)


def _timeout(environment: Mapping[str, str]) -> float:
    given = environment.get("ZEPHYR_JAX_JOIN_TIMEOUT", "1800")
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= _LONGEST_JOIN:
        raise InputError(f"ZEPHYR_JAX_JOIN_TIMEOUT is {given!r}. It must be seconds, from 1 to {_LONGEST_JOIN:,}.")
    return seconds


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(". ") or type(error).__name__


def _number(environment: Mapping[str, str], name: str) -> int | None:
    given = environment.get(name)
    if given is None or given.isdecimal():
        return None if given is None else int(given)
    raise InputError(
        f"{name} is {given!r}. It must be a whole number: JAX_NUM_PROCESSES counts them, JAX_PROCESS_ID is 0, 1, ..."
    )


def _listen(client: Any, done: threading.Event) -> None:
    own = f"{_STOPPED}/{jax.process_index()}"
    while not done.wait(_POLL):
        others = [(key, message) for key, message in client.key_value_dir_get(_STOPPED) if not key.endswith(own)]
        for key, message in others[:1]:
            print(f"process {key.rpartition('/')[2]} stopped: {message}", file=sys.stderr, flush=True)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what the main thread says of broken collectives helps nobody
            time.sleep(0 if jax.process_index() else 8 * _POLL)  # process 0 keeps what is told: it leaves last
            os._exit(4)
