"""Many processes as one: found by themselves on TPU pods, SLURM and where the environment names a coordinator.

All processes run the same verb. Each sees every device of the mesh, reads only its own rows, and stops when any other does:
an error on one host ends all of them with that host's message, and a host that vanishes is missed within a minute.
"""

import atexit
import os
import sys
import threading
import time
from collections.abc import Mapping
from glob import glob
from importlib.util import find_spec
from typing import Any

import jax
import numpy as np
from jax._src import distributed
from jax.experimental import multihost_utils

from zephyr_jax.errors import InputError

_HEARTBEAT = 20  # seconds without one: the process is gone
_POLL = 0.5
_STOPPED = "zephyr_jax_stopped"


def join_hosts() -> None:
    """Become one of many processes where the environment says so; alone otherwise. Must run before devices are touched.

    The environment: JAX_COORDINATOR_ADDRESS with JAX_NUM_PROCESSES and JAX_PROCESS_ID; a SLURM step of several tasks; a TPU.
    Raises InputError when the others cannot be reached.
    """
    told = _told_so(os.environ)
    if distributed.global_state.client is not None or not (told or _on_tpu(os.environ)):
        return
    count, own = (_number(os.environ, name) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"))
    try:
        jax.distributed.initialize(num_processes=count, process_id=own, heartbeat_timeout_seconds=_HEARTBEAT)
    except (RuntimeError, ValueError) as error:
        if not told:  # a TPU host that belongs to no cluster JAX knows, such as Colab's: it is alone
            return
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"This process cannot join the others: {reason} Start the same command on every host, with the same "
            "JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and each its own JAX_PROCESS_ID; on TPU pods "
            "and SLURM none of them is needed."
        ) from error
    if jax.process_count() > 1:
        done = threading.Event()
        listener = threading.Thread(target=_listen, args=(distributed.global_state.client, done), daemon=True)
        listener.start()
        atexit.register(listener.join)  # runs second
        atexit.register(done.set)


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


def all_say(answer: bool) -> bool:
    """Whether every process says yes; the same in every process."""
    if jax.process_count() == 1:
        return answer
    return bool(np.all(multihost_utils.process_allgather(np.int32(answer))))


def wait_for_all(what: str) -> None:
    """A barrier: no process goes on before all are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def _told_so(environment: Mapping[str, str]) -> bool:
    """Whether a coordinator is named, or SLURM has started several."""
    return "JAX_COORDINATOR_ADDRESS" in environment or int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1


def _on_tpu(environment: Mapping[str, str]) -> bool:
    """Whether this host has TPU chips that are to be used; others may have more of the slice."""
    chips = glob("/dev/accel*") or glob("/dev/vfio/[0-9]*")
    return bool(chips) and find_spec("libtpu") is not None and environment.get("JAX_PLATFORMS", "tpu").startswith("tpu")


def _number(environment: Mapping[str, str], name: str) -> int | None:
    given = environment.get(name)
    if given is None or given.isdigit():
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
