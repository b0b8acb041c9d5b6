"""One batch as a file: its arrays as safetensors, and what is known about it as JSON in the header."""

import json
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from zephyr_jax.batch import PairBatch, TokenBatch
from zephyr_jax.data.loader import Batch
from zephyr_jax.errors import InputError
from zephyr_jax.storage.files import Path, check_regular, open_path, slow_io_warning, write_atomic

_FACTS = "facts"
_PAIRS = ("reference", "present")


def write_batch(path: Path, batch: Batch, facts: dict[str, Any]) -> None:
    """Write the numpy arrays of a batch [A, B, ...] with plain facts, whole or not at all."""
    rows = batch.rows if isinstance(batch, PairBatch) else batch
    arrays = rows._asdict()
    if isinstance(batch, PairBatch):
        arrays |= {name: getattr(batch, name) for name in _PAIRS}
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    write_atomic(path, save(contiguous, metadata={_FACTS: json.dumps(facts)}))


def read_batch(path: str) -> tuple[Batch, dict[str, Any]]:
    """A batch and its facts. Raises InputError when the file is not there or is no such file."""
    try:
        check_regular(path)
        with slow_io_warning(path, "reading"):
            content = open_path(path).read_bytes()
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        facts, arrays = json.loads(header["__metadata__"][_FACTS]), load(content)
        rows = TokenBatch(*(arrays[name] for name in TokenBatch._fields))
        pairs = PairBatch(rows, *(arrays[name] for name in _PAIRS)) if _PAIRS[0] in arrays else None
    except InputError:
        raise
    except OSError as error:
        raise InputError(
            f"Cannot read {path}: {error.strerror or 'it is not there'}. Sick batches are in RUN/sick."
        ) from error
    except Exception as error:  # safetensors raises its own kinds, json and dict theirs
        raise InputError(
            f"{path} is no batch that a run kept, or is damaged ({error}). Sick batches are in RUN/sick, as "
            "step-NUMBER.safetensors."
        ) from error
    return pairs or rows, facts
