"""The safetensors files of a Hugging Face folder: which of them are the model, and the tensors that they must have.

They are chosen as in transformers 5: `model.safetensors`, else the files that `model.safetensors.index.json` names. Files of
other formats beside them (`consolidated*.safetensors`, `adapter_model.safetensors`) are ignored. A folder that different readers
would load as different weights is an error.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import reduce
from operator import getitem
from pathlib import PurePath
from typing import Any

import numpy as np
from flax import nnx

from zephyr_jax.checkpoint.hf.reader import KINDS, Target, TensorFile, new_pool
from zephyr_jax.errors import InputError, join_items, truncate_repr
from zephyr_jax.model.config import ModelConfig
from zephyr_jax.model.decoder import Compute, abstract_model
from zephyr_jax.model.families.registry import tensors_of
from zephyr_jax.model.families.targets import projections_of
from zephyr_jax.model.families.tensors import EMBEDDING, UNEMBEDDING, HfTensor
from zephyr_jax.model.families.wrappers import field_place, text_names
from zephyr_jax.storage.files import Path, list_names
from zephyr_jax.storage.strict_json import read_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
ADAPTER_WEIGHTS, ADAPTER_PICKLE = "adapter_model.safetensors", "adapter_model.bin"
_ADAPTER_FILE = re.compile(r"adapter_model[^/]*\.(safetensors|bin)")
_SHARD = re.compile(r"model-\d{5}-of-(\d{5})\.safetensors")
_COMPUTED = "rotary_emb.inv_freq"  # older exports store this; it is a function of the config


class TensorFiles:
    """The safetensors of a folder, by tensor name; headers are read at once, rows when they are asked for.

    Raises InputError where files are missing, damaged, of another format, or ambiguous.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        names = list_names(folder)
        check_no_adapter(folder, names)
        self._where = _by_name(folder, _chosen(folder, names))
        _check_readings(folder, names, self._where)
        self._where = _text_part(folder, self._where)
        self._pool = new_pool()

    @property
    def names(self) -> set[str]:
        """All tensor names; of a model with images, those of its text model as if it stood alone."""
        return set(self._where)

    def sizes(self, name: str) -> tuple[int, ...]:
        """Sizes of a tensor, from the header."""
        file, stored = self._where[name]
        return file.entries[stored].sizes

    def kind(self, name: str) -> str:
        """Dtype of a tensor, as the header names it."""
        file, stored = self._where[name]
        return file.entries[stored].kind

    def fill(self, name: str, targets: list[Target]) -> None:
        """Copy blocks of a tensor into float32 arrays; every row is read once."""
        file, stored = self._where[name]
        file.fill(stored, targets, self._pool)

    def close(self) -> None:
        """End the threads that read."""
        self._pool.shutdown()

    def check(self, config: ModelConfig) -> None:
        """Raise InputError unless the tensors are those of a model of this shape.

        Only headers are read, except where a tied model comes with an unembedding: it must equal the embedding. A tied model may
        store its one table under either name, as in transformers.
        """
        if config.tie_embeddings:
            self._check_tied(config)
        expected = expected_sizes(config)
        unknown = [name for name in self.names - expected.keys() if not name.endswith(_COMPUTED)]
        missing = expected.keys() - self.names
        if missing or unknown:
            adapter = " Names with `.lora_` are those of a LoRA adapter: merge it into its base first."
            raise InputError(
                f"The tensors in {self.folder} do not fit its config.json: {len(missing)} missing "
                f"({join_items(sorted(missing), 4)}), {len(unknown)} unknown ({join_items(sorted(unknown), 4)}). Take "
                f"config.json and weights from the same checkpoint.{adapter if any('.lora_' in name for name in unknown) else ''}"
            )
        for name, sizes in expected.items():
            if self.sizes(name) != sizes:
                raise InputError(
                    f"Tensor {name} in {self.folder} has sizes {self.sizes(name)}; config.json needs {sizes}. Take both from "
                    "the same checkpoint."
                )
            if self.kind(name) not in KINDS:
                raise InputError(
                    f"Tensor {name} in {self.folder} is of dtype {self.kind(name)}; weights are read from {join_items(KINDS)}. "
                    "Take the checkpoint that is not quantized, or convert it first."
                )

    def _check_tied(self, config: ModelConfig) -> None:
        names = {tensor.path: tensor.name for tensor in tensors_of(replace(config, tie_embeddings=False))}
        embedding, unembedding = names[EMBEDDING], names[UNEMBEDDING]
        if unembedding not in self._where:
            return
        head = self._where.pop(unembedding)
        table = self._where.setdefault(embedding, head)
        if table != head and not _equal(table, head):
            field = f"tie_word_embeddings{field_place(read_json(self.folder / 'config.json'), 'tie_word_embeddings')}"
            raise InputError(
                f"{self.folder}/config.json sets {field} to true, and the files hold an {unembedding} that differs from "
                f"{embedding}. transformers 5 uses both tensors, transformers 4 and vLLM drop {unembedding}. Set {field} to "
                "false to use both, or delete the tensor to use one."
            )


type _Stored = tuple[TensorFile, str]
"""A file and a tensor's name in it."""


def holds_adapter_only(names: list[str]) -> bool:
    """Whether a folder with these files holds a PEFT adapter and no model below it."""
    return ADAPTER in names and not _model_weights(names)


def adapter_files(names: list[str]) -> list[str]:
    """The files of an adapter's weights among these, also shards and pickles, which are not read."""
    return [name for name in names if _ADAPTER_FILE.fullmatch(name)]


def _model_weights(names: list[str]) -> list[str]:
    return [name for name in names if name.endswith(".safetensors") and not _ADAPTER_FILE.fullmatch(name)]


def check_no_adapter(folder: Path, names: list[str]) -> None:
    """Raise InputError for a folder with a LoRA/PEFT adapter that transformers applies, or with nothing but one."""
    weights = _model_weights(names)
    adapter = [*(name for name in names if name == ADAPTER), *adapter_files(names)]
    if adapter and (not weights or "config.json" not in names):
        raise InputError(
            f"{folder} holds a LoRA/PEFT adapter ({join_items(adapter)}), not a model: set model.path to its base and "
            f"model.adapter to a folder with {ADAPTER} and {ADAPTER_WEIGHTS}, or merge it with peft (`merge_and_unload`)."
        )
    if ADAPTER in names:
        raise InputError(
            f"{folder} can be read in two ways: {join_items(weights, 3)} alone, or with the adapter of {ADAPTER} applied to it, "
            f"as transformers does where peft is installed. Remove {join_items(adapter)} if the weights are the whole model; to "
            f"add the adapter to its base, pass `--model.path BASE --model.adapter {folder}`."
        )


def _chosen(folder: Path, names: list[str]) -> list[str]:
    """Names of the files that hold the model."""
    if SINGLE in names:
        return [SINGLE]
    if INDEX in names:
        return _indexed(folder, names)
    shards = [name for name in names if name.endswith(".safetensors") and not _foreign(name)]
    if shards:
        _check_shards(folder, shards)
        return shards
    consolidated = [name for name in names if name.startswith("consolidated")]
    kind = f"Mistral's own format ({join_items(consolidated, 3)})" if consolidated else f"{join_items(names)}"
    raise InputError(
        f"{folder} has no *.safetensors file in Hugging Face's format; it holds {kind}. Only safetensors are read (no pickle, "
        "no GGUF): convert the weights first (transformers: `from_pretrained`, then `save_pretrained`)."
    )


def _foreign(name: str) -> bool:
    """Whether a safetensors file is of another format than Hugging Face's model files."""
    return name.startswith("consolidated") or bool(_ADAPTER_FILE.fullmatch(name))


def _indexed(folder: Path, names: list[str]) -> list[str]:
    """The files that the index names. Raises InputError where it is malformed or names files that are missing."""
    weight_map = read_json(folder / INDEX).get("weight_map")
    files = list(weight_map.values()) if isinstance(weight_map, dict) else []
    wrong = [name for name in files if not _is_file_name(name)] if files else [weight_map]
    if wrong:
        raise InputError(
            f"{folder / INDEX} has no usable weight_map (tensor name -> safetensors file in this folder): expected file "
            f"names, got {truncate_repr(wrong[0])}. Copy it again."
        )
    chosen = sorted(set(files))
    missing = [name for name in chosen if name not in names]
    if missing:
        raise InputError(
            f"{folder / INDEX} names {len(chosen)} files, and {len(missing)} of them are missing: {join_items(missing, 6)}. "
            f"Each is a part of the weights: copy it again from its source{_stale_index(names)}."
        )
    return chosen


def _stale_index(names: list[str]) -> str:
    return f", or remove the index if {SINGLE} is the model" if SINGLE in names else ""


def _is_file_name(name: Any) -> bool:
    """Whether it may name a file of this very folder."""
    plain = isinstance(name, str) and len(name) < 256 and name.isprintable() and "\\" not in name
    return plain and name.endswith(".safetensors") and PurePath(name).name == name


def _check_shards(folder: Path, files: list[str]) -> None:
    """Raise InputError where shards without an index are not all there."""
    counts = {int(match[1]) for name in files if (match := _SHARD.fullmatch(name))}
    for count in counts:
        expected = [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, min(count, 10_000) + 1)]
        missing = [name for name in expected if name not in files]
        if missing:
            raise InputError(
                f"{folder} holds {count - len(missing)} of {count} shards; missing: {join_items(missing, 6)}. Copy them from the "
                "checkpoint's source."
            )


def _check_readings(folder: Path, names: list[str], where: dict[str, _Stored]) -> None:
    """Raise InputError where `model.safetensors`, which was read, and shards beside it hold different weights."""
    shards = [name for name in names if _SHARD.fullmatch(name)]
    if SINGLE not in names or not (shards or INDEX in names):
        return
    indexed = _indexed(folder, names) if INDEX in names else shards
    if indexed == [SINGLE]:
        return
    other = _by_name(folder, indexed)
    differing = sorted(other.keys() ^ where.keys()) or [name for name in where if not _equal(where[name], other[name])]
    if differing:
        reader = INDEX if INDEX in names else f"{len(shards)} shards without an index"
        raise InputError(
            f"{folder} can be read in two ways that differ in {len(differing)} tensors ({join_items(differing, 3)}): "
            f"{SINGLE}, which transformers reads, and {reader} ({join_items(indexed, 3)}), which others read. Remove the one "
            "that is not the model."
        )


def _by_name(folder: Path, files: list[str]) -> dict[str, _Stored]:
    stored: dict[str, _Stored] = {}
    for file in (TensorFile(folder / name) for name in sorted(set(files))):
        for name in file.entries:
            if name in stored:
                raise InputError(
                    f"Tensor {name[:80]} is both in {stored[name][0].path} and in {file.path}. Remove the file that does not "
                    "belong to the checkpoint."
                )
            stored[name] = file, name
    return stored


def _text_part(folder: Path, where: dict[str, _Stored]) -> dict[str, _Stored]:
    """The tensors of the text model, under the names that they have without a model of images around it."""
    part: dict[str, _Stored] = {}
    for stored, name in text_names(where).items():
        if name in part:
            raise InputError(
                f"{folder} holds a tensor of the text model twice: {part[name][1][:120]} and {stored[:120]}. Copy it again from "
                "its source."
            )
        part[name] = where[stored]
    return part


def _equal(one: _Stored, other: _Stored) -> bool:
    """Whether two tensors have equal sizes and values, whatever their dtypes."""
    (first, name), (second, other_name) = one, other
    if first.entries[name].sizes != second.entries[other_name].sizes:
        return False
    pieces = zip(first.pieces(name), second.pieces(other_name), strict=True)
    return all(np.array_equal(mine, theirs, equal_nan=True) for mine, theirs in pieces)


def expected_sizes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Hugging Face's tensor names and their sizes."""
    expected: dict[str, tuple[int, ...]] = {}
    for tensor, sizes in _with_sizes(config):
        expected |= dict.fromkeys(tensor.names(config.num_layers), tensor.hf_sizes(sizes))
    return expected


def projection_sizes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Outputs and inputs of the projections, by dotted name below `decoder`."""
    names = {tensor.path: name for name, tensor in projections_of(config).items()}
    return {
        names[tensor.path]: tensor.own_sizes(sizes) for tensor, sizes in _with_sizes(config) if tensor.path in names
    }


def _with_sizes(config: ModelConfig) -> Iterator[tuple[HfTensor, tuple[int, ...]]]:
    """The parameters with their sizes, without the layer axis."""
    abstract: Any = nnx.to_pure_dict(abstract_model(config, Compute())[1])
    for tensor in tensors_of(config):
        shape: tuple[int, ...] = reduce(getitem, tensor.path, abstract).shape
        yield tensor, shape[1:] if tensor.stacked else shape
