"""Hugging Face folders in and out."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.models import load
from zephyr_jax.checkpoint.fingerprint import weights_fingerprint
from zephyr_jax.checkpoint.hf.export import export_folder
from zephyr_jax.checkpoint.hf.weight_files import TensorFiles
from zephyr_jax.storage.strict_json import read_json

VARIANTS = ("gqa", "tied", "head_dim", "llama")


def stored(folder: Path) -> dict[str, np.ndarray]:
    return {name: value for path in sorted(folder.glob("*.safetensors")) for name, value in load_file(path).items()}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("limit", [2**30, 20_000])
def test_round_trip_is_bit_exact(golden: Path, tmp_path: Path, variant: str, limit: int) -> None:
    """In and out again, as one file and as several with an index: every tensor has every bit it had."""
    folder = golden / "models" / variant
    loaded = load(folder, devices=8, data=2, fsdp=2, tensor=2) if variant == "gqa" else load(folder)
    out = tmp_path / "out"
    export_folder(
        out,
        loaded.parameters,
        loaded.model.config,
        read_json(folder / "config.json"),
        {},
        dtype="float32",
        max_file_bytes=limit,
    )
    before, after = stored(folder), stored(out)
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(before[name], after[name], strict=True)
    index = out / "model.safetensors.index.json"
    assert index.exists() == (limit == 20_000)
    if index.exists():
        weight_map = json.loads(index.read_text())["weight_map"]
        assert weight_map.keys() == before.keys()
        assert all((out / name).stat().st_size < 40_000 for name in weight_map.values())
        assert TensorFiles(out).names == before.keys()


def test_bfloat16_export_rounds_once(golden: Path, tmp_path: Path) -> None:
    """Written as bfloat16, read back as float32: the nearest bfloat16 of each weight; config.json says so."""
    folder = golden / "models" / "gqa"
    loaded = load(folder)
    export_folder(
        tmp_path / "out",
        loaded.parameters,
        loaded.model.config,
        read_json(folder / "config.json"),
        {},
        dtype="bfloat16",
        max_file_bytes=2**30,
    )
    again = load(tmp_path / "out")
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(np.asarray(a).astype(jax.numpy.bfloat16).astype(np.float32), b),
        loaded.parameters,
        again.parameters,
    )
    assert read_json(tmp_path / "out" / "config.json")["torch_dtype"] == "bfloat16"


def test_a_failed_export_leaves_nothing(golden: Path, tmp_path: Path) -> None:
    """An error in the middle: neither the folder nor a scratch folder stays behind."""
    loaded = load(golden / "models" / "gqa")
    with pytest.raises(FileNotFoundError):
        export_folder(
            tmp_path / "out",
            loaded.parameters,
            loaded.model.config,
            {},
            {"x": tmp_path / "absent"},
            dtype="float32",
            max_file_bytes=2**30,
        )
    assert list(tmp_path.iterdir()) == []


def test_fingerprint_is_of_the_bits_and_of_nothing_else(golden: Path) -> None:
    """Equal on every mesh; changed by one bit, by two values changing places, by two tensors changing places."""
    folder = golden / "models" / "gqa"
    single = load(folder).parameters
    expected = weights_fingerprint(single)
    assert weights_fingerprint(load(folder, devices=8, data=2, fsdp=2, tensor=2).parameters) == expected
    table = np.asarray(single["embedding"])
    bit = table.copy()
    bit.view(np.uint32)[3, 4] ^= 1
    swapped = table.copy()
    swapped[[1, 2]] = table[[2, 1]]
    attention = single["decoder"]["attention"]
    exchanged = {
        **single,
        "decoder": {
            **single["decoder"],
            "attention": {**attention, "key": attention["value"], "value": attention["key"]},
        },
    }
    found = {
        expected,
        *(weights_fingerprint({**single, "embedding": jax.numpy.asarray(t)}) for t in (bit, swapped)),
        weights_fingerprint(exchanged),
    }
    assert len(found) == 4
