"""Opens the models that a command names: each with a journal in the output folder, remote ones under one budget."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from hashlib import blake2b

from zephyr_jax.chat.tokenizer import ChatTokenizer
from zephyr_jax.clients.base import ChatModel
from zephyr_jax.clients.budget import CostBudget
from zephyr_jax.clients.connection import check_url
from zephyr_jax.clients.local import LocalClient
from zephyr_jax.clients.remote import RemoteClient
from zephyr_jax.clients.reply import entry_problem
from zephyr_jax.config.model_spec import ModelSpec, parse_model_spec
from zephyr_jax.config.sections import EndpointOptions, ForwardOptions, MeshOptions
from zephyr_jax.errors import InputError, truncate_repr
from zephyr_jax.generate.load import open_text_model
from zephyr_jax.storage.files import Path
from zephyr_jax.storage.journal import Journal
from zephyr_jax.storage.lock import Lock

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LocalOptions:
    """How local checkpoints run."""

    forward: ForwardOptions
    mesh: MeshOptions
    batch_size: int
    chat_template: str | None
    context_length: int | Callable[[ChatTokenizer], int] | None
    """Tokens of prompt and response, or how to compute them; None: 4,096, or the model's positions if these are fewer."""
    keep: bool
    """Keep weights in memory between calls, for models that take turns."""
    truncate: bool = False
    """Drop the beginning of a prompt that is too long; otherwise a prompt that fills the context is refused."""


class ModelOpener:
    """Opens models by their specs, in the only process that may use the output folder.

    Args:
        command: Name of the command, for error messages.
        folder: Output folder, for the journals.
        endpoint: Options of remote models; a spec may override the API key and the prices.
        local: Options of local models.
        temperature: For specs without one.
    """

    def __init__(
        self, command: str, folder: Path, endpoint: EndpointOptions, local: LocalOptions, temperature: float = 0.0
    ):
        self._command, self._folder, self._endpoint, self._local = command, folder, endpoint, local
        self._temperature, self._budget, self._lock = temperature, CostBudget(endpoint), Lock(folder)
        self._remote_clients: dict[tuple[str, str | None], RemoteClient] = {}
        self._remote_options: dict[tuple[str, str | None], EndpointOptions] = {}
        self._local_clients: dict[str, LocalClient] = {}

    def open_all(self, specs: Sequence[str]) -> list[ChatModel]:
        """Several models. Raises InputError, also for two with the same name."""
        models: list[ChatModel] = []
        for text in specs:
            model = self.open(text)
            if model.name in [other.name for other in models]:
                raise InputError(
                    f"Expected distinct model names, got {truncate_repr(model.name)} twice. Rename one: {text},name=OTHER."
                )
            models.append(model)
        return models

    def open(self, text: str) -> ChatModel:
        """One model. Raises InputError."""
        spec = parse_model_spec(text)
        temperature = self._temperature if spec.temperature is None else spec.temperature
        if spec.path is not None:
            local = self._open_local(spec.path)
            return ChatModel(spec.name or local.name, local, temperature)
        options = self._endpoint_options(spec)
        client = self._open_remote(str(spec.url), spec.model, options)
        return ChatModel(
            name=spec.name or client.model,
            client=client,
            temperature=temperature,
            price_per_mtok_in=options.price_per_mtok_in,
            price_per_mtok_out=options.price_per_mtok_out,
        )

    @contextmanager
    def log_usage(self) -> Iterator[None]:
        """Log the usage at the end, also when a budget or an error ends the work."""
        try:
            yield
        finally:
            if usage := self.usage_summary():
                logger.info("API usage: %s", usage)

    def usage_summary(self) -> str:
        """Tokens and cost of all remote models; empty without any."""
        return self._budget.summary() if self._remote_clients else ""

    def _endpoint_options(self, spec: ModelSpec) -> EndpointOptions:
        names = {field.name for field in fields(EndpointOptions)} & {field.name for field in fields(ModelSpec)}
        given = {name: value for name in names if (value := getattr(spec, name)) is not None}
        options = replace(self._endpoint, **given)
        has_prices = spec.price_per_mtok_in is not None or spec.price_per_mtok_out is not None  # 0: a free model
        priced = has_prices or options.price_per_mtok_in or options.price_per_mtok_out
        if options.max_cost_usd is not None and not priced:
            raise InputError(
                f"max_cost_usd={options.max_cost_usd:g} needs the prices of {spec.url}. Set endpoint.price_per_mtok_in and "
                "endpoint.price_per_mtok_out (USD per million tokens), or append price_per_mtok_in=X,price_per_mtok_out=Y to "
                "the model."
            )
        return options

    def _open_remote(self, url: str, model: str | None, options: EndpointOptions) -> RemoteClient:
        identity = (url, model)
        if identity in self._remote_clients:
            if self._remote_options[identity] != options:  # one client, as both would share a journal
                raise InputError(
                    f"{model or url} is named twice with different options. Give the same api_key_env, max_tokens_param and "
                    "prices both times."
                )
        else:
            check_url(url)
            self._remote_options[identity] = options
            header = {"address": url, "model": model, "what": "replies, by request"}
            journal = Journal(self._journal_path(url, model), header, entry_problem)
            self._remote_clients[identity] = RemoteClient(url, options, journal, self._budget, model)
        return self._remote_clients[identity]

    def _open_local(self, path: str) -> LocalClient:
        if path not in self._local_clients:
            local = self._local
            text_model = open_text_model(self._command, replace(local.forward, path=path), local.mesh, local.batch_size)
            tokenizer, length = text_model.chat_tokenizer(local.chat_template), local.context_length
            context = text_model.context_length(length(tokenizer) if callable(length) else length)
            self._local_clients[path] = LocalClient(
                text_model, tokenizer, context, self._journal_path(path), keep=local.keep, truncate=local.truncate
            )
        return self._local_clients[path]

    def _journal_path(self, *identity: str | None) -> Path:
        digest = blake2b("\x00".join(map(str, identity)).encode(), digest_size=6).hexdigest()
        return self._folder / f"replies-{digest}.journal"
