"""Loading streams: few bytes are read, little host memory is used, and a damaged file is named."""

import json
import math
import os
import subprocess
import sys
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath

from tests.gcs import Gcs
from tests.models import load
from zephyr_jax.checkpoint.hf import reader as safetensors_reader
from zephyr_jax.checkpoint.hf.reader import TensorFile, new_pool
from zephyr_jax.checkpoint.hf.weight_files import TensorFiles
from zephyr_jax.checkpoint.hf.writer import TensorSource, write_safetensors
from zephyr_jax.errors import InputError
from zephyr_jax.model.families.registry import config_from_hf, tensors_of
from zephyr_jax.storage.strict_json import read_json

MODEL = {
    "architectures": ["MistralForCausalLM"], "model_type": "mistral", "vocab_size": 32000, "hidden_size": 2048,
    "intermediate_size": 7168, "num_hidden_layers": 16, "num_attention_heads": 16, "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 2048, "tie_word_embeddings": False,
    "hidden_act": "silu", "sliding_window": None, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
"""1.04 billion parameters; the largest tensor is [32000, 2048]."""
LARGEST = 32000 * 2048 * 4  # bytes in float32
PROBE = """
import re, sys, threading, time
from pathlib import Path
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
from tests.models import load, load_adapted, make_rules
from zephyr_jax.config.adapter import AdapterOptions

def anonymous():
    text = Path("/proc/self/status").read_text()
    return sum(int(n) for n in re.findall(r"Rss(?:Anon|Shmem):\\s+(\\d+) kB", text)) * 1024

def load_in_format(folder, block_size):
    if sys.argv[3] == "all":
        return load(Path(folder), devices=8, data=1, fsdp=4, tensor=2)
    adapter = AdapterOptions(rank=8, base_format=sys.argv[3], block_size=block_size)
    return load_adapted(Path(folder), adapter, make_rules(8, data=1, fsdp=4, tensor=2))

load_in_format(sys.argv[1], 4)  # a small model first: imports and compilers are no part of it
before, peak, done = anonymous(), 0, threading.Event()

def watch():
    global peak
    while not done.wait(0.005):
        peak = max(peak, anonymous())

threading.Thread(target=watch).start()
try:
    loaded = load_in_format(sys.argv[2], 64)
finally:
    done.set()
shards = sum(s.data.nbytes for leaf in jax.tree.leaves(loaded.parameters) for s in leaf.addressable_shards)
print(peak - before, shards)
"""


def write_large(folder: Path) -> None:
    """A Hugging Face folder of MODEL in bfloat16, in files of 512 MiB; no more than one tensor is in memory."""
    folder.mkdir()
    shape = config_from_hf(MODEL)
    sizes = sizes_of(shape)
    noise = np.random.default_rng(0).standard_normal(2**20, np.float32).astype(jax.numpy.bfloat16)
    noise = np.tile(noise, -(-LARGEST // 4 // 2**20))
    sources: list[TensorSource] = [
        (name, one, lambda one=one: noise[: math.prod(one)].reshape(one))
        for tensor in tensors_of(shape)
        for name in tensor.names(shape.num_layers)
        for one in [sizes[tensor.path]]
    ]
    write_safetensors(epath.Path(folder), sources, noise.dtype, 2**29)
    (folder / "config.json").write_text(json.dumps(MODEL))


def sizes_of(shape: Any) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Hugging Face's sizes by path of the parameter."""
    from zephyr_jax.checkpoint.opened import abstract_of
    from zephyr_jax.config.sections import MeshOptions, ModelOptions
    from zephyr_jax.parallel.mesh import make_mesh
    from zephyr_jax.parallel.sharding import ShardingRules

    rules = ShardingRules(make_mesh(MeshOptions(), jax.devices()[:1]))
    parameters = abstract_of(shape, ModelOptions(), rules).parameters
    found = {}
    for tensor in tensors_of(shape):
        ours = reduce(getitem, tensor.path, parameters).shape
        found[tensor.path] = tensor.hf_sizes(ours[1:] if tensor.stacked else ours)
    return found


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.parametrize(("trained", "smallest", "largest"), [("all", 3.8, 4.0), ("nf4", 0.6, 1.3)])
def test_a_billion_parameters_load_in_little_memory(
    golden: Path, tmp_path: Path, trained: str, smallest: float, largest: float
) -> None:
    """Peak anonymous memory is below the shards held (GiB) and 1.5 times the largest tensor in float32."""
    write_large(tmp_path / "large")
    assert len(list((tmp_path / "large").glob("model-*.safetensors"))) > 3
    command = [sys.executable, "-c", PROBE, golden / "models" / "gqa", tmp_path / "large", trained]
    root = Path(__file__).parents[2]
    said = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=300, env=os.environ)
    assert said.returncode == 0, said.stderr
    used, shards = map(int, said.stdout.split())
    print(f"{(used - shards) / LARGEST:.2f} of the largest tensor beside {shards / 2**30:.2f} GiB of shards")
    assert smallest * 2**30 < shards < largest * 2**30
    assert used < shards + 1.5 * LARGEST


def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Bytes of tensors that are read, by file."""
    seen: dict[str, int] = {}
    complete = safetensors_reader._complete

    def count(path: Any, data: bytes, wanted: int) -> bytes:
        seen[path.name] = seen.get(path.name, 0) + len(data)
        return complete(path, data, wanted)

    monkeypatch.setattr(safetensors_reader, "_complete", count)
    return seen


def test_every_byte_is_read_once(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many devices share a tensor, by rows, by columns or as copies."""
    seen = counted(monkeypatch)
    folder = golden / "models" / "gqa"
    load(folder, devices=8, data=2, fsdp=2, tensor=2)
    assert sum(seen.values()) == sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def test_only_rows_that_are_wanted_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranges of rows, one of them by columns; the gap between them is not touched."""
    whole = np.arange(1000 * 64, dtype=np.float32).reshape(1000, 64)
    write_safetensors(epath.Path(tmp_path), [("x", whole.shape, lambda: whole)], whole.dtype, 2**30)
    monkeypatch.setattr(safetensors_reader, "_READ_BYTES", 10_000)
    file = TensorFile(epath.Path(tmp_path) / "model.safetensors")
    seen = counted(monkeypatch)
    wanted = [(slice(0, 100), slice(0, 64)), (slice(900, 1000), slice(16, 32)), (slice(50, 120), slice(0, 8))]
    out = [np.zeros((rows.stop - rows.start, columns.stop - columns.start), np.float32) for rows, columns in wanted]
    with new_pool() as pool:
        file.fill("x", list(zip(wanted, out, strict=True)), pool)
    for index, block in zip(wanted, out, strict=True):
        np.testing.assert_array_equal(block, whole[index])
    assert seen == {"model.safetensors": (120 + 100) * 64 * 4}


def test_ranges_are_read_from_the_cloud_too(bucket: Gcs, golden: Path) -> None:
    """A gs:// folder gives the very weights of the disk's, and no file comes whole."""
    folder = golden / "models" / "gqa"
    there = epath.Path("gs://bucket/gqa")
    for file in folder.iterdir():
        (there / file.name).write_bytes(file.read_bytes())
    bucket.state.requests.clear()
    loaded = load(there, devices=8, data=2, fsdp=2, tensor=2)
    jax.tree.map(np.testing.assert_array_equal, loaded.parameters, load(folder).parameters)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    sent = [each.sent for each in bucket.state.requests if ".safetensors?alt=media" in each.path]
    assert sum(sent) == size
    assert max(sent) < size / 2


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda raw: raw[:5], "8 bytes, got 5"),
        (lambda raw: b"\xff" * 8 + raw[8:], "header of"),
        (lambda raw: raw[:8] + b"\xfe" * (len(raw) - 8), "not JSON"),
        (lambda raw: remade(raw, lambda _: [1, 2]), "list"),
        (lambda raw: remade(raw, lambda head: head | {"x": 3}), "tensor x"),
        (lambda raw: remade(raw, lambda head: head | {"x": {**head["x"], "dtype": 7}}), "of tensor x"),
        (lambda raw: remade(raw, lambda head: head | {"x": {**head["x"], "shape": [-1, 4]}}), "of tensor x"),
        (lambda raw: remade(raw, lambda head: head | {"x": {**head["x"], "data_offsets": [64, 0]}}), "bytes 64 to 0"),
        (lambda raw: remade(raw, lambda head: head | {"x": {**head["x"], "data_offsets": [0, 60]}}), "bytes 0 to 60"),
        (lambda raw: remade(raw, lambda head: head | {"x": {**head["x"], "data_offsets": [64, 128]}}), "ends at byte"),
        (lambda raw: raw[:-1], "byte 176 of a file of 175"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_named(tmp_path: Path, damage: Any, words: str) -> None:
    path = epath.Path(tmp_path) / "model.safetensors"
    write_safetensors(epath.Path(tmp_path), [("x", (4, 4), lambda: np.ones((4, 4), np.float32))], np.dtype("f4"), 2**30)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=f"model.safetensors.*{words}.*copy it again"):
        TensorFile(path)


def test_a_quantised_tensor_is_refused(tmp_path: Path) -> None:
    """By its dtype, when it is read."""
    path = epath.Path(tmp_path) / "model.safetensors"
    write_safetensors(epath.Path(tmp_path), [("x", (4, 4), lambda: np.ones((4, 4), np.float32))], np.dtype("f4"), 2**30)
    path.write_bytes(remade(path.read_bytes(), lambda head: head | {"x": {**head["x"], "dtype": "F8_E4M3"}}))
    with pytest.raises(InputError, match="tensor x .*got F8_E4M3"), new_pool() as pool:
        TensorFile(path).fill("x", [((slice(0, 4), slice(0, 4)), np.zeros((4, 4), np.float32))], pool)


def remade(raw: bytes, change: Any) -> bytes:
    """The file with another header."""
    size = int.from_bytes(raw[:8], "little")
    text = json.dumps(change(json.loads(raw[8 : 8 + size]))).encode()
    return len(text).to_bytes(8, "little") + text + raw[8 + size :]


def test_names_and_sizes_come_from_headers(golden: Path) -> None:
    folder = golden / "models" / "gqa"
    files = TensorFiles(epath.Path(folder))
    hidden = read_json(folder / "config.json")["hidden_size"]
    assert files.sizes("model.norm.weight") == (hidden,)
    files.close()
