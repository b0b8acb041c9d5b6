"""Bytes between processes through the key-value store of the cluster's coordinator: no device, no shared disk, no time limit.

Collectives time out where processes reach them minutes apart, as after work of unequal length. These waits end only with the
values, with a signal, or with the death of a process, which ends all within a minute.
"""

from itertools import count
from typing import Any

import jax

from zephyr_jax.parallel import jax_internals

_CHUNK = 2**20  # bytes of one value; a message of the store is limited to 4 MiB
_POLL_MS = 1000  # Python handles a signal such as Ctrl-C only between two blocking calls
_call_ids = count()


def gather_on_host0(value: bytes) -> list[bytes]:
    """The bytes of every process, in order, in process 0; an empty list in the others, which do not wait.

    Every process must call the functions of this module in the same order.
    """
    prefix, process = f"zephyr_jax_exchange/{next(_call_ids)}", jax.process_index()
    if process:
        _put(f"{prefix}/{process}", value)
        return []
    return [value, *(_take(f"{prefix}/{other}") for other in range(1, jax.process_count()))]


def broadcast_bytes(value: bytes) -> bytes:
    """Process 0's bytes, in every process. The other processes wait for them."""
    prefix, process = f"zephyr_jax_exchange/{next(_call_ids)}", jax.process_index()
    if process:
        return _take(f"{prefix}/{process}")
    for other in range(1, jax.process_count()):
        _put(f"{prefix}/{other}", value)
    return value


def _client() -> Any:
    client = jax_internals.distributed_client()
    assert client is not None, "several processes have a coordinator"
    return client


def _put(key: str, value: bytes) -> None:
    chunks = [value[start : start + _CHUNK] for start in range(0, len(value), _CHUNK)]
    for index, chunk in enumerate(chunks):
        _client().key_value_set_bytes(f"{key}/{index}", chunk)
    _client().key_value_set_bytes(f"{key}/size", str(len(chunks)).encode())


def _take(key: str) -> bytes:
    """Wait for a value and remove it from the store, which is in the memory of process 0."""
    size = int(_wait(f"{key}/size"))
    value = b"".join(_wait(f"{key}/{index}") for index in range(size))
    _client().key_value_delete(f"{key}/")
    return value


def _wait(key: str) -> bytes:
    while True:
        try:
            value: bytes = _client().blocking_key_value_get_bytes(key, _POLL_MS)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
        else:
            return value
