"""PEFT adapter folders: written and read bit for bit, on any mesh; whatever would compute something else is refused by name."""

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.checkpoint.adapters import ALL, MODULES, base_config, build, hf_pair, loaded, read, write
from tests.models import load, logits, random_segments, whole_rows
from zephyr_jax.checkpoint.hf.peft_config import read_adapter_base
from zephyr_jax.errors import InputError
from zephyr_jax.storage.files import open_path

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
SOME = ("attention.query", "attention.output", "feed_forward.down")
PREFIX = "base_model.model.model.layers"
CHECK = Path(__file__).parents[1] / "golden" / "check_adapter.py"
Tensors = dict[str, np.ndarray]


def bits(value: Any) -> np.ndarray:
    return np.asarray(value).view(np.uint32)


@pytest.fixture
def folder(golden: Path, tmp_path: Path) -> Path:
    """An adapter of all seven projections of the model `gqa`."""
    return write(build(base_config(golden)), tmp_path / "adapter")


# ---- written and read ----


@pytest.mark.parametrize("mesh", [{}, {"devices": 8, "data": 2, "fsdp": 2, "tensor": 2}], ids=["1", "2x2x2"])
@pytest.mark.parametrize("targets", [ALL, SOME], ids=["all", "some"])
def test_a_round_trip_keeps_every_bit(golden: Path, tmp_path: Path, mesh: Any, targets: tuple[str, ...]) -> None:
    """Values, shardings, sizes, targets, scale, base and revision."""
    built = build(base_config(golden), targets, rank=3, alpha=5.5, use_rslora=True, **mesh)
    for a, b in built.values.values():
        a.flat[:4], b.flat[:4] = (-0.0, 1e-42, 3.4e38, 1 / 3), (1e-45, -3e38, 0.1, 0.0)
    place = lambda value, sharding: jax.device_put(np.asarray(value), sharding)  # noqa: E731
    built.parameters["decoder"] = jax.tree.map(place, tree_of(built.values)["decoder"], built.shardings["decoder"])
    built = replace(built, adapter=replace(built.adapter, revision="v1"))
    folder = write(built, tmp_path / "adapter")
    assert read(folder, built.config) == built.adapter
    assert read_adapter_base(open_path(folder)) == ("some/base", "v1")
    again = loaded(folder, built)
    assert str(jax.tree.structure(again)) == str(jax.tree.structure(built.parameters))
    for ours, theirs in zip(jax.tree.leaves(built.parameters), jax.tree.leaves(again), strict=True):
        assert np.array_equal(bits(ours), bits(theirs))
        assert theirs.dtype == np.float32
        assert theirs.sharding == ours.sharding


def tree_of(values: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    tree: dict[str, Any] = {"decoder": {}}
    for target, (a, b) in values.items():
        group, name = target.split(".")
        tree["decoder"].setdefault(group, {})[name] = {"lora_a": a, "lora_b": b}
    return tree


def test_tensors_have_the_names_and_layout_of_peft(golden: Path, folder: Path) -> None:
    """A is [rank, inputs] and B [outputs, rank], one of each per layer and projection, in one file."""
    built = build(base_config(golden))
    tensors = load_file(folder / WEIGHTS)
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG, WEIGHTS]
    assert len(tensors) == 2 * 7 * built.config.num_layers
    for target, module in MODULES.items():
        parent = "self_attn" if target.startswith("attention") else "mlp"
        for layer in range(built.config.num_layers):
            a, b = hf_pair(built, target, layer)
            stem = f"{PREFIX}.{layer}.{parent}.{module}"
            assert np.array_equal(tensors[f"{stem}.lora_A.weight"], a)
            assert np.array_equal(tensors[f"{stem}.lora_B.weight"], b)


def test_the_config_has_the_fields_that_peft_and_vllm_read(folder: Path) -> None:
    content = json.loads((folder / CONFIG).read_text())
    expected = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "use_rslora": False, "bias": "none",
        "lora_dropout": 0.0, "inference_mode": True, "fan_in_fan_out": False, "init_lora_weights": True, "use_dora": False,
        "modules_to_save": None, "base_model_name_or_path": "some/base", "revision": None,
        "target_modules": list(MODULES.values()),
    }  # fmt: skip
    assert {name: content[name] for name in expected} == expected
    assert type(content["lora_alpha"]) is int


@pytest.mark.parametrize("alpha", [16, 16.0, 0.1, 1 / 3, 22.627416997969522])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_every_scale_survives(golden: Path, tmp_path: Path, alpha: float, use_rslora: bool) -> None:
    built = build(base_config(golden), SOME, alpha=alpha, use_rslora=use_rslora)
    again = read(write(built, tmp_path / "adapter"), built.config).spec
    assert again == built.adapter.spec
    assert again.scale == alpha / (2 if use_rslora else 4)


def test_bfloat16_rounds_and_is_read_exactly(golden: Path, tmp_path: Path) -> None:
    built = build(base_config(golden))
    folder = write(built, tmp_path / "adapter", "bfloat16")
    for ours, theirs in zip(jax.tree.leaves(built.parameters), jax.tree.leaves(loaded(folder, built)), strict=True):
        assert np.array_equal(np.asarray(ours.astype(jnp.bfloat16).astype(jnp.float32)), np.asarray(theirs))


def test_a_value_beyond_bfloat16_is_refused_and_leaves_no_folder(golden: Path, tmp_path: Path) -> None:
    built = build(base_config(golden), SOME)
    node = built.parameters["decoder"]["attention"]["query"]
    node["lora_a"] = node["lora_a"].at[1, 0, 0].set(3.4028e38)
    with pytest.raises(InputError, match=r"layers\.1\.self_attn\.q_proj\.lora_A\.weight does not fit into bfloat16"):
        write(built, tmp_path / "adapter", "bfloat16")
    assert not (tmp_path / "adapter").exists()


def test_an_existing_folder_is_not_overwritten(golden: Path, folder: Path) -> None:
    with pytest.raises(InputError, match="already exists"):
        write(build(base_config(golden)), folder)


def test_further_leaves_are_left_out(golden: Path, tmp_path: Path) -> None:
    """Bases, codes, scales and weights without an adapter in the parameters are not written."""
    built = build(base_config(golden), SOME)
    built.parameters["decoder"]["attention"]["query"] |= {"base": jnp.ones(3), "lora_scale": jnp.ones(2)}
    built.parameters["decoder"]["attention"]["key"] = jnp.ones(3)
    folder = write(built, tmp_path / "adapter")
    assert len(load_file(folder / WEIGHTS)) == 2 * len(SOME) * 2


# ---- adapter_config.json ----


def edit(folder: Path, **fields: Any) -> None:
    """Change fields of adapter_config.json; `...` removes one."""
    content = json.loads((folder / CONFIG).read_text()) | fields
    (folder / CONFIG).write_text(json.dumps({name: value for name, value in content.items() if value is not ...}))


REFUSED: list[tuple[str, Any]] = [
    ("peft_type", "IA3"), ("peft_type", "ADALORA"), ("peft_type", None), ("use_dora", True), ("bias", "all"),
    ("bias", "lora_only"), ("lora_bias", True), ("modules_to_save", ["lm_head"]), ("trainable_token_indices", [1, 2]),
    ("trainable_token_indices", {"embed_tokens": [1]}), ("fan_in_fan_out", True), ("rank_pattern", {"q_proj": 8}),
    ("alpha_pattern", {"q_proj": 8}), ("layers_to_transform", [0]), ("layers_to_transform", 0), ("layers_pattern", "layers"),
    ("layer_replication", [[0, 2], [1, 2]]), ("use_qalora", True), ("megatron_config", {"a": 1}),
    ("target_parameters", ["mlp.experts"]), ("alora_invocation_tokens", [1, 2]), ("arrow_config", {"top_k": 3}),
    ("use_bdlora", {"nblocks": 2}), ("kasa_config", {"beta": 1e-4}), ("velora_config", {"num_groups": 64}),
    ("monteclora_config", {"n": 1}), ("a_field_of_2027", True), ("a_field_of_2027", "some"), ("a_field_of_2027", 0.5),
    ("init_lora_weights", "pissa"), ("init_lora_weights", "pissa_niter_16"), ("init_lora_weights", "olora"),
    ("init_lora_weights", "corda"), ("init_lora_weights", "loftq"), ("init_lora_weights", "lora_ga"),
    ("init_lora_weights", "mica"), ("init_lora_weights", "of_2027"), ("init_lora_weights", 1),
    ("r", ...), ("r", 0), ("r", -4), ("r", "4"), ("r", 4.5), ("r", True), ("r", None), ("lora_alpha", ...), ("lora_alpha", 0),
    ("lora_alpha", -1), ("lora_alpha", "16"), ("lora_alpha", float("nan")), ("use_rslora", "yes"), ("target_modules", ...),
    ("target_modules", None), ("target_modules", [1]), ("target_modules", {"q_proj": 1}), ("exclude_modules", 3),
    ("base_model_name_or_path", 3), ("revision", ["main"]), ("peft_type", ...), ("lora_dropout", "0.1"), ("lora_dropout", 2),
    ("task_type", "SEQ_CLS"), ("task_type", "causal_lm"), ("task_type", ["CAUSAL_LM"]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), REFUSED, ids=lambda value: str(value)[:30])
def test_what_would_compute_something_else_is_refused_by_name(
    folder: Path, golden: Path, name: str, value: Any
) -> None:
    edit(folder, **{name: value})
    with pytest.raises(InputError) as error:
        read(folder, base_config(golden))
    message = str(error.value)
    assert name in message
    assert f"{folder}/{CONFIG}" in message
    assert "Choose" in message or "Take" in message or "Convert" in message
    if name == "init_lora_weights" and value in ("pissa", "olora", "loftq"):
        assert "path_initial_model_for_weight_conversion" in message


NEUTRAL: list[dict[str, Any]] = [
    {"lora_dropout": None}, {"inference_mode": False}, {"task_type": None}, {"bias": None},
    {"auto_mapping": {"base_model_class": "MistralForCausalLM", "unsloth_fixed": True}}, {"peft_version": "0.21.2"},
    {"runtime_config": {"ephemeral_gpu_offload": False}}, {"megatron_core": "megatron.core"}, {"qalora_group_size": 16},
    {"init_lora_weights": "gaussian"}, {"init_lora_weights": "orthogonal"}, {"init_lora_weights": False},
    {"init_lora_weights": "eva", "eva_config": {"rho": 1.0}}, {"corda_config": {"corda_method": "ipm"}}, {"loftq_config": {}},
    {"layers_to_transform": []}, {"modules_to_save": []}, {"a_field_of_2027": None}, {"a_field_of_2027": {}},
    {"exclude_modules": []}, {"exclude_modules": ["lm_head"]}, {"ensure_weight_tying": True}, {"use_dora": None},
]  # fmt: skip


@pytest.mark.parametrize("fields", NEUTRAL, ids=str)
def test_what_decides_nothing_is_accepted(folder: Path, golden: Path, fields: dict[str, Any]) -> None:
    expected = read(folder, base_config(golden))
    edit(folder, **fields)
    assert read(folder, base_config(golden)) == expected


ATTENTION = ("attention.query", "attention.value")


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": ["v_proj", "self_attn.q_proj", "c_attn"]},
        {
            "target_modules": [
                f"model.layers.{layer}.self_attn.{name}" for layer in (0, 1) for name in ("q_proj", "v_proj")
            ]
        },
        {"target_modules": r".*\.(q|v)_proj"},
        {"target_modules": r"(?:.*?(?:language|text|layers).*?(?:self_attn|mlp).*?(?:q_proj|v_proj).*?)"},
        {
            "target_modules": "all-linear",
            "exclude_modules": ["mlp.gate_proj", "up_proj", "down_proj", "k_proj", "o_proj"],
        },
        {"target_modules": "ALL-LINEAR", "exclude_modules": r".*(mlp\..*|k_proj|o_proj)"},
    ],
    ids=str,
)
def test_every_form_of_target_modules_is_read(golden: Path, tmp_path: Path, fields: dict[str, Any]) -> None:
    built = build(base_config(golden), ATTENTION)
    folder = write(built, tmp_path / "adapter")
    edit(folder, **fields)
    assert read(folder, built.config).spec.targets == ATTENTION


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"target_modules": ["q_proj"]}, "layers.0.self_attn.v_proj has tensors"),
        ({"target_modules": []}, "layers.0.self_attn.q_proj has tensors"),
        ({"target_modules": ["proj"]}, "layers.0.self_attn.q_proj has tensors"),
        ({"target_modules": ["q_proj", "v_proj", "o_proj"]}, "layers.0.self_attn.o_proj has no tensors"),
        ({"target_modules": ["q_proj", "v_proj", "lm_head"]}, "lm_head has no tensors"),
        ({"target_modules": ["q_proj", "v_proj", "embed_tokens"]}, "model.embed_tokens has no tensors"),
        ({"target_modules": "all-linear"}, "layers.0.self_attn.k_proj has no tensors"),
        ({"target_modules": r".*layers\.0.*[qv]_proj"}, "layers.1.self_attn.q_proj has tensors"),
        ({"exclude_modules": ["v_proj"]}, "layers.0.self_attn.v_proj has tensors"),
        ({"exclude_modules": r".*1\..*"}, "layers.1.self_attn.q_proj has tensors"),
        ({"target_modules": "(q_proj"}, "Invalid target_modules in .*unterminated subpattern"),
        ({"target_modules": "*_proj"}, "Invalid target_modules in .*nothing to repeat"),
        ({"exclude_modules": "["}, "Invalid exclude_modules in .*unterminated character set"),
    ],
    ids=str,
)
def test_target_modules_that_differ_from_the_tensors_are_refused(
    golden: Path, tmp_path: Path, fields: dict[str, Any], reason: str
) -> None:
    built = build(base_config(golden), ATTENTION)
    folder = write(built, tmp_path / "adapter")
    edit(folder, **fields)
    with pytest.raises(InputError, match=reason):
        read(folder, built.config)


def test_an_expression_without_end_is_refused(golden: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zephyr_jax.checkpoint.hf.peft_config._MATCH_SECONDS", 1)
    edit(folder, target_modules=r"(([a-z._]|\w|\.)*)*!")
    with pytest.raises(InputError, match="no result after 1 s"):
        read(folder, base_config(golden))


# ---- adapter_model.safetensors ----


def renamed(old: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name.replace(old, new): value for name, value in tensors.items()}


def without(*parts: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {n: v for n, v in tensors.items() if not all(part in n for part in parts)}


def added(name: str, *sizes: int) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, name: np.ones(sizes, np.float32)}


def replaced(name: str, value: Callable[[np.ndarray], np.ndarray]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, name: value(tensors[name])}


Q1 = f"{PREFIX}.1.self_attn.q_proj.lora_A.weight"
UP = f"{PREFIX}.0.mlp.up_proj.lora_B.weight"
SPOILT: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "no tensors": (lambda tensors: {}, "of this base model: it holds none"),
    "one tensor missing": (without("layers.1.mlp.down_proj.lora_B"), "1 missing .*layers.1.mlp.down_proj.lora_B"),
    "a layer missing": (without("layers.1."), "14 missing .*Give the base model"),
    "every B missing": (without("lora_B"), "14 missing .*lora_B"),
    "a layer more": (added(f"{PREFIX}.2.self_attn.q_proj.lora_A.weight", 4, 32), "1 unknown .*layers.2.*Give the base"),
    "another prefix": (renamed("base_model.model.", ""), "28 unknown"),
    "no layer number": (renamed("layers.1.", "layers.01."), "14 missing .*14 unknown"),
    "another adapter name": (renamed(".weight", ".sft.weight"), "28 unknown .*lora_A.sft.weight"),
    "twice": (added(f"{PREFIX}.1.self_attn.q_proj.lora_A.default.weight", 4, 32), "holds a tensor twice"),
    "DoRA": (added(f"{PREFIX}.0.mlp.up_proj.lora_magnitude_vector", 48), "Tensors of DoRA are not supported"),
    "embeddings": (
        added("base_model.model.model.embed_tokens.lora_embedding_A", 4, 96), "Tensors of adapters of embeddings.*not supported"
    ),
    "unembedding": (added("base_model.model.lm_head.lora_A.weight", 4, 32), "a trained unembedding are not supported"),
    "biases": (added(f"{PREFIX}.0.mlp.up_proj.lora_B.bias", 48), "Tensors of biases are not supported"),
    "KaSA": (added(f"{PREFIX}.0.mlp.up_proj.lora_diag", 4), "Tensors of KaSA"),
    "another rank": (replaced(Q1, lambda a: a[:2].copy()), rf"{Q1}.*expected sizes \(4, 32\), of r 4 .*got \(2, 32\)"),
    "A transposed": (replaced(Q1, lambda a: a.T.copy()), r"expected sizes \(4, 32\).*got \(32, 4\)"),
    "one axis": (replaced(Q1, lambda a: a.reshape(-1)), r"got \(128,\)"),
    "integers": (replaced(Q1, lambda a: a.astype(np.int8)), f"Unsupported dtype of tensor {Q1}.*got I8"),
    "NaN": (replaced(UP, lambda b: np.where(b == b[3, 1], np.nan, b)), f"{UP}.* is not finite.*got 1 of 192"),
    "infinity": (replaced(UP, lambda b: b + np.float32(np.inf)), f"{UP}.* is not finite.*got 192 of 192"),
    "beyond float32": (replaced(UP, lambda b: b.astype(np.float64) * 1e300), f"{UP}.* is not finite"),
}  # fmt: skip
"""What is wrong -> how the tensors of a sound adapter become so, and the message."""


@pytest.mark.parametrize("name", SPOILT)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_other_tensors_are_refused_by_name(golden: Path, folder: Path, name: str) -> None:
    spoil, message = SPOILT[name]
    save_file(spoil(load_file(folder / WEIGHTS)), folder / WEIGHTS)
    built = build(base_config(golden))
    with pytest.raises(InputError, match=message) as error:
        read(folder, built.config)
        loaded(folder, built)
    assert f"{folder}/{WEIGHTS}" in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": 3}, r"14 missing .*Give the base model"),
        ({"num_layers": 1}, r"14 unknown .*Give the base model"),
        ({"d_model": 40}, r"expected sizes \(4, 40\).*got \(4, 32\)"),
        ({"d_ff": 64}, r"gate_proj.lora_B.* expected sizes \(64, 4\).*got \(48, 4\)"),
        ({"num_kv_heads": 4}, r"k_proj.lora_B.* expected sizes \(32, 4\).*got \(16, 4\)"),
    ],
    ids=str,
)
def test_an_adapter_of_another_base_is_refused(golden: Path, folder: Path, change: Any, message: str) -> None:
    """Before anything is loaded."""
    with pytest.raises(InputError, match=message):
        read(folder, replace(base_config(golden), **change))


def test_an_adapter_of_other_targets_than_expected_is_refused(golden: Path, folder: Path) -> None:
    with pytest.raises(
        InputError, match="other targets: expected q_proj, o_proj, down_proj, got q_proj, k_proj, v_proj, "
    ):
        loaded(folder, build(base_config(golden), SOME))


def test_the_default_name_of_an_adapter_in_tensor_names_is_read(golden: Path, folder: Path) -> None:
    built = build(base_config(golden))
    save_file(renamed(".weight", ".default.weight")(load_file(folder / WEIGHTS)), folder / WEIGHTS)
    assert read(folder, built.config) == built.adapter
    for ours, theirs in zip(jax.tree.leaves(built.parameters), jax.tree.leaves(loaded(folder, built)), strict=True):
        assert np.array_equal(bits(ours), bits(theirs))


def test_a_pickle_is_refused(golden: Path, folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(
        InputError, match=r"adapter_model\.bin is a pickle, and pickles are not read\. Convert it with peft"
    ):
        read(folder, base_config(golden))


def test_missing_files_are_named(golden: Path, folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    with pytest.raises(InputError, match="Expected adapter_model.safetensors beside adapter_config.json"):
        read(folder, base_config(golden))
    (folder / CONFIG).unlink()
    with pytest.raises(InputError, match="Cannot read .*adapter_config.json"):
        read(folder, base_config(golden))


# ---- peft itself ----


@pytest.mark.slow
def test_peft_reads_what_is_written_and_its_adapters_are_read(golden: Path, tmp_path: Path) -> None:
    """Run with ZEPHYR_TORCH_PYTHON=<a Python with torch, transformers and peft>.

    peft's logits with our adapter are those of our decoder with the merged weights. Tensors that peft saves are the same bits
    after a load and an export of ours. Adapters of peft's other features are refused by the feature's name.
    """
    python = os.environ.get("ZEPHYR_TORCH_PYTHON")
    if not python or subprocess.run([python, "-c", "import peft"], capture_output=True, check=False).returncode:
        pytest.skip("ZEPHYR_TORCH_PYTHON names no Python with torch and peft")
    base = golden / "models" / "gqa"
    built = build(base_config(golden), base=str(base), alpha=5.5, use_rslora=True)
    write(built, tmp_path / "ours")
    tokens = np.stack(random_segments([24, 24]))
    np.save(tmp_path / "tokens.npy", tokens)
    subprocess.run([python, CHECK, base, tmp_path], check=True)

    merged = tmp_path / "merged"
    merge(base, merged, load_file(tmp_path / "ours" / WEIGHTS), built.adapter.spec.scale)
    expected = np.load(tmp_path / "logits.npy")
    plain = np.asarray(logits(load(base), whole_rows(tokens)))
    assert np.abs(expected - plain).max() > 1
    np.testing.assert_allclose(np.asarray(logits(load(merged), whole_rows(tokens))), expected, rtol=1e-4, atol=1e-4)

    theirs = read(tmp_path / "theirs", built.config)
    assert theirs.spec == replace(built.adapter.spec, rank=6, alpha=12.0, targets=ATTENTION)
    assert theirs.base == str(base)
    shaped = build(built.config, ATTENTION, rank=6)
    shaped = replace(shaped, adapter=theirs)
    again = replace(shaped, parameters=loaded(tmp_path / "theirs", shaped))
    saved, exported = load_file(tmp_path / "theirs" / WEIGHTS), load_file(write(again, tmp_path / "again") / WEIGHTS)
    assert saved.keys() == exported.keys()
    assert all(np.array_equal(bits(saved[name]), bits(exported[name])) for name in saved)

    features = json.loads((tmp_path / "features.json").read_text())
    assert len(features) >= 15
    for name, field in features.items():
        with pytest.raises(InputError) as error:
            read(tmp_path / "features" / name, built.config)
        assert field in str(error.value), f"{name}: {error.value}"


def merge(base: Path, out: Path, adapter: Tensors, scale: float) -> None:
    """The base with the adapter added to its weights, in float64, by numpy."""
    out.mkdir()
    (out / "config.json").write_bytes((base / "config.json").read_bytes())
    tensors = load_file(base / "model.safetensors")
    for name, a in adapter.items():
        if ".lora_A." in name:
            b = adapter[name.replace(".lora_A.", ".lora_B.")].astype(np.float64)
            weight = name.removeprefix("base_model.model.").replace(".lora_A", "")
            tensors[weight] = (tensors[weight] + scale * (b @ a.astype(np.float64))).astype(np.float32)
    save_file(tensors, out / "model.safetensors")
