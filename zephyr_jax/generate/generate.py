"""`zephyr-jax generate`: batched generation for a file or list of prompts."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from zephyr_jax.chat.message import Message, SkippedRow, check_messages
from zephyr_jax.chat.tokenizer import ChatTokenizer, bos_token_id
from zephyr_jax.checkpoint.model_source import ModelSource
from zephyr_jax.config.models import GenerateConfig
from zephyr_jax.config.sampling import SamplingParams, TopKSamplingOptions
from zephyr_jax.config.sections import TemplateValue
from zephyr_jax.data.row_reader import Columns
from zephyr_jax.data.rows import COLUMNS, to_prompt
from zephyr_jax.data.sources import read_rows
from zephyr_jax.errors import InputError
from zephyr_jax.generate.engine import GenerationRequest
from zephyr_jax.generate.host_answers import HostAnswers
from zephyr_jax.generate.load import TextModel, generate_tokens, open_text_model
from zephyr_jax.objective.logprob import Parameters
from zephyr_jax.parallel.hosts import interrupt_on_sigterm
from zephyr_jax.storage.files import check_file_creatable, write_atomic


@dataclass(frozen=True)
class GeneratedAnswer:
    """A prompt with the generated text."""

    prompt: str
    """The last user message, or the plain text to continue."""
    text: str
    tokens: tuple[int, ...]
    """New token ids, including the stop token."""
    ended: bool
    """Whether a stop token ended it."""


def generate(config: GenerateConfig, *, several_hosts: bool = False) -> list[GeneratedAnswer]:
    """Generate an answer to every prompt, in their order.

    With an `output`, finished answers are journaled, so that the same command resumes after a kill.

    Args:
        config: The settings of `zephyr-jax generate`.
        several_hosts: Divide the prompts over the processes of a cluster. Process 0 returns all answers, the others an empty
            list. Otherwise more than one process is an error.

    Raises:
        InputError: A setting, the model, a prompt or a journal cannot be used.
    """
    check_file_creatable(config.output)
    model = open_text_model("generate", config.model, config.mesh, config.batch_size, several_hosts=several_hosts)
    conversations = _conversations(config)
    model, prompts = _encode(model, conversations, config.chat_template, config.max_new_tokens, config.template_args)
    interrupt_on_sigterm()
    finished = HostAnswers(config.output, _header(config, model, prompts), len(prompts))
    if missing := finished.missing:
        engine = model.engine(max(map(len, prompts)) + config.max_new_tokens)
        requests = {index: _request(config, model, prompts[index], index) for index in missing}
        try:
            for index, new_tokens in generate_tokens(engine, requests):
                finished.add(index, new_tokens)
        finally:
            finished.close()
    tokens = finished.gather()
    answers = [_answer(chat, tokens[index], model) for index, chat in enumerate(conversations)] if tokens else []
    if answers and config.output:
        rows = [{"prompt": answer.prompt, "answer": answer.text, "ended": answer.ended} for answer in answers]
        write_atomic(config.output, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))
    finished.end()
    return answers


def answer_conversations(
    model: TextModel,
    parameters: Parameters,
    conversations: list[list[Message]],
    options: TopKSamplingOptions,
    chat_template: str | None = None,
) -> list[GeneratedAnswer]:
    """Generate an answer to every conversation with weights that are in memory; the same text as `generate` gives.

    Args:
        model: The model of these weights.
        parameters: Its weights on its mesh.
        conversations: At least one, each of messages that end before an answer.
        options: Sampling settings and the longest answer.
        chat_template: As `GenerateConfig.chat_template`.

    Raises:
        InputError: The template cannot be used, or a prompt does not fit into the model's positions.
    """
    model, prompts = _encode(model, conversations, chat_template, options.max_new_tokens)
    engine = model.engine(max(map(len, prompts)) + options.max_new_tokens, parameters)
    requests = {index: _request(options, model, prompt, index) for index, prompt in enumerate(prompts)}
    tokens = dict(generate_tokens(engine, requests))
    return [_answer(chat, tokens[index], model) for index, chat in enumerate(conversations)]


def _encode(
    model: TextModel,
    conversations: list[list[Message]],
    chat_template: str | None,
    max_new_tokens: int,
    template_args: Mapping[str, TemplateValue] | None = None,
) -> tuple[TextModel, list[np.ndarray]]:
    """The model with the template's end tokens, and int32 prompts that leave room for the answers."""
    if chat_template == "none":
        prompts = _plain_prompts(model.tokenizer, conversations)
    else:
        tokenizer = model.chat_tokenizer(chat_template, template_args)
        model, prompts = model.with_chat_stops(tokenizer), _chat_prompts(tokenizer, conversations)
    _check_lengths(prompts, max_new_tokens, model.source)
    return model, prompts


def _request(options: TopKSamplingOptions, model: TextModel, prompt: np.ndarray, index: int) -> GenerationRequest:
    sampling = SamplingParams(options.temperature, options.top_p, options.top_k, seed=(options.seed, index))
    return GenerationRequest(prompt, options.max_new_tokens, model.stop_ids, sampling)


def _header(config: GenerateConfig, model: TextModel, prompts: list[np.ndarray]) -> dict[str, Any]:
    """Everything that the answers depend on, for the journal."""
    digest = blake2b(digest_size=16)
    for prompt in prompts:
        digest.update(prompt.tobytes() + b"|")
    names = ("max_new_tokens", "temperature", "top_p", "top_k", "seed")
    return {**model.identity, **{name: getattr(config, name) for name in names}, "prompts": digest.hexdigest()}


def _conversations(config: GenerateConfig) -> list[list[Message]]:
    if config.prompts:
        conversations = [[{"role": "user", "content": prompt}] for prompt in config.prompts]
    else:
        rows = read_rows(str(config.data), config.split, limit=config.limit, columns=Columns(COLUMNS))
        conversations = [row_prompt(row.content, row.location) for row in rows]
    system = [{"role": "system", "content": config.system}] if config.system is not None else []
    chats = [chat if chat[0]["role"] == "system" else [*system, *chat] for chat in conversations[: config.limit]]
    if not chats:
        raise InputError("Expected at least one prompt, got none. Pass `prompts`, or rows in `data`.")
    return chats


def row_prompt(content: Mapping[str, Any], location: str) -> list[Message]:
    """The messages of a row before its last answer. Raises InputError, which names the row by `location`."""
    try:
        prompt = to_prompt(content)
        if prompt.tools:
            raise SkippedRow("it has `tools`, which are not given to the model")
        check_messages(prompt.messages, learnt=False)
    except SkippedRow as error:
        raise InputError(f"{location} cannot be used: {error}; it has {sorted(content)}. Fix the row.") from error
    return prompt.messages


def _plain_prompts(tokenizer: PreTrainedTokenizerBase, chats: list[list[Message]]) -> list[np.ndarray]:
    """Token ids of plain texts to continue, with BOS if the tokenizer has one."""
    bos = bos_token_id(tokenizer)
    start = [] if bos is None else [bos]
    texts = [chat[-1]["content"] for chat in chats]
    return [np.array([*start, *tokenizer(text, add_special_tokens=False).input_ids], np.int32) for text in texts]


def _chat_prompts(tokenizer: ChatTokenizer, chats: list[list[Message]]) -> list[np.ndarray]:
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
        raise InputError(
            "Expected prompts of at least one token, got an empty one. Pass text, or a tokenizer with a BOS token."
        )
    if limit and longest + new_tokens > limit:
        raise InputError(
            f"Expected prompt and answer within the {limit} positions of {source.asked}, got a prompt of {longest} tokens and "
            f"max_new_tokens {new_tokens}. Shorten the prompt or lower max_new_tokens."
        )


def _answer(chat: list[Message], tokens: list[int], model: TextModel) -> GeneratedAnswer:
    ended = bool(tokens) and tokens[-1] in model.stop_ids
    return GeneratedAnswer(chat[-1]["content"], text=model.text(tokens), tokens=tuple(tokens), ended=ended)


def main(config: GenerateConfig, command: str) -> str | None:
    """`zephyr-jax generate`: the text to print, in process 0. An answer cut at `max_new_tokens` ends with ` ...`."""
    answers = generate(config, several_hosts=True)
    texts = [f"> {answer.prompt}\n{answer.text}{'' if answer.ended else ' ...'}\n" for answer in answers]
    return "\n".join(texts) if texts else None
