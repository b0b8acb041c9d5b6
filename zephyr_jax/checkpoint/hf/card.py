"""License and language of a checkpoint, from the YAML front matter of its model card (README.md)."""

import logging
from typing import Any

import yaml
from huggingface_hub.repocard import metadata_load

from zephyr_jax.storage.files import Path, check_regular

logger = logging.getLogger(__name__)

CARD = "README.md"
_FIELDS = ("license", "license_name", "license_link", "language")


def card_metadata(folder: Path) -> dict[str, Any]:
    """The fields `license`, `license_name`, `license_link` and `language` that a folder's model card has.

    Values are text, or lists of text for languages. A card that cannot be read gives no fields, and a warning.
    """
    path = folder / CARD
    if not path.exists():
        return {}
    check_regular(path)
    try:
        metadata = metadata_load(path) or {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        logger.warning("%s: ignored its metadata, as it is not valid YAML front matter (%s)", path, reason)
        return {}
    return {name: metadata[name] for name in _FIELDS if _is_text(metadata.get(name))}


def _is_text(value: Any) -> bool:
    """Whether a value is text, or a list of text, that is not empty."""
    items = value if isinstance(value, list) else [value]
    return bool(items) and all(isinstance(item, str) and item for item in items)
