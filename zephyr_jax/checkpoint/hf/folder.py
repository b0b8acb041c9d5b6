"""Hugging Face folders: config, tokenizer files and safetensors, streamed into shards and out of them.

Import reads only the rows that this process's devices hold, one tensor at a time; export writes one tensor at a time.
Folders on disk appear whole or not at all; on Cloud Storage config.json, written last, says that all is there.
"""

import ctypes
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from huggingface_hub import snapshot_download
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

from zephyr_jax.checkpoint.hf.dtype_range import check_range
from zephyr_jax.checkpoint.hf.weight_files import TensorFiles
from zephyr_jax.checkpoint.hf.writer import Piece, write_safetensors
from zephyr_jax.errors import InputError, at_revision
from zephyr_jax.model.config import ModelConfig
from zephyr_jax.model.families.registry import tensors_of
from zephyr_jax.model.families.tensors import HfTensor
from zephyr_jax.parallel.gather import gather, write_barrier
from zephyr_jax.storage.files import Path, check_readable, is_remote, list_names, open_path, write_atomic
from zephyr_jax.storage.strict_json import read_json as read_json
from zephyr_jax.storage.suggest import check_hub_id, suggest_path

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model",
    "chat_template.jinja", "chat_template.json",
)  # fmt: skip
CHAT_TEMPLATES = "additional_chat_templates"
"""A folder beside the tokenizer, with a Jinja file for each further template."""
_WEIGHTS = ["model*.safetensors", "model.safetensors.index.json"]
_DOWNLOAD = [
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "tekken.json",
    f"{CHAT_TEMPLATES}/*.jinja",
    *TOKENIZER_FILES,
]


def open_folder(path: str, revision: str | None = None, *, weights: bool = True) -> Path:
    """The folder of a checkpoint: `path` itself, local or gs://, or a hub id downloaded into the hub's cache.

    With `weights` false, only the files beside the weights are downloaded.
    Raises InputError when it is neither.
    """
    check_readable(path)
    if open_path(path).is_dir():
        return open_path(path)
    if is_remote(path):
        raise InputError(f"There is nothing at {path}. Check the spelling; a checkpoint is a folder with config.json.")
    check_hub_id(path, "folder")
    try:
        return open_path(
            snapshot_download(path, revision=revision, allow_patterns=[*_DOWNLOAD, *(_WEIGHTS if weights else ())])
        )
    except Exception as error:  # the hub client raises many kinds; all mean: not to be had
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"{path!r} is no folder here and cannot be had from the hub{at_revision(revision)}.{suggest_path(path)} Check "
            f"the spelling and the network. The hub's client said: {reason}"
        ) from error


def load_parameters(folder: Path, model_config: ModelConfig, abstract: Any, shardings: Any) -> Any:
    """Parameters as a pure dict of float32 global arrays with the given shardings.

    `abstract` and `shardings` are pure dicts of the same structure. Besides what the devices hold, host memory needs
    this process's part of one Hugging Face tensor in float32 and a few MiB. Raises InputError listing every tensor
    that is missing, unknown or of another size.
    """
    files = TensorFiles(folder)
    parameters: dict[str, Any] = {}
    try:
        files.check(model_config)
        for tensor in tensors_of(model_config):
            sizes, sharding = at(abstract, tensor.path).shape, at(shardings, tensor.path)
            names = tensor.names(model_config.num_layers)
            whole = _stack(files, tensor, names, sizes, sharding) if tensor.stacked else None
            _set(parameters, tensor.path, _one(files, tensor, names[0], sizes, sharding) if whole is None else whole)
    finally:
        files.close()
    return parameters


def _stack(files: TensorFiles, tensor: HfTensor, names: list[str], sizes: tuple[int, ...], sharding: Any) -> Array:
    """All layers [Y, ...] of a parameter, put into place one after another."""
    one = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
    whole = _zeros(sizes, sharding)()
    for layer, name in enumerate(names):
        whole = jax.block_until_ready(_put(whole, _one(files, tensor, name, sizes[1:], one), layer))
    return whole


def _trim() -> None:
    """Give the system back what was freed; glibc's allocator would keep hundreds of MiB between blocks still in use."""
    with suppress(OSError, AttributeError):  # other C libraries have nothing of the kind
        ctypes.CDLL(None).malloc_trim(0)


@lru_cache
def _zeros(sizes: tuple[int, ...], sharding: NamedSharding) -> Callable[[], Array]:
    return jax.jit(partial(jnp.zeros, sizes, jnp.float32), out_shardings=sharding)


@partial(jax.jit, donate_argnums=0)
def _put(whole: Array, one: Array, layer: int) -> Array:
    return jax.lax.dynamic_update_index_in_dim(whole, one, layer, 0)


def _one(files: TensorFiles, tensor: HfTensor, name: str, sizes: tuple[int, ...], sharding: NamedSharding) -> Array:
    """One Hugging Face tensor as a float32 global array of ours, without a layer axis."""
    indices = {
        device: tuple(slice(*part.indices(size)[:2]) for part, size in zip(index or (), sizes, strict=True))
        for device, index in sharding.addressable_devices_indices_map(sizes).items()
    }
    blocks = {index: np.empty([part.stop - part.start for part in index], np.float32) for index in indices.values()}
    files.fill(name, [(tensor.hf_index(sizes, index), tensor.hf_view(block)) for index, block in blocks.items()])
    held: dict[jax.Device, Array] = {}
    for index in list(blocks):
        block = blocks.pop(index)  # so that it is freed when it has been copied, before the next one is
        held |= {device: jax.device_put(block, device) for device, wanted in indices.items() if wanted == index}
        jax.block_until_ready(list(held.values()))
    _trim()
    return jax.make_array_from_single_device_arrays(sizes, sharding, [held[device] for device in indices])


def export_folder(
    out: Path,
    parameters: Any,
    model_config: ModelConfig,
    config: dict[str, Any],
    extras: dict[str, Any],
    dtype: str,
    limit: int,
) -> None:
    """Write a Hugging Face folder: safetensors (with an index when there are several), `extras` and config.json.

    `extras` maps file names to JSON objects, text or local paths to copy. `limit` is bytes per safetensors file. All
    processes call this and return when all is written; process 0 writes. Raises InputError when `out` exists, or, on every
    process, for a tensor with a value that `dtype` cannot hold.
    """
    kind = np.dtype(jnp.dtype(dtype))
    check_range(parameters, model_config, kind)
    pieces = _pieces(parameters, model_config, kind)
    if jax.process_index() == 0:
        with _appearing(out) as folder:
            write_safetensors(folder, pieces, kind, limit)
            for name, content in {**extras, "config.json": {**config, "dtype": dtype, "torch_dtype": dtype}}.items():
                _write(folder / name, content)
    else:
        for _, _, bring in pieces:
            bring()
    write_barrier()


@contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """A folder to write into that becomes `out` when the block ends well, and nothing when it does not."""
    if is_remote(out):
        _clear(out)
        write_atomic(out / _UNFINISHED, "")
        try:
            yield out
            (out / _UNFINISHED).unlink()
        except BaseException:
            with suppress(Exception):  # what went wrong is on its way up already
                _clear(out)
            raise
        return
    if out.exists():
        raise InputError(_EXISTS.format(out))
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = open_path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield scratch
        os.chmod(scratch, 0o755)
        os.replace(scratch, out)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def check_free(out: Path, mark: str) -> None:
    """Raise InputError when `out` is there and is neither an export that was cut short nor has a file `mark`."""
    if out.exists() and not {_UNFINISHED, mark} & set(list_names(out)):
        raise InputError(_EXISTS.format(out))


_UNFINISHED = "export-unfinished"
_EXISTS = "{} exists already. Choose another folder or remove it first; nothing was overwritten."


def _clear(out: Path) -> None:
    """Remove what an export that was cut short has left at a gs:// path. Raises InputError when there is anything else."""
    names = list_names(out)
    if names and _UNFINISHED not in names:
        raise InputError(_EXISTS.format(out))
    for name in sorted(names, key=_UNFINISHED.__eq__):  # the mark last
        (out / name).unlink()


def _write(path: Path, content: Any) -> None:
    if isinstance(content, os.PathLike):
        write_atomic(path, open_path(content).read_bytes())
    else:
        write_atomic(
            path, content if isinstance(content, str) else json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        )


def _pieces(parameters: Any, model_config: ModelConfig, kind: np.dtype) -> list[Piece]:
    pieces: list[Piece] = []
    for tensor in tensors_of(model_config):
        value = at(parameters, tensor.path)
        one = value.shape[1:] if tensor.stacked else value.shape
        for layer, name in enumerate(tensor.names(model_config.num_layers)):
            bring = partial(_bring, tensor, value, layer if tensor.stacked else None, kind)
            pieces.append((name, tensor.hf_sizes(one), bring))
    return pieces


def _bring(tensor: HfTensor, value: Array, layer: int | None, kind: np.dtype) -> np.ndarray:
    """One tensor as it is written, on process 0; nothing on the others."""
    one = gather(value, layer)
    return np.empty(0, kind) if one is None else tensor.to_hf(one).astype(kind)


def at(tree: Any, path: tuple[str, ...]) -> Any:
    """The value at a path of keys in a nested dict."""
    for key in path:
        tree = tree[key]
    return tree


def _set(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value
