"""What is asked of the hub before a model is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from zephyr_jax.checkpoint.hf import folder as hub_folder
from zephyr_jax.checkpoint.resolve import find_model
from zephyr_jax.config.sections import WeightsOptions
from zephyr_jax.errors import InputError

MIXTRAL = {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral"}
QUANTIZED = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 2, "num_attention_heads": 4, "rms_norm_eps": 1e-5,
    "quantization_config": {"quant_method": "bitsandbytes"},
}  # fmt: skip
ADAPTER = {
    "base_model_name_or_path": "unsloth/base", "peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": ["q_proj"],
}  # fmt: skip
REPOSITORIES = {
    "mistralai/Mixtral": {"config.json": MIXTRAL},
    "unsloth/base": {"config.json": QUANTIZED},
    "someone/adapter": {"adapter_config.json": ADAPTER},
}


@pytest.fixture
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """(repository, whether model weights are among what is asked) of each download of `REPOSITORIES`."""
    asked: list[tuple[str, bool]] = []

    def snapshot(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, any(pattern.startswith("model") for pattern in allow_patterns)))
        if name not in REPOSITORIES:
            raise FileNotFoundError(name)
        home = tmp_path / name
        home.mkdir(parents=True, exist_ok=True)
        for file, content in REPOSITORIES[name].items():
            (home / file).write_text(json.dumps(content))
        return str(home)

    monkeypatch.setattr(hub_folder, "snapshot_download", snapshot)
    monkeypatch.chdir(tmp_path)
    return asked


@pytest.mark.parametrize(
    ("options", "message", "repositories"),
    [
        ({"path": "mistralai/Mixtral"}, "[Mm]ixtral", ["mistralai/Mixtral"]),
        ({"path": "unsloth/base"}, "quantization_config", ["unsloth/base"]),
        ({"path": "someone/adapter"}, "quantization_config", ["someone/adapter", "unsloth/base"]),
        ({"path": "mistralai/Mixtral", "adapter": "someone/adaptor"}, "someone/adaptor", ["someone/adaptor"]),
    ],
    ids=["architecture", "quantized", "base of an adapter", "misspelled adapter"],
)
def test_weights_of_a_model_that_is_refused_are_not_downloaded(
    downloads: list[tuple[str, bool]], options: dict[str, Any], message: str, repositories: list[str]
) -> None:
    with pytest.raises(InputError, match=message):
        find_model(WeightsOptions(**options))
    assert list(dict.fromkeys(name for name, _ in downloads)) == repositories
    assert [name for name, has_weights in downloads if has_weights and "adapter" not in name] == []
