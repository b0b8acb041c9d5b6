"""Every file of a run's `model` folder and of an export but the weights, from what training uses.

config.json, generation_config.json and the tokenizer's files say the same to transformers 4, transformers 5 and their kin.
"""

import json
from collections.abc import Iterable
from typing import Any

from zephyr_jax.chat.saved_tokenizer import SavedTokenizer
from zephyr_jax.checkpoint.hf.folder import TOKENIZER_FILES, read_json
from zephyr_jax.checkpoint.resolve import MODEL_FOLDER, ModelSource
from zephyr_jax.config.sampling import check_stop_ids
from zephyr_jax.model.families.registry import config_to_hf
from zephyr_jax.storage.files import Path, list_names, write_atomic

GENERATION = "generation_config.json"
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_h")


def model_files(
    source: ModelSource, tokenizer: SavedTokenizer, template: str | None, stop_ids: Iterable[int]
) -> dict[str, Any]:
    """File name -> JSON object or text.

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
    """Put the files that `model_files` returned into a run, in place of any that were there."""
    folder = run / MODEL_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name in set(list_names(folder)).intersection(TOKENIZER_FILES) - files.keys():
        (folder / name).unlink()  # files of another writer would give another reading
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        write_atomic(folder / name, text)


def declared_stops(source: ModelSource) -> list[int]:
    """The end tokens that generation_config.json names; where there is no such file, those of config.json, as in transformers."""
    settings = source.folder / GENERATION
    declared = (read_json(settings) if settings.exists() else source.hf_config).get("eos_token_id")
    ids = declared if isinstance(declared, list) else [declared]
    return [index for index in ids if type(index) is int]


def check_declared_stops(source: ModelSource) -> None:
    """Raise InputError where the end tokens of generation_config.json (else of config.json) are no token ids of the model."""
    settings = source.folder / GENERATION
    content = read_json(settings) if settings.exists() else source.hf_config
    place = settings if settings.exists() else source.folder / "config.json"
    check_stop_ids(content.get("eos_token_id"), source.model_config.vocab_size, f"{place} (eos_token_id)")


def _declared(source: ModelSource) -> dict[str, Any]:
    settings = source.folder / GENERATION
    return read_json(settings) if settings.exists() else {}


def _generation_settings(declared: dict[str, Any]) -> dict[str, Any]:
    """The fields that are not about tokens, without those that have no effect, which transformers refuses to save again."""
    idle = () if declared.get("do_sample") else _SAMPLING
    return {name: value for name, value in declared.items() if name not in ("_from_model_config", *idle)}


def _one_or_list(ids: list[int | None], vocabulary: int) -> int | list[int] | None:
    found = list(dict.fromkeys(index for index in ids if index is not None and 0 <= index < vocabulary))
    return found if len(found) > 1 else found[0] if found else None
