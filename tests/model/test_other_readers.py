"""llama.cpp and vLLM compute what we compute of exports of every family; opt-in, with the Pythons that have them."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.checkpoint.adapters import build, write
from tests.model.test_family_folders import export
from tests.model.test_family_golden import FOLDERS
from tests.models import Loaded, logits, make_rules, whole_rows
from zephyr_jax.checkpoint.opened import open_model
from zephyr_jax.config.sections import ModelOptions

GOLDEN = Path(__file__).parents[1] / "golden"
NOT_COMPARED = {
    "phi_longrope",  # vLLM takes its long frequencies for all rows by `max_model_len`
    *("ministral3_tied", "qwen3_window"),  # windows that no published model of these families has
    *("granite_untied", "olmo2_tied", "smollm3_untied"),  # the families have another folder
}
COMPARED = [folder for folder in FOLDERS if folder.name not in NOT_COMPARED]
COLUMNS = range(8, 128, 7)
"""As in check_llama_cpp.py."""
LLAMA_CPP_READS: dict[str, dict[str, Any]] = {
    # Windows of these architectures are not computed.
    "window": {"sliding_window": None},
    "qwen2_window": {"use_sliding_window": False, "layer_types": None},
    "phi3": {"sliding_window": None},
    # Scores are scaled by the size of a head (by the width over the heads in the 27B models); the pattern of windows is fixed.
    "gemma2": {"query_pre_attn_scalar": 16},
    "gemma3": {"query_pre_attn_scalar": 16, "layer_types": ["sliding_attention"] * 5},
}
"""Golden folder -> config.json as llama.cpp computes it: what published models of the family do not have, or what it ignores."""
VLLM_REFUSES = {"qwen2_window": "Sliding window for some but all layers is not supported"}
WITH_ADAPTER = [
    folder for folder in COMPARED if folder.name in ("llama31", "qwen2", "qwen3", "gemma2", "smollm3", "granite")
]
VLLM_SETTINGS = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}
WIDE = {"hidden_size": 128, "intermediate_size": 96, "head_dim": 32}
"""vLLM computes heads of 32 and more on a CPU."""


def log_probs(folder: Path, tokens: np.ndarray, adapter: Path | None = None) -> np.ndarray:
    """float32 [B, L, V]."""
    options = ModelOptions(path=str(folder), compute_dtype="float32", adapter=str(adapter) if adapter else None)
    rules = make_rules()
    opened = open_model(options, rules)
    loaded = Loaded(opened.abstract, opened.load_weights(), rules)
    return np.asarray(jax.nn.log_softmax(logits(loaded, whole_rows(tokens))))


def with_fields(folder: Path, out: Path, changes: dict[str, Any]) -> Path:
    shutil.copytree(folder, out)
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | changes))
    return out


def widened(folder: Path, out: Path) -> Path:
    """The same architecture with heads of 32 and random weights."""
    with_fields(folder, out, WIDE)
    config = json.loads((folder / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head = config.get("head_dim") or config["hidden_size"] // heads
    rows = {"q_proj": 32 * heads, "k_proj": 32 * kv_heads, "v_proj": 32 * kv_heads, "o_proj": 128, "down_proj": 128}
    rows |= {"qkv_proj": 32 * (heads + 2 * kv_heads), "gate_up_proj": 192, "gate_proj": 96, "up_proj": 96}
    rows |= {"embed_tokens": config["vocab_size"], "lm_head": config["vocab_size"]}
    inputs, rng, tensors = {"o_proj": 32 * heads, "down_proj": 96}, np.random.default_rng(0), {}
    for name, value in load_file(folder / "model.safetensors").items():
        module = name.split(".")[-2]
        scales_head = module in ("q_norm", "k_norm")
        norm = (32 if scales_head else 128) if not scales_head or len(value) == head else 32 * len(value) // head
        sizes = [rows.get(module, norm), *([inputs.get(module, 128)] if value.ndim == 2 else [])]
        centre = round(float(value.mean())) if module.endswith("norm") else 0
        tensors[name] = (centre + 0.12 * rng.normal(size=sizes)).astype(np.float32)
    save_file(tensors, out / "model.safetensors")
    return out


@pytest.mark.slow
def test_llama_cpp_computes_exports(tmp_path: Path) -> None:
    """Log-probs through its cache, past the window, within 1e-4 (Gemma 2e-3: GELU by a table); it ignores what the docs list."""
    python, llama_cpp = os.environ.get("ZEPHYR_LLAMA_CPP_PYTHON"), os.environ.get("ZEPHYR_LLAMA_CPP")
    if not python or not llama_cpp:
        pytest.skip("ZEPHYR_LLAMA_CPP_PYTHON and ZEPHYR_LLAMA_CPP are not set")
    ours = {}
    for folder in (*COMPARED, GOLDEN / "models" / "gqa", GOLDEN / "models" / "window"):
        config = json.loads((folder / "config.json").read_text())
        tokens = np.random.default_rng(0).integers(7, config["vocab_size"], (2, COLUMNS.stop)).astype(np.int32)
        np.save(export(folder, tmp_path / "folders" / folder.name) / "tokens.npy", tokens)
        source = with_fields(folder, tmp_path / folder.name, LLAMA_CPP_READS.get(folder.name, {}))
        ours[folder.name] = log_probs(source, tokens)[:, [column - 1 for column in COLUMNS]]
    script = GOLDEN / "check_llama_cpp.py"
    subprocess.run([python, script, llama_cpp, tmp_path / "folders", tmp_path / "theirs.npz"], check=True)
    results = dict(np.load(tmp_path / "theirs.npz"))
    assert results.keys() == ours.keys()
    for name, theirs in results.items():
        assert theirs.dtype == np.float32, f"{name}: {theirs}"
        np.testing.assert_allclose(theirs, ours[name], atol=2e-3 if "gemma" in name else 1e-4, err_msg=name)


def by_vllm(tmp_path: Path) -> dict[str, np.ndarray]:
    """What check_vllm.py computes of `folders`."""
    python = os.environ.get("ZEPHYR_VLLM_PYTHON")
    if not python:
        pytest.skip("ZEPHYR_VLLM_PYTHON is not set")
    words = [python, GOLDEN / "check_vllm.py", tmp_path / "folders", tmp_path / "theirs.npz"]
    subprocess.run(words, check=True, env={**os.environ, **VLLM_SETTINGS})
    return dict(np.load(tmp_path / "theirs.npz"))


@pytest.mark.slow
def test_vllm_computes_exports(tmp_path: Path) -> None:
    """Log-probs of rows beyond the window within 1e-4."""
    ours = {}
    for folder in COMPARED:
        tokens = np.random.default_rng(1).integers(3, 96, (2, 64)).astype(np.int32)
        wide = widened(folder, tmp_path / folder.name)
        np.save(export(wide, tmp_path / "folders" / folder.name) / "tokens.npy", tokens)
        ours[folder.name] = log_probs(wide, tokens)[:, :-1]
    results = by_vllm(tmp_path)
    assert results.keys() == ours.keys()
    for name, theirs in results.items():
        if name in VLLM_REFUSES:
            assert VLLM_REFUSES[name] in str(theirs)
            continue
        assert theirs.dtype == np.float32, f"{name}: {theirs}"
        np.testing.assert_allclose(theirs, ours[name], atol=1e-4, err_msg=name)


@pytest.mark.slow
def test_vllm_computes_adapters(tmp_path: Path) -> None:
    """Of all seven projections, beside an exported base: log-probs within 1e-4, and far from those of the base alone."""
    ours, bases = {}, {}
    for folder in WITH_ADAPTER:
        tokens = np.random.default_rng(1).integers(3, 96, (2, 64)).astype(np.int32)
        wide = widened(folder, tmp_path / folder.name)
        np.save(export(wide, tmp_path / "folders" / folder.name) / "tokens.npy", tokens)
        config = open_model(ModelOptions(path=str(wide)), make_rules()).source.model_config
        adapter = write(build(config, rank=8, alpha=0.1), tmp_path / "folders" / folder.name / "adapter")
        ours[folder.name] = log_probs(wide, tokens, adapter)[:, :-1]
        bases[folder.name] = log_probs(wide, tokens)[:, :-1]
    for name, theirs in by_vllm(tmp_path).items():
        assert theirs.dtype == np.float32, f"{name}: {theirs}"
        assert np.abs(ours[name] - bases[name]).max() > 0.1
        np.testing.assert_allclose(theirs, ours[name], atol=1e-4, err_msg=name)
