"""Which files of a folder are the model: as transformers chooses, and refused where two readings differ."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from safetensors.numpy import load_file, save_file

from tests.models import load
from zephyr_jax.checkpoint.fingerprint import weights_fingerprint
from zephyr_jax.checkpoint.hf.weight_files import TensorFiles
from zephyr_jax.checkpoint.resolve import find_model
from zephyr_jax.checkpoint.weights import check_weights
from zephyr_jax.config.sections import ModelOptions
from zephyr_jax.errors import InputError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"
Tensors = dict[str, np.ndarray]


def folder_of(golden: Path, tmp_path: Path, variant: str = "gqa") -> Path:
    return Path(shutil.copytree(golden / "models" / variant, tmp_path / "model"))


def shard(folder: Path, tensors: Tensors, parts: int = 2, index: bool = True) -> list[str]:
    """Write tensors as shards, with an index or without; the shards' names."""
    names = [f"model-{part:05}-of-{parts:05}.safetensors" for part in range(1, parts + 1)]
    where = {name: names[number % parts] for number, name in enumerate(sorted(tensors))}
    for file in names:
        save_file({name: value for name, value in tensors.items() if where[name] == file}, folder / file)
    if index:
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return names


def changed(tensors: Tensors) -> Tensors:
    """The same tensors, one value of one of them other."""
    other = tensors[TABLE].copy()
    other[3, 4] += 1
    return {**tensors, TABLE: other}


def check(folder: Path) -> None:
    check_weights(find_model(ModelOptions(path=str(folder))))


def with_consolidated(folder: Path, tensors: Tensors) -> None:
    save_file({"tok_embeddings.weight": tensors[TABLE]}, folder / "consolidated.safetensors")


def with_numbered_consolidated(folder: Path, tensors: Tensors) -> None:
    save_file({"tok_embeddings.weight": tensors[TABLE]}, folder / "consolidated-00001-of-00001.safetensors")


def with_adapter_weights(folder: Path, tensors: Tensors) -> None:
    save_file({"base_model.model.q_proj.lora_A.weight": tensors[TABLE]}, folder / "adapter_model.safetensors")


def with_equal_shards(folder: Path, tensors: Tensors) -> None:
    shard(folder, tensors)


def with_equal_shards_and_no_index(folder: Path, tensors: Tensors) -> None:
    shard(folder, tensors, index=False)


def with_an_index_of_itself(folder: Path, tensors: Tensors) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(tensors, SINGLE)}))


def with_a_variant(folder: Path, tensors: Tensors) -> None:
    save_file({name: value.astype(np.float16) for name, value in tensors.items()}, folder / "model.fp16.safetensors")


def as_shards_beside_old_ones(folder: Path, tensors: Tensors) -> None:
    shard(folder, changed(tensors), parts=3)
    shard(folder, tensors)
    (folder / SINGLE).unlink()


def as_shards_without_an_index(folder: Path, tensors: Tensors) -> None:
    shard(folder, tensors, index=False)
    (folder / SINGLE).unlink()


def as_shards_beside_consolidated(folder: Path, tensors: Tensors) -> None:
    as_shards_without_an_index(folder, tensors)
    with_consolidated(folder, tensors)


@pytest.mark.parametrize(
    "change",
    [
        with_consolidated, with_numbered_consolidated, with_adapter_weights, with_equal_shards, with_equal_shards_and_no_index,
        with_an_index_of_itself, with_a_variant, as_shards_beside_old_ones, as_shards_without_an_index,
        as_shards_beside_consolidated,
    ],
)  # fmt: skip
def test_the_model_is_read_and_nothing_else(
    change: Callable[[Path, Tensors], None], golden: Path, tmp_path: Path
) -> None:
    folder = folder_of(golden, tmp_path)
    change(folder, load_file(folder / SINGLE))
    check(folder)
    assert weights_fingerprint(load(folder).parameters) == weights_fingerprint(load(golden / "models/gqa").parameters)


def other_shards(folder: Path, tensors: Tensors) -> None:
    shard(folder, changed(tensors))


def other_shards_without_an_index(folder: Path, tensors: Tensors) -> None:
    shard(folder, changed(tensors), index=False)


def shards_that_lack_a_tensor(folder: Path, tensors: Tensors) -> None:
    shard(folder, {name: value for name, value in tensors.items() if name != HEAD})


def missing_shard_beside_a_single_file(folder: Path, tensors: Tensors) -> None:
    (folder / shard(folder, tensors)[1]).unlink()


def missing_shards(folder: Path, tensors: Tensors) -> None:
    for name in shard(folder, tensors, parts=4)[1:3]:
        (folder / name).unlink()
    (folder / SINGLE).unlink()


def missing_shard_without_an_index(folder: Path, tensors: Tensors) -> None:
    (folder / shard(folder, tensors, parts=3, index=False)[2]).unlink()
    (folder / SINGLE).unlink()


def adapter_applied(folder: Path, tensors: Tensors) -> None:
    with_adapter_weights(folder, tensors)
    (folder / "adapter_config.json").write_text("{}")


def adapter_alone(folder: Path, tensors: Tensors) -> None:
    adapter_applied(folder, tensors)
    (folder / SINGLE).unlink()


def adapter_without_a_config(folder: Path, tensors: Tensors) -> None:
    adapter_alone(folder, tensors)
    (folder / "config.json").unlink()


def adapter_in_the_model_s_file(folder: Path, tensors: Tensors) -> None:
    save_file({**tensors, "model.layers.0.self_attn.q_proj.lora_A.weight": tensors[TABLE]}, folder / SINGLE)


def consolidated_alone(folder: Path, tensors: Tensors) -> None:
    with_consolidated(folder, tensors)
    (folder / SINGLE).unlink()


def pickles(folder: Path, tensors: Tensors) -> None:
    (folder / SINGLE).rename(folder / "pytorch_model-00001-of-00001.bin")


def pointer(folder: Path, tensors: Tensors) -> None:
    (folder / SINGLE).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")


def quantized(folder: Path, tensors: Tensors) -> None:
    save_file({**tensors, TABLE: tensors[TABLE].astype(np.int8)}, folder / SINGLE)


def named_in_the_config(folder: Path, tensors: Tensors) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "transformers_weights": "other.safetensors"}))


REFUSED: dict[Callable[[Path, Tensors], None], str] = {
    other_shards: f"two ways that differ in 1 tensors .{TABLE}.*{SINGLE}.*{INDEX} .model-00001-of-00002",
    other_shards_without_an_index: "two ways that differ in 1 tensors.*2 shards without an index",
    shards_that_lack_a_tensor: f"two ways that differ in 1 tensors .{HEAD}",
    missing_shard_beside_a_single_file: f"1 of them are missing: model-00002-of-00002.*or remove the index if {SINGLE}",
    missing_shards: "names 4 files, and 2 of them are missing: model-00002-of-00004.safetensors, model-00003-of-00004",
    missing_shard_without_an_index: "2 of 3 shards; missing: model-00003-of-00003",
    adapter_applied: "two ways: model.safetensors alone, or with the adapter of adapter_config.json",
    adapter_alone: "adapter_config.json lacks peft_type, r, lora_alpha, target_modules",
    adapter_without_a_config: "adapter_config.json lacks peft_type, r, lora_alpha, target_modules",
    adapter_in_the_model_s_file: "1 unknown.*lora_A.*merge it into its base",
    consolidated_alone: "Mistral's own format .consolidated.safetensors",
    pickles: "holds .*pytorch_model-00001-of-00001.bin.*no pickle.*convert",
    pointer: "Git LFS pointer .*git lfs pull",
    quantized: f"{TABLE} .*dtype I8; weights are read from F64",
    named_in_the_config: "transformers_weights to 'other.safetensors'",
}


@pytest.mark.parametrize("change", REFUSED)
def test_other_folders_are_refused_before_weights_are_read(
    change: Callable[[Path, Tensors], None], golden: Path, tmp_path: Path
) -> None:
    folder = folder_of(golden, tmp_path)
    change(folder, load_file(folder / SINGLE))
    with pytest.raises(InputError, match=REFUSED[change]):
        check(folder)


def test_a_tied_model_may_store_its_table_under_either_name_or_both(golden: Path, tmp_path: Path) -> None:
    """As transformers 5: equal tensors are one, in whatever dtype; an unembedding alone is the embedding, too."""
    folder = folder_of(golden, tmp_path, "tied")
    tensors, expected = load_file(folder / SINGLE), weights_fingerprint(load(folder).parameters)
    table = tensors.pop(TABLE)
    for stored in ({TABLE: table, HEAD: table}, {TABLE: table, HEAD: table.astype(np.float64)}, {HEAD: table}):
        save_file({**tensors, **stored}, folder / SINGLE)
        check(folder)
        assert weights_fingerprint(load(folder).parameters) == expected


@pytest.mark.parametrize("how", ["one value", "one row"])
def test_a_tied_model_with_another_unembedding_is_refused(how: str, golden: Path, tmp_path: Path) -> None:
    """transformers 5 uses both tensors, others drop one: both readings are named, by `check_weights` and by loading."""
    folder = folder_of(golden, tmp_path, "tied")
    tensors = load_file(folder / SINGLE)
    other = np.concatenate([tensors[TABLE], tensors[TABLE][:1]]) if how == "one row" else changed(tensors)[TABLE]
    save_file({**tensors, HEAD: other}, folder / SINGLE)
    for attempt in (check, load):
        with pytest.raises(InputError, match=f"tie_word_embeddings to true.*{HEAD}.*differs from {TABLE}"):
            attempt(folder)


def test_headers_are_all_that_is_read_of_a_sound_folder(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`check_weights` costs nothing: no tensor is filled, and none compared."""
    folder = folder_of(golden, tmp_path)
    monkeypatch.setattr(TensorFiles, "fill", lambda *_: pytest.fail("a tensor was read"))
    monkeypatch.setattr("zephyr_jax.checkpoint.hf.weight_files._equal", lambda *_: pytest.fail("tensors were compared"))
    check(folder)
    assert TABLE in TensorFiles(epath.Path(folder)).names


CASES = {
    "07-tied-but-head-differs": "tie_word_embeddings to true.*differs",
    "08-single-file-and-index": "two ways that differ",
    "09-single-file-and-consolidated": "",
    "18a-rope-type-key": "",
    "28-pad-token-not-resized": "",
}


@pytest.mark.shared
@pytest.mark.parametrize("name", CASES)
def test_reported_folders(name: str, shared: Path) -> None:
    folder = shared / "cases" / "checkpoints" / name
    if not folder.is_dir():
        pytest.skip("these cases are not here")
    if not CASES[name]:
        check(folder)
        return
    with pytest.raises(InputError, match=CASES[name]):
        check(folder)
