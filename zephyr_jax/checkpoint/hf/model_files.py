"""All files of a run's `model` folder and of an export except the weights, from the tokenizer and configuration in use.

config.json, generation_config.json and the tokenizer's files agree: transformers 4, transformers 5 and vLLM read the same.
"""

import json
from collections.abc import Iterable
from typing import Any

from zephyr_jax.chat.saved_tokenizer import SavedTokenizer
from zephyr_jax.checkpoint.hf.folder import TOKENIZER_FILES
from zephyr_jax.checkpoint.model_source import MODEL_FOLDER, ModelSource
from zephyr_jax.config.sampling import check_stop_ids
from zephyr_jax.model.families.registry import config_to_hf
from zephyr_jax.storage.files import Path, list_names, write_atomic
from zephyr_jax.storage.strict_json import read_json

GENERATION = "generation_config.json"
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_h")


def model_files(
    source: ModelSource, tokenizer: SavedTokenizer, template: str | None, stop_ids: Iterable[int]
) -> dict[str, Any]:
    """The files by name: JSON objects or text.

    Args:
        source: The model that training starts from, or that is exported.
        tokenizer: The tokenizer that encodes its text.
        template: Jinja source of the chat template, or None.
        stop_ids: Ids of the tokens that end an answer under the template.
    """
    vocabulary = source.model_config.vocab_size
    bos, eos, pad = (tokenizer.special_id(name, vocabulary) for name in ("bos_token", "eos_token", "pad_token"))
    stops = _one_or_list([*stop_ids, eos, *declared_stops(source)], vocabulary)
    ids = {"bos_token_id": bos, "eos_token_id": stops, "pad_token_id": pad}
    return {
        **tokenizer.files(vocabulary, template),
        GENERATION: {**_generation_settings(_declared(source)), **ids},
        "config.json": {**config_to_hf(source.hf_config, source.model_config), **ids},
    }


def write_model_files(run: Path, files: dict[str, Any]) -> None:
    """Write the files of `model_files` into a run and remove tokenizer files that are not among them."""
    folder = run / MODEL_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name in set(list_names(folder)).intersection(TOKENIZER_FILES) - files.keys():
        (folder / name).unlink()  # transformers would prefer some of them to the new ones
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        write_atomic(folder / name, text)


def declared_stops(source: ModelSource) -> list[int]:
    """End tokens of generation_config.json, or of config.json where that file is missing, as in transformers."""
    settings = source.folder / GENERATION
    declared = (read_json(settings) if settings.exists() else source.hf_config).get("eos_token_id")
    ids = declared if isinstance(declared, list) else [declared]
    return [index for index in ids if type(index) is int]


def check_declared_stops(source: ModelSource) -> None:
    """Raise InputError where an end token that the checkpoint declares is outside the model's vocabulary."""
    settings = source.folder / GENERATION
    content = read_json(settings) if settings.exists() else source.hf_config
    path = settings if settings.exists() else source.folder / "config.json"
    check_stop_ids(content.get("eos_token_id"), source.model_config.vocab_size, f"{path} (eos_token_id)")


def _declared(source: ModelSource) -> dict[str, Any]:
    settings = source.folder / GENERATION
    return read_json(settings) if settings.exists() else {}


def _generation_settings(declared: dict[str, Any]) -> dict[str, Any]:
    """The fields except token ids, without those that have no effect: transformers refuses to save them again."""
    unused = () if declared.get("do_sample") else _SAMPLING
    return {name: value for name, value in declared.items() if name not in ("_from_model_config", *unused)}


def _one_or_list(ids: list[int | None], vocabulary: int) -> int | list[int] | None:
    known = list(dict.fromkeys(index for index in ids if index is not None and 0 <= index < vocabulary))
    return known if len(known) > 1 else known[0] if known else None
