"""The README.md of an export, in the form that the hub shows: what it is, made from what, how, and how good."""

from pathlib import Path as LocalPath
from typing import Any

import yaml

from zephyr_jax.checkpoint.provenance import Record, chain
from zephyr_jax.methods.registry import METHODS
from zephyr_jax.report.run_record import row_losses

_LOAD = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained("{name}")
"""
_CHAT = """\
chat = [{"role": "user", "content": "Hello!"}]
inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
"""
_PLAIN = """\
inputs = tokenizer("Hello!", return_tensors="pt")
"""
_ANSWER = """\
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=256)[0]))
"""


def model_card(name: str, record: Record, evaluation: dict[str, float], chats: bool = True) -> str:
    """Markdown with YAML on top.

    Args:
        name: Folder of the export.
        record: Its provenance.
        evaluation: Numbers of the run's last evaluation.
        chats: Whether the tokenizer has a chat template.
    """
    links = chain(record)
    stages = [each for each in links if each.get("made_by") in METHODS]
    parts = [
        f"---\n{yaml.safe_dump(_front(links, stages), sort_keys=False)}---",
        f"# {name}",
        _about(links[0], stages),
        *[_stage(each) for each in stages],
        *([_numbers(evaluation)] if evaluation else []),
        f"## Use\n\n```python\n{_LOAD.format(name=name)}{_CHAT if chats else _PLAIN}{_ANSWER}```",
        f"## Made with\n\n{_made_with(record)}",
    ]
    return "\n\n".join(parts) + "\n"


def _front(links: list[Record], stages: list[Record]) -> dict[str, Any]:
    base, data = links[0].get("path"), [_config(each, "data").get("path") for each in stages]
    front: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if _on_hub(base):
        front["base_model"] = base
    named = sorted({str(each) for each in data if _on_hub(each)})
    if named:
        front["datasets"] = named
    return front | {"tags": ["zephyr-jax", "alignment", *(each["made_by"] for each in stages)]}


def _on_hub(path: Any) -> bool:
    """Whether a path looks like a hub id: owner/name, and nothing of that name here."""
    return (
        isinstance(path, str)
        and path.count("/") == 1
        and not path.startswith((".", "/"))
        and not LocalPath(path).exists()
    )


def _about(base: Record, stages: list[Record]) -> str:
    path = base.get("path") or "unknown weights"
    revision = f" (revision {base['revision']})" if base.get("revision") else ""
    made = ", then ".join(METHODS[each["made_by"]].description for each in stages) or "no training"
    return f"Base: `{path}`{revision}. Made by {made}. No licence is stated here: those of base and data hold."


def _stage(record: Record) -> str:
    optimizer, batch, schedule = (_config(record, section) for section in ("optimizer", "batch", "schedule"))
    size = f"{batch.get('examples')} examples" if batch.get("examples") else f"{batch.get('rows')} rows"
    data = _config(record, "data")
    rows = {
        "data": f"`{data.get('path')}`, split `{data.get('split')}`",
        "steps": record.get("steps"),
        "a step": size,
        "epochs": schedule.get("epochs"),
        "learning rate": f"{optimizer.get('learning_rate'):g}, {optimizer.get('lr_schedule')}, {optimizer.get('name')}",
        "longest sequence": data.get("max_length"),
        "chat template": data.get("chat_template"),
        "seed": record.get("config", {}).get("seed"),
        "devices": record.get("devices"),
    }
    method = METHODS[record["made_by"]]
    options = _config(record, method.options or "")
    rows |= {name: options.get(name) for name in method.card_settings} | {"reference": record.get("reference")}
    lines = [f"| {name} | {value} |" for name, value in rows.items() if value is not None]
    return "\n".join([f"## {record['made_by']}", "", "| setting | value |", "|---|---|", *lines, *_row_losses(record)])


def _row_losses(record: Record) -> list[str]:
    """A table of skipped and truncated rows; nothing where there are none."""
    lines = [
        f"| {each.reason} | {each.data} | {each.outcome} | {each.rows:,} ({each.row_share:.1%}) | {each.token_share:.1%} |"
        for each in row_losses(record)
    ]
    return (
        ["", "| skipped or truncated | rows of | what happened | rows | tokens |", "|---|---|---|---|---|", *lines]
        if lines
        else []
    )


def _config(record: Record, section: str) -> dict[str, Any]:
    return record.get("config", {}).get(section) or {}


def _numbers(evaluation: dict[str, float]) -> str:
    lines = [f"| {name} | {value:.4g} |" for name, value in evaluation.items()]
    return "\n".join(["## Held-out numbers of the last evaluation", "", "| what | value |", "|---|---|", *lines])


def _made_with(record: Record) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    commit = f", commit {record['commit']}" if record.get("commit") else ""
    return f"zephyr-jax{commit}; {versions}. `provenance.json` beside this file has every setting of every stage."
