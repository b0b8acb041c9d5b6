"""`zephyr-jax export`: a run's weights as a Hugging Face folder that transformers and vLLM load."""

import json
import sys
from dataclasses import replace
from hashlib import blake2b
from typing import Any

from zephyr_jax.chat.exported_template import exported_template
from zephyr_jax.chat.saved_tokenizer import save_tokenizer
from zephyr_jax.chat.template_loader import load_template
from zephyr_jax.chat.template_source import own_template, without_markers
from zephyr_jax.chat.tokenizer import ChatTokenizer
from zephyr_jax.chat.tokenizer_files import load_tokenizer
from zephyr_jax.checkpoint.fingerprint import weights_fingerprint
from zephyr_jax.checkpoint.hf.folder import check_free, export_folder
from zephyr_jax.checkpoint.hf.model_files import model_files
from zephyr_jax.checkpoint.provenance import FILE, Record, make_record, read_record
from zephyr_jax.checkpoint.resolve import ModelSource, check_vocabulary, open_model
from zephyr_jax.config.models import ExportConfig
from zephyr_jax.config.sections import ForwardOptions
from zephyr_jax.errors import InputError
from zephyr_jax.export.model_card import model_card
from zephyr_jax.parallel.hosts import broadcast_from_host0
from zephyr_jax.parallel.sharding import init_devices
from zephyr_jax.storage.files import Path, check_folder_creatable, is_remote, open_path
from zephyr_jax.train.metrics import last_evaluation


def export(config: ExportConfig) -> Path:
    """Write the folder and return it. Many processes gather, the first of them writes.

    The same export once more does nothing. Raises InputError when something else is there, or the model cannot be read.
    """
    rules = init_devices(config.mesh)
    out = open_path(config.output)
    check_folder_creatable(out if is_remote(out) else out.parent)
    check_free(out, FILE)  # before weights are read
    opened = open_model(ForwardOptions(path=config.model.path, revision=config.model.revision), rules)
    source = opened.source
    files = _files(source)  # before weights are read, too
    parameters = opened.load_weights()
    record = make_record(
        "export", source.record, output=config.output, dtype=config.dtype, weights=weights_fingerprint(parameters),
        files=_files_key(files),
    )  # fmt: skip
    if broadcast_from_host0(_is_there(out, record)):
        return out
    card = model_card(out.name, record, last_evaluation(source.run), "chat_template.jinja" in files)
    limit = int(config.max_shard_gib * 2**30)
    settings = files.pop("config.json")
    extras = {**files, "README.md": card, FILE: record}
    export_folder(out, parameters, source.model_config, settings, extras, config.dtype, limit)
    return out


def _files_key(files: dict[str, Any]) -> str:
    """A key of the content of an export's small files."""
    return blake2b(json.dumps(files, sort_keys=True, default=repr).encode(), digest_size=16).hexdigest()


def _files(source: ModelSource) -> dict[str, Any]:
    """Config, tokenizer and chat template, by file name; without generation markers, which not every reader knows."""
    tokenizer = load_tokenizer(str(source.folder))
    check_vocabulary(source.model_config, tokenizer, source.asked)
    own = own_template(tokenizer)
    if own is None:
        return model_files(source, save_tokenizer(tokenizer), None, ())
    try:
        template = load_template("tokenizer", tokenizer, training=False)
        # a run has frozen the date; the template of a checkpoint that was not trained here goes on to print it
        chat = ChatTokenizer(tokenizer, template if source.run else replace(template, source=own))
        exported = without_markers(exported_template(chat))
    except InputError as error:
        if source.run:
            raise
        print(f"{source.asked}: its chat template is exported as it is. {error}", file=sys.stderr, flush=True)
        return model_files(source, save_tokenizer(tokenizer), own, ())
    return model_files(source, chat.saved, exported, chat.stop_ids)


def _is_there(out: Path, record: Record) -> bool:
    """Whether `out` is an export of the same weights and files in the same dtype, as when a job is run again."""
    theirs = read_record(out) if out.exists() else None
    return theirs is not None and all(
        theirs.get(name) == record[name] for name in ("made_by", "dtype", "weights", "files")
    )


def main(config: ExportConfig, command: str) -> str:
    """`zephyr-jax export`."""
    return str(export(config))
