"""Hugging Face folders: config, tokenizer files and safetensors, streamed into shards and out of them.

Import reads only the blocks that this process's devices hold, one parameter at a time; export writes one tensor at a
time. Folders appear whole or not at all.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open

from zephyr_jax.checkpoint.safetensors_writer import write_safetensors
from zephyr_jax.checkpoint.tensors import Tensor, tensors_of
from zephyr_jax.errors import InputError, listing
from zephyr_jax.model.shape import ModelShape

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model",
    "chat_template.jinja",
)  # fmt: skip
_DOWNLOAD = [
    "model*.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "generation_config.json",
    *TOKENIZER_FILES,
]
_COMPUTED = "rotary_emb.inv_freq"  # older exports store this; it is a function of the config


def open_folder(path: str, revision: str | None = None) -> Path:
    """The local folder of a checkpoint: `path` itself, or a hub id downloaded into the hub's cache.

    Raises InputError when it is neither.
    """
    if Path(path).is_dir():
        return Path(path)
    try:
        return Path(snapshot_download(path, revision=revision, allow_patterns=_DOWNLOAD))
    except Exception as error:  # the hub client raises many kinds; all mean: not to be had
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"{path!r} is no folder here and cannot be had from the hub: {reason} Check the spelling and the network."
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises InputError naming the file."""
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}. A checkpoint folder needs this file.") from error
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}). Copy it again from its source.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not a JSON object. Copy it again from its source.")
    return content


class TensorFiles:
    """The safetensors of a folder, by tensor name; opened once, read by block."""

    def __init__(self, folder: Path):
        self.folder = folder
        paths = self._paths()
        self._files = {path: self._open(folder / path) for path in sorted(set(paths))}
        self._where: dict[str, str] = {}
        for path, file in self._files.items():
            self._where |= dict.fromkeys(file.keys(), path)

    def _paths(self) -> list[str]:
        index = self.folder / "model.safetensors.index.json"
        if index.exists():
            weight_map = read_json(index).get("weight_map")
            if not isinstance(weight_map, dict) or any(Path(name).name != name for name in weight_map.values()):
                raise InputError(
                    f"{index} has no usable weight_map (tensor name -> file in this folder). Copy it again."
                )
            return list(weight_map.values())
        found = sorted(path.name for path in self.folder.glob("*.safetensors"))
        if not found:
            raise InputError(
                f"{self.folder} has no *.safetensors file; it holds "
                f"{listing(sorted(path.name for path in self.folder.iterdir()))}. Only safetensors are read (no pickle): "
                "convert the weights first."
            )
        return found

    @staticmethod
    def _open(path: Path) -> Any:
        try:
            return safe_open(path, framework="np")
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"{path} cannot be opened as safetensors: {error}. It is missing, cut short or damaged: copy it again."
            ) from error

    @property
    def names(self) -> set[str]:
        """All tensor names."""
        return set(self._where)

    def sizes(self, name: str) -> tuple[int, ...]:
        """Sizes of a tensor, from the header."""
        return tuple(self._files[self._where[name]].get_slice(name).get_shape())

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """One block of a tensor, in its stored dtype."""
        return self._files[self._where[name]].get_slice(name)[index]


def load_parameters(folder: Path, shape: ModelShape, abstract: Any, shardings: Any) -> Any:
    """Parameters as a pure dict of float32 global arrays with the given shardings.

    `abstract` and `shardings` are pure dicts of the same structure. Raises InputError listing every tensor that is
    missing, unknown or of another size.
    """
    files = TensorFiles(folder)
    _check(files, shape, abstract)
    parameters: dict[str, Any] = {}
    for tensor in tensors_of(shape):
        target, sharding = at(abstract, tensor.path), at(shardings, tensor.path)
        read = _reader(files, tensor, target.shape, shape.layers)
        _set(parameters, tensor.path, jax.make_array_from_callback(target.shape, sharding, read))
    return parameters


def _reader(
    files: TensorFiles, tensor: Tensor, sizes: tuple[int, ...], layers: int
) -> Callable[[tuple[slice, ...] | None], np.ndarray]:
    names = tensor.names(layers)
    one = sizes[1:] if tensor.stacked else sizes

    def read(index: tuple[slice, ...] | None) -> np.ndarray:
        index = index or tuple(slice(None) for _ in sizes)
        wanted = names[index[0]] if tensor.stacked else names
        inner = index[1:] if tensor.stacked else index
        block = tuple(len(range(*part.indices(size))) for part, size in zip(inner, one, strict=True))
        out = np.empty((len(wanted), *block), np.float32)
        for line, name in enumerate(wanted):
            out[line] = tensor.from_hf(files.read(name, tensor.hf_index(one, inner)), block)
        return out if tensor.stacked else out[0]

    return read


def _check(files: TensorFiles, shape: ModelShape, abstract: Any) -> None:
    expected: dict[str, tuple[int, ...]] = {}
    for tensor in tensors_of(shape):
        sizes = at(abstract, tensor.path).shape
        one = sizes[1:] if tensor.stacked else sizes
        expected |= dict.fromkeys(tensor.names(shape.layers), tensor.hf_sizes(one))
    spare = {"lm_head.weight"} if shape.tied else set()
    unknown = [name for name in files.names - expected.keys() - spare if not name.endswith(_COMPUTED)]
    missing = expected.keys() - files.names
    if missing or unknown:
        raise InputError(
            f"The tensors in {files.folder} do not fit its config.json: {len(missing)} missing "
            f"({listing(sorted(missing), 4)}), {len(unknown)} unknown ({listing(sorted(unknown), 4)}). Take config.json and "
            "weights from the same checkpoint."
        )
    for name, sizes in expected.items():
        if files.sizes(name) != sizes:
            raise InputError(
                f"Tensor {name} in {files.folder} has sizes {files.sizes(name)}; config.json needs {sizes}. Take both from "
                "the same checkpoint."
            )


def export_folder(
    out: Path,
    parameters: Any,
    shape: ModelShape,
    config: dict[str, Any],
    extras: dict[str, Any],
    dtype: str,
    limit: int,
) -> list[Path]:
    """Write a Hugging Face folder: safetensors (with an index when there are several), config.json and `extras`.

    `extras` maps file names to JSON objects, text or paths to copy. `limit` is bytes per safetensors file. For
    one process: every shard must be addressable. Returns the files written. Raises InputError when `out` exists.
    """
    if out.exists():
        raise InputError(f"{out} exists already. Choose another folder or remove it first; nothing was overwritten.")
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        _write_weights(scratch, parameters, shape, dtype, limit)
        for name, content in {"config.json": {**config, "dtype": dtype, "torch_dtype": dtype}, **extras}.items():
            _write(scratch / name, content)
        os.chmod(scratch, 0o755)
        os.replace(scratch, out)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return sorted(out.iterdir())


def _write(path: Path, content: Any) -> None:
    if isinstance(content, Path):
        shutil.copyfile(content, path)
    else:
        path.write_text(
            content if isinstance(content, str) else json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        )


def _write_weights(folder: Path, parameters: Any, shape: ModelShape, dtype: str, limit: int) -> None:
    kind = np.dtype(jax.numpy.dtype(dtype))
    pieces: list[tuple[str, tuple[int, ...], Callable[[], np.ndarray]]] = []
    for tensor in tensors_of(shape):
        value = at(parameters, tensor.path)
        one = value.shape[1:] if tensor.stacked else value.shape
        for layer, name in enumerate(tensor.names(shape.layers)):
            pieces.append((name, tensor.hf_sizes(one), _gatherer(tensor, value, layer, kind)))
    write_safetensors(folder, pieces, kind, limit)


def _gatherer(tensor: Tensor, value: jax.Array, layer: int, kind: np.dtype) -> Callable[[], np.ndarray]:
    def gather() -> np.ndarray:
        one = value[layer] if tensor.stacked else value
        return tensor.to_hf(np.asarray(jax.device_get(one))).astype(kind)

    return gather


def at(tree: Any, path: tuple[str, ...]) -> Any:
    """The value at a path of keys in a nested dict."""
    for key in path:
        tree = tree[key]
    return tree


def _set(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value
