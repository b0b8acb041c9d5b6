"""Fields of config.json that only some families have: read as transformers 5 reads them, refused by name, and written back."""

import json
import math
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from transformers import AutoConfig

from tests.model.test_families import config_of
from zephyr_jax.errors import InputError
from zephyr_jax.model.config import ModelConfig, QueryScaling
from zephyr_jax.model.families import registry
from zephyr_jax.model.families.registry import config_from_hf, config_to_hf
from zephyr_jax.model.rope import LongRopeScaling, YarnScaling

FULL, SLIDING = "full_attention", "sliding_attention"
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 512, "attention_factor": 1.2}
THETA = {"rope_type": "default", "rope_theta": 5e5}
NESTED = {SLIDING: THETA, FULL: THETA | YARN}
OLMO3_ROPE = {"rope_parameters": NESTED}
LONGROPE = {"type": "longrope", "short_factor": [1.0, 1.5], "long_factor": [4.0, 16.0]}
ORIGINAL = "original_max_position_embeddings"
MINISTRAL_ROPE = YARN | {"rope_theta": 1e6, "llama_4_scaling_beta": 0.1, "max_position_embeddings": 2048}
READ: list[tuple[str, dict[str, Any]]] = [
    ("smollm3", {}),
    ("smollm3", {"num_key_value_heads": ..., "max_position_embeddings": ..., "num_hidden_layers": 9}),
    ("smollm3", {"no_rope_layer_interval": 2, "num_hidden_layers": 5, "tie_word_embeddings": False}),
    ("smollm3", {"no_rope_layers": [0, 1, 0], "use_sliding_window": False, "sliding_window": 64, "rope_theta": 1e6}),
    ("smollm3", {"use_sliding_window": True, "sliding_window": None, "layer_types": [FULL] * 2}),
    ("smollm3", {"rope_theta": 5e6, "rope_scaling": YARN}),
    ("olmo2", {}),
    ("olmo2", {"num_key_value_heads": None, "max_position_embeddings": ..., "rope_theta": 5e5}),
    ("olmo3", {}),
    ("olmo3", {"num_hidden_layers": 9, "sliding_window": 128, "rope_theta": 5e5, "rope_scaling": YARN}),
    ("olmo3", {"num_hidden_layers": 4, **OLMO3_ROPE}),
    ("olmo3", {"layer_types": [FULL, SLIDING], **OLMO3_ROPE, "rope_theta": 5e5, "rope_scaling": YARN}),
    ("olmo3", {"layer_types": [FULL, FULL], "sliding_window": None, **OLMO3_ROPE}),
    ("olmo3", {"rope_parameters": {**NESTED, "truncate": False}}),
    ("olmo3", {"rope_parameters": {SLIDING: THETA, FULL: THETA | YARN | {"truncate": False}, "truncate": False}}),
    ("gemma3_text", {"layer_types": [FULL, SLIDING], "rope_parameters": {**NESTED, "truncate": False}}),
    ("granite", {}),
    (
        "granite",
        {"attention_multiplier": 0.0078125, "embedding_multiplier": 12.0, "logits_scaling": 16, "rope_theta": 1e7},
    ),
    ("granite", {"residual_multiplier": 0.22, "num_key_value_heads": ..., "tie_word_embeddings": True}),
    ("phi3", {}),
    ("phi3", {"sliding_window": 2047, "max_position_embeddings": ..., "rope_scaling": None, "attention_bias": False}),
    (
        "phi3",
        {"partial_rotary_factor": 0.5, "original_max_position_embeddings": 4096, "embd_pdrop": 0.1, "resid_pdrop": 0.1},
    ),
    ("phi3", {"rope_parameters": {**THETA, "partial_rotary_factor": 0.5}, "tie_word_embeddings": True}),
    ("ministral3", {}),
    ("ministral3", {"head_dim": 4, "rope_parameters": MINISTRAL_ROPE, "sliding_window": 64}),
    ("ministral3", {"num_key_value_heads": ..., "max_position_embeddings": ..., "rope_parameters": MINISTRAL_ROPE}),
]
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("smollm3", {"use_sliding_window": True, "sliding_window": 64}, "use_sliding_window"),
    ("smollm3", {"layer_types": [FULL, SLIDING]}, "layer_types"),
    ("smollm3", {"no_rope_layers": [1]}, "no_rope_layers"),
    ("smollm3", {"no_rope_layers": [1, 2]}, "no_rope_layers"),
    ("smollm3", {"mlp_bias": True}, "mlp_bias"),
    ("olmo2", {"attention_bias": True}, "attention_bias"),
    ("olmo3", {"rope_theta": 1e6}, "1,000,000 in layers with full attention and 500,000"),
    ("olmo3", {"rope_parameters": THETA}, "rope_parameters"),
    ("olmo3", {"rope_parameters": {SLIDING: THETA | YARN, FULL: THETA}}, "rope_parameters.sliding_attention"),
    ("olmo3", {"rope_parameters": {SLIDING: "default"}}, "rope_parameters"),
    ("olmo3", {"rope_theta": 5e5, "rope_scaling": YARN | {"truncate": False}}, "rope_parameters.truncate"),
    ("olmo3", {"rope_parameters": {**NESTED, "truncate": "no"}}, "rope_parameters.truncate"),
    ("gemma3_text", {"rope_parameters": {FULL: YARN | {"truncate": False}}}, "rope_parameters.truncate"),
    ("olmo3", {"sliding_window": None}, "sliding_window"),
    ("olmo3", {"layer_types": [FULL]}, "layer_types"),
    ("granite", {"attention_bias": True}, "attention_bias"),
    ("granite", {"residual_multiplier": 0}, "residual_multiplier"),
    ("phi3", {"rope_scaling": LONGROPE | {"short_factor": [1.0]}}, "short_factor of longrope.*expected 2 numbers.*got 1"),
    ("phi3", {"rope_scaling": LONGROPE | {"long_factor": [1.0, "2"]}}, "rope_scaling.long_factor"),
    ("phi3", {"rope_scaling": {"type": "su", "short_factor": [1.0, 1.0]}}, "rope_scaling.long_factor.*got None"),
    ("phi3", {"rope_scaling": LONGROPE | {"beta": 2.0}}, "`rope_scaling`.*beta"),
    ("phi3", {"rope_scaling": LONGROPE | {ORIGINAL: 512}}, "original_max_position_embeddings.*got 4096.*512 in rope_scaling"),
    ("phi3", {"rope_scaling": LONGROPE | {"attention_factor": "1"}}, "rope_scaling.attention_factor"),
    ("phi3", {"rope_scaling": LONGROPE, "rope_parameters": LONGROPE | {"factor": 3.0}}, "two rotary scalings"),
    ("phi3", {"rope_scaling": LONGROPE, "rope_parameters": THETA}, "two rotary scalings"),
    ("phi3", {"rope_parameters": THETA | YARN}, "rope_parameters"),
    ("phi3", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling"),
    ("phi3", {"partial_rotary_factor": 0.3}, "head_dim|partial_rotary_factor"),
    ("phi3", {"resid_pdrop": 1.0}, "resid_pdrop"),
    ("ministral3", {"rope_parameters": YARN}, "llama_4_scaling_beta"),
    ("ministral3", {"rope_parameters": {"rope_theta": 1e6, "llama_4_scaling_beta": 0.1}}, "rope_parameters"),
    ("ministral3", {"rope_scaling": YARN}, "rope_scaling"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "changes"), READ, ids=lambda value: value if isinstance(value, str) else "-".join(value)
)
def test_fields_are_read_and_written_as_transformers_reads_them(
    kind: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    config = config_of(changes, kind)
    ours = config_from_hf(config)
    check_equal(ours, config, tmp_path)
    written = config_to_hf(config, ours)
    assert config_from_hf(written) == ours
    check_equal(ours, written, tmp_path)


def check_equal(ours: ModelConfig, config: dict[str, Any], folder: Path) -> None:
    """Whether transformers reads from this file what we have read."""
    (folder / "config.json").write_text(json.dumps(config))
    theirs = AutoConfig.from_pretrained(folder)
    assert ours.num_kv_heads == theirs.num_key_value_heads
    scaling = ours.rope_scaling if ours.model_type != "gemma3_text" else None  # Gemma 3 counts the factor already
    extended = int(scaling.factor * scaling.original_max_positions) if isinstance(scaling, YarnScaling) else 0
    assert ours.max_positions == max(theirs.max_position_embeddings, extended)
    assert ours.tie_embeddings == theirs.tie_word_embeddings
    kinds = getattr(theirs, "layer_types", None) or [SLIDING] * ours.num_layers
    for layer, (kind, name) in enumerate(zip(ours.layer_kinds, kinds, strict=True)):
        rope = theirs.rope_parameters
        rope = rope.get(name, rope)
        if kind.rope is None:
            assert not theirs.no_rope_layers[layer]
            continue
        assert getattr(theirs, "no_rope_layers", [1] * 99)[layer]
        assert kind.rope.theta == rope["rope_theta"]
        assert ours.rotary_share == rope.get("partial_rotary_factor", 1.0)
        assert (kind.rope.scaling is not None) == (rope["rope_type"] == "yarn")
        if isinstance(kind.rope.scaling, YarnScaling):
            original = rope["original_max_position_embeddings"]
            assert (kind.rope.scaling.factor, kind.rope.scaling.original_max_positions) == (rope["factor"], original)
            assert kind.rope.scaling.magnitude == rope.get("attention_factor", 1.0)
            # `_compute_yarn_parameters` reads this field of all layers.
            assert kind.rope.scaling.truncate == theirs.rope_parameters.get("truncate", True)
        windowed = name == SLIDING and getattr(theirs, "use_sliding_window", True)
        assert kind.window == (getattr(theirs, "sliding_window", None) if windowed else None)
    beta = theirs.rope_parameters.get("llama_4_scaling_beta")
    if beta:
        length = theirs.rope_parameters["original_max_position_embeddings"]
        assert ours.query_scaling == QueryScaling(beta=beta, length=length)
    if ours.model_type == "granite":
        factors = theirs.embedding_multiplier, theirs.residual_multiplier, theirs.attention_multiplier
        assert factors == (ours.embedding_scale, ours.residual_scale, ours.attention_scale)
        assert ours.logit_scale == 1 / theirs.logits_scaling


@pytest.mark.parametrize(("kind", "changes", "message"), REFUSED, ids=lambda value: "-".join(value))
def test_fields_that_ask_for_another_model_are_refused_by_name(
    kind: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        config_from_hf(config_of(changes, kind))


LONGROPE_READ: dict[str, tuple[dict[str, Any], int, float]] = {
    "as published": ({"rope_scaling": LONGROPE, ORIGINAL: 512}, 512, math.sqrt(1 + math.log(4) / math.log(512))),
    "of the first releases": ({"rope_scaling": LONGROPE | {"type": "su", ORIGINAL: 512}, ORIGINAL: 512}, 512, 1.105),
    "by the first code": ({"rope_scaling": LONGROPE | {"type": "yarn"}, ORIGINAL: 512}, 512, 1.105),
    "transformers 5": (
        {"rope_parameters": LONGROPE | {"rope_theta": 5e5, "rope_type": "longrope", ORIGINAL: 512}, ORIGINAL: 512}, 512, 1.105,
    ),
    "without an original length": ({"rope_scaling": LONGROPE}, 2048, 1.0),
    "with a factor": ({"rope_scaling": LONGROPE | {"factor": 32.0}, ORIGINAL: 512}, 512, 1.2472),
    "with a magnitude": ({"rope_scaling": LONGROPE | {"attention_factor": 1.3}, ORIGINAL: 512}, 512, 1.3),
    "of a part of the head": (
        {"rope_scaling": LONGROPE, ORIGINAL: 512, "head_dim": ..., "hidden_size": 64, "partial_rotary_factor": 0.5}, 512, 1.105,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LONGROPE_READ)
def test_longrope_is_read_up_to_the_original_length(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its short factors, and all fields for transformers 5, before and after export; transformers 4 reads three fields."""
    changes, positions, magnitude = LONGROPE_READ[name]
    config = config_of(changes, "phi3")
    registry._log_once.cache_clear()
    with caplog.at_level("INFO"):
        ours = config_from_hf(config)
    limit = (
        f"config.json: longrope; rows of up to {positions:,} tokens, as longer ones would need its other frequencies"
    )
    assert caplog.messages == [limit]
    scaling = ours.rope_scaling
    assert isinstance(scaling, LongRopeScaling) and ours.max_positions == positions
    assert scaling.magnitude == pytest.approx(magnitude, abs=1e-3)
    np.testing.assert_allclose(scaling.frequencies(jnp.array([1.0, 0.3]), ours.rope_theta), [1.0, 0.2], rtol=1e-6)
    written = config_to_hf(config, ours)
    assert config_from_hf(written) == ours
    assert written["rope_scaling"] in (None, LONGROPE)
    for fields in (config, written):
        (tmp_path / "config.json").write_text(json.dumps(fields))
        theirs = AutoConfig.from_pretrained(tmp_path)
        rope = theirs.rope_parameters
        assert rope["rope_type"] == "longrope" and rope["rope_theta"] == ours.rope_theta
        assert (rope["short_factor"], rope["long_factor"]) == (LONGROPE["short_factor"], LONGROPE["long_factor"])
        assert rope["partial_rotary_factor"] == ours.rotary_share
        assert theirs.max_position_embeddings == 2048 and rope[ORIGINAL] == scaling.original_max_positions
        assert magnitude_of(theirs) == scaling.magnitude


def magnitude_of(config: Any) -> float:
    """As `_compute_longrope_parameters` of transformers 5 computes it."""
    rope = config.rope_parameters
    factor = rope.get("factor") or config.max_position_embeddings / rope[ORIGINAL]
    default = math.sqrt(1 + math.log(factor) / math.log(rope[ORIGINAL])) if factor > 1 else 1.0
    return rope.get("attention_factor") or default


@pytest.mark.parametrize(("magnitude", "divisor"), [(1.0, 1.0), (0.1 * math.log(8) + 1, 0.0)])
def test_a_ministral_is_written_for_vllm_and_llama_cpp_too(magnitude: float, divisor: float) -> None:
    """They read the scale of queries and YaRN's magnitude elsewhere; 1 is that of the published models, the other the default."""
    config = config_of({"rope_parameters": MINISTRAL_ROPE | {"attention_factor": magnitude}}, "ministral3")
    written = config_to_hf(config, config_from_hf(config))
    assert written["llama_4_scaling"] == {"original_max_position_embeddings": 512, "beta": 0.1}
    rope = written["rope_parameters"]
    assert (rope["mscale"], rope["mscale_all_dim"]) == (1.0, divisor)
    del rope["attention_factor"]  # transformers computes it from these
    assert config_from_hf(written) == config_from_hf(config)
