"""`zephyr-jax generate`: answers to prompts, batched over the mesh."""

import json
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from zephyr_jax.chat.message import Message, SkippedRow, check_messages
from zephyr_jax.chat.tokenizer import ChatTokenizer, bos_token_id
from zephyr_jax.checkpoint.resolve import ModelSource
from zephyr_jax.config.models import GenerateConfig
from zephyr_jax.data.row_reader import Columns, SourceRow
from zephyr_jax.data.rows import COLUMNS, to_prompt
from zephyr_jax.data.sources import read_rows
from zephyr_jax.errors import InputError, truncate_repr
from zephyr_jax.generate.engine import Request
from zephyr_jax.generate.load import Found, answers, find_speaker
from zephyr_jax.storage.files import check_file_creatable, write_atomic
from zephyr_jax.storage.journal import Journal


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


def generate(config: GenerateConfig) -> list[Answer]:
    """Answers in the order of the prompts. With an `output`, what is done is kept on the way. Raises InputError."""
    check_file_creatable(config.output)
    found = find_speaker("generate", config.model, config.mesh, config.batch_size)
    conversations = _conversations(config)
    if config.chat_template == "none":
        prompts = _continued(found.tokenizer, conversations)
    else:
        tokenizer = found.chat_tokenizer(config.chat_template)
        found, prompts = found.speaking(tokenizer), _encode(tokenizer, conversations)
    _check_lengths(prompts, config.max_new_tokens, found.source)
    journal = None
    if config.output:
        journal = Journal(f"{config.output}.part", _header(config, found, prompts), partial(_problem, len(prompts)))
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
        write_atomic(str(config.output), "".join(f"{line}\n" for line in lines))
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


def _problem(count: int, line: dict[str, Any]) -> str:
    """What is wrong with a line of the journal of so many prompts; empty where nothing is."""
    index, tokens = line.get("index"), line.get("tokens")
    tokens_sound = isinstance(tokens, list) and all(type(token) is int and 0 <= token < 2**31 for token in tokens)
    if type(index) is int and 0 <= index < count and tokens_sound:
        return ""
    return f"expected an `index` below {count:,} and a list of token ids in `tokens`, got {truncate_repr(line)}"


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
        rows = read_rows(str(config.data), config.split, limit=config.limit, columns=Columns(COLUMNS))
        conversations = [_row_prompt(row) for row in rows]
    system = [{"role": "system", "content": config.system}] if config.system is not None else []
    each = [chat if chat[0]["role"] == "system" else [*system, *chat] for chat in conversations[: config.limit]]
    if not each:
        raise InputError("There are no prompts. Give at least one.")
    return each


def _row_prompt(row: SourceRow) -> list[Message]:
    try:
        prompt = to_prompt(row.content)
        if prompt.tools:
            raise SkippedRow("it has `tools`, which are not given to the model")
        check_messages(prompt.messages, learnt=False)
    except SkippedRow as error:
        raise InputError(f"{row.place} cannot be used: {error}; it has {sorted(row.content)}. Fix the row.") from error
    return prompt.messages


def _continued(tokenizer: PreTrainedTokenizerBase, chats: list[list[Message]]) -> list[np.ndarray]:
    """Plain texts to be continued."""
    bos = bos_token_id(tokenizer)
    start = [] if bos is None else [bos]
    texts = [chat[-1]["content"] for chat in chats]
    return [np.array([*start, *tokenizer(text, add_special_tokens=False).input_ids], np.int32) for text in texts]


def _encode(tokenizer: ChatTokenizer, chats: list[list[Message]]) -> list[np.ndarray]:
    try:
        return [tokenizer.prompt(chat) for chat in chats]
    except SkippedRow as error:
        raise InputError(
            f"A prompt cannot be used: {error}. Fix it, or look at it with `zephyr-jax preview`."
        ) from error


def _check_lengths(prompts: list[np.ndarray], new_tokens: int, source: ModelSource) -> None:
    longest, limit = max(map(len, prompts)), source.model_config.max_positions
    largest = max((int(prompt.max()) for prompt in prompts if len(prompt)), default=0)
    if largest >= source.model_config.vocab_size:
        raise InputError(
            f"Expected token ids below {source.model_config.vocab_size:,} (vocabulary of {source.asked}), got {largest:,} in a "
            "prompt. Its text names a special token that the model has no embedding for: remove it."
        )
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


def main(config: GenerateConfig, command: str) -> str:
    """`zephyr-jax generate`; an answer cut at `max_new_tokens` ends with ` ...`."""
    return "\n".join(
        f"> {answer.prompt}\n{answer.text}{'' if answer.ended else ' ...'}\n" for answer in generate(config)
    )
