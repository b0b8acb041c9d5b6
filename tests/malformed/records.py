"""Provenance records: sound ones of every kind, and each of their fields with values of other types."""

import json
from collections.abc import Iterator
from typing import Any

from zephyr_jax.config.sections import ModelOptions
from zephyr_jax.config.training import DpoConfig
from zephyr_jax.config.yaml_file import to_dict

type Record = dict[str, Any]

VALUES: tuple[Any, ...] = (None, 3, "x", [], {})
_MADE = {
    "at": "2026-11-30T21:13:35+00:00", "output": "runs/x", "devices": "8 x cpu in 1 process", "processes": 1,
    "versions": {"python": "3.12.1", "jax": "0.12.0"}, "commit": None,
}  # fmt: skip
ADAPTER: Record = {
    "rank": 4, "alpha": 8.0, "use_rslora": False, "targets": ["attention.query"], "base_format": "float32",
    "block_size": 64, "start": "new",
}  # fmt: skip


def run(base: str, adapter: bool) -> Record:
    """The record of a run of `dpo` that was resumed, with all settings; `adapter`: with an adapter."""
    loss = {"rows": 12, "row_share": 1.0, "token_share": 0.3}
    return {
        "made_by": "dpo", **_MADE, "config": to_dict(DpoConfig(model=ModelOptions(path=base))), "steps": 2,
        "data": "12 examples, content 5e68", "template": {"name": "zephyr", "source": "1092", "date": "2026-11-30"},
        "data_skipped": {}, "data_truncated": {"over-length": loss}, "reference": "weights 6051",
        "resumed": [{"step": 1, "at": "later"}], **({"adapter": ADAPTER} if adapter else {}),
        "parent": {"path": base, "revision": None, "architecture": "mistral", "license": "mit", "language": ["en"]},
    }  # fmt: skip


def export(base: str, adapter: bool) -> Record:
    """The record of an export of such a run at step 2; `adapter`: of the adapter alone."""
    parent = run(base, adapter) | {"config": {"model": {"path": base}}, "step": 2}
    facts = {"dtype": "float32", "license": None, "weights": "5885", "files": "6877"}
    alone = {"format": "adapter", "base_model": base, "base_revision": None} if adapter else {}
    return {"made_by": "export", **_MADE, **facts, **alone, "parent": parent}


def spoilt(record: Record) -> Iterator[tuple[str, Record]]:
    """Every field, also of sections and parents, with every one of VALUES; the full name of the field, and the record."""
    for path in _paths(record):
        for value in VALUES:
            copy = json.loads(json.dumps(record))
            node = copy
            for name in path[:-1]:
                node = node[name]
            node[path[-1]] = value
            yield ".".join(path), copy


def _paths(node: Record, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, value in node.items():
        yield (*prefix, name)
        if isinstance(value, dict):
            yield from _paths(value, (*prefix, name))
