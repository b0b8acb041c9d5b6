"""`zephyr-jax lineage`: the chain from the base to a run or an export, from the records that they carry."""

from typing import Any

from zephyr_jax.checkpoint.inheritance import PROPERTIES
from zephyr_jax.checkpoint.provenance import Record, chain, read_record
from zephyr_jax.config.models import LineageConfig
from zephyr_jax.errors import InputError
from zephyr_jax.storage.files import open_path

_HANDED_ON = {f"{each.section}.{each.name}": (each.section, each.name) for each in PROPERTIES}
"""What later stages take over from a run."""


def lineage(config: LineageConfig) -> str:
    """The chain in words, oldest first. Raises InputError when the folder carries no record."""
    folder = open_path(config.path)
    record = read_record(folder)
    if record is None:
        raise InputError(
            f"{config.path} has no provenance.json, so its history is unknown: it is no run or export of ours, or older than "
            "these records. Name the folder that `sft`, `dpo` or `export` wrote."
        )
    return "\n".join(line for number, each in enumerate(chain(record)) for line in _told(each, number))


def _told(record: Record, number: int) -> list[str]:
    """A line for what it is, then one for each fact."""
    verb = record.get("made_by")
    title = f"{verb}: {record['output']}" if verb else f"base: {record.get('path')}"
    facts = {name: _spelt(value) for name, value in _facts(record).items() if value not in (None, "", {})}
    return [
        f"{'   ' * number}{'└─ ' * (number > 0)}{title}",
        *(f"{'   ' * (number + 1)}{k}: {v}" for k, v in facts.items()),
    ]


def _facts(record: Record) -> dict[str, Any]:
    config = record.get("config", {})
    if not record.get("made_by"):
        return {"revision": record.get("revision"), "architecture": record.get("architecture")}
    data = config.get("data", {})
    return {
        "step": record.get("step"),
        "at": record.get("at"),
        "data": f"{data.get('path')} ({data.get('split')})" if data else None,
        "rows": record.get("data"),
        "template": record.get("template") or data.get("chat_template"),
        **{label: (config.get(section) or {}).get(name) for label, (section, name) in _HANDED_ON.items()},
        "weights": record.get("weights"),
        "dtype": record.get("dtype"),
        "seed": config.get("seed"),
        "devices": record.get("devices"),
        "commit": record.get("commit"),
        "versions": record.get("versions"),
    }


def _spelt(value: Any) -> str:
    return ", ".join(f"{name} {each}" for name, each in value.items()) if isinstance(value, dict) else str(value)


def main(config: LineageConfig, command: str) -> str:
    """`zephyr-jax lineage`."""
    return lineage(config)
