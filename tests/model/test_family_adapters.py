"""LoRA on every family: the default targets, a step of training, and files that peft finds the modules of."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load_file

from tests.checkpoint.adapters import build, write
from tests.model.family_folders import EACH, model_type
from tests.models import make_rules, packed_rows, random_segments
from zephyr_jax.checkpoint.frozen import merge, split
from zephyr_jax.checkpoint.hf.peft_files import fused_modules
from zephyr_jax.checkpoint.opened import OpenedModel, open_model
from zephyr_jax.checkpoint.training_format import new_format
from zephyr_jax.config.adapter import AdapterOptions
from zephyr_jax.config.sections import ModelOptions, Remat
from zephyr_jax.model.lora import LORA_A, LORA_B, is_adapter
from zephyr_jax.objective.example_loss import make_objective
from zephyr_jax.objective.sft import sft_loss

RATE = 0.05
PROJECTIONS = {f"attention.{name}" for name in ("query", "key", "value", "output")} | {
    f"feed_forward.{name}" for name in ("gate", "up", "down")
}
MODULES = {f"self_attn.{name}_proj" for name in "qkvo"} | {f"mlp.{name}_proj" for name in ("gate", "up", "down")}


def opened(folder: Path, adapter: Path | None = None) -> OpenedModel:
    options = ModelOptions(
        path=str(folder), compute_dtype="float32", remat=Remat.NONE, adapter=str(adapter) if adapter else None
    )
    return open_model(options, make_rules())


def largest(gradients: Any) -> dict[str, dict[str, float]]:
    """Largest absolute gradient by A or B and projection."""
    sizes: dict[str, dict[str, float]] = {LORA_A: {}, LORA_B: {}}
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        _, group, name, part = (key.key for key in path)
        sizes[part][f"{group}.{name}"] = float(np.abs(leaf).max())
    return sizes


@EACH
def test_an_adapter_of_every_projection_learns(folder: Path, tmp_path: Path) -> None:
    """The default targets are the seven projections; all have gradients, and the loss falls."""
    config = opened(folder).source.model_config
    spec = new_format(AdapterOptions(rank=2, base_format="float32"), config).lora
    assert spec is not None and set(spec.targets) == PROJECTIONS
    model = opened(folder, write(build(config, spec.targets, rank=2, alpha=0.1), tmp_path / "adapter"))
    adapter, frozen = split(model.load_weights(), is_adapter)
    batch = packed_rows([random_segments([20, 12])], 32)
    objective = make_objective(sft_loss, model.abstract.definition, None, segments=2, chunk=16)
    # Compiled without optimization, which takes most of the time of a program that runs twice.
    step = jax.jit(
        jax.value_and_grad(lambda weights: objective(merge(weights, frozen), batch)[0].value),
        compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True},
    )
    before, gradients = step(adapter)
    for sizes in largest(gradients).values():
        assert sizes.keys() == PROJECTIONS and all(sizes.values())
    after, _ = step(jax.tree.map(lambda weight, gradient: weight - RATE * gradient, adapter, gradients))
    assert after < before


@EACH
def test_files_of_an_adapter_name_the_modules_of_the_base(folder: Path, tmp_path: Path) -> None:
    """As peft finds them, and what is read is what was written."""
    config = opened(folder).source.model_config
    built = build(config, rank=2)
    path = write(built, tmp_path / "adapter")
    read, _ = split(opened(folder, path).load_weights(), is_adapter)
    jax.tree.map(np.testing.assert_array_equal, read, built.parameters)
    names = load_file(path / "adapter_model.safetensors").keys()
    modules = {name.removeprefix("base_model.model.").partition(".lora_")[0] for name in names}
    assert {module.partition(".layers.")[2].partition(".")[2] for module in modules} == MODULES
    missing = {module for module in modules if f"{module}.weight" not in load_file(folder / "model.safetensors")}
    # Of fused modules peft has one adapter: `export` refuses the format by name (`tests/checkpoint/test_fused.py`).
    assert bool(missing) == bool(fused_modules(config)) == (model_type(folder) == "phi3")
