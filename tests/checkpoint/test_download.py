"""What is downloaded from the hub before a model is refused, and at which commit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from tests.hub import Hub, Repository
from zephyr_jax.checkpoint.resolve import find_model
from zephyr_jax.config.sections import WeightsOptions
from zephyr_jax.errors import InputError

MIXTRAL = {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral"}
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 2, "num_attention_heads": 4, "rms_norm_eps": 1e-5,
}  # fmt: skip
QUANTIZED = LLAMA | {"quantization_config": {"quant_method": "bitsandbytes"}}
ADAPTER = {
    "base_model_name_or_path": "lab/base", "peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": ["q_proj"],
}  # fmt: skip
WEIGHTS = b"weights, which are not read to find a model"


def adapter_weights(width: int = 32) -> bytes:
    """Of q_proj in both layers of LLAMA, on a model of this width."""
    name = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
    sizes = {"A": (8, width), "B": (32, 8)}
    return save({name.format(layer, part): np.ones(sizes[part], np.float32) for layer in (0, 1) for part in "AB"})


def model(config: dict[str, Any]) -> Repository:
    return Repository(False, {"config.json": json.dumps(config).encode(), "model.safetensors": WEIGHTS})


def adapter(weights: bytes, **changes: Any) -> Repository:
    config = json.dumps(ADAPTER | changes).encode()
    return Repository(False, {"adapter_config.json": config, "adapter_model.safetensors": weights})


@pytest.fixture
def lab(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A hub with models and adapters of `lab`."""
    monkeypatch.chdir(tmp_path)
    hub.state.repositories |= {
        "lab/mixtral": model(MIXTRAL),
        "lab/quantized": model(QUANTIZED),
        "lab/base": model(LLAMA),
        "lab/adapter": adapter(adapter_weights()),
        "lab/qlora": adapter(adapter_weights(), base_model_name_or_path="lab/quantized"),
        "lab/dora": adapter(adapter_weights(), use_dora=True),
        "lab/wide": adapter(adapter_weights(width=64)),
    }
    return hub


def downloaded(hub: Hub, file: str) -> list[str]:
    """Repository and commit of each download of a file."""
    return [
        path[1:].replace(f"/{file}", "").replace("/resolve/", "@")
        for method, path in hub.state.requests
        if method == "GET" and path.endswith(f"/{file}")
    ]


@pytest.mark.parametrize(
    ("options", "message", "adapters"),
    [
        ({"path": "lab/mixtral"}, "[Mm]ixtral", 0),
        ({"path": "lab/quantized"}, "quantization_config", 0),
        ({"path": "lab/qlora"}, "holds an adapter of lab/quantized.*quantization_config", 1),
        ({"path": "lab/dora"}, "use_dora", 0),
        ({"path": "lab/base", "adapter": "lab/dora"}, "use_dora", 0),
        ({"path": "lab/wide"}, "adapter_model.safetensors", 1),
        ({"path": "lab/base", "adapter": "lab/wide"}, "adapter_model.safetensors", 1),
        ({"path": "lab/base", "adapter": "lab/adaptor"}, "lab/adaptor", 0),
        (
            {"path": "lab/base", "adapter": "lab/mixtral"},
            "model.adapter: expected a folder with adapter_config.json",
            0,
        ),
    ],
)
def test_weights_of_a_model_that_is_refused_are_not_downloaded(
    lab: Hub, options: dict[str, str], message: str, adapters: int
) -> None:
    with pytest.raises(InputError, match=message):
        find_model(WeightsOptions(**options))
    assert downloaded(lab, "model.safetensors") == []
    assert len(downloaded(lab, "adapter_model.safetensors")) == adapters


@pytest.mark.parametrize(
    "options", [{"path": "lab/base"}, {"path": "lab/adapter"}, {"path": "lab/base", "adapter": "lab/adapter"}]
)
def test_small_files_and_weights_are_of_one_commit(lab: Hub, options: dict[str, str]) -> None:
    """Also where another commit is pushed between them; the record names it, and each file is downloaded once."""

    def push(_: str, path: str) -> None:
        if path.endswith("config.json"):
            lab.state.repositories[path.split("/resolve/")[0][1:]].commits.append("Another one")

    lab.state.fault = push
    source = find_model(WeightsOptions(**options))
    base = source.adapter.base if source.adapter else source
    assert (base.weights / "model.safetensors").read_bytes() == WEIGHTS
    assert base.record["revision"] == base.weights.name == "0" * 40
    assert downloaded(lab, "model.safetensors") == [f"lab/base@{'0' * 40}"]
    if source.adapter:
        assert downloaded(lab, "adapter_model.safetensors") == [f"lab/adapter@{'0' * 40}"]


def test_a_preview_downloads_no_weights_of_the_base(lab: Hub) -> None:
    source = find_model(WeightsOptions("lab/adapter"), weights=False)
    assert source.adapter and source.adapter.base.asked == "lab/base"
    assert downloaded(lab, "model.safetensors") == []
