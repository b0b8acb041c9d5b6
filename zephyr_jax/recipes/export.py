"""`zephyr-jax export`: a run's weights as a Hugging Face folder that transformers and vLLM load."""

from typing import Any

from zephyr_jax.checkpoint.huggingface import check_free, export_folder
from zephyr_jax.checkpoint.identity import weights_fingerprint
from zephyr_jax.checkpoint.provenance import FILE, Record, make_record, read_record
from zephyr_jax.checkpoint.source import abstract_of, find_model, load_weights
from zephyr_jax.data.tokens import load_tokenizer
from zephyr_jax.parallel.hosts import as_the_first_says
from zephyr_jax.parallel.rules import open_rules
from zephyr_jax.recipes.model_card import model_card
from zephyr_jax.storage.cloud import explained
from zephyr_jax.storage.files import Path, check_can_be_made, is_remote, open_path
from zephyr_jax.train.report import last_evaluation
from zephyr_jax.verbs.models import ExportConfig


@explained()
def export(config: ExportConfig) -> Path:
    """Write the folder and return it. Many processes gather, the first of them writes.

    The same export once more does nothing. Raises InputError when something else is there, or the model cannot be read.
    """
    config.check()
    rules = open_rules(config.mesh)
    out = open_path(config.output)
    check_can_be_made(out if is_remote(out) else out.parent)
    check_free(out, FILE)  # before weights are read
    source = find_model(config.model)
    model = abstract_of(source.shape, config.model, rules)
    parameters = load_weights(source, model)
    record = make_record(
        "export", source.record, output=config.output, dtype=config.dtype, weights=weights_fingerprint(parameters)
    )
    if as_the_first_says(_is_there(out, record)):
        return out
    extras: dict[str, Any] = {path.name: path for path in source.files() if path.name != "config.json"}
    if "generation_config.json" not in extras:
        tokenizer = load_tokenizer(str(source.folder))
        extras["generation_config.json"] = {
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        }
    extras |= {"README.md": model_card(out.name, record, last_evaluation(source.run)), FILE: record}
    limit = int(config.max_file_gib * 2**30)
    export_folder(out, parameters, source.shape, source.config, extras, config.dtype, limit)
    return out


def _is_there(out: Path, record: Record) -> bool:
    """Whether `out` is an export of the same weights in the same dtype, as when a job is run again."""
    theirs = read_record(out) if out.exists() else None
    return theirs is not None and all(theirs.get(name) == record[name] for name in ("made_by", "dtype", "weights"))
