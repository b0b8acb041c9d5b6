"""The model card of an export (README.md as on the Hugging Face hub): base, data, settings and evaluation."""

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


def model_card(name: str, record: Record, evaluation: dict[str, float], has_template: bool = True) -> str:
    """Markdown with YAML front matter.

    Args:
        name: Folder of the export.
        record: Its provenance record.
        evaluation: Metrics of the run's last evaluation.
        has_template: Whether the tokenizer has a chat template.
    """
    links = chain(record)
    stages = [stage for stage in links if stage.get("made_by") in METHODS]
    parts = [
        f"---\n{yaml.safe_dump(_front_matter(links, stages), sort_keys=False)}---",
        f"# {name}",
        _about(links[0], stages),
        *[_stage_section(stage) for stage in stages],
        *([_evaluation_section(evaluation)] if evaluation else []),
        f"## Use\n\n```python\n{_LOAD.format(name=name)}{_CHAT if has_template else _PLAIN}{_ANSWER}```",
        f"## Made with\n\n{_made_with(record)}",
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(links: list[Record], stages: list[Record]) -> dict[str, Any]:
    base, data = links[0].get("path"), [_config(stage, "data").get("path") for stage in stages]
    front: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if _on_hub(base):
        front["base_model"] = base
    datasets = sorted({str(path) for path in data if _on_hub(path)})
    if datasets:
        front["datasets"] = datasets
    return front | {"tags": ["zephyr-jax", "alignment", *(stage["made_by"] for stage in stages)]}


def _on_hub(path: Any) -> bool:
    """Whether a path looks like a hub id: owner/name, and not an existing local path."""
    return (
        isinstance(path, str)
        and path.count("/") == 1
        and not path.startswith((".", "/"))
        and not LocalPath(path).exists()
    )


def _about(base: Record, stages: list[Record]) -> str:
    path = base.get("path") or "unknown weights"
    revision = f" (revision {base['revision']})" if base.get("revision") else ""
    training = ", then ".join(METHODS[stage["made_by"]].description for stage in stages) or "none"
    return f"Base model: `{path}`{revision}. Training: {training}. License: see those of the base model and the data."


def _stage_section(record: Record) -> str:
    optimizer, batch, schedule = (_config(record, section) for section in ("optimizer", "batch", "schedule"))
    size = f"{batch.get('examples')} examples" if batch.get("examples") else f"{batch.get('rows')} rows"
    data = _config(record, "data")
    rows = {
        "data": f"`{data.get('path')}`, split `{data.get('split')}`",
        "steps": record.get("steps"),
        "batch size": size,
        "epochs": schedule.get("epochs"),
        "learning rate": f"{optimizer.get('learning_rate'):g}, {optimizer.get('lr_schedule')}, {optimizer.get('name')}",
        "max length": data.get("max_length"),
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
    """A table of skipped and truncated rows, if any."""
    lines = [
        f"| {loss.reason} | {loss.data} | {loss.outcome} | {loss.rows:,} ({loss.row_share:.1%}) | {loss.token_share:.1%} |"
        for loss in row_losses(record)
    ]
    header = ["", "| skipped or truncated | source | effect | rows | tokens |", "|---|---|---|---|---|"]
    return [*header, *lines] if lines else []


def _config(record: Record, section: str) -> dict[str, Any]:
    return record.get("config", {}).get(section) or {}


def _evaluation_section(evaluation: dict[str, float]) -> str:
    lines = [f"| {name} | {value:.4g} |" for name, value in evaluation.items()]
    return "\n".join(["## Held-out metrics of the last evaluation", "", "| metric | value |", "|---|---|", *lines])


def _made_with(record: Record) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    commit = f", commit {record['commit']}" if record.get("commit") else ""
    return f"zephyr-jax{commit}; {versions}. `provenance.json` records every setting of every stage."
