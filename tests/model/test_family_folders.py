"""Golden folders of every family: greedy text through the cache, bit-exact export, adapters."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.generate.test_engine import answers, engine_of
from tests.model.test_family_golden import CASES, FOLDERS
from tests.models import load, load_adapted, logits, make_rules, whole_rows
from zephyr_jax.checkpoint.hf.export import export_folder
from zephyr_jax.checkpoint.hf.peft_files import adapter_tensors
from zephyr_jax.checkpoint.resolve import find_model
from zephyr_jax.config.adapter import AdapterOptions
from zephyr_jax.config.sections import ModelOptions
from zephyr_jax.generate.engine import GenerationRequest
from zephyr_jax.model.families.registry import config_to_hf
from zephyr_jax.storage.files import open_path

CHECK = Path(__file__).parents[1] / "golden" / "check_families.py"
PROMPT, NEW = 8, 120


def export(folder: Path, out: Path) -> Path:
    source = find_model(ModelOptions(path=str(folder)))
    written = config_to_hf(source.hf_config, source.model_config)
    parameters = load(folder).parameters
    export_folder(open_path(out), parameters, source.model_config, written, {}, dtype="float32", max_file_bytes=2**30)
    return out


@CASES
def test_greedy_through_the_cache_equals_torch(folder: Path) -> None:
    """120 tokens of two prompts, past the end of a window of 7."""
    numbers = np.load(folder / "golden.npz")
    requests = [GenerationRequest(tokens[:PROMPT], NEW) for tokens in numbers["tokens"]]
    made = answers(engine_of(load(folder), batch_size=2, context=PROMPT + NEW), requests)
    np.testing.assert_array_equal(made, numbers["greedy"])


@CASES
def test_an_export_is_the_same_model(folder: Path, tmp_path: Path) -> None:
    """The same bits under the same names, the same configuration; weights are as many as `num_parameters`."""
    out = export(folder, tmp_path / "out")
    before, after = (load_file(path / "model.safetensors") for path in (folder, out))
    assert before.keys() == after.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(value, after[name], err_msg=name)
    source, exported = (find_model(ModelOptions(path=str(path))) for path in (folder, out))
    assert exported.model_config == source.model_config
    assert sum(value.size for value in before.values()) == source.model_config.num_parameters


@pytest.mark.slow
def test_torch_computes_the_same_logits_of_exports(tmp_path: Path) -> None:
    """Run with ZEPHYR_TORCH_PYTHON=<a Python with torch and transformers>, of version 4 or 5."""
    python = os.environ.get("ZEPHYR_TORCH_PYTHON")
    if not python:
        pytest.skip("ZEPHYR_TORCH_PYTHON names no Python with torch")
    for folder in FOLDERS:
        out = export(folder, tmp_path / "folders" / folder.name)
        np.save(out / "tokens.npy", np.load(folder / "golden.npz")["tokens"])
    subprocess.run([python, CHECK, tmp_path / "folders", tmp_path / "logits.npz"], check=True)
    found = np.load(tmp_path / "logits.npz")
    for folder in FOLDERS:
        np.testing.assert_allclose(
            found[folder.name], np.load(folder / "golden.npz")["logits"], atol=1e-5, err_msg=folder.name
        )


@pytest.mark.parametrize("name", ["qwen2", "qwen3"])
def test_a_new_adapter_changes_no_bit(golden: Path, name: str) -> None:
    """It is on all projections, without biases and norms, and is exported under PEFT's names."""
    folder = golden / "families" / name
    batch = whole_rows(np.load(folder / "golden.npz")["tokens"])
    adapted = load_adapted(folder, AdapterOptions(rank=2, base_format="float32"), make_rules())
    np.testing.assert_array_equal(logits(adapted, batch), logits(load(folder), batch))
    lora = adapted.model.weight_format.lora
    assert lora is not None
    modules = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
    assert {tensor.name for tensor in adapter_tensors(adapted.model.config, lora.targets)} == {
        f"base_model.model.model.layers.{{}}.{module}.lora_{side}.weight" for module in modules for side in "AB"
    }
