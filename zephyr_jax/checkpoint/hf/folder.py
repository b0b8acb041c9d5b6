"""Locating the Hugging Face folder of a checkpoint, and the names of its files."""

from huggingface_hub import snapshot_download

from zephyr_jax.checkpoint.hf.card import CARD
from zephyr_jax.errors import InputError, at_revision
from zephyr_jax.storage.cloud import is_remote
from zephyr_jax.storage.files import Path, check_readable, open_path
from zephyr_jax.storage.suggest import check_hub_id, suggest_path

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
)
CHAT_TEMPLATES = "additional_chat_templates"
"""A folder beside the tokenizer with one Jinja file per further template."""
_ADAPTER_WEIGHTS = ["adapter_model.safetensors"]
_WEIGHTS = ["model*.safetensors", "model.safetensors.index.json", *_ADAPTER_WEIGHTS]
_DOWNLOAD = [
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "tekken.json",
    "provenance.json",
    CARD,
    f"{CHAT_TEMPLATES}/*.jinja",
    *TOKENIZER_FILES,
]


def is_hub_id(path: str) -> bool:
    """Whether a path is neither a local folder nor in Cloud Storage, so that it is looked up on the hub."""
    return not is_remote(path) and not open_path(path).is_dir()


def open_folder(path: str, revision: str | None = None, *, weights: bool = True, adapter_only: bool = False) -> Path:
    """The folder of a checkpoint: `path` itself, local or gs://, or a hub id downloaded into the hub's cache.

    Args:
        path: Path or hub id.
        revision: Branch, tag or commit of a hub id.
        weights: Whether to download the weights of a hub id, too.
        adapter_only: Whether these are the weights of its adapter alone.

    Raises:
        InputError: `path` is neither a folder nor a hub id that can be downloaded.
    """
    check_readable(path)
    if open_path(path).is_dir():
        return open_path(path)
    if is_remote(path):
        raise InputError(f"No such folder: {path}. Check the spelling; a checkpoint is a folder with config.json.")
    check_hub_id(path, "folder")
    patterns = [*_DOWNLOAD, *((_ADAPTER_WEIGHTS if adapter_only else _WEIGHTS) if weights else ())]
    try:
        return open_path(snapshot_download(path, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the hub client raises many types; each means that the checkpoint cannot be downloaded
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"{path!r} is not a local folder and cannot be downloaded from the hub{at_revision(revision)}.{suggest_path(path)} "
            f"Check the spelling and the network. huggingface_hub: {reason}"
        ) from error
