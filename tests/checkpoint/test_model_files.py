"""config.json and generation_config.json of runs and exports: one reading for transformers 4 and 5."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from tests.models import load
from tests.tokenizers import write_tokenizer
from zephyr_jax.chat.saved_tokenizer import save_tokenizer
from zephyr_jax.chat.tokenizer_files import load_tokenizer
from zephyr_jax.checkpoint.hf.export import export_folder
from zephyr_jax.checkpoint.hf.model_files import GENERATION, model_files, write_model_files
from zephyr_jax.checkpoint.hf.reader import TensorFile
from zephyr_jax.checkpoint.model_source import ModelSource
from zephyr_jax.demo.remake import CONFIG
from zephyr_jax.errors import InputError
from zephyr_jax.model.families.registry import config_from_hf, config_to_hf
from zephyr_jax.storage.strict_json import read_json


def source_of(folder: Path, config: dict[str, Any], generation: dict[str, Any] | None = None) -> ModelSource:
    """A checkpoint without weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (folder / GENERATION).write_text(json.dumps(generation))
    return ModelSource(
        asked=str(folder),
        folder=folder,
        weights=folder,
        run=None,
        step=None,
        hf_config=config,
        model_config=config_from_hf(config),
    )


def written(folder: Path, kind: str = "llama-2", stop_ids: tuple[int, ...] = (), **settings: Any) -> dict[str, Any]:
    """The files of a checkpoint with a small tokenizer; `settings` are its config's and generation settings."""
    generation = settings.pop("generation", None)
    source = source_of(write_tokenizer(kind, folder), {**CONFIG, **settings}, generation)
    return model_files(source, save_tokenizer(load_tokenizer(str(folder))), None, stop_ids)


@pytest.mark.parametrize("model_type", ["mistral", "llama"])
@pytest.mark.parametrize(
    ("rope", "theta"),
    [
        ({"rope_theta": 1e6}, 1e6),
        ({"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}, 1e6),
        ({"rope_theta": 5e5, "rope_parameters": None, "rope_scaling": None}, 5e5),
        ({}, 10_000.0),
    ],
)
def test_rope_is_written_in_both_spellings(tmp_path: Path, model_type: str, rope: dict[str, Any], theta: float) -> None:
    base = {name: value for name, value in CONFIG.items() if name != "rope_theta"}
    config = {**base, "model_type": model_type, **rope}
    found = config_to_hf(config, config_from_hf(config))
    assert found["rope_theta"] == found["rope_parameters"]["rope_theta"] == theta
    assert found["rope_parameters"]["rope_type"] == "default" and found["rope_scaling"] is None
    assert config_from_hf(found) == config_from_hf(config)
    (tmp_path / "config.json").write_text(json.dumps(found))
    assert AutoConfig.from_pretrained(tmp_path).rope_parameters["rope_theta"] == theta


def test_defaults_that_differ_are_written_out() -> None:
    config = {name: value for name, value in CONFIG.items() if name not in ("tie_word_embeddings", "sliding_window")}
    config = {**config, "auto_map": {"AutoModelForCausalLM": "x.Y"}, "architectures": None, "num_key_value_heads": None}
    found = config_to_hf(config, config_from_hf(config))
    assert found["tie_word_embeddings"] is False and found["sliding_window"] == 4096
    assert found["num_key_value_heads"] == CONFIG["num_attention_heads"] and found["head_dim"] == 32
    assert found["architectures"] == ["MistralForCausalLM"] and "auto_map" not in found


@pytest.mark.parametrize(
    ("settings", "stop_ids", "ends"),
    [
        ({}, (), 2),
        ({}, (2,), 2),
        ({}, (7,), [7, 2]),
        ({"eos_token_id": [2, 9]}, (), [2, 9]),
        ({"generation": {"eos_token_id": [5, 2, 6]}}, (7,), [7, 2, 5, 6]),
        ({"generation": {"eos_token_id": 9}, "eos_token_id": 11}, (), [2, 9]),
        ({"generation": {"eos_token_id": None}}, (7, 8), [7, 8, 2]),
        ({"generation": {"eos_token_id": 5000}}, (), 2),
    ],
)
def test_end_tokens_are_the_same_everywhere(
    tmp_path: Path, settings: dict[str, Any], stop_ids: tuple[int, ...], ends: Any
) -> None:
    """The template's, the tokenizer's, and those that were declared; a list when there are several."""
    files = written(tmp_path / "base", stop_ids=stop_ids, **settings)
    assert files[GENERATION]["eos_token_id"] == files["config.json"]["eos_token_id"] == ends
    assert files[GENERATION]["bos_token_id"] == files["config.json"]["bos_token_id"] == 1
    assert files["tokenizer_config.json"]["eos_token"] == "</s>"


PADS = [("bos-is-eos", 1024, 302), ("bos-is-eos", 302, None), ("llama-2", 1024, None)]


@pytest.mark.parametrize(("kind", "vocabulary", "pad"), PADS)
def test_the_pad_token_is_the_same_everywhere(tmp_path: Path, kind: str, vocabulary: int, pad: int | None) -> None:
    files = written(tmp_path, kind, pad_token_id=0, vocab_size=vocabulary, generation={"pad_token_id": 0})
    assert files[GENERATION]["pad_token_id"] == files["config.json"]["pad_token_id"] == pad
    assert ("pad_token" in files["tokenizer_config.json"]) == (pad is not None)


@pytest.mark.parametrize(
    ("generation", "kept"),
    [
        ({"do_sample": True, "temperature": 0.6, "top_p": 0.9}, {"do_sample": True, "temperature": 0.6, "top_p": 0.9}),
        ({"do_sample": False, "temperature": 0.6, "top_p": 0.9}, {"do_sample": False}),
        ({"temperature": 0.9, "max_length": 4096, "_from_model_config": True}, {"max_length": 4096}),
        ({"repetition_penalty": 1.1}, {"repetition_penalty": 1.1}),
    ],
)
def test_generation_settings_stay_and_are_valid(
    tmp_path: Path, generation: dict[str, Any], kept: dict[str, Any]
) -> None:
    found = written(tmp_path / "base", generation=generation)[GENERATION]
    special = ("eos_token_id", "bos_token_id", "pad_token_id")
    assert {name: value for name, value in found.items() if name not in special} == kept
    (tmp_path / GENERATION).write_text(json.dumps(found))
    GenerationConfig.from_pretrained(tmp_path).validate(strict=True)


def test_a_run_s_files_replace_those_of_an_earlier_writer(tmp_path: Path) -> None:
    """What copied files would say otherwise is gone; what is not a tokenizer's stays."""
    folder = tmp_path / "run" / "model"
    folder.mkdir(parents=True)
    for name in ("tokenizer.model", "added_tokens.json", "special_tokens_map.json", "notes.txt"):
        (folder / name).write_text("{}")
    files = written(tmp_path / "base")
    write_model_files(tmp_path / "run", files)
    assert {path.name for path in folder.iterdir()} == {*files, "notes.txt"}
    assert AutoTokenizer.from_pretrained(folder)("a").input_ids[0] == 1


def test_a_float16_export_holds_the_nearest_values(golden: Path, tmp_path: Path) -> None:
    loaded = load(golden / "models" / "gqa")
    config = read_json(golden / "models" / "gqa" / "config.json")
    export_folder(
        tmp_path / "out", loaded.parameters, loaded.model.config, config, {}, dtype="float16", max_file_bytes=2**30
    )
    found = read_json(tmp_path / "out" / "config.json")
    assert found["dtype"] == found["torch_dtype"] == "float16"
    assert {entry.kind for entry in TensorFile(tmp_path / "out" / "model.safetensors").entries.values()} == {"F16"}
    again = load(tmp_path / "out").parameters["embedding"]
    expected = np.asarray(loaded.parameters["embedding"]).astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(np.asarray(again), expected)


@pytest.mark.parametrize("devices", [1, 8])
def test_float16_overflow_names_the_tensor(golden: Path, tmp_path: Path, devices: int) -> None:
    """65,504 is the largest float16; what lies above is an error and no infinity. Nothing is left behind."""
    mesh = {"data": 2, "fsdp": 2, "tensor": 2} if devices == 8 else {}
    loaded = load(golden / "models" / "gqa", devices=devices, **mesh)
    up = loaded.parameters["decoder"]["feed_forward"]["up"]
    loaded.parameters["decoder"]["feed_forward"]["up"] = up.at[1, 2, 3].set(-65_504.0)
    config = read_json(golden / "models" / "gqa" / "config.json")
    export_folder(
        tmp_path / "fits", loaded.parameters, loaded.model.config, config, {}, dtype="float16", max_file_bytes=2**30
    )
    loaded.parameters["decoder"]["feed_forward"]["up"] = up.at[1, 2, 3].set(-65_505.0)
    with pytest.raises(
        InputError, match=r"model\.layers\.1\.mlp\.up_proj\.weight does not fit into float16: .* got 65505"
    ):
        export_folder(
            tmp_path / "out", loaded.parameters, loaded.model.config, config, {}, dtype="float16", max_file_bytes=2**30
        )
    assert not (tmp_path / "out").exists()
    export_folder(
        tmp_path / "wide", loaded.parameters, loaded.model.config, config, {}, dtype="bfloat16", max_file_bytes=2**30
    )
