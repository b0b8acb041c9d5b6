"""LoRA on every family: the default targets, a step of training, and files that peft finds the modules of."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from safetensors.numpy import load_file

from tests.model.family_folders import EACH, model_type
from tests.models import make_rules, packed_rows, random_segments
from zephyr_jax.checkpoint.frozen import merge, split
from zephyr_jax.checkpoint.hf.export import export_adapter_folder
from zephyr_jax.checkpoint.hf.peft_config import PeftAdapter
from zephyr_jax.checkpoint.hf.peft_files import fused_modules
from zephyr_jax.checkpoint.opened import open_model
from zephyr_jax.checkpoint.training_format import open_for_training
from zephyr_jax.config.adapter import AdapterOptions
from zephyr_jax.config.sections import ModelOptions, Remat
from zephyr_jax.model.lora import LORA_A, LORA_B, is_adapter
from zephyr_jax.objective.example_loss import make_objective
from zephyr_jax.objective.sft import sft_loss

RATE = 0.05
PROJECTIONS = {f"attention.{name}" for name in ("query", "key", "value", "output")} | {
    f"feed_forward.{name}" for name in ("gate", "up", "down")
}


def largest(gradients: Any) -> dict[str, dict[str, float]]:
    """Largest absolute gradient by A or B and projection."""
    sizes: dict[str, dict[str, float]] = {LORA_A: {}, LORA_B: {}}
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        _, group, name, part = (key.key for key in path)
        sizes[part][f"{group}.{name}"] = float(np.abs(leaf).max())
    return sizes


@EACH
def test_a_step_trains_an_adapter_whose_files_peft_can_apply(folder: Path, tmp_path: Path) -> None:
    """All seven projections learn, the loss falls, the files have the base's modules and give back every bit."""
    options = ModelOptions(path=str(folder), compute_dtype="float32", remat=Remat.NONE)
    model = open_for_training(options, AdapterOptions(rank=2, base_format="float32"), make_rules(), seed=0)
    spec, config = model.weight_format.lora, model.source.model_config
    assert spec is not None and set(spec.targets) == PROJECTIONS
    adapter, frozen = split(model.load_weights(), is_adapter)
    batch = packed_rows([random_segments([20, 12])], 32)
    objective = make_objective(sft_loss, model.abstract.definition, None, segments=2, chunk=16)
    step = jax.jit(jax.value_and_grad(lambda weights: objective(merge(weights, frozen), batch)[0].value))
    before, gradients = step(adapter)
    assert not any(largest(gradients)[LORA_A].values()), "A has a gradient while B is zero"
    trained = jax.tree.map(lambda weight, gradient: weight - RATE * gradient, adapter, gradients)
    after, gradients = step(trained)
    assert after < before
    assert all(size > 0 for sizes in largest(gradients).values() for size in sizes.values())
    assert largest(gradients)[LORA_A].keys() == largest(gradients)[LORA_B].keys() == PROJECTIONS

    peft = PeftAdapter(spec=spec, base=None, revision=None)
    export_adapter_folder(epath.Path(tmp_path / "adapter"), trained, config, peft, {}, dtype="float32")
    opened = open_model(ModelOptions(path=str(folder), adapter=str(tmp_path / "adapter")), make_rules())
    read, _ = split(opened.load_weights(), is_adapter)
    jax.tree.map(np.testing.assert_array_equal, read, trained)
    names = load_file(tmp_path / "adapter" / "adapter_model.safetensors").keys()
    modules = {name.removeprefix("base_model.model.").partition(".lora_")[0] for name in names}
    missing = {module for module in modules if f"{module}.weight" not in load_file(folder / "model.safetensors")}
    # Of fused modules peft has one adapter: `export` refuses the format by name (`tests/checkpoint/test_fused.py`).
    assert bool(missing) == bool(fused_modules(config)) == (model_type(folder) == "phi3")
