"""Families: config.json in every spelling is read as transformers 5 reads it or refused by name; every parameter has a tensor."""

import json
from pathlib import Path
from typing import Any

import jax
import pytest
from flax import nnx
from transformers import AutoConfig

from zephyr_jax.errors import InputError
from zephyr_jax.model.config import ModelConfig
from zephyr_jax.model.decoder import Compute, abstract_model
from zephyr_jax.model.families.registry import FAMILIES, config_from_hf, config_to_hf, tensors_of
from zephyr_jax.model.families.rope import scaling_fields

BASE: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 2,
    "vocab_size": 512, "rms_norm_eps": 1e-5, "hidden_act": "silu", "max_position_embeddings": 2048,
}  # fmt: skip
LINEAR = {"type": "linear", "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
DEFAULT = {"rope_type": "default", "rope_theta": 1e6}
GELU = "gelu_pytorch_tanh"
SHARED_DEFAULTS = ("num_attention_heads", "vocab_size", "rms_norm_eps", "max_position_embeddings")
READ: dict[str, dict[str, Any]] = {
    "nothing": {},
    "theta on top": {"rope_theta": 1e6},
    "theta as a whole number": {"rope_theta": 500000},
    "theta in rope_parameters": {"rope_parameters": DEFAULT},
    "theta in both, equal": {"rope_theta": 1000000, "rope_parameters": DEFAULT},
    "theta null, and in rope_parameters": {"rope_theta": None, "rope_parameters": DEFAULT},
    "theta on top, rope_parameters without": {"rope_theta": 1e6, "rope_parameters": {"rope_type": "default"}},
    "rope_parameters empty": {"rope_theta": 1e6, "rope_parameters": {}},
    "rope_parameters null": {"rope_theta": 1e6, "rope_parameters": None},
    "rope_scaling null": {"rope_theta": 1e6, "rope_scaling": None},
    "rope_scaling empty": {"rope_theta": 1e6, "rope_scaling": {}},
    "rope_scaling default under type": {"rope_theta": 1e6, "rope_scaling": {"type": "default"}},
    "rope_scaling default under rope_type": {"rope_theta": 1e6, "rope_scaling": {"rope_type": "default"}},
    "default under both names": {"rope_parameters": DEFAULT | {"type": "default"}},
    "rope_parameters under type": {"rope_parameters": {"type": "default", "rope_theta": 1e6}},
    "a neutral factor": {"rope_parameters": DEFAULT | {"partial_rotary_factor": 1.0}},
    "a neutral factor on top": {"partial_rotary_factor": 1.0},
    "kv heads null": {"num_key_value_heads": None, "model_type": "llama"},
    "kv heads absent": {"num_key_value_heads": ...},
    "head_dim null": {"head_dim": None},
    "head_dim given": {"head_dim": 16},
    "positions absent": {"max_position_embeddings": ...},
    "window null": {"sliding_window": None},
    "window": {"sliding_window": 128, "model_type": "mistral"},
    "window of all positions, for a llama": {"sliding_window": 2048, "model_type": "llama"},
    "window switched off, for a llama": {"sliding_window": 64, "use_sliding_window": False, "model_type": "llama"},
    "window switched on": {"sliding_window": 128, "use_sliding_window": True, "model_type": "mistral"},
    "window switched off and null": {"sliding_window": None, "use_sliding_window": False},
    "layer types": {"sliding_window": None, "layer_types": ["full_attention"] * 2},
    "layer types of a window": {
        "sliding_window": 64,
        "layer_types": ["sliding_attention"] * 2,
        "model_type": "mistral",
    },
    "layer types null": {"layer_types": None},
    "pretraining_tp": {"pretraining_tp": 4, "model_type": "llama"},
    "pretraining_tp null": {"pretraining_tp": None, "model_type": "llama"},
    "biases off": {"attention_bias": False, "mlp_bias": False, "model_type": "llama"},
    "no dropout": {"attention_dropout": 0.0},
    "dropout": {"attention_dropout": 0.1},
    "dtype under both names": {"dtype": "bfloat16", "torch_dtype": "float16"},
    "several end tokens": {"eos_token_id": [2, 32000], "pad_token_id": None},
    "no end token": {"eos_token_id": None, "bos_token_id": None},
    "quantization null": {"quantization_config": None},
    "linear under type": {"rope_scaling": LINEAR},
    "linear under rope_type": {"rope_scaling": {"rope_type": "linear", "factor": 4}, "rope_theta": 1e6},
    "linear in rope_parameters": {"rope_parameters": DEFAULT | {"rope_type": "linear", "factor": 4.0}},
    "linear in rope_parameters under type": {"rope_parameters": LINEAR | {"rope_theta": 1e6}},
    "llama3": {"rope_scaling": LLAMA3, "rope_theta": 5e5},
    "llama3 under both names": {"rope_scaling": LLAMA3 | {"type": "llama3"}},
    "llama3 of all positions": {"rope_parameters": {k: v for k, v in LLAMA3.items() if "original" not in k}},
    "yarn": {"rope_scaling": YARN},
    "yarn of YaRN's own code": {
        "rope_scaling": YARN | {"finetuned": True, "attn_factor": 1.0},
        "max_sequence_length": 4096,
    },
    "yarn of a longer context": {"rope_scaling": YARN | {"factor": 16.0}},
    "linear of Vicuna": {"rope_scaling": LINEAR, "max_sequence_length": 6000},
    "linear of another length": {"rope_scaling": LINEAR, "max_sequence_length": 1024},
    "yarn in both": {"rope_scaling": YARN, "rope_parameters": YARN},
    "yarn with all its fields": {
        "rope_parameters": YARN | {"attention_factor": 1.2, "beta_fast": 16, "beta_slow": 2, "truncate": False}
    },
}
"""What differs from the base; `...` removes a field."""
LONGER = dict.fromkeys((name for name in READ if name.startswith("linear")), 4 * 2048) | {
    "yarn of YaRN's own code": 4096,
    "yarn of a longer context": 16 * 512,
    "linear of Vicuna": 6000,
    "linear of another length": 2048,
}
"""Positions where the file gives those before the scaling: transformers does not check lengths."""
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "theta twice": ({"rope_theta": 1e4, "rope_parameters": DEFAULT}, "10,000.*rope_parameters.rope_theta 1,000,000"),
    "theta of an ignored object": ({"rope_scaling": {"type": "default"}, "rope_parameters": DEFAULT}, "several bases"),
    "theta in both objects": (
        {"rope_scaling": {"type": "default", "rope_theta": 1e5}, "rope_parameters": DEFAULT}, "several bases",
    ),
    "linear without a factor": ({"rope_parameters": DEFAULT | {"rope_type": "linear"}}, r"rope_parameters\.factor"),
    "dynamic": ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "`rope_scaling`.*dynamic"),
    "longrope": ({"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0]}}, "`rope_scaling`.*longrope"),
    "a kind that is a list": ({"rope_scaling": {"rope_type": ["default"]}}, "`rope_scaling`.*default"),
    "scalings that differ": ({"rope_scaling": YARN, "rope_parameters": LLAMA3}, "several scalings"),
    "two kinds": ({"rope_scaling": {"rope_type": "default", "type": "dynamic"}}, "`rope_scaling`.*dynamic"),
    "llama3": (
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}}, "high_freq_factor",
    ),
    "a factor without a kind": ({"rope_scaling": {"factor": 2.0}}, "`rope_scaling`.*factor"),
    "a factor of a default": ({"rope_parameters": DEFAULT | {"factor": 2.0}}, "`rope_parameters`.*factor"),
    "a factor of the magnitude": (
        {"rope_scaling": YARN | {"attn_factor": 0.5}},
        r"rope_scaling\.attn_factor.*got 0\.5.*attention_factor.*0\.5693147.* with the factor, 1\.138629",
    ),
    "a factor of the magnitude, of another kind": ({"rope_scaling": LINEAR | {"attn_factor": 1.0}}, "`rope_scaling`"),
    "no scaling of the magnitude": ({"rope_scaling": YARN | {"apply_yarn_scaling": False}}, "apply_yarn_scaling"),
    "a note that is text": ({"rope_scaling": YARN | {"finetuned": "yes"}}, r"rope_scaling\.finetuned"),
    "truncate that is a number": ({"rope_scaling": YARN | {"truncate": 0}}, r"rope_scaling\.truncate"),
    "by layer type": ({"rope_parameters": {"full_attention": DEFAULT}}, "`rope_parameters`.*full_attention"),
    "a part of the head": ({"partial_rotary_factor": 0.5}, "`partial_rotary_factor`"),
    "a part of the head, inside": ({"rope_parameters": DEFAULT | {"partial_rotary_factor": 0.5}}, "`rope_parameters`"),
    "theta is text inside": ({"rope_scaling": {"rope_theta": "1e6"}}, "rope_scaling.rope_theta"),
    "another activation": ({"hidden_act": "gelu"}, "`hidden_act`"),
    "another activation, Gemma's name": ({"hidden_activation": "gelu_pytorch_tanh"}, "`hidden_activation`"),
    "biases": ({"attention_bias": True, "model_type": "llama"}, "`attention_bias`"),
    "biases of the feed-forward": ({"mlp_bias": True, "model_type": "llama"}, "`mlp_bias`"),
    "dropout that is no probability": ({"attention_dropout": 1.5}, "attention_dropout"),
    "a window of a llama": ({"sliding_window": 64, "model_type": "llama"}, "sliding_window to 64.*llama"),
    "a window that is switched off": (
        {"sliding_window": 64, "use_sliding_window": False, "model_type": "mistral"}, "use_sliding_window to false",
    ),
    "mixed layers": ({"sliding_window": None, "layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
    "layers without their window": ({"sliding_window": None, "layer_types": ["sliding_attention"] * 2}, "layer_types"),
    "quantized": ({"quantization_config": {"quant_method": "gptq"}}, "`quantization_config`"),
    "compressed": ({"compression_config": {"format": "int"}}, "`compression_config`"),
    "an end token that is text": ({"eos_token_id": "</s>"}, "eos_token_id"),
    "an end token that is true": ({"eos_token_id": [True]}, "eos_token_id"),
}  # fmt: skip


FAMILY_BASE: dict[str, dict[str, Any]] = dict.fromkeys(("gemma", "gemma2", "gemma3_text"), {"hidden_act": ...})
"""What a family's base has in another way than Llama's."""
LINEAR = {"rope_type": "linear", "factor": 8.0}
LAYERED = {
    "full_attention": LINEAR | {"rope_theta": 2e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 3e4},
}
GEMMA_READ: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma": ("gemma", {}),
    "gemma, the first releases": ("gemma", {"hidden_act": "gelu", "hidden_activation": None, "rope_scaling": None}),
    "gemma, both activations": ("gemma", {"hidden_act": GELU, "hidden_activation": GELU, "rope_theta": 5e4}),
    "gemma, defaults": ("gemma", dict.fromkeys((*SHARED_DEFAULTS, "num_key_value_heads"), ...)),
    "gemma2": ("gemma2", {}),
    "gemma2, a window": ("gemma2", {"sliding_window": 64, "hidden_activation": GELU, "cache_implementation": "hybrid"}),
    "gemma2, no caps": ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "gemma2, layers": ("gemma2", {"layer_types": ["full_attention", "sliding_attention"], "query_pre_attn_scalar": 144}),
    "gemma2, defaults": ("gemma2", dict.fromkeys((*SHARED_DEFAULTS, "num_key_value_heads"), ...)),
    "gemma2, linear": ("gemma2", {"rope_theta": 1e4, "rope_scaling": LINEAR}),
    "gemma3": ("gemma3_text", {}),
    "gemma3, transformers 4": (
        "gemma3_text",
        {"rope_theta": 5e5, "rope_local_base_freq": 2e4, "rope_scaling": LINEAR, "sliding_window_pattern": 2},
    ),
    "gemma3, transformers 5": ("gemma3_text", {"rope_parameters": LAYERED, "sliding_window": 64}),
    "gemma3, both": (
        "gemma3_text",
        {"rope_parameters": LAYERED, "rope_theta": 2e6, "rope_scaling": LINEAR, "rope_local_base_freq": 3e4},
    ),
    "gemma3, a part of rope_parameters": ("gemma3_text", {"rope_parameters": {"full_attention": DEFAULT}}),
    "gemma3, a cap of logits": ("gemma3_text", {"final_logit_softcapping": 20.0, "num_hidden_layers": 7}),
    "gemma3, defaults": ("gemma3_text", dict.fromkeys((*SHARED_DEFAULTS, "num_key_value_heads"), ...)),
}  # fmt: skip
GEMMA_REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "SiLU": ("gemma", {"hidden_act": "silu"}, "`hidden_act`"),
    "exact GELU of others": ("gemma", {"hidden_act": GELU, "hidden_activation": "gelu"}, "`hidden_activation`"),
    "exact GELU": ("gemma2", {"hidden_activation": "gelu"}, "`hidden_activation`"),
    "bidirectional": ("gemma3_text", {"use_bidirectional_attention": True}, "`use_bidirectional_attention`"),
    "no window": ("gemma2", {"sliding_window": None}, "sliding_window.*None"),
    "a cap of zero": ("gemma2", {"attn_logit_softcapping": 0.0}, "attn_logit_softcapping"),
    "a cap that transformers ignores": ("gemma3_text", {"attn_logit_softcapping": 50.0}, "`attn_logit_softcapping`"),
    "another kind of layer": ("gemma2", {"layer_types": ["full_attention", "linear_attention"]}, "layer_types"),
    "too few layers": ("gemma3_text", {"layer_types": ["full_attention"]}, "layer_types"),
    "two patterns": (
        "gemma3_text", {"layer_types": ["full_attention"] * 2, "sliding_window_pattern": 2}, "contradict each other",
    ),
    "another pattern": ("gemma2", {"sliding_window_pattern": 3}, "`sliding_window_pattern`"),
    "two local bases": (
        "gemma3_text", {"rope_parameters": LAYERED, "rope_theta": 2e6, "rope_local_base_freq": 1e4}, "rope_local_base_freq",
    ),
    "two bases": ("gemma3_text", {"rope_parameters": LAYERED, "rope_theta": 1e6}, "several bases"),
    "flat parameters": ("gemma3_text", {"rope_parameters": DEFAULT}, "`rope_parameters`"),
    "a scaled local base": (
        "gemma3_text", {"rope_parameters": {"sliding_attention": LINEAR | {"rope_theta": 1e4}}}, "`rope_parameters`",
    ),
    "layered parameters, for a gemma2": ("gemma2", {"rope_parameters": LAYERED}, "`rope_parameters`"),
    "images, of another family": ("gemma3n", {}, "Unsupported model_type 'gemma3n'"),
}  # fmt: skip


def config_of(changes: dict[str, Any], kind: str) -> dict[str, Any]:
    merged = {"model_type": kind, **BASE, **FAMILY_BASE.get(kind, {}), **changes}
    return {name: value for name, value in merged.items() if value is not ...}


def check_rope(ours: ModelConfig, theirs: Any) -> None:
    """transformers' fields are among those of our reading, which names defaults, too."""
    fields = {"rope_type": "default", "rope_theta": ours.rope_theta, **scaling_fields(ours.rope_scaling)}
    given = {
        key: value for key, value in theirs.rope_parameters.items() if key not in ("type", "partial_rotary_factor")
    }
    given = {key: value for key, value in given.items() if key not in ("finetuned", "attn_factor")}  # it ignores them
    assert fields | given == fields


QWEN: dict[str, dict[str, Any]] = {
    "nothing": {},
    "kv heads absent": {"num_key_value_heads": ..., "num_attention_heads": 32, "hidden_size": 128},
    "kv heads null": {"num_key_value_heads": None},
    "a window that is off": {"sliding_window": 64, "use_sliding_window": False, "max_window_layers": 1},
    "a window in the second layer": {"sliding_window": 64, "use_sliding_window": True, "max_window_layers": 1},
    "a window in every layer": {"sliding_window": 64, "use_sliding_window": True, "max_window_layers": 0},
    "a window in no layer": {"sliding_window": 64, "use_sliding_window": True, "max_window_layers": 2},
    "the default window": {"use_sliding_window": True, "max_window_layers": 1},
    "layer types": {
        "sliding_window": 64, "use_sliding_window": True, "layer_types": ["sliding_attention", "full_attention"],
    },
    "yarn": {"rope_scaling": YARN, "rope_theta": 1e6},
    "head_dim": {"head_dim": 64},
}  # fmt: skip


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
@pytest.mark.parametrize("name", QWEN)
def test_a_qwen_is_read_as_transformers_reads_it(name: str, kind: str, tmp_path: Path) -> None:
    """As read, and as written."""
    config = config_of(QWEN[name], kind)
    ours = config_from_hf(config)
    for written in (config, config_to_hf(config, ours)):
        (tmp_path / "config.json").write_text(json.dumps(written))
        theirs = AutoConfig.from_pretrained(tmp_path)
        check_rope(ours, theirs)
        assert ours.num_kv_heads == theirs.num_key_value_heads
        assert ours.head_dim == getattr(theirs, "head_dim", theirs.hidden_size // theirs.num_attention_heads)
        windows = [theirs.sliding_window if kind == "sliding_attention" else None for kind in theirs.layer_types]
        assert [kind.window for kind in ours.layer_kinds] == windows
        assert (ours.qkv_bias, ours.qk_norm) == ((True, "none") if kind == "qwen2" else (False, "head"))
        assert config_from_hf(written) == ours


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_types": ["sliding_attention"] * 2}, "layer_types"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
        ({"use_sliding_window": "yes"}, "use_sliding_window"),
        ({"max_window_layers": None}, "max_window_layers"),
        ({"model_type": "qwen3", "attention_bias": True}, "`attention_bias`"),
        ({"model_type": "qwen3", "head_dim": None}, "head_dim"),
        ({"model_type": "qwen3_moe"}, "mixture-of-experts models are not supported.*qwen3"),
        ({"model_type": "mixtral"}, "mixture-of-experts"),
        ({"model_type": "new", "num_local_experts": 8}, "mixture-of-experts"),
        ({"model_type": "gpt2"}, r"config.json\. Expected one of .*llama"),
    ],
)
def test_a_qwen_or_a_mixture_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        config_from_hf(config_of(changes, "qwen2"))


@pytest.mark.parametrize("kind", ["mistral", "llama"])
@pytest.mark.parametrize("name", READ)
def test_a_config_is_read_as_transformers_reads_it(name: str, kind: str, tmp_path: Path) -> None:
    config = config_of(READ[name], kind)
    (tmp_path / "config.json").write_text(json.dumps(config))
    theirs, ours = AutoConfig.from_pretrained(tmp_path), config_from_hf(config)
    check_rope(ours, theirs)
    assert ours.num_kv_heads == theirs.num_key_value_heads
    assert ours.head_dim == (theirs.head_dim or 4)  # null with `layer_types`
    assert ours.max_positions == LONGER.get(name, theirs.max_position_embeddings)
    assert config_to_hf(config, ours).get("max_position_embeddings") == config.get("max_position_embeddings")
    assert ours.tie_embeddings == theirs.tie_word_embeddings
    assert ours.sliding_window == (theirs.sliding_window if config["model_type"] == "mistral" else None)


@pytest.mark.parametrize("kind", ["mistral", "llama"])
@pytest.mark.parametrize("name", REFUSED)
def test_a_config_that_asks_for_another_model_is_refused_by_name(name: str, kind: str) -> None:
    changes, message = REFUSED[name]
    with pytest.raises(InputError, match=message):
        config_from_hf(config_of(changes, kind))


@pytest.mark.parametrize("kind", FAMILIES)
def test_dropout_is_logged_once_and_kept(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """transformers applies it while it trains; Granite 3.0 and 3.1 set it."""
    share = 0.11 + 0.01 * list(FAMILIES).index(kind)  # a line of its own: it is logged once in a process
    config = config_of({"attention_dropout": share}, kind)
    with caplog.at_level("INFO"):
        readings = [config_from_hf(config), config_from_hf(config)]
    assert readings == [config_from_hf(config_of({}, kind))] * 2
    lines = [line for line in caplog.messages if "dropout" in line]
    assert lines == [f"config.json: attention_dropout is {share:g}; the model is trained without dropout"]
    assert config_to_hf(config, readings[0])["attention_dropout"] == share


@pytest.mark.parametrize("name", GEMMA_READ)
def test_a_gemma_config_is_read_as_transformers_reads_it(name: str, tmp_path: Path) -> None:
    """And what export writes is read the same by both."""
    kind, changes = GEMMA_READ[name]
    config = config_of(changes, kind)
    exported = config_to_hf(config, config_from_hf(config))
    for number, written in enumerate((config, exported)):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(written))
        theirs, ours = AutoConfig.from_pretrained(folder), config_from_hf(written)
        assert ours == config_from_hf(config)
        assert ours.activation == "gelu_tanh" and ours.unit_offset_norms
        assert (theirs.hidden_act if kind == "gemma" else theirs.hidden_activation) == GELU
        assert (ours.num_heads, ours.num_kv_heads) == (theirs.num_attention_heads, theirs.num_key_value_heads)
        assert (ours.head_dim, ours.vocab_size) == (theirs.head_dim, theirs.vocab_size)
        longer = 8 if name == "gemma2, linear" else 1  # Gemma 3 counts the factor already
        assert (ours.norm_eps, ours.max_positions) == (theirs.rms_norm_eps, longer * theirs.max_position_embeddings)
        assert (ours.tie_embeddings, ours.embedding_scale) == (theirs.tie_word_embeddings, theirs.hidden_size**0.5)
        if kind != "gemma":
            assert ours.attention_scale == theirs.query_pre_attn_scalar**-0.5
            caps = theirs.attn_logit_softcapping, theirs.final_logit_softcapping
            assert (ours.attention_softcap, ours.logit_softcap) == caps
        types = getattr(theirs, "layer_types", ["full_attention"] * ours.num_layers)
        for layer, layer_type in zip(ours.layer_kinds, types, strict=True):
            assert layer.window == (theirs.sliding_window if layer_type == "sliding_attention" else None)
            rope = theirs.rope_parameters.get(layer_type, theirs.rope_parameters)
            factor = 1.0 if layer.rope.scaling is None else layer.rope.scaling.factor
            assert (layer.rope.theta, factor) == (rope["rope_theta"], rope.get("factor", 1.0))


@pytest.mark.parametrize("name", GEMMA_REFUSED)
def test_a_gemma_config_that_asks_for_another_model_is_refused(name: str) -> None:
    kind, changes, message = GEMMA_REFUSED[name]
    with pytest.raises(InputError, match=message):
        config_from_hf(config_of(changes, kind))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", FAMILIES)
def test_a_family_names_every_parameter(kind: str, tied: bool) -> None:
    config = config_from_hf(config_of({"tie_word_embeddings": tied}, kind))
    leaves = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(abstract_model(config, Compute())[1]))
    expected = {tuple(key.key for key in path) for path, _ in leaves}
    assert {tensor.path for tensor in tensors_of(config)} == expected
