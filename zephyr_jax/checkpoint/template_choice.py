"""Which chat template a command uses beside the one that comes with its checkpoint, and how the two differ."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date

from transformers import PreTrainedTokenizerBase

from zephyr_jax.chat.message import SkippedRow
from zephyr_jax.chat.template_args import split_args
from zephyr_jax.chat.template_probe import probe_conversations, prompts_of
from zephyr_jax.chat.template_source import own_template
from zephyr_jax.chat.tokenizer import ChatTokenizer, load_chat_tokenizer
from zephyr_jax.config.sections import DataOptions
from zephyr_jax.errors import join_items
from zephyr_jax.parallel.hosts import is_host0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TemplateChoice:
    """Settings that choose a chat template."""

    template: str | None
    """The given template; None: the checkpoint's own."""
    has_args: bool
    """Whether arguments of the template are given."""
    section: str = ""
    """Section of the settings with a dot at the end, for messages."""

    @classmethod
    def of(cls, data: DataOptions) -> "TemplateChoice":
        """That of the data settings."""
        return cls(data.chat_template, bool(data.template_args), "data.")


def explain_template(
    asked: str, tokenizer: PreTrainedTokenizerBase, chat: ChatTokenizer, choice: TemplateChoice, day: date
) -> str:
    """Print which template is used and why. Returns how a given template differs from the checkpoint's own, or ''."""
    own, args = own_template(tokenizer), split_args(chat.template.source)[0]
    with_values = f", with {join_items(f'{name} {value!r}' for name, value in args.items())}" if args else ""
    if choice.template is None:
        why = f"of {asked}" if own else f"as {asked} has none"
        dated = f", dated {chat.template.day}" if chat.template.day else ""
        log_on_host0(logging.INFO, f"chat template: `{chat.template.name}` {why}{dated}{with_values}")
    if not own or (choice.template is None and not choice.has_args):
        return ""
    other = load_chat_tokenizer("tokenizer", tokenizer, day, training=False)
    if choice.has_args and args != (other_args := split_args(other.template.source)[0]):
        differs = (
            f"{choice.section}template_args are {args}, and the chat template of {asked} has {other_args or 'none'}"
        )
    elif choice.template is None or _same_ids(chat, other):
        return ""
    else:
        name = f"`{other.template.name}` ({other.template.short_hash})"
        setting = f"{choice.section}chat_template"
        differs = f"{setting} is `{choice.template}`, and {asked} comes with another chat template, {name}"
    log_on_host0(logging.WARNING, differs)
    return differs


def _same_ids(one: ChatTokenizer, other: ChatTokenizer) -> bool:
    """Whether two templates give the same token ids for the probe conversations and their prompts."""
    return list(_probe_ids(one)) == list(_probe_ids(other))


def _probe_ids(chat: ChatTokenizer) -> Iterator[list[int] | None]:
    for probe in probe_conversations():
        for messages, asks in ((probe, False), *((prompt, True) for prompt in prompts_of(probe))):
            try:
                yield chat.encode(chat.template.text(messages, asks)).tokens.tolist()
            except SkippedRow:
                yield None


def log_on_host0(level: int, line: str) -> None:
    """Log a line once for all hosts."""
    if is_host0():
        logger.log(level, "%s", line)
