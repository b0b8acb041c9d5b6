"""`zephyr-jax export`: a run's weights as a Hugging Face folder that transformers and vLLM load, or its adapter for peft."""

import json
import logging
from dataclasses import replace
from hashlib import blake2b
from typing import Any

import jax

from zephyr_jax.chat.exported_template import exported_template
from zephyr_jax.chat.saved_tokenizer import save_tokenizer
from zephyr_jax.chat.template_loader import load_template
from zephyr_jax.chat.template_source import own_template, without_markers
from zephyr_jax.chat.tokenizer import ChatTokenizer
from zephyr_jax.chat.tokenizer_files import load_tokenizer
from zephyr_jax.checkpoint.fingerprint import weights_fingerprint
from zephyr_jax.checkpoint.hf.card import card_metadata
from zephyr_jax.checkpoint.hf.export import check_new_folder
from zephyr_jax.checkpoint.hf.model_files import model_files
from zephyr_jax.checkpoint.model_source import ModelSource
from zephyr_jax.checkpoint.opened import open_model
from zephyr_jax.checkpoint.provenance import FILE, Record, make_record, read_record
from zephyr_jax.checkpoint.resolve import check_vocabulary
from zephyr_jax.checkpoint.steps import check_step
from zephyr_jax.config.models import ExportConfig
from zephyr_jax.config.sections import ForwardOptions
from zephyr_jax.errors import InputError
from zephyr_jax.export.contents import load_contents
from zephyr_jax.export.model_card import model_card
from zephyr_jax.export.push import check_push, push
from zephyr_jax.parallel.gather import write_barrier
from zephyr_jax.parallel.hosts import broadcast_from_host0
from zephyr_jax.parallel.sharding import init_devices
from zephyr_jax.storage.cloud import is_remote
from zephyr_jax.storage.files import Path, check_folder_creatable, open_path
from zephyr_jax.train.metric_writers import last_evaluation

_logger = logging.getLogger(__name__)


def export(config: ExportConfig) -> Path:
    """Write a Hugging Face folder, and upload it where the settings ask for that; returns the folder.

    All hosts gather the weights, the first one writes and uploads. Repeating an export has no effect on the folder. Without
    `model.path` the folder must be a complete export, which is uploaded.

    Raises:
        InputError: The output folder has other content, the model cannot be read, or the hub refuses the upload.
    """
    if not config.model.path:
        push(config.output, str(config.push_to), public=config.public)
        return open_path(config.output)
    out = _export(config)
    if config.push_to:
        if jax.process_index() == 0:
            push(config.output, config.push_to, public=config.public)
        write_barrier()
    return out


def _export(config: ExportConfig) -> Path:
    """Write the folder, unless it is there already; returns it."""
    rules = init_devices(config.mesh)
    if config.push_to and jax.process_index() == 0:
        check_push()  # fail before the weights are read
    out = open_path(config.output)
    check_folder_creatable(out if is_remote(out) else out.parent)
    check_new_folder(out, FILE)  # fail before the weights are read
    model = config.model
    opened = open_model(ForwardOptions(model.path, model.revision, model.adapter, model.adapter_revision), rules)
    source = opened.source
    files = _files(source)  # these checks, too, come before the weights are read
    contents = load_contents(opened, config)
    step = check_step(source.run, source.step) if source.run else None
    record = make_record(
        "export",
        source.record if step is None else {**source.record, "step": step},
        output=config.output,
        dtype=contents.dtype,
        license=config.license,
        weights=weights_fingerprint(contents.parameters),
        files=_files_digest(files),
        **contents.facts,
    )
    if broadcast_from_host0(_is_exported(out, record)):
        return out
    card = model_card(
        config.push_to or out.name,
        record,
        last_evaluation(source.run, step),
        has_template="chat_template.jinja" in files,
        rights={"license": config.license} if config.license else _rights(source, config),
    )
    contents.write(out, {**files, "README.md": card, FILE: record})
    return out


def _rights(source: ModelSource, config: ExportConfig) -> dict[str, Any]:
    """License fields: merged weights have those of the lowest base's card, since an adapter's card is about the adapter alone."""
    while source.adapter and config.format == "merged":
        source = source.adapter.base
    return card_metadata(source.folder)


def _files_digest(files: dict[str, Any]) -> str:
    """Digest of the small files of an export."""
    return blake2b(json.dumps(files, sort_keys=True, default=repr).encode(), digest_size=16).hexdigest()


def _files(source: ModelSource) -> dict[str, Any]:
    """Config, tokenizer and chat template by file name. Generation markers are removed: not every reader knows them."""
    tokenizer = load_tokenizer(str(source.folder))
    check_vocabulary(source.model_config, tokenizer, source.asked)
    own = own_template(tokenizer)
    if own is None:
        return model_files(source, save_tokenizer(tokenizer), None, ())
    try:
        template = load_template("tokenizer", tokenizer, training=False)
        # a run fixed the date of its template; the template of any other checkpoint keeps printing the current date
        chat = ChatTokenizer(tokenizer, template if source.run else replace(template, source=own))
        exported = without_markers(exported_template(chat))
    except InputError as error:
        if source.run:
            raise
        _logger.warning("%s: exported its chat template without changes. %s", source.asked, error)
        return model_files(source, save_tokenizer(tokenizer), own, ())
    return model_files(source, chat.saved, exported, chat.stop_ids)


def _is_exported(out: Path, record: Record) -> bool:
    """Whether `out` is an export of the same weights and files with the same settings, as when a job is repeated."""
    existing = read_record(out) if out.exists() else None
    names = ("made_by", "dtype", "license", "weights", "files", "format", "merge_into", "base_model", "base_revision")
    return existing is not None and all(existing.get(name) == record.get(name) for name in names)


def main(config: ExportConfig, command: str) -> str:
    """`zephyr-jax export`."""
    return str(export(config))
