"""Fingerprints of weights without loading them: a saved step stores its own, other ones are cached by content."""

from hashlib import blake2b

from zephyr_jax.checkpoint.model_source import ModelSource
from zephyr_jax.checkpoint.steps import FOLDER, saved_fingerprint
from zephyr_jax.model.weight_format import PLAIN, WeightFormat
from zephyr_jax.storage.cloud import slow_io_warning
from zephyr_jax.storage.content import content_key
from zephyr_jax.storage.files import Path, cache_folder, list_names, write_atomic


def find_fingerprint(source: ModelSource, key: str, weight_format: WeightFormat) -> str | None:
    """The reference fingerprint of a model's weights, from the saved step or the local cache; None when unknown.

    Args:
        source: The model.
        key: Its `weights_key`.
        weight_format: How the weights are stored.
    """
    if _is_saved(source, weight_format) and source.run:
        return saved_fingerprint(source.run, source.step)
    file = _file(key, weight_format)
    return file.read_text().strip() if file.exists() else None


def weights_key(source: ModelSource) -> str:
    """A cache key that changes whenever a model's weights change.

    For a saved step, its fingerprint. For a folder, a hash of its files' content, or of the generations of `gs://` objects. For
    an adapter, also the key of the model below it.
    """
    if source.run is not None:
        return saved_fingerprint(source.run, source.step) or content_key([source.run / FOLDER])
    own = _folder_key(source.weights)
    return _hash(f"{own} {weights_key(source.adapter.base)}") if source.adapter else own


def cache_fingerprint(source: ModelSource, key: str, weight_format: WeightFormat, fingerprint: str) -> None:
    """Cache the fingerprint of weights that are in no saved step, unless a file was replaced while they were loaded.

    Args:
        source: The model.
        key: Its `weights_key` before its weights were loaded.
        weight_format: How the weights are stored.
        fingerprint: Of the loaded weights.
    """
    if not _is_saved(source, weight_format) and weights_key(source) == key:
        file = _file(key, weight_format)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, fingerprint + "\n")


def _is_saved(source: ModelSource, weight_format: WeightFormat) -> bool:
    """Whether a saved step holds the fingerprint of exactly these weights."""
    return source.run is not None and source.adapter is None and weight_format == PLAIN


def _file(key: str, weight_format: WeightFormat) -> Path:
    name = key if weight_format == PLAIN else _hash(f"{key} {weight_format!r}")
    return cache_folder("weights") / name


def _hash(text: str) -> str:
    return blake2b(text.encode(), digest_size=16).hexdigest()


def _folder_key(folder: Path) -> str:
    with slow_io_warning(folder, "looking at"):
        names = [name for name in list_names(folder) if name.endswith((".safetensors", ".json"))]
        return content_key([folder / name for name in names])
