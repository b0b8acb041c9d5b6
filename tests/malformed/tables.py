"""Reference tables that must be refused, by name: their manifests and their shards."""

import io
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from tests.malformed.mutations import broken_json
from zephyr_jax.reference.table import Identity, ReferenceTable

IDENTITY = Identity("a" * 32, "b" * 32, "max_length 64, max_prompt_length 32, truncate", "float32", 1)
OTHER = replace(IDENTITY, weights="c" * 32)
KEYS = np.array([[f"{2 * index + side:032x}" for side in (0, 1)] for index in range(40)])


def sound(root: Path, identity: Identity = IDENTITY) -> ReferenceTable:
    """A table of 80 entries in one shard."""
    table = ReferenceTable(root, identity)
    table.add("0", KEYS.reshape(-1).tolist(), -np.arange(80.0) - 1, np.full(80, 3))
    return table


def parquet(**columns: Any) -> bytes:
    """A shard with other columns."""
    found = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), found)
    return found.getvalue()


def columns(**changes: Any) -> dict[str, Any]:
    """The columns of a shard, changed."""
    flat = [bytes.fromhex(key) for key in KEYS.reshape(-1).tolist()]
    kinds = {"key": pyarrow.binary(16), "sum": pyarrow.float32(), "count": pyarrow.int32()}
    given = {"key": flat, "sum": [-1.0] * 80, "count": [3] * 80} | changes
    return {
        name: pyarrow.array(value, kinds[name]) if isinstance(value, list) and name in kinds else value
        for name, value in given.items()
        if value is not None
    }


def _shards() -> dict[str, bytes | Callable[[bytes], bytes]]:
    lengths = (0, 1, 3, 4, 5, 8, 12, 40, 100, 500)
    return {
        **{f"cut to {size} bytes": lambda raw, size=size: raw[:size] for size in lengths},
        **{f"{size} bytes cut off": lambda raw, size=size: raw[:-size] for size in (1, 4, 5, 8, 9, 50, 200)},
        "its end cut out": lambda raw: raw[: len(raw) // 2] + raw[-8:],
        "its start cut off": lambda raw: raw[100:],
        "twice": lambda raw: raw[: len(raw) // 2] + raw,
        "another magic": lambda raw: raw[:-4] + b"PAR2",
        "an encrypted one's magic": lambda raw: raw[:-4] + b"PARE",
        "a footer longer than the file": lambda raw: raw[:-8] + b"\xff\xff\xff\x7f" + raw[-4:],
        "a footer of a negative length": lambda raw: raw[:-8] + b"\xff\xff\xff\xff" + raw[-4:],
        "a footer of no length": lambda raw: raw[:-8] + bytes(4) + raw[-4:],
        "a footer of ones": lambda raw: raw[: -8 - 300] + b"\xff" * 300 + raw[-8:],
        "a footer of zeros": lambda raw: raw[: -8 - 300] + bytes(300) + raw[-8:],
        "JSON": json.dumps(columns(key=None), default=str).encode(),
        "zeros": bytes(2000),
        "no column key": parquet(**columns(key=None)),
        "no column sum": parquet(**columns(sum=None)),
        "no column count": parquet(**columns(count=None)),
        "no columns": parquet(),
        "a column named alike": parquet(**columns(sum=None, Sum=[1.0] * 80)),
        "keys that are numbers": parquet(**columns(key=pyarrow.array(range(80)))),
        "keys that are text": parquet(**columns(key=pyarrow.array(["k"] * 80))),
        "a key that is null": parquet(**columns(key=[None] + [b"k" * 16] * 79)),
        "sums that are text": parquet(**columns(sum=pyarrow.array(["-1.0"] * 80))),
        "sums that are lists": parquet(**columns(sum=pyarrow.array([[1.0]] * 80))),
        "a sum that is null": parquet(**columns(sum=[None] + [-1.0] * 79)),
        "sums that are truth values": parquet(**columns(sum=pyarrow.array([True] * 80))),
        "counts that are text": parquet(**columns(count=pyarrow.array(["3"] * 80))),
        "sums that are not numbers": parquet(**columns(sum=[float("nan")] * 80)),
        "an infinite sum": parquet(**columns(sum=[float("-inf")] + [-1.0] * 79)),
        "an entry missing": parquet(**{name: value[:79] for name, value in columns().items()}),
    }


SHARDS = _shards()
"""What is wrong -> the content of a shard with a valid digest, or how it is made from a sound one."""
MANIFESTS: dict[str, bytes] = broken_json(asdict(IDENTITY)) | {
    **{
        f"another {name}": json.dumps(asdict(IDENTITY) | {name: "other"}).encode() for name in asdict(IDENTITY)
    },
    "a version that is text": json.dumps(asdict(IDENTITY) | {"logprob_version": "1"}).encode(),
    "a version that is NaN": json.dumps(asdict(IDENTITY) | {"logprob_version": float("nan")}).encode(),
    "an empty object": b"{}",
    "weights that are an object": json.dumps(asdict(IDENTITY) | {"weights": {"a": 1}}).encode(),
}  # fmt: skip
"""What is wrong -> the manifest."""
