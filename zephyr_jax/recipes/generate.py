"""`zephyr-jax generate`: answers to prompts, batched over the mesh."""

import json
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from transformers import PreTrainedTokenizerBase

from zephyr_jax.checkpoint.huggingface import read_json
from zephyr_jax.checkpoint.source import ModelSource, abstract_of, check_vocabulary, find_model, load_weights
from zephyr_jax.data.chat import BadRow, Message, check_messages, load_template
from zephyr_jax.data.sources import open_rows
from zephyr_jax.data.tokens import ChatTokenizer, bos_token_id, load_tokenizer
from zephyr_jax.errors import InputError
from zephyr_jax.generation.decode import decode, pad_left
from zephyr_jax.parallel.hosts import require_alone
from zephyr_jax.parallel.rules import Rules, open_rules
from zephyr_jax.storage.cloud import explained
from zephyr_jax.storage.files import check_can_be_written, write_whole
from zephyr_jax.verbs import GenerateConfig

_BUCKET = 64  # prompts are padded to a multiple of this, so that few shapes are compiled


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
    """Answers in the order of the prompts. Raises InputError."""
    config.check()
    check_can_be_written(config.output)
    rules = open_rules(config.mesh)
    require_alone("generate")
    rules.check_divides("batch", config.rows, "rows")
    source = find_model(config.model)
    tokenizer = load_tokenizer(str(source.folder))
    check_vocabulary(source.shape, len(tokenizer), source.asked)
    conversations = _conversations(config)
    prompts = _encode(config, tokenizer, conversations)
    _check_lengths(prompts, config.max_new_tokens, source)

    model = abstract_of(source.shape, config.model, rules)
    parameters = load_weights(source, model)
    stops = stop_ids(source, tokenizer)
    root = jax.random.key(config.seed)
    made: dict[int, list[int]] = {}
    by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for start in range(0, len(by_length), config.rows):
        group = by_length[start : start + config.rows]
        longest = max(len(prompts[index]) for index in group)
        tokens, lengths = pad_left([prompts[index] for index in group], config.rows, -(-longest // _BUCKET) * _BUCKET)
        numbers = jnp.array([*group, *[0] * (config.rows - len(group))])
        out = decode(
            model.definition, parameters, *_place(rules, tokens, lengths),
            jax.vmap(lambda number: jax.random.fold_in(root, number))(numbers), jnp.array(stops),
            new_tokens=config.max_new_tokens, temperature=config.temperature, top_p=config.top_p,
        )  # fmt: skip
        made |= {index: [int(t) for t in row if t >= 0] for index, row in zip(group, jax.device_get(out), strict=False)}
    answers = [_answer(conversations[i], made[i], stops, tokenizer) for i in range(len(prompts))]
    if config.output:
        lines = [
            json.dumps({"prompt": a.prompt, "answer": a.text, "ended": a.ended}, ensure_ascii=False) for a in answers
        ]
        write_whole(config.output, "".join(f"{line}\n" for line in lines))
    return answers


def stop_ids(source: ModelSource, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Ids that end an answer: the tokenizer's end token and those in generation_config.json."""
    settings = source.folder / "generation_config.json"
    declared = read_json(settings).get("eos_token_id") if settings.exists() else None
    ids = declared if isinstance(declared, list) else [declared]
    return tuple(sorted({int(each) for each in (*ids, tokenizer.eos_token_id) if each is not None}))


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


def _place(rules: Rules, tokens: np.ndarray, lengths: np.ndarray) -> tuple[jax.Array, jax.Array]:
    return jax.device_put((tokens, lengths), (rules.sharding("batch", "length"), rules.sharding("batch")))


def _answer(
    chat: list[Message], tokens: list[int], stops: tuple[int, ...], tokenizer: PreTrainedTokenizerBase
) -> Answer:
    ended = bool(tokens) and tokens[-1] in stops
    text = str(tokenizer.decode(tokens[:-1] if ended else tokens))
    return Answer(chat[-1]["content"], text, tuple(tokens), ended)
