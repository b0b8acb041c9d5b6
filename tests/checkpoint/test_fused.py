"""Phi-3's fused projections: parameters that are rows of one Hugging Face tensor are read, exported and adapted as such."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from safetensors.numpy import load_file, save_file

from tests.checkpoint.test_streaming import counted
from tests.models import make_rules
from zephyr_jax.checkpoint.hf.export import export_adapter_folder
from zephyr_jax.checkpoint.hf.peft_config import PeftAdapter, read_adapter_config
from zephyr_jax.checkpoint.opened import OpenedModel, open_model
from zephyr_jax.config.models import ExportConfig
from zephyr_jax.config.sections import ModelOptions, WeightsOptions
from zephyr_jax.errors import InputError
from zephyr_jax.export.contents import load_contents
from zephyr_jax.model.config import ModelConfig
from zephyr_jax.model.families.targets import projections_of, resolve_targets
from zephyr_jax.model.lora import LoraSpec

QKV, GATE_UP = "model.layers.1.self_attn.qkv_proj.weight", "model.layers.0.mlp.gate_up_proj.weight"
MESH = {"data": 2, "fsdp": 2, "tensor": 2}


def opened(golden: Path, adapter: Path | None = None) -> OpenedModel:
    path = str(golden / "families" / "phi3")
    return open_model(ModelOptions(path=path, adapter=str(adapter) if adapter else None), make_rules(8, **MESH))


def exported(model: OpenedModel, out: Path, **settings: Any) -> dict[str, np.ndarray]:
    options = WeightsOptions(path=model.source.asked)
    config = ExportConfig(model=options, output=str(out), max_shard_gib=1.0, **settings)
    load_contents(model, config).write(epath.Path(out), {"config.json": model.source.hf_config})
    return load_file(out / "model.safetensors")


def test_a_round_trip_on_a_mesh_keeps_every_bit_and_reads_every_byte_once(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, seen = opened(golden), counted(monkeypatch)
    before = load_file(golden / "families" / "phi3" / "model.safetensors")
    after = exported(model, tmp_path / "out", dtype="float32")
    assert seen["model.safetensors"] == (golden / "families" / "phi3" / "model.safetensors").stat().st_size
    assert after.keys() == before.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)


@pytest.fixture
def adapter(golden: Path, tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """An adapter of the separate query and up projections, as a run stores it, and its arrays."""
    config = opened(golden).source.model_config
    spec = LoraSpec(rank=2, alpha=4.0, use_rslora=False, targets=resolve_targets(("q_proj", "mlp.up_proj"), config))
    rng = np.random.default_rng(0)
    arrays = {"qa": (2, 32, 2), "qb": (2, 2, 4, 8), "ua": (2, 32, 2), "ub": (2, 2, 48)}
    parts = {name: rng.normal(0, 0.1, sizes).astype(np.float32) for name, sizes in arrays.items()}
    tree = {
        "decoder": {
            "attention": {"query": {"lora_a": jnp.asarray(parts["qa"]), "lora_b": jnp.asarray(parts["qb"])}},
            "feed_forward": {"up": {"lora_a": jnp.asarray(parts["ua"]), "lora_b": jnp.asarray(parts["ub"])}},
        }
    }
    peft = PeftAdapter(spec=spec, base=None, revision=None)
    export_adapter_folder(epath.Path(tmp_path / "adapter"), tree, config, peft, {}, dtype="float32")
    return tmp_path / "adapter", parts


def test_an_adapter_of_one_projection_is_merged_into_its_rows(
    golden: Path, tmp_path: Path, adapter: tuple[Path, dict[str, np.ndarray]]
) -> None:
    folder, parts = adapter
    before = load_file(golden / "families" / "phi3" / "model.safetensors")
    after = exported(opened(golden, folder), tmp_path / "out", dtype="float32")
    query = 2 * (parts["qa"][1] @ parts["qb"][1].reshape(2, 32)).T
    np.testing.assert_allclose(after[QKV][:32], before[QKV][:32] + query, atol=1e-6)
    np.testing.assert_array_equal(after[QKV][32:], before[QKV][32:])
    np.testing.assert_array_equal(after[GATE_UP][:48], before[GATE_UP][:48])
    np.testing.assert_allclose(
        after[GATE_UP][48:], before[GATE_UP][48:] + 2 * (parts["ua"][0] @ parts["ub"][0]).T, atol=1e-6
    )


def test_its_export_in_the_format_of_peft_is_refused(
    golden: Path, tmp_path: Path, adapter: tuple[Path, dict[str, np.ndarray]]
) -> None:
    with pytest.raises(InputError, match=r"phi3 has qkv_proj, gate_up_proj in peft.*Leave format unset"):
        exported(opened(golden, adapter[0]), tmp_path / "out", format="adapter")


def test_an_adapter_of_a_fused_module_is_refused(golden: Path, tmp_path: Path) -> None:
    config = opened(golden).source.model_config
    names = [
        f"base_model.model.model.layers.{layer}.self_attn.qkv_proj.lora_{part}.weight"
        for layer in (0, 1)
        for part in "AB"
    ]
    sizes = {"A": (2, 32), "B": (64, 2)}
    save_file(
        {name: np.zeros(sizes[name.split("lora_")[1][0]], np.float32) for name in names},
        tmp_path / "adapter_model.safetensors",
    )
    fields = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["qkv_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(fields))
    with pytest.raises(InputError, match=r"got one of qkv_proj, whose A belongs to several.*merge_and_unload"):
        read_adapter_config(epath.Path(tmp_path), config)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("qkv_proj", ("attention.query", "attention.key", "attention.value")),
        ("mlp.gate_up_proj", ("feed_forward.gate", "feed_forward.up")),
        ("k_proj", ("attention.key",)),
    ],
)
def test_targets_name_fused_or_separate_modules(golden: Path, pattern: str, expected: tuple[str, ...]) -> None:
    config: ModelConfig = opened(golden).source.model_config
    assert resolve_targets((pattern,), config) == expected
    assert resolve_targets(("*_proj",), config) == tuple(projections_of(config))
