"""One batch as a file: its arrays as safetensors, and facts about it as JSON in the header."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from zephyr_jax.batch import Array, Batch, batch_arrays
from zephyr_jax.errors import InputError
from zephyr_jax.storage.cloud import slow_io_warning
from zephyr_jax.storage.files import Path, check_regular, open_path, write_atomic

_FACTS = "facts"
BAD_BATCHES = "bad_batches"
"""Where a run saves the batches of its anomalous steps, as step-NUMBER.safetensors."""


def write_batch(path: Path, batch: Batch, facts: Mapping[str, Any]) -> None:
    """Write the numpy arrays of a batch [A, B, ...] with plain facts, whole or not at all."""
    arrays = {name: np.ascontiguousarray(array) for name, array in batch_arrays(batch).items()}
    write_atomic(path, save(arrays, metadata={_FACTS: json.dumps(facts)}))


def read_batch(path: str) -> tuple[dict[str, Array], dict[str, Any]]:
    """The arrays of a batch by field name, as `make_batch` takes them, and its facts.

    Raises:
        InputError: The file is missing, damaged, or no batch.
    """
    expected = f"Expected RUN/{BAD_BATCHES}/step-NUMBER.safetensors."
    try:
        check_regular(path)
        with slow_io_warning(path, "reading"):
            content = open_path(path).read_bytes()
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return dict(load(content)), json.loads(header["__metadata__"][_FACTS])
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror or 'file not found'}. {expected}") from error
    except Exception as error:  # safetensors raises its own kinds, json and dict theirs
        raise InputError(f"{path} is not a saved batch, or is damaged ({error}). {expected}") from error
