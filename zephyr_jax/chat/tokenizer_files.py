"""A tokenizer from its files: loaded by transformers, and checked before it reads a row."""

from pathlib import Path

from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from zephyr_jax.chat.tokenizer_probe import check_round_trip, report_other_ids
from zephyr_jax.errors import InputError, truncate_repr
from zephyr_jax.storage.files import check_readable
from zephyr_jax.storage.strict_json import read_json

TRAINING_TEMPLATE = "training_template.jinja"
"""Beside a run's tokenizer: the chat template with its generation markers, which `chat_template.jinja` lacks."""


def load_tokenizer(path: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """A fast tokenizer from a folder or hub id. Raises InputError without one, or for one that loses text."""
    check_readable(path)
    _check_format(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, mistral_format=False)
    except Exception as error:  # transformers raises many kinds here; all mean the same to the user
        _check_config(path, revision)
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"No tokenizer could be loaded from {path!r}: {reason} Give a folder with tokenizer.json (or tokenizer.model) and "
            "tokenizer_config.json, or a hub id that you can reach."
        ) from error
    if not tokenizer.is_fast:
        raise InputError(
            f"The tokenizer of {path!r} is a slow one. Character offsets need a fast tokenizer: save a tokenizer.json "
            "beside it."
        )
    check_round_trip(tokenizer, path)
    report_other_ids(tokenizer, path)
    if tokenizer.chat_template is None:
        tokenizer.chat_template = _template_in_json(path)
    written = Path(path) / TRAINING_TEMPLATE
    if written.is_file():
        tokenizer.chat_template = written.read_text()
    return tokenizer


def _check_format(path: str) -> None:
    """Raise InputError for a folder that holds a tokenizer in Mistral's own format only."""
    names = {file.name for file in Path(path).iterdir()} if Path(path).is_dir() else set[str]()
    if "tekken.json" in names and not names & {"tokenizer.json", "tokenizer.model"}:
        raise InputError(
            f"{path} holds tekken.json, Mistral's own tokenizer format, and no tokenizer.json. Expected Hugging Face's: take "
            "tokenizer.json and tokenizer_config.json from the model's Hugging Face repository, or convert it "
            "(transformers with mistral-common: `AutoTokenizer.from_pretrained`, then `save_pretrained`)."
        )


def _check_config(path: str, revision: str | None) -> None:
    """Raise InputError where it is config.json that transformers cannot read, which it does before the tokenizer."""
    try:
        AutoConfig.from_pretrained(path, revision=revision)
    except Exception as error:  # of as many kinds
        if (Path(path) / "config.json").is_file():
            reason = " ".join(str(error).split())[:300]
            raise InputError(
                f"transformers cannot read {path}/config.json, which it needs to choose the kind of tokenizer: {reason} Take "
                "the config.json that belongs to the weights."
            ) from error


def _template_in_json(path: str) -> str | dict[str, str] | None:
    """The chat template of chat_template.json, which older versions of transformers wrote beside multimodal models."""
    file = Path(path) / "chat_template.json"
    if not file.is_file():
        return None
    template = read_json(file).get("chat_template")
    if isinstance(template, list) and all(isinstance(entry, dict) for entry in template):
        template = {str(entry.get("name")): str(entry.get("template")) for entry in template}
    if not isinstance(template, str | dict):
        raise InputError(f"{file} holds no text `chat_template`: got {truncate_repr(template)}. Copy it again.")
    return template
