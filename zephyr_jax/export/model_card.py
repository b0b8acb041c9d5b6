"""The model card of an export: README.md with metadata of the Hugging Face hub, training, metrics, use and limits."""

from collections.abc import Iterator
from pathlib import Path as LocalPath
from pathlib import PurePosixPath
from typing import Any

from huggingface_hub import ModelCardData

from zephyr_jax.checkpoint.provenance import Record, chain, stage_kind
from zephyr_jax.export.names import describe_adapter, loading_code, stage_name
from zephyr_jax.methods.registry import METHODS
from zephyr_jax.report.check import differing_settings
from zephyr_jax.report.run_record import row_losses
from zephyr_jax.storage.suggest import is_hub_id

_LICENSE = ("license", "license_name", "license_link")
_LOAD = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.{0}
model = AutoModelForCausalLM.{0}
"""
_LOAD_ADAPTER = """\
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.{0}
model = AutoPeftModelForCausalLM.{0}
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
_LIMITS = """\
## Limits

Training optimizes the log-probs of the answers in the data above and nothing else: it adds no safety training, and no filter
checks the output. The model can state falsehoods and can write harmful text. Held-out metrics compare log-probs of answers in
the data; they do not measure the quality of generated text. Evaluate the model for your use before you deploy it."""


def model_card(
    name: str,
    record: Record,
    evaluation: dict[str, float],
    has_template: bool = True,
    rights: dict[str, Any] | None = None,
) -> str:
    """Markdown with YAML front matter.

    Args:
        name: Folder of the export, or its hub repository.
        record: Its provenance record.
        evaluation: Metrics of the run's last evaluation.
        has_template: Whether the tokenizer has a chat template.
        rights: The license fields of the hub's metadata (`license`, `license_name`, `license_link`); default: those of the base
            model, and no license if it has none.
    """
    links = chain(record)
    stages = [stage for stage in links if stage.get("made_by") in METHODS]
    is_adapter = record.get("format") == "adapter"
    rights = _license_fields(rights or {}) or _license_fields(links[0])
    parts = [
        f"---\n{_front_matter(links, stages, rights, is_adapter)}\n---",
        f"# {PurePosixPath(name).name}",
        _about(links, stages, rights, is_adapter),
        *([_lineage(links)] if stages else []),
        *[_stage_section(stage) for stage in stages],
        *([_evaluation_section(evaluation, stages)] if evaluation else []),
        _use_section(name, has_template, is_adapter),
        *([_LIMITS] if stages else []),
        f"## Made with\n\n{_made_with(record)}",
    ]
    return "\n\n".join(parts) + "\n"


def _license_fields(metadata: dict[str, Any]) -> dict[str, str]:
    return {name: text for name in _LICENSE if isinstance(text := metadata.get(name), str)}


def _front_matter(links: list[Record], stages: list[Record], rights: dict[str, str], is_adapter: bool) -> str:
    """Metadata of the hub as YAML: only what is known."""
    datasets = {str(data) for stage in stages if _is_hub_data(data := _config(stage, "data").get("path"))}
    base = links[0].get("path") if links[0].get("revision") else None
    if is_adapter:
        base = links[-1].get("base_model")
    lora = ["lora"] if is_adapter else []
    return ModelCardData(
        base_model=base if isinstance(base, str) and is_hub_id(base) else None,
        datasets=sorted(datasets) or None,
        language=links[0].get("language"),
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["zephyr-jax", "alignment", *lora, *(stage["made_by"] for stage in stages)],
        license=rights.get("license"),
        license_name=rights.get("license_name"),
        license_link=rights.get("license_link"),
    ).to_yaml()


def _is_hub_data(path: Any) -> bool:
    """Whether a data path is a hub id: it has the form of owner/name, and is not an existing local path."""
    return isinstance(path, str) and "/" in path and is_hub_id(path) and not LocalPath(path).exists()


def _about(links: list[Record], stages: list[Record], rights: dict[str, str], is_adapter: bool) -> str:
    base, kind = links[0], "A causal language model in the format of transformers"
    if is_adapter:
        kind = f"A LoRA adapter in the format of peft, of the model `{links[-1].get('base_model')}`"
    path = base.get("path") or "unknown weights"
    adapters = [
        f"- Adapter: `{stage_name(link)}`{_revision(link)}\n" for link in links if stage_kind(link) == "adapter"
    ]
    training = ", then ".join(METHODS[stage["made_by"]].description for stage in stages) or "none"
    terms = rights.get("license_name") or rights.get("license") or "not set, see that of the base model"
    return (
        f"{kind}, written by zephyr-jax.\n\n"
        f"- Base model: `{path}`{_revision(base)}\n{''.join(adapters)}- Training: {training}\n"
        f"- License: {terms}; check those of the data sets, too"
    )


def _revision(record: Record) -> str:
    return f" (revision {record['revision']})" if record.get("revision") else ""


def _lineage(links: list[Record]) -> str:
    """The stages in order, as one line."""
    names = [f"`{stage_kind(link)}` ({stage_name(link)})" for link in links]
    return f"Lineage: {' -> '.join(names)}."


def _stage_section(record: Record) -> str:
    optimizer, batch, schedule = (_config(record, section) for section in ("optimizer", "batch", "schedule"))
    sizes = [f"{batch[name]} {name}" for name in ("examples", "rows") if batch.get(name)]
    rate = optimizer.get("learning_rate")
    data = _config(record, "data")
    rows = {
        "data": f"`{data['path']}`, split `{data.get('split')}`" if data.get("path") else None,
        "steps": record.get("steps"),
        "checkpoint": f"step {record['step']}" if record.get("step") is not None else None,
        "batch size": sizes[0] if sizes else None,
        "epochs": schedule.get("epochs"),
        "learning rate": rate and f"{rate:g}, {optimizer.get('lr_schedule')}, {optimizer.get('name')}",
        "max length": data.get("max_length"),
        "chat template": data.get("chat_template"),
        "chat template arguments": ", ".join(f"{k} {v!r}" for k, v in (data.get("template_args") or {}).items())
        or None,
        "seed": record.get("config", {}).get("seed"),
        "devices": record.get("devices"),
        "adapter": describe_adapter(record),
        "adapted weights": ", ".join((record.get("adapter") or {}).get("targets", ())) or None,
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


def _evaluation_section(evaluation: dict[str, float], stages: list[Record]) -> str:
    """Measured metrics, with the ranges that the card of the last stage expects of a finished run."""
    config = stages[-1].get("config", {}) if stages else {}
    expected = {} if any(differing_settings(config.get("expected_settings") or {}, config)) else config.get("expected")
    return "\n".join(["## Held-out metrics of the last evaluation", "", *_metric_rows(evaluation, expected or {})])


def _metric_rows(evaluation: dict[str, float], expected: dict[str, Any]) -> Iterator[str]:
    if not expected:
        yield from ("| metric | value |", "|---|---|")
        yield from (f"| {name} | {value:.4g} |" for name, value in evaluation.items())
        return
    yield from ("| metric | value | expected at the end of the run |", "|---|---|---|")
    for name, value in evaluation.items():
        low, high = expected.get(name, (None, None))
        yield f"| {name} | {value:.4g} | {'' if low is None else f'{low:g} to {high:g}'} |"


def _use_section(name: str, has_template: bool, is_adapter: bool) -> str:
    load, path = loading_code(name)
    python = f"```python\n{(_LOAD_ADAPTER if is_adapter else _LOAD).format(load)}{_CHAT if has_template else _PLAIN}{_ANSWER}```"
    shell = "".join(f"zephyr-jax {command} {path}" for command in ("chat ", "serve"))
    libraries = "transformers and peft" if is_adapter else "transformers"
    return f"## Use\n\nWith {libraries}:\n\n{python}\n\nWith zephyr-jax:\n\n```bash\n{shell}```"


def _made_with(record: Record) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    commit = f", commit {record['commit']}" if record.get("commit") else ""
    return f"zephyr-jax{commit}; {versions}. `provenance.json` records every setting of every stage."
