"""Presets of `plan`: published sizes without a download."""

import pytest

from zephyr_jax.config.plan import PlanConfig
from zephyr_jax.config.sections import ModelOptions
from zephyr_jax.config.yaml_file import load_card
from zephyr_jax.errors import InputError
from zephyr_jax.plan.presets import PRESETS, match_preset, preset
from zephyr_jax.plan.shape import planned_format, planned_shape

PUBLISHED = {
    "Mistral-7B": 7.24, "Llama-3.1-8B": 8.03, "Llama-3.2-1B": 1.24, "Llama-3.2-3B": 3.21, "Qwen2.5-7B": 7.62, "Qwen3-8B": 8.19,
    "Qwen3-14B": 14.77, "Gemma-2-9B": 9.24, "Gemma-3-1B": 1.00, "Olmo-3-7B": 7.30, "SmolLM3-3B": 3.08,
    "OLMo-2-1124-7B": 7.30, "Gemma-7B": 8.54, "Granite-3.3-8B": 8.17, "Phi-4": 14.66, "Phi-4-mini": 3.84,
    "Gemma-3-4B": 3.88, "Gemma-3-12B": 11.77,
}  # fmt: skip
"""Billions of weights on the models' pages."""


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_the_published_number_of_weights(name: str) -> None:
    assert preset(name).num_parameters / 1e9 == pytest.approx(PUBLISHED[name], abs=0.006)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", "Llama-3.1-8B"),
        ("runs/llama-3.1-8b-sft/", "Llama-3.1-8B"),
        ("Qwen/Qwen3-8B-Base", "Qwen3-8B"),
        ("qwen3-14b", "Qwen3-14B"),
        ("Qwen/Qwen3-80B", None),
        ("microsoft/phi-4", "Phi-4"),
        ("microsoft/Phi-4-mini-instruct", "Phi-4-mini"),
        ("runs/zephyr-7b-sft", None),
    ],
)
def test_a_path_names_its_preset(path: str, name: str | None) -> None:
    assert match_preset(path) == name
    assert planned_shape(PlanConfig(model=ModelOptions(path=path))) == preset(name or "Mistral-7B")


@pytest.mark.parametrize(
    ("card", "name"),
    [
        ("llama-3.1-8b", "Llama-3.1-8B"),
        ("qwen3-8b", "Qwen3-8B"),
        ("gemma-2-9b", "Gemma-2-9B"),
        ("smollm3-3b", "SmolLM3-3B"),
    ],
)
@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_a_card_is_planned_with_its_model(card: str, name: str, stage: str) -> None:
    assert planned_shape(load_card(PlanConfig, f"configs/{card}/{stage}.yaml")) == preset(name)


def test_an_adapter_whose_base_is_not_here_is_refused() -> None:
    """Its rank is not read, so the plan would be that of full-parameter training."""
    with pytest.raises(
        InputError, match="model.adapter is my/adapter and `plan` has no local folder.*--adapter.rank 16"
    ):
        planned_format(PlanConfig(model=ModelOptions(path="mistralai/Mistral-7B-v0.1", adapter="my/adapter")))


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(InputError, match=r"model_preset.*qwen9.*Qwen3-8B"):
        planned_shape(PlanConfig(model_preset="qwen9"))
