"""The models of a feedback verb, opened: each with a journal in the output folder, all under one limit."""

from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import cast

from zephyr_jax.clients.base import ChatModel
from zephyr_jax.clients.budget import Budget
from zephyr_jax.clients.connection import check_url
from zephyr_jax.clients.local import LocalClient
from zephyr_jax.clients.remote import RemoteClient
from zephyr_jax.clients.reply import entry_problem
from zephyr_jax.config.feedback import FeedbackConfig
from zephyr_jax.config.model_spec import ModelSpec, parse_model_spec
from zephyr_jax.config.sections import EndpointOptions, ModelOptions
from zephyr_jax.errors import InputError, truncate_repr
from zephyr_jax.generate.load import open_text_model
from zephyr_jax.storage.files import Path
from zephyr_jax.storage.journal import Journal
from zephyr_jax.storage.lock import Lock


class Voices:
    """Opens models, in the one process that may use the output folder.

    `keep`: whether weights stay in memory between two calls, as where models take turns.
    """

    def __init__(self, verb: str, config: FeedbackConfig, temperature: float, folder: Path, *, keep: bool):
        self._verb, self._config, self._temperature, self._keep = verb, config, temperature, keep
        self._folder, self._budget, self._lock = folder, Budget(config.endpoint), Lock(folder)
        self._opened: dict[tuple[str | None, ...], RemoteClient | LocalClient] = {}

    def open_all(self, words: Sequence[str]) -> list[ChatModel]:
        """Models by the words that name them. Raises InputError, as for two of one name."""
        read = [parse_model_spec(each) for each in words]
        voices = [self._open(each) for each in read]
        for place, voice in enumerate(voices):
            if voice.name in [other.name for other in voices[:place]]:
                raise InputError(
                    f"Two models are called {truncate_repr(voice.name)}. Give one another name, as in {words[place]},name=OTHER."
                )
        return voices

    def open(self, words: str) -> ChatModel:
        """One model. Raises InputError."""
        return self._open(parse_model_spec(words))

    def spent(self) -> str:
        """What addresses took, in words; nothing where none was asked."""
        asked = any(isinstance(each, RemoteClient) for each in self._opened.values())
        return f"; addresses took {self._budget.summary()}" if asked else ""

    def _open(self, words: ModelSpec) -> ChatModel:
        temperature = self._temperature if words.temperature is None else words.temperature
        if words.path is not None:
            return ChatModel(words.display_name, self._own(words.path), temperature)
        base = self._config.endpoint
        options = replace(
            base, model=words.model, api_key_env=words.api_key_env or base.api_key_env,
            price_per_mtok_in=base.price_per_mtok_in if words.price_per_mtok_in is None else words.price_per_mtok_in,
            price_per_mtok_out=base.price_per_mtok_out if words.price_per_mtok_out is None else words.price_per_mtok_out,
        )  # fmt: skip
        speaker = self._endpoint(str(words.url), options)
        return ChatModel(
            words.name or speaker.model, speaker, temperature, options.price_per_mtok_in, options.price_per_mtok_out
        )

    def _endpoint(self, url: str, options: EndpointOptions) -> RemoteClient:
        if options.max_cost_usd is not None and not (options.price_per_mtok_in or options.price_per_mtok_out):
            raise InputError(
                f"max_cost_usd is {options.max_cost_usd:g} and {url} has no price, so its dollars cannot be counted. Set "
                "endpoint.price_per_mtok_in and endpoint.price_per_mtok_out, or price_per_mtok_in= and price_per_mtok_out= "
                "behind the address: dollars a million tokens."
            )
        known = (url, options.model, options.api_key_env)
        if known not in self._opened:
            check_url(url)
            header = {"address": url, "model": options.model, "what": "replies, by request"}
            journal = Journal(self._folder / f"replies-{_digest(url, options.model)}.journal", header, entry_problem)
            self._opened[known] = RemoteClient(url, options, journal, self._budget)
        return cast(RemoteClient, self._opened[known])

    def _own(self, path: str) -> LocalClient:
        if (path,) not in self._opened:
            options = ModelOptions(path=path, compute_dtype=self._config.compute_dtype)
            found = open_text_model(self._verb, options, self._config.mesh, self._config.batch_size)
            journal = self._folder / f"replies-{_digest(path)}.journal"
            tokenizer, context = (
                found.chat_tokenizer(self._config.chat_template),
                found.context_length(self._config.context_length),
            )
            self._opened[(path,)] = LocalClient(found, tokenizer, context, journal, keep=self._keep)
        return cast(LocalClient, self._opened[(path,)])


def _digest(*words: str | None) -> str:
    return blake2b("\x00".join(map(str, words)).encode(), digest_size=6).hexdigest()
