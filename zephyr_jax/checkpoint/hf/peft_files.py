"""adapter_model.safetensors of a PEFT adapter: its tensors checked, loaded into sharded arrays, and written.

A is stored as [rank, inputs] and B as [outputs, rank], one of each per layer and projection. That is the layout of Hugging Face's
projections, so that each is an `HfTensor` of the parameters `lora_a` and `lora_b`.
"""

from collections.abc import Iterable
from functools import reduce
from operator import getitem
from typing import Any

import jax
import numpy as np
from jax import Array

from zephyr_jax.checkpoint.hf.reader import KINDS, TensorFile, new_pool
from zephyr_jax.checkpoint.hf.weight_files import (
    ADAPTER,
    ADAPTER_PICKLE,
    ADAPTER_WEIGHTS,
    adapter_files,
    projection_sizes,
)
from zephyr_jax.errors import InputError, join_items
from zephyr_jax.model.config import ModelConfig
from zephyr_jax.model.families.targets import projections_of, target_names
from zephyr_jax.model.families.tensors import HfTensor
from zephyr_jax.model.families.wrappers import text_names, text_prefix, whole_name
from zephyr_jax.model.lora import LORA_A, LORA_B, LoraSpec
from zephyr_jax.storage.files import Path, list_names

_PREFIX = "base_model.model."
_ADAPTER_NAME = ".default.weight"
_OTHER_FEATURES = {
    "lora_magnitude_vector": "DoRA",
    "lora_embedding_": "adapters of embeddings",
    "embed_tokens": "trained embeddings",
    "lm_head": "a trained unembedding",
    "modules_to_save": "modules_to_save",
    "lora_diag": "KaSA",
    ".bias": "biases",
}
"""Part of a tensor's name -> the feature of peft that has such tensors."""


def adapter_tensors(config: ModelConfig, targets: Iterable[str], *, has_images: bool = False) -> tuple[HfTensor, ...]:
    """A and B of the adapted projections with peft's tensor names.

    Args:
        config: Of the base model.
        targets: Dotted names of the projections below `decoder`.
        has_images: Whether the names are those in a model of images and text.
    """
    projections = projections_of(config)
    return tuple(
        HfTensor((*tensor.path, part), f"{_PREFIX}{whole_name(tensor.module, has_images)}.{name}.weight", inputs)
        for tensor in (projections[target] for target in targets)
        for part, name, inputs in ((LORA_A, "lora_A", tensor.inputs), (LORA_B, "lora_B", 1))
    )


def fused_modules(config: ModelConfig, targets: Iterable[str] | None = None) -> list[str]:
    """Names of the modules that hold several projections, such as `qkv_proj`: peft adapts them as one.

    Args:
        config: Of the base model.
        targets: Dotted names of the projections to look at; None: all.
    """
    projections = projections_of(config)
    fused = [projections[target] for target in targets or projections if projections[target].fused]
    return list(dict.fromkeys(tensor.name.removesuffix(".weight").rpartition(".")[2] for tensor in fused))


class AdapterFile:
    """The tensors of an adapter folder by peft's name, also where the file has the name of peft's default adapter in it.

    Raises InputError where the file is missing, damaged, of another format, or has tensors of other features of peft.
    """

    def __init__(self, folder: Path, config: ModelConfig):
        self.path, self._config = folder / ADAPTER_WEIGHTS, config
        names = list_names(folder)
        if ADAPTER_WEIGHTS not in names:
            raise InputError(
                f"Expected {ADAPTER_WEIGHTS} beside {ADAPTER} in {folder}, got {join_items(names) or 'an empty folder'}. "
                f"{_explain_missing(folder, names)}"
            )
        self._file = TensorFile(self.path)
        self._stored: dict[str, str] = {}
        modules = {stored: stored.removeprefix(_PREFIX) for stored in self._file.entries}
        text = text_names(modules.values())
        self.text_prefix = text_prefix(modules.values())
        """Prefix of the text model's modules, where the base is a model of images and text; None for a text model."""
        for stored, module in modules.items():
            if module not in text:
                continue  # of images
            name = f"{_PREFIX}{text[module]}" if stored.startswith(_PREFIX) else stored
            name = name.replace(_ADAPTER_NAME, ".weight") if name.endswith(_ADAPTER_NAME) else name
            if name in self._stored:
                raise InputError(
                    f"{self.path} holds a tensor twice: {self._stored[name][:120]} and {stored[:120]}. Copy it again from its "
                    "source."
                )
            self._stored[name] = stored
        self.targets = self._targets()
        """Dotted names of the projections that have tensors, in the model's order."""

    def _targets(self) -> tuple[str, ...]:
        projections = {target: adapter_tensors(self._config, [target]) for target in projections_of(self._config)}
        names = {
            target: {name for tensor in tensors for name in tensor.names(self._config.num_layers)}
            for target, tensors in projections.items()
        }
        targets = tuple(target for target, expected in names.items() if expected & self._stored.keys())
        expected = {name for target in targets for name in names[target]}
        missing, unknown = sorted(expected - self._stored.keys()), sorted(self._stored.keys() - expected)
        fused = [module for module in fused_modules(self._config) if any(f".{module}." in name for name in unknown)]
        if fused:
            raise InputError(
                f"Unsupported adapter in {self.path}: expected adapters of separate projections, got one of "
                f"{join_items(fused)}, whose A belongs to several. Merge it into its base with peft (`merge_and_unload`) and "
                "use the merged folder."
            )
        if missing or unknown or not targets:
            parts = [_counted(missing, "missing"), _counted(unknown, "unknown")]
            raise InputError(
                f"The tensors in {self.path} are not a LoRA adapter of all {self._config.num_layers} layers of this base model: "
                f"{' and '.join(part for part in parts if part) or 'it holds none'}. {_advice(unknown)}"
            )
        return targets

    def check(self, spec: LoraSpec) -> None:
        """Raise InputError where a tensor is not of a float dtype, or not of the sizes that `spec` and the base model need."""
        if self.targets != spec.targets:
            raise InputError(
                f"The adapter in {self.path} has other targets: expected {target_names(spec.targets, self._config)}, got "
                f"{target_names(self.targets, self._config)}. Set adapter.targets to those of the adapter."
            )
        base = projection_sizes(self._config)
        for target in self.targets:
            outputs, inputs = base[target]
            a, b = adapter_tensors(self._config, [target])
            for tensor, sizes in ((a, (spec.rank, inputs)), (b, (outputs, spec.rank))):
                for name in tensor.names(self._config.num_layers):
                    self._check_tensor(name, sizes, spec.rank)

    def _check_tensor(self, name: str, sizes: tuple[int, ...], rank: int) -> None:
        entry = self._file.entries[self._stored[name]]
        if entry.sizes != sizes:
            raise InputError(
                f"Tensor {name} in {self.path} does not fit: expected sizes {sizes}, of r {rank} in {ADAPTER} and of this base "
                f"model, got {entry.sizes}. Give the base model that the adapter was trained on."
            )
        if entry.kind not in KINDS:
            raise InputError(
                f"Unsupported dtype of tensor {name} in {self.path}: expected one of {join_items(KINDS)}, got {entry.kind}. "
                "Save the adapter in one of them."
            )

    def read(self, tensor: HfTensor, sizes: tuple[int, ...]) -> np.ndarray:
        """All layers of A or B.

        Args:
            tensor: Of `adapter_tensors`.
            sizes: Of the parameter, with the layers.

        Returns:
            float32 of `sizes`.

        Raises:
            InputError: A value is NaN or infinite; names the tensor.
        """
        stacked = np.empty(sizes, np.float32)
        with new_pool() as pool:
            for layer, name in zip(stacked, tensor.names(len(stacked)), strict=True):
                view = tensor.hf_view(layer)
                self._file.fill(self._stored[name], [(tuple(slice(0, size) for size in view.shape), view)], pool)
                if not np.isfinite(layer).all():
                    count = np.count_nonzero(~np.isfinite(layer))
                    raise InputError(
                        f"Tensor {name} in {self.path} is not finite: expected numbers of float32, got {count} of "
                        f"{layer.size} values that are NaN or infinite. Take an earlier checkpoint of the adapter."
                    )
        return stacked


def _explain_missing(folder: Path, names: list[str]) -> str:
    """Why an adapter's folder may have no file of weights, and how to make one."""
    convert = (
        "Convert it with peft: `PeftModel.from_pretrained(base, ADAPTER).save_pretrained(FOLDER)` writes the file."
    )
    shards = [name for name in adapter_files(names) if name != ADAPTER_PICKLE]
    if shards:
        return (
            f"The weights are in parts ({join_items(shards, 3)}), and only one file is read. Join them with safetensors: "
            f"`load_file` of every part, `save_file` of all tensors as {ADAPTER_WEIGHTS}."
        )
    if ADAPTER_PICKLE in names:
        return f"{ADAPTER_PICKLE} is a pickle, and pickles are not read. {convert}"
    if folder.parent.name == "snapshots":  # the hub client's cache
        return (
            f"Of an adapter on the hub only this file is downloaded: pickles ({ADAPTER_PICKLE}) and parts "
            f"(adapter_model-00001-of-0000N.safetensors) are neither downloaded nor read. {convert}"
        )
    return "Copy it from the source of the adapter."


def _counted(names: list[str], kind: str) -> str:
    return f"{len(names)} {kind} ({join_items((name[:120] for name in names), 3)})" if names else ""


def _advice(unknown: list[str]) -> str:
    features = {feature for part, feature in _OTHER_FEATURES.items() if any(part in name for name in unknown)}
    if features:
        return (
            f"Tensors of {join_items(sorted(features))} are not supported. Choose an adapter without them, or merge it into its "
            "base with peft (`merge_and_unload`) and use the merged folder."
        )
    return "Give the base model that the adapter was trained on; copy the adapter again if it lacks tensors of some layers."


def load_adapter(folder: Path, config: ModelConfig, spec: LoraSpec, shapes: Any, shardings: Any) -> Any:
    """Read A and B of every adapted projection. Each process reads all of the file, one stacked parameter at a time.

    Args:
        folder: The adapter's folder.
        config: Of the base model.
        spec: The adapter, of `read_adapter_config`.
        shapes: Nested dicts of shapes, with `decoder.*.lora_a` [Y, *inputs, rank] and `lora_b` [Y, rank, *outputs] in them.
        shardings: Nested dicts of shardings, of the same structure.

    Returns:
        Nested dicts of float32 global arrays: A and B only.

    Raises:
        InputError: On every process: tensors are missing, unknown, of other sizes or not finite; names them.
    """
    file = AdapterFile(folder, config)
    file.check(spec)
    parameters: dict[str, Any] = {}
    for tensor in adapter_tensors(config, spec.targets):
        sizes: tuple[int, ...] = reduce(getitem, tensor.path, shapes).shape
        value = file.read(tensor, sizes)
        *parents, name = tensor.path
        node = reduce(lambda tree, key: tree.setdefault(key, {}), parents, parameters)
        node[name] = _sharded(value, reduce(getitem, tensor.path, shardings))
    return parameters


def _sharded(value: np.ndarray, sharding: Any) -> Array:
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])
