"""The chat template of a run and an export: rendered and encoded by transformers, it gives the very ids of training.

Training puts BOS in front of a conversation where the tokenizer has one; `apply_chat_template` and chat servers add none to
rendered text. So the template has to write it, unless it does already.
"""

from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from zephyr_jax.chat.message import Message, SkippedRow
from zephyr_jax.chat.template_bos import forms_with_bos
from zephyr_jax.chat.template_source import without_markers
from zephyr_jax.chat.tokenizer import ChatTokenizer
from zephyr_jax.errors import InputError, truncate_repr

_PLAIN, _SPACED = ("What is new?", "Not much."), ("  And\nyou?", "I read 17 books.")
_TURNS = ([_PLAIN], [_PLAIN, _SPACED], [_SPACED])
_SYSTEMS = (None, "Be brief.", "  Be\nbrief.")


def exported_template(tokenizer: ChatTokenizer) -> str:
    """Jinja source that renders to text whose ids, encoded without special tokens, are those of training.

    The first of a few sources that does so for probe conversations (with and without a system message, one and two turns,
    texts with and without a space in front, for training and for generation). Raises InputError when none does.
    """
    probes = _probes(tokenizer)
    for source in _sources(tokenizer):
        if _gives_the_trained_ids(tokenizer, source, probes):
            return source
    bos = next((token for name, token in tokenizer.template.special_tokens if name == "bos_token"), None)
    raise InputError(
        "The chat template cannot be written so that transformers gives the token ids of training: expected BOS "
        f"{truncate_repr(bos)} once and then the same tokens, got others for every way to write it. Use a template that writes "
        "`bos_token` itself, or set add_bos_token to false in tokenizer_config.json."
    )


def _sources(tokenizer: ChatTokenizer) -> list[str]:
    source = tokenizer.template.source
    return [source] if tokenizer.bos is None else [source, *forms_with_bos(source, without_markers(source))]


def _probes(tokenizer: ChatTokenizer) -> list[tuple[list[Message], bool]]:
    """Conversations that the template renders, each with whether the header of an answer follows."""
    chats = [_conversation(system, turns) for system in _SYSTEMS for turns in _TURNS]
    probes = [probe for chat in chats for probe in ((chat, False), (chat[:-1], True))]
    return [probe for probe in probes if _renders(tokenizer, *probe)]


def _conversation(system: str | None, turns: list[tuple[str, str]]) -> list[Message]:
    first = [] if system is None else [("system", system)]
    texts = [*first, *(text for turn in turns for text in zip(("user", "assistant"), turn, strict=True))]
    return [{"role": role, "content": text} for role, text in texts]


def _renders(tokenizer: ChatTokenizer, messages: list[Message], asks: bool) -> bool:
    try:
        tokenizer.template.render(messages, add_generation_prompt=asks)
    except SkippedRow:
        return False
    return True


def _gives_the_trained_ids(tokenizer: ChatTokenizer, source: str, probes: list[tuple[list[Message], bool]]) -> bool:
    for messages, asks in probes:
        trained = tokenizer.encode(tokenizer.template.render(messages, add_generation_prompt=asks)).tokens
        text = _text(source, dict(tokenizer.template.special_tokens), messages, asks)
        if tokenizer.saved.backend.encode(text, add_special_tokens=False).ids != trained.tolist():
            return False
    return bool(probes)


def _text(source: str, special_tokens: dict[str, Any], messages: list[Message], asks: bool) -> str:
    """What other programs render."""
    rendered: Any = render_jinja_template(
        [messages], chat_template=source, add_generation_prompt=asks, **special_tokens
    )
    return str(rendered[0][0])
