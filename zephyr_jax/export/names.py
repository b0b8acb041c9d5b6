"""Names of models in model cards and commit messages."""

import json
import re
import shlex
from pathlib import PurePosixPath

from zephyr_jax.checkpoint.provenance import Record
from zephyr_jax.model.quantize import CODE_DTYPES
from zephyr_jax.storage.suggest import is_hub_id

_LOADED = re.compile(r'AutoTokenizer\.from_pretrained\(("(?:[^"\\\n]|\\.)*")\)')


def loading_code(name: str) -> tuple[str, str]:
    """The Python expression and the line end of a shell command that name the model in a model card."""
    return f"from_pretrained({json.dumps(name, ensure_ascii=False)})", f"--model.path {shlex.quote(name)}\n"


def rename_model(card: str, name: str) -> str:
    """A model card whose code loads the model `name`. A card without that code is returned as it is."""
    loaded = _LOADED.search(card)
    if loaded is None:
        return card
    for old, new in zip(loading_code(json.loads(loaded[1])), loading_code(name), strict=True):
        card = card.replace(old, new)
    return card


def describe_adapter(record: Record) -> str | None:
    """Size, base format and start of the adapter that a run trained; None for other records."""
    facts = record.get("adapter")
    if facts is None:
        return None
    scaling = ", rank-stabilized" if facts["use_rslora"] else ""
    block = f" (block size {facts['block_size']})" if facts["base_format"] in CODE_DTYPES else ""
    start = f", start {facts['start']}" if "start" in facts else ""
    return f"LoRA rank {facts['rank']}, alpha {facts['alpha']:g}{scaling} on a base in {facts['base_format']}{block}{start}"


def stage_name(record: Record) -> str:
    """Name of a run, an export or a base model: a hub id, or the last part of a path (the folders of a machine stay private)."""
    path = str(record.get("output") or record.get("path") or "unknown weights")
    return path if is_hub_id(path) and not record.get("output") else PurePosixPath(path).name
