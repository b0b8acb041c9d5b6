"""Fingerprints of weights that need not be loaded again: a saved step holds its own, a folder's is kept by its content.

What is kept here saves loading weights only where nothing else needs them; who loads them computes the fingerprint.
"""

from zephyr_jax.checkpoint.resolve import ModelSource
from zephyr_jax.checkpoint.steps import FOLDER, saved_fingerprint
from zephyr_jax.storage.content import content_key
from zephyr_jax.storage.files import Path, cache_folder, list_names, slow_io_warning, write_atomic

_ENDING = ".safetensors"


def known_fingerprint(source: ModelSource, state: str) -> str | None:
    """The fingerprint of a model's weights, from the saved step or from this machine's cache; None: load them.

    Args:
        source: The model.
        state: Its `weights_state`.
    """
    if source.run is not None:
        return saved_fingerprint(source.run, source.step)
    note = cache_folder("weights") / state
    return note.read_text().strip() if note.exists() else None


def weights_state(source: ModelSource) -> str:
    """A text that differs whenever a model's weights differ.

    A saved step's is the fingerprint in it. The files of a folder are read and hashed, at several GB/s from memory;
    `gs://` objects count by their generation.
    """
    if source.run is None:
        return _content_of(source.weights)
    return saved_fingerprint(source.run, source.step) or content_key([source.run / FOLDER])


def remember_fingerprint(source: ModelSource, state: str, fingerprint: str) -> None:
    """Keep the fingerprint of a folder's weights, unless a file of it was replaced while they were loaded.

    Args:
        source: The model.
        state: Its `weights_state` before its weights were loaded.
        fingerprint: Of the loaded weights.
    """
    if source.run is None and weights_state(source) == state:
        folder = cache_folder("weights")
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / state, fingerprint + "\n")


def _content_of(folder: Path) -> str:
    with slow_io_warning(folder, "looking at"):
        names = [name for name in list_names(folder) if name.endswith((_ENDING, ".json"))]
        return content_key([folder / name for name in names])
