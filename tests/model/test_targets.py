"""Globs over Hugging Face's module names select the projections that an adapter is attached to."""

from dataclasses import replace
from pathlib import Path

import pytest

from zephyr_jax.errors import InputError
from zephyr_jax.model.config import ModelConfig
from zephyr_jax.model.families.registry import config_from_hf
from zephyr_jax.model.families.targets import module_name, projections_of, resolve_targets
from zephyr_jax.storage.strict_json import read_json

ATTENTION = ("attention.query", "attention.key", "attention.value", "attention.output")
FEED_FORWARD = ("feed_forward.gate", "feed_forward.up", "feed_forward.down")


@pytest.fixture
def config(golden: Path) -> ModelConfig:
    return config_from_hf(read_json(golden / "models" / "gqa" / "config.json"))


@pytest.mark.parametrize("tied", [False, True])
def test_projections_have_the_names_of_transformers(config: ModelConfig, tied: bool) -> None:
    """Seven per layer; embeddings, unembedding and norms are not among them."""
    projections = projections_of(replace(config, tie_embeddings=tied))
    assert tuple(projections) == ATTENTION + FEED_FORWARD
    assert [module_name(tensor) for tensor in projections.values()] == [
        "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
        "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("patterns", "targets"),
    [
        (("*_proj",), ATTENTION + FEED_FORWARD),
        (("*",), ATTENTION + FEED_FORWARD),
        (("v_proj", "q_proj"), ("attention.query", "attention.value")),
        (("q_proj", "self_attn.q_proj", "*q*"), ("attention.query",)),
        (("self_attn.*",), ATTENTION),
        (("mlp.*", "o_proj"), ("attention.output", *FEED_FORWARD)),
        (("[qk]_proj",), ("attention.query", "attention.key")),
    ],
)
def test_globs_select_in_the_order_of_the_model(
    config: ModelConfig, patterns: tuple[str, ...], targets: tuple[str, ...]
) -> None:
    assert resolve_targets(patterns, config) == targets


@pytest.mark.parametrize(
    "pattern", ["query", "Q_PROJ", "", "self_attn", "model.layers.0.self_attn.q_proj", "input_layernorm"]
)
def test_a_pattern_without_a_match_is_an_error(config: ModelConfig, pattern: str) -> None:
    """It lists the names of the model."""
    with pytest.raises(
        InputError, match="expected a glob that matches one of q_proj, k_proj, .*down_proj, got one"
    ) as error:
        resolve_targets(("q_proj", pattern), config)
    assert repr(pattern) in str(error.value)
    assert "not supported" not in str(error.value)


@pytest.mark.parametrize("pattern", ["lm_head", "embed_tokens", "model.embed_tokens", "lm_*"])
def test_adapters_of_embeddings_are_refused_by_name(config: ModelConfig, pattern: str) -> None:
    with pytest.raises(InputError, match=r"Adapters of (lm_head|embed_tokens) are not supported"):
        resolve_targets((pattern,), config)


def test_an_empty_list_is_an_error(config: ModelConfig) -> None:
    with pytest.raises(InputError, match="got an empty list"):
        resolve_targets((), config)
