"""Fingerprints of weights that need not be read again: a saved step says its own, a folder's is kept by its files' dates.

What is kept here saves reading weights only where nothing else needs them; who reads them anyway takes the fingerprint anew.
"""

import os
from hashlib import blake2b

from zephyr_jax.checkpoint.source import ModelSource
from zephyr_jax.checkpoint.steps import saved_fingerprint
from zephyr_jax.storage.cloud import client, is_remote
from zephyr_jax.storage.files import Path, cache_folder, names_in, patience, write_whole

_ENDING = ".safetensors"


def known_fingerprint(source: ModelSource) -> str | None:
    """The fingerprint of a model's weights, from the step's own words or this machine's memory; None: read them."""
    if source.run is not None:
        return saved_fingerprint(source.run, source.step)
    note = cache_folder("weights") / _state_of(source.weights)
    return note.read_text().strip() if note.exists() else None


def weights_state(source: ModelSource) -> str:
    """A text that is another whenever a model's weights are; nothing is read for it but a saved step's own words."""
    return saved_fingerprint(source.run, source.step) or "" if source.run else _state_of(source.weights)


def remember_fingerprint(source: ModelSource, fingerprint: str) -> None:
    """Keep the fingerprint of a folder's weights for as long as its files do not change."""
    if source.run is None:
        folder = cache_folder("weights")
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / _state_of(source.weights), fingerprint + "\n")


def _state_of(folder: Path) -> str:
    """A name that is another whenever a file of weights is."""
    with patience(folder, "looking at"):
        names = [name for name in names_in(folder) if name.endswith((_ENDING, ".json"))]
        told = [f"{name} {_date(folder / name)}" for name in names]
    where = os.fspath(folder) if is_remote(folder) else os.path.realpath(folder)
    return blake2b("\n".join([where, *told]).encode(), digest_size=16).hexdigest()


def _date(file: Path) -> str:
    if is_remote(file):
        return str(client().info(os.fspath(file))["generation"])
    found = os.stat(file)
    return f"{found.st_size} {found.st_mtime_ns}"
