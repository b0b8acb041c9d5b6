"""Adapters for tests: random A and B on a mesh, and where they are sharded."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from zephyr_jax.checkpoint.hf.export import export_adapter_folder
from zephyr_jax.checkpoint.hf.peft_config import PeftAdapter, read_adapter_config
from zephyr_jax.checkpoint.hf.peft_files import load_adapter
from zephyr_jax.config.sections import MeshOptions
from zephyr_jax.model.config import ModelConfig
from zephyr_jax.model.families.registry import config_from_hf
from zephyr_jax.model.lora import LoraSpec
from zephyr_jax.parallel.mesh import make_mesh
from zephyr_jax.parallel.sharding import ShardingRules
from zephyr_jax.storage.strict_json import read_json

HEADS, KEYS = ("heads", "head_dim"), ("kv_heads", "head_dim")
AXES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "attention.query": (("embed",), HEADS),
    "attention.key": (("embed",), KEYS),
    "attention.value": (("embed",), KEYS),
    "attention.output": (HEADS, ("embed",)),
    "feed_forward.gate": (("embed",), ("mlp",)),
    "feed_forward.up": (("embed",), ("mlp",)),
    "feed_forward.down": (("mlp",), ("embed",)),
}
"""Axes of inputs and outputs by target."""
ALL = tuple(AXES)
MODULES = dict(zip(ALL, ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), strict=True))


def base_config(golden: Path, name: str = "gqa") -> ModelConfig:
    return config_from_hf(read_json(golden / "models" / name / "config.json"))


def sizes_of(config: ModelConfig) -> dict[str, int]:
    return {
        "embed": config.d_model, "heads": config.num_heads, "kv_heads": config.num_kv_heads, "head_dim": config.head_dim,
        "mlp": config.d_ff,
    }  # fmt: skip


@dataclass(frozen=True)
class Built:
    """A random adapter: its values as numpy arrays by target, and as parameters on a mesh."""

    config: ModelConfig
    adapter: PeftAdapter
    values: dict[str, tuple[np.ndarray, np.ndarray]]
    parameters: dict[str, Any]
    shapes: dict[str, Any]
    shardings: dict[str, Any]


def build(
    config: ModelConfig, targets: tuple[str, ...] = ALL, rank: int = 4, alpha: float = 8, *, use_rslora: bool = False,
    devices: int = 1, seed: int = 0, base: str | None = "some/base", **mesh: int,
) -> Built:  # fmt: skip
    """A random adapter on a mesh of the first `devices` devices."""
    rules = ShardingRules(make_mesh(MeshOptions(**mesh), jax.devices()[:devices]))
    rng, sizes = np.random.default_rng(seed), sizes_of(config)
    values, trees = {}, ({}, {}, {})  # type: Any, Any
    for target in targets:
        inputs, outputs = AXES[target]
        pair = []
        for name, axes in (("lora_a", (*inputs, None)), ("lora_b", (None, *outputs))):
            shape = (config.num_layers, *(sizes[axis] if axis else rank for axis in axes))
            value = rng.standard_normal(shape, np.float32)
            sharding = rules.sharding(None, *axes)
            leaves = (jax.device_put(value, sharding), jax.ShapeDtypeStruct(shape, np.float32), sharding)
            for tree, leaf in zip(trees, leaves, strict=True):
                group, projection = target.split(".")
                tree.setdefault("decoder", {}).setdefault(group, {}).setdefault(projection, {})[name] = leaf
            pair.append(value)
        values[target] = (pair[0], pair[1])
    spec = LoraSpec(rank=rank, alpha=alpha, targets=targets, use_rslora=use_rslora)
    return Built(config, PeftAdapter(spec=spec, base=base, revision=None), values, *trees)


def write(built: Built, out: Path, dtype: str = "float32") -> Path:
    """The adapter as a PEFT folder."""
    export_adapter_folder(epath.Path(out), built.parameters, built.config, built.adapter, {}, dtype=dtype)
    return out


def query_adapter(model: Path, out: Path) -> Path:
    """An adapter of the query projections of a Hugging Face folder."""
    config = config_from_hf(read_json(model / "config.json"))
    return write(build(config, ("attention.query",), base=str(model)), out)


def read(folder: Path, config: ModelConfig) -> PeftAdapter:
    return read_adapter_config(epath.Path(folder), config)


def loaded(folder: Path, built: Built) -> Any:
    """A and B of a folder, laid out like those of `built`."""
    return load_adapter(epath.Path(folder), built.config, built.adapter.spec, built.shapes, built.shardings)


def hf_pair(built: Built, target: str, layer: int) -> tuple[np.ndarray, np.ndarray]:
    """A [rank, inputs] and B [outputs, rank] of one layer, by numpy alone."""
    a, b = (value[layer] for value in built.values[target])
    rank = built.adapter.spec.rank
    return a.reshape(math.prod(a.shape[:-1]), rank).T, b.reshape(rank, -1).T
