"""Safetensors files as they are written: read by the safetensors package, divided by size, complete in their index."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from etils import epath
from safetensors import safe_open

from zephyr_jax.checkpoint.hf.writer import write_safetensors

SIZES = {"one": (3,), "scalar": (), "large": (40, 8), "empty": (0, 4), "odd": (5, 7), "last": (2, 3, 4)}


def values(dtype: type) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(0, 1, sizes).astype(dtype) for name, sizes in SIZES.items()}


def write(folder: Path, tensors: dict[str, np.ndarray], limit: int) -> list[str]:
    """The names of the tensors in the order in which they were asked for."""
    asked: list[str] = []

    def source(name: str) -> np.ndarray:
        asked.append(name)
        return tensors[name]

    sources = [(name, value.shape, lambda name=name: source(name)) for name, value in tensors.items()]
    write_safetensors(epath.Path(folder), sources, next(iter(tensors.values())).dtype, limit)
    return asked


@pytest.mark.parametrize("limit", [1, 200, 700, 2**30])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_another_reader_finds_every_value(tmp_path: Path, dtype: type, limit: int) -> None:
    """Laws: every tensor is computed once, in order; no file but one of a single tensor exceeds the limit; the index is right."""
    tensors = values(dtype)
    assert write(tmp_path, tensors, limit) == list(SIZES)
    found: dict[str, str] = {}
    for file in sorted(tmp_path.glob("*.safetensors")):
        with safe_open(file, "numpy") as opened:
            names = list(opened.keys())
            assert opened.metadata() == {"format": "pt"}
            for name in names:
                if dtype != ml_dtypes.bfloat16:  # which the package's NumPy interface does not read everywhere
                    np.testing.assert_array_equal(opened.get_tensor(name), tensors[name])
                assert tuple(opened.get_slice(name).get_shape()) == tensors[name].shape
        content = sum(tensors[name].nbytes for name in names)
        assert content <= limit or sum(tensors[name].nbytes > 0 for name in names) == 1
        found |= dict.fromkeys(names, file.name)
    assert found.keys() == SIZES.keys()
    index = tmp_path / "model.safetensors.index.json"
    if len(set(found.values())) == 1:
        assert set(found.values()) == {"model.safetensors"} and not index.exists()
    else:
        written = json.loads(index.read_text())
        assert written["weight_map"] == found
        assert written["metadata"]["total_size"] == sum(value.nbytes for value in tensors.values())
        count = len(set(found.values()))
        assert set(found.values()) == {f"model-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)}


def test_the_data_begin_at_a_multiple_of_eight_bytes(tmp_path: Path) -> None:
    """So that a reader may map them as arrays."""
    write(tmp_path, values(np.float32), 2**30)
    start = int.from_bytes((tmp_path / "model.safetensors").read_bytes()[:8], "little")
    assert start % 8 == 0
