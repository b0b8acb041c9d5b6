"""Opening a model for generation: context, prompts that are too long, caches that are too large, end tokens."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from zephyr_jax.config.sampling import MAX_STOP_IDS
from zephyr_jax.config.sections import ForwardOptions, MeshOptions
from zephyr_jax.errors import InputError
from zephyr_jax.generate.load import TextModel, fit_to_context, open_text_model


def opened(folder: Path, batch_size: int = 3) -> TextModel:
    return open_text_model("generate", ForwardOptions(path=str(folder)), MeshOptions(), batch_size)


@pytest.mark.parametrize(
    ("length", "max_new_tokens", "kept", "room"),
    [
        (8, 4, 8, 4),  # both fit
        (20, 4, 8, 4),  # the prompt leaves room for the answer
        (20, 100, 6, 6),  # at most half of the context is reserved
    ],
)
def test_a_long_prompt_keeps_its_first_token_and_its_end(
    length: int, max_new_tokens: int, kept: int, room: int
) -> None:
    prompt, new_tokens = fit_to_context(np.arange(length, dtype=np.int32), max_new_tokens, 12)
    assert (len(prompt), new_tokens) == (kept, room)
    assert prompt[0] == 0 and prompt[-1] == length - 1
    assert np.all(np.diff(prompt[1:]) == 1)


def test_context_is_bounded_by_the_positions_of_the_model(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 128}))
    model = opened(folder)
    assert (model.context_length(), model.context_length(64), model.context_length(4096)) == (128, 64, 128)


def test_the_default_mesh_gathers_no_weight_and_rows_fill_it(tiny_model: Path) -> None:
    """As much tensor parallelism as the heads allow; the batch is rounded up to its shards."""
    model = opened(tiny_model)
    config, mesh = model.source.model_config, model.rules.mesh.shape
    assert mesh["fsdp"] == 1
    assert config.num_heads % mesh["tensor"] == config.num_kv_heads % mesh["tensor"] == 0
    assert model.batch_size % mesh["data"] == 0 and model.batch_size >= 3


def test_a_cache_beyond_the_memory_is_refused_before_anything_is_loaded(tiny_model: Path) -> None:
    with pytest.raises(InputError, match=r"KV cache of .* needs [\d,.]+ GiB; expected at most .*batch_size"):
        opened(tiny_model, batch_size=8_000_000).engine(4096)


def test_too_many_end_tokens_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(100, 100 + MAX_STOP_IDS))}))
    model = opened(folder)  # the file is within the limit, the template's own end token exceeds it
    with pytest.raises(InputError, match=f"at most {MAX_STOP_IDS} end tokens"):
        model.with_chat_stops(model.chat_tokenizer("zephyr"))
