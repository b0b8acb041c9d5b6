"""Fingerprints of weights without loading them: a saved step stores its own, a model folder's is cached by its content."""

from zephyr_jax.checkpoint.resolve import ModelSource
from zephyr_jax.checkpoint.steps import FOLDER, saved_fingerprint
from zephyr_jax.storage.cloud import slow_io_warning
from zephyr_jax.storage.content import content_key
from zephyr_jax.storage.files import Path, cache_folder, list_names, write_atomic


def find_fingerprint(source: ModelSource, key: str) -> str | None:
    """The fingerprint of a model's weights, from the saved step or the local cache; None when unknown.

    Args:
        source: The model.
        key: Its `weights_key`.
    """
    if source.run is not None:
        return saved_fingerprint(source.run, source.step)
    file = cache_folder("weights") / key
    return file.read_text().strip() if file.exists() else None


def weights_key(source: ModelSource) -> str:
    """A cache key that changes whenever a model's weights change.

    For a saved step, its fingerprint. For a folder, a hash of its files' content, or of the generations of `gs://` objects.
    """
    if source.run is None:
        return _folder_key(source.weights)
    return saved_fingerprint(source.run, source.step) or content_key([source.run / FOLDER])


def cache_fingerprint(source: ModelSource, key: str, fingerprint: str) -> None:
    """Cache the fingerprint of a folder's weights, unless a file was replaced while they were loaded.

    Args:
        source: The model.
        key: Its `weights_key` before its weights were loaded.
        fingerprint: Of the loaded weights.
    """
    if source.run is None and weights_key(source) == key:
        folder = cache_folder("weights")
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / key, fingerprint + "\n")


def _folder_key(folder: Path) -> str:
    with slow_io_warning(folder, "looking at"):
        names = [name for name in list_names(folder) if name.endswith((".safetensors", ".json"))]
        return content_key([folder / name for name in names])
