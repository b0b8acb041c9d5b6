"""`zephyr-jax generate`: answers to prompts, batched over the mesh."""

import json
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from zephyr_jax.checkpoint.source import ModelSource
from zephyr_jax.data.chat import BadRow, Message, check_messages, load_template
from zephyr_jax.data.sources import open_rows
from zephyr_jax.data.tokens import ChatTokenizer, bos_token_id
from zephyr_jax.errors import InputError
from zephyr_jax.generation.engine import Request
from zephyr_jax.recipes.speaker import Found, answers, find_speaker
from zephyr_jax.storage.cloud import explained
from zephyr_jax.storage.files import check_can_be_written, write_whole
from zephyr_jax.storage.journal import Journal
from zephyr_jax.verbs.models import GenerateConfig


@dataclass(frozen=True)
class Answer:
    """One answer."""

    prompt: str
    """The last user message, or the plain text that was continued."""
    text: str
    tokens: tuple[int, ...]
    """New token ids, the stop token included."""
    ended: bool
    """Whether it ended by itself."""


@explained()
def generate(config: GenerateConfig) -> list[Answer]:
    """Answers in the order of the prompts. With an `output`, what is done is kept on the way. Raises InputError."""
    config.check()
    check_can_be_written(config.output)
    found = find_speaker("generate", config.model, config.mesh, config.rows)
    conversations = _conversations(config)
    prompts = _encode(config, found.tokenizer, conversations)
    _check_lengths(prompts, config.max_new_tokens, found.source)
    journal = Journal(f"{config.output}.part", _header(config, found, prompts)) if config.output else None
    made = {line["index"]: line["tokens"] for line in journal.lines} if journal else {}
    missing = [index for index in range(len(prompts)) if index not in made]
    if missing:
        engine = found.engine(max(map(len, prompts)) + config.max_new_tokens)
        for index, tokens in answers(engine, _requests(config, found, prompts, missing)):
            made[index] = tokens
            if journal:
                journal.add({"index": index, "tokens": tokens})
    spoken = [_answer(conversations[i], made[i], found) for i in range(len(prompts))]
    if journal:
        lines = [
            json.dumps({"prompt": a.prompt, "answer": a.text, "ended": a.ended}, ensure_ascii=False) for a in spoken
        ]
        write_whole(str(config.output), "".join(f"{line}\n" for line in lines))
        journal.delete()
    return spoken


def _requests(
    config: GenerateConfig, found: Found, prompts: list[np.ndarray], missing: list[int]
) -> dict[int, Request]:
    how = (config.temperature, config.top_p, config.top_k)
    return {
        index: Request(prompts[index], config.max_new_tokens, found.stops, *how, seed=(config.seed, index))
        for index in missing
    }


def _header(config: GenerateConfig, found: Found, prompts: list[np.ndarray]) -> dict[str, Any]:
    """What answers depend on, in few words."""
    digest = blake2b(digest_size=16)
    for prompt in prompts:
        digest.update(prompt.tobytes() + b"|")
    how = {name: getattr(config, name) for name in ("max_new_tokens", "temperature", "top_p", "top_k", "seed")}
    return {**found.identity, **how, "prompts": digest.hexdigest()}


def _conversations(config: GenerateConfig) -> list[list[Message]]:
    if config.prompts:
        conversations = [[{"role": "user", "content": prompt}] for prompt in config.prompts]
    else:
        rows = open_rows(str(config.data), config.split, limit=config.limit)
        conversations = [_row_prompt(row, f"{config.data} row {index}") for index, row in enumerate(rows)]
    system = [{"role": "system", "content": config.system}] if config.system is not None else []
    each = [chat if chat[0]["role"] == "system" else [*system, *chat] for chat in conversations[: config.limit]]
    if not each:
        raise InputError("There are no prompts. Give at least one.")
    return each


def _row_prompt(row: dict[str, Any], where: str) -> list[Message]:
    messages = row.get("messages")
    if isinstance(messages, list) and messages:
        try:
            check_messages(messages)
        except BadRow as error:
            raise InputError(f"{where} cannot be used: {error}. Fix its `messages`.") from error
        chat = [{"role": message["role"], "content": message["content"]} for message in messages]
        return chat[:-1] if chat[-1]["role"] == "assistant" else chat
    if isinstance(row.get("prompt"), str):
        return [{"role": "user", "content": row["prompt"]}]
    raise InputError(f"{where} has neither `prompt` (text) nor `messages`; it has {sorted(row)}.")


def _encode(config: GenerateConfig, tokenizer: PreTrainedTokenizerBase, chats: list[list[Message]]) -> list[np.ndarray]:
    if config.template == "none":
        bos = bos_token_id(tokenizer)
        start = [] if bos is None else [bos]
        return [
            np.array([*start, *tokenizer(chat[-1]["content"], add_special_tokens=False).input_ids], np.int32)
            for chat in chats
        ]
    chat_tokenizer = ChatTokenizer(tokenizer, load_template(config.template, tokenizer))
    try:
        return [chat_tokenizer.prompt(chat) for chat in chats]
    except BadRow as error:
        raise InputError(
            f"A prompt cannot be used: {error}. Fix it, or look at it with `zephyr-jax preview`."
        ) from error


def _check_lengths(prompts: list[np.ndarray], new_tokens: int, source: ModelSource) -> None:
    longest, limit = max(map(len, prompts)), source.shape.max_positions
    if not min(map(len, prompts)):
        raise InputError("A prompt has no tokens at all. Give at least one character, or a tokenizer with a BOS token.")
    if limit and longest + new_tokens > limit:
        raise InputError(
            f"The longest prompt has {longest} tokens; with max_new_tokens {new_tokens} that is more than the {limit} positions "
            f"of {source.asked}. Shorten the prompt or lower max_new_tokens."
        )


def _answer(chat: list[Message], tokens: list[int], found: Found) -> Answer:
    ended = bool(tokens) and tokens[-1] in found.stops
    return Answer(chat[-1]["content"], found.text(tokens), tuple(tokens), ended)
