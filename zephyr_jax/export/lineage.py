"""`zephyr-jax lineage`: the stages from the base model to a run or an export, from their provenance records."""

from typing import Any

from zephyr_jax.checkpoint.inheritance import properties
from zephyr_jax.checkpoint.provenance import Record, chain, read_record, stage_kind
from zephyr_jax.config.models import LineageConfig
from zephyr_jax.errors import InputError
from zephyr_jax.export.names import describe_adapter
from zephyr_jax.storage.files import open_path


def lineage(config: LineageConfig) -> str:
    """Format the stages as a tree, oldest first. Raises InputError for a folder without a provenance record."""
    folder = open_path(config.path)
    record = read_record(folder)
    if record is None:
        raise InputError(
            f"Expected a folder that `sft`, `dpo` or `export` wrote, got {config.path}: it has no provenance.json."
        )
    return "\n".join(line for depth, stage in enumerate(chain(record)) for line in _format_stage(stage, depth))


def _format_stage(record: Record, depth: int) -> list[str]:
    """A title line and one line per fact, indented by `depth`."""
    title = f"{stage_kind(record)}: {record.get('output' if record.get('made_by') else 'path')}"
    facts = [(name, value) for name, value in _facts(record).items() if value not in (None, "", {})]
    indent = "   "
    return [
        f"{indent * depth}{'└─ ' * (depth > 0)}{title}",
        *(f"{indent * (depth + 1)}{name}: {_format_value(value)}" for name, value in facts),
    ]


def _facts(record: Record) -> dict[str, Any]:
    config = record.get("config", {})
    if not record.get("made_by"):
        return {
            "revision": record.get("revision"),
            "architecture": record.get("architecture"),
            "license": record.get("license"),
        }
    data = config.get("data", {})
    return {
        "step": record.get("step"),
        "at": record.get("at"),
        "data": f"{data.get('path')} ({data.get('split')})" if data else None,
        "rows": record.get("data"),
        "template": record.get("template") or data.get("chat_template"),
        "template arguments": data.get("template_args"),
        **{f"{item.section}.{item.name}": (config.get(item.section) or {}).get(item.name) for item in properties()},
        "adapter": describe_adapter(record),
        "weights": record.get("weights"),
        "dtype": record.get("dtype"),
        "format": record.get("format"),
        "merged into": record.get("merge_into") and f"{record['merge_into']} weights",
        "base model": record.get("base_model"),
        "seed": config.get("seed"),
        "devices": record.get("devices"),
        "commit": record.get("commit"),
        "versions": record.get("versions"),
    }


def _format_value(value: Any) -> str:
    return ", ".join(f"{name} {item}" for name, item in value.items()) if isinstance(value, dict) else str(value)


def main(config: LineageConfig, command: str) -> str:
    """`zephyr-jax lineage`."""
    return lineage(config)
