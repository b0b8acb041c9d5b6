"""Exporting parameters as a Hugging Face folder: one tensor at a time, and the folder appears complete or not at all.

On Cloud Storage, which cannot rename folders, a marker file stands in the folder until everything is written.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial, reduce
from operator import getitem
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from zephyr_jax.checkpoint.hf.dtype_range import check_range
from zephyr_jax.checkpoint.hf.peft_config import PeftAdapter, adapter_config
from zephyr_jax.checkpoint.hf.peft_files import adapter_tensors
from zephyr_jax.checkpoint.hf.weight_files import ADAPTER
from zephyr_jax.checkpoint.hf.writer import TensorSource, write_safetensors
from zephyr_jax.errors import InputError
from zephyr_jax.model.config import ModelConfig
from zephyr_jax.model.families.registry import tensors_of
from zephyr_jax.model.families.tensors import HfTensor
from zephyr_jax.parallel.gather import gather, write_barrier
from zephyr_jax.storage.cloud import is_remote
from zephyr_jax.storage.files import Path, list_names, open_path, write_atomic

_UNFINISHED = "export-unfinished"
_EXISTS = "{} already exists; nothing was overwritten. Choose another folder, or remove it."


def export_folder(
    out: Path,
    parameters: Any,
    model_config: ModelConfig,
    hf_config: dict[str, Any],
    files: dict[str, Any],
    *,
    dtype: str,
    max_file_bytes: int,
) -> None:
    """Write safetensors, config.json and further files. All processes call this and return when it is done; process 0 writes.

    Args:
        out: The folder to make.
        parameters: Pure dict of float32 global arrays.
        model_config: Configuration of the model.
        hf_config: Content of config.json; the dtype is added.
        files: Further files by name: JSON objects, text, or local paths to copy.
        dtype: Of the weights.
        max_file_bytes: Limit of a safetensors file; larger models are split, with an index.

    Raises:
        InputError: `out` exists, or (on every process) a tensor has a value that `dtype` cannot hold.
    """
    config_json = {**hf_config, "dtype": dtype, "torch_dtype": dtype}
    tensors = tensors_of(model_config)
    _export(
        out, parameters, tensors, model_config.num_layers, dtype, {**files, "config.json": config_json}, max_file_bytes
    )


def export_adapter_folder(
    out: Path, parameters: Any, model_config: ModelConfig, adapter: PeftAdapter, files: dict[str, Any], *, dtype: str
) -> None:
    """Write an adapter as peft and vLLM read it. All processes call this and return when it is done; process 0 writes.

    Args:
        out: The folder to make.
        parameters: Nested dicts of float32 global arrays; only `lora_a` and `lora_b` of the adapted projections are read.
        model_config: Configuration of the base model.
        adapter: What adapter_config.json holds.
        files: Further files by name: JSON objects, text, or local paths to copy.
        dtype: Of the weights: float32, which keeps every bit, or bfloat16.

    Raises:
        InputError: `out` exists, or (on every process) a tensor has a value that `dtype` cannot hold.
    """
    tensors = adapter_tensors(model_config, adapter.spec.targets, has_images=adapter.has_images)
    files = {**files, ADAPTER: adapter_config(model_config, adapter)}
    _export(out, parameters, tensors, model_config.num_layers, dtype, files, None, "adapter_model")


def _export(
    out: Path,
    parameters: Any,
    tensors: tuple[HfTensor, ...],
    num_layers: int,
    dtype: str,
    files: dict[str, Any],
    max_file_bytes: int | None,
    stem: str = "model",
) -> None:
    kind = np.dtype(jnp.dtype(dtype))
    check_range(parameters, tensors, num_layers, kind)
    sources = _sources(parameters, tensors, num_layers, kind)
    if jax.process_index() == 0:
        with _new_folder(out) as folder:
            write_safetensors(folder, sources, kind, max_file_bytes, stem)
            for name, content in files.items():
                _write_file(folder / name, content)
    else:
        for _, _, read in sources:
            read()  # takes part in the gather of process 0
    write_barrier()


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `out` when the block succeeds and is removed when it fails."""
    if is_remote(out):
        _remove_unfinished(out)
        write_atomic(out / _UNFINISHED, "")
        try:
            yield out
            (out / _UNFINISHED).unlink()
        except BaseException:
            with suppress(Exception):  # the first error is raised below
                _remove_unfinished(out)
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


def check_new_folder(out: Path, expected_file: str) -> None:
    """Raise InputError when `out` exists, unless it is an interrupted export or has `expected_file`."""
    if out.exists() and not {_UNFINISHED, expected_file} & set(list_names(out)):
        raise InputError(_EXISTS.format(out))


def _remove_unfinished(out: Path) -> None:
    """Remove the files of an interrupted export from a gs:// path. Raises InputError when the folder holds something else."""
    names = list_names(out)
    if names and _UNFINISHED not in names:
        raise InputError(_EXISTS.format(out))
    for name in sorted(names, key=_UNFINISHED.__eq__):  # the marker last
        (out / name).unlink()


def _write_file(path: Path, content: Any) -> None:
    if isinstance(content, os.PathLike):
        write_atomic(path, open_path(content).read_bytes())
    else:
        write_atomic(
            path, content if isinstance(content, str) else json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        )


def _sources(parameters: Any, tensors: tuple[HfTensor, ...], num_layers: int, kind: np.dtype) -> list[TensorSource]:
    """The tensors to write. Parameters that share a tensor are its rows, in the order of `FusedRows.start`."""
    sizes: dict[str, tuple[int, ...]] = {}
    parts: dict[str, list[tuple[HfTensor, Array, int | None]]] = {}
    for tensor in sorted(tensors, key=lambda tensor: tensor.fused.start if tensor.fused else 0):
        value = reduce(getitem, tensor.path, parameters)
        for layer, name in enumerate(tensor.names(num_layers)):
            sizes[name] = tensor.hf_sizes(value.shape[1:] if tensor.stacked else value.shape)
            parts.setdefault(name, []).append((tensor, value, layer if tensor.stacked else None))
    names = dict.fromkeys(name for tensor in tensors for name in tensor.names(num_layers))
    return [(name, sizes[name], partial(_read_tensor, parts[name], kind)) for name in names]


def _read_tensor(parts: list[tuple[HfTensor, Array, int | None]], kind: np.dtype) -> np.ndarray:
    """One tensor in Hugging Face's layout on process 0; an empty array on the others."""
    rows = [_read_rows(*part, kind) for part in parts]
    return rows[0] if len(rows) == 1 else np.concatenate(rows)


def _read_rows(tensor: HfTensor, value: Array, layer: int | None, kind: np.dtype) -> np.ndarray:
    gathered = gather(value, layer)
    return np.empty(0, kind) if gathered is None else tensor.to_hf(gathered).astype(kind)
