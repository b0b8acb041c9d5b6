"""Where the source of a chat template comes from: built in, a tokenizer's own, or a file; and what it reserves."""

import re
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from zephyr_jax.chat.template_bos import without_bos
from zephyr_jax.errors import InputError, join_items
from zephyr_jax.storage.files import check_regular

BUILT_IN = {"zephyr": ("empty_system.jinja", "zephyr.jinja"), "zephyr-no-system": ("zephyr.jinja",)}
_ALSO = {"fastchat-zephyr": "zephyr-no-system"}
"""FastChat renders Zephyr's template without the empty system message; published MT-Bench scores were made so."""


def own_template(tokenizer: PreTrainedTokenizerBase, name: str = "default") -> str | None:
    """The chat template that comes with a tokenizer; of several, the one with this name. A single one is `default`."""
    own = _named(tokenizer).get(name)
    if not isinstance(own, str):
        return None
    own = without_bos(own)  # as it was in training, where the tokenizer puts BOS in front
    return next((source for source in map(built_in_source, BUILT_IN) if own in (source, without_markers(source))), own)


def _named(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    own = tokenizer.chat_template
    return own if isinstance(own, dict) else {} if own is None else {"default": own}


def built_in_source(name: str) -> str:
    """The source of a built-in template, with its generation markers."""
    return "".join(Path(__file__).with_name(part).read_text() for part in BUILT_IN[name])


def without_markers(source: str) -> str:
    """The same template without generation markers, which not every Jinja engine knows; it renders equal text."""
    keep = {"generation": "if true", "endgeneration": "endif"}
    return re.sub(r"({%[-+]?\s*)((?:end)?generation)(\s*[-+]?%})", lambda tag: tag[1] + keep[tag[2]] + tag[3], source)


def reserved_tokens(tokenizer: PreTrainedTokenizerBase, source: str) -> tuple[str, ...]:
    """Texts that messages must not turn into tokens: special tokens, and tokens that were added for the template."""
    added = tokenizer.added_tokens_decoder.values()
    special = {token.content for token in added if token.special or (token.content.strip() and token.content in source)}
    special |= {str(token) for token in tokenizer.all_special_tokens}
    return tuple(sorted(special, key=lambda token: (-len(token), token)))


def template_source(choice: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The source that `data.chat_template` names. Raises InputError where it cannot be found."""
    choice = _ALSO.get(choice, choice)
    if choice in BUILT_IN:
        return built_in_source(choice)
    if choice.partition(":")[0] == "tokenizer":
        return _chosen_of_own(choice, tokenizer)
    check_regular(choice)
    try:
        return Path(choice).expanduser().read_text()
    except (OSError, ValueError) as error:
        raise InputError(
            f"data.chat_template is {choice!r}, which cannot be read ({error}). It is {join_items(BUILT_IN)}, `tokenizer` or "
            "the path of a Jinja file."
        ) from error


def _chosen_of_own(choice: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer's own template that `tokenizer` or `tokenizer:NAME` means. Raises InputError."""
    name = choice.partition(":")[2] or "default"
    own = own_template(tokenizer, name)
    if own is not None:
        return own
    if not _named(tokenizer):
        raise InputError(
            f"data.chat_template is `{choice}`, but {tokenizer.name_or_path} has no chat template. Use `zephyr` or "
            "the path of a Jinja file."
        )
    raise InputError(
        f"data.chat_template is `{choice}`; expected a template that {tokenizer.name_or_path} has, got {name!r}. It has "
        f"{join_items(f'`tokenizer:{name}`' for name in sorted(_named(tokenizer)))}."
    )
