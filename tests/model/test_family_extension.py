"""A model family is one module: the one below is not in the package, and loads, computes, exports and reloads."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.models import load, logits, whole_rows
from zephyr_jax.checkpoint.hf.export import export_folder
from zephyr_jax.checkpoint.resolve import find_model
from zephyr_jax.config.sections import ModelOptions
from zephyr_jax.errors import InputError
from zephyr_jax.model.config import ModelConfig
from zephyr_jax.model.families.base import Family, HfConfig, HfFields, Size, parse_fields, unsupported
from zephyr_jax.model.families.registry import FAMILIES, config_from_hf, config_to_hf, tensors_of
from zephyr_jax.model.families.tensors import EMBEDDING, UNEMBEDDING, HfTensor
from zephyr_jax.storage.files import open_path

# ---- the family: all that a new one needs ----

_BLOCK = "transformer.h.{}."
_TENSORS = (
    HfTensor(EMBEDDING, "transformer.wte"),
    HfTensor(("decoder", "attention", "norm"), _BLOCK + "ln_1"),
    HfTensor(("decoder", "attention", "query"), _BLOCK + "attn.q", inputs=1),
    HfTensor(("decoder", "attention", "key"), _BLOCK + "attn.k", inputs=1),
    HfTensor(("decoder", "attention", "value"), _BLOCK + "attn.v", inputs=1),
    HfTensor(("decoder", "attention", "output"), _BLOCK + "attn.o", inputs=2),
    HfTensor(("decoder", "feed_forward", "norm"), _BLOCK + "ln_2"),
    HfTensor(("decoder", "feed_forward", "gate"), _BLOCK + "mlp.gate", inputs=1),
    HfTensor(("decoder", "feed_forward", "up"), _BLOCK + "mlp.up", inputs=1),
    HfTensor(("decoder", "feed_forward", "down"), _BLOCK + "mlp.down", inputs=1),
    HfTensor(("norm",), "transformer.ln_f"),
    HfTensor(UNEMBEDDING, "transformer.head", inputs=1),
)


class ToyFields(HfFields):
    n_embd: Size
    n_inner: Size
    n_layer: Size
    n_head: Size
    n_head_kv: Size
    vocab_size: Size
    n_positions: Size
    activation: str = "gelu_new"
    scale_attn: bool = False


def _read(hf_config: HfConfig) -> ModelConfig:
    fields = parse_fields(ToyFields, hf_config)
    if fields.scale_attn:
        raise unsupported("scale_attn", True)
    return ModelConfig(
        model_type="toy",
        vocab_size=fields.vocab_size,
        d_model=fields.n_embd,
        d_ff=fields.n_inner,
        num_layers=fields.n_layer,
        num_heads=fields.n_head,
        num_kv_heads=fields.n_head_kv,
        head_dim=fields.n_embd // fields.n_head,
        activation="gelu_tanh" if fields.activation == "gelu_new" else "silu",
        max_positions=fields.n_positions,
    )


def _write(config: ModelConfig) -> HfConfig:
    return {"n_head_kv": config.num_kv_heads}


TOY = Family(model_type="toy", architecture="ToyLM", read=_read, write=_write, tensors=lambda config: _TENSORS)

# ---- the proof ----


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "toy", TOY)


def toy_folder(golden: Path, folder: Path, **changes: Any) -> Path:
    """The weights of the golden grouped-query Mistral under the toy family's names and fields."""
    base = json.loads((golden / "models" / "gqa" / "config.json").read_text())
    llama = tensors_of(config_from_hf(base))
    stored = load_file(golden / "models" / "gqa" / "model.safetensors")
    renamed = {
        new: stored[old]
        for theirs, ours in zip(llama, _TENSORS, strict=True)
        for old, new in zip(theirs.names(2), ours.names(2), strict=True)
    }
    config = {
        "model_type": "toy",
        "n_embd": base["hidden_size"],
        "n_inner": base["intermediate_size"],
        "n_layer": base["num_hidden_layers"],
        "n_head": base["num_attention_heads"],
        "n_head_kv": base["num_key_value_heads"],
        "vocab_size": base["vocab_size"],
        "n_positions": 128,
        **changes,
    }
    folder.mkdir()
    save_file(renamed, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def numpy_logits(folder: Path, tokens: np.ndarray) -> np.ndarray:
    """float64 [B, L, V] of the toy model with the tanh form of GELU, straight from its file."""
    weights = {name: value.astype(np.float64) for name, value in load_file(folder / "model.safetensors").items()}
    heads, kv_heads = 4, 2
    length = tokens.shape[1]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-5) * weights[name]

    def rotate(x: np.ndarray) -> np.ndarray:
        half = x.shape[-1] // 2
        angle = np.arange(length)[:, None] * 10_000.0 ** (-np.arange(half) / half)
        cosine, sine = np.cos(angle)[:, None], np.sin(angle)[:, None]
        first, second = x[..., :half], x[..., half:]
        return np.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)

    def attention(x: np.ndarray, block: str) -> np.ndarray:
        q, k, v = ((x @ weights[f"{block}attn.{name}"].T).reshape(*x.shape[:2], -1, 8) for name in "qkv")
        k, v = (np.repeat(part, heads // kv_heads, axis=2) for part in (rotate(k), v))
        scores = np.einsum("blnh,bsnh->bnls", rotate(q), k) / np.sqrt(8)
        scores[..., np.triu_indices(length, 1)[0], np.triu_indices(length, 1)[1]] = -np.inf
        probs = np.exp(scores - scores.max(axis=-1, keepdims=True))
        probs /= probs.sum(axis=-1, keepdims=True)
        return np.einsum("bnls,bsnh->blnh", probs, v).reshape(x.shape) @ weights[f"{block}attn.o"].T

    def feed_forward(x: np.ndarray, block: str) -> np.ndarray:
        gate, up = (x @ weights[f"{block}mlp.{name}"].T for name in ("gate", "up"))
        gelu = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
        return (gelu * up) @ weights[f"{block}mlp.down"].T

    x = weights["transformer.wte"][tokens]
    for layer in range(2):
        block = _BLOCK.format(layer)
        x = x + attention(norm(x, f"{block}ln_1"), block)
        x = x + feed_forward(norm(x, f"{block}ln_2"), block)
    return norm(x, "transformer.ln_f") @ weights["transformer.head"].T


def test_the_same_weights_under_other_names_give_the_same_logits(golden: Path, tmp_path: Path) -> None:
    numbers = np.load(golden / "models" / "gqa" / "golden.npz")
    batch = whole_rows(numbers["tokens"])
    found = logits(load(toy_folder(golden, tmp_path / "toy", activation="silu")), batch)
    np.testing.assert_array_equal(found, logits(load(golden / "models" / "gqa"), batch))
    np.testing.assert_allclose(found, numbers["logits"], atol=1e-4)


def test_its_own_activation_is_computed(golden: Path, tmp_path: Path) -> None:
    tokens = np.load(golden / "models" / "gqa" / "golden.npz")["tokens"]
    folder = toy_folder(golden, tmp_path / "toy")
    expected = numpy_logits(folder, tokens)
    np.testing.assert_allclose(logits(load(folder), whole_rows(tokens)), expected, atol=1e-4)


def test_it_is_exported_and_loaded_again(golden: Path, tmp_path: Path) -> None:
    folder = toy_folder(golden, tmp_path / "toy", auto_map={"AutoModel": "remote.Code"})
    loaded, source = load(folder), find_model(ModelOptions(path=str(folder)))
    settings = config_to_hf(source.hf_config, source.model_config)
    export_folder(
        open_path(tmp_path / "out"),
        loaded.parameters,
        source.model_config,
        settings,
        {},
        dtype="float32",
        max_file_bytes=2**30,
    )

    exported = find_model(ModelOptions(path=str(tmp_path / "out")))
    assert exported.model_config == source.model_config
    assert exported.hf_config["architectures"] == ["ToyLM"] and "auto_map" not in exported.hf_config
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "out"))
    assert before.keys() == after.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(value, after[name], err_msg=name)


@pytest.mark.parametrize(
    ("changes", "field"),
    [({"scale_attn": True}, "scale_attn"), ({"n_embd": "32"}, "n_embd"), ({"n_head": None}, "n_head")],
)
def test_what_it_refuses_is_named(golden: Path, tmp_path: Path, changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError, match=field):
        find_model(ModelOptions(path=str(toy_folder(golden, tmp_path / "toy", **changes))))


def test_a_missing_tensor_is_named(golden: Path, tmp_path: Path) -> None:
    folder = toy_folder(golden, tmp_path / "toy")
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {name: value for name, value in tensors.items() if name != "transformer.wte"}, folder / "model.safetensors"
    )
    with pytest.raises(InputError, match=r"transformer\.wte"):
        load(folder)
