"""A chat client for a checkpoint in this process, with the same journal as a remote one."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import Any

from zephyr_jax.chat.message import SkippedRow
from zephyr_jax.chat.tokenizer import ChatTokenizer
from zephyr_jax.clients.base import ChatRequest, ChatResponse, Progress, no_progress
from zephyr_jax.config.sampling import SamplingParams
from zephyr_jax.errors import truncate_repr
from zephyr_jax.generate.engine import Engine, GenerationRequest
from zephyr_jax.generate.load import TextModel, fit_to_context, generate_tokens, log_truncated
from zephyr_jax.storage.files import Path
from zephyr_jax.storage.journal import Journal


class LocalClient:
    """Answers requests with the generation engine. Weights are loaded for the first request without a journaled response.

    Args:
        text_model: The checkpoint; its weights are not read yet.
        tokenizer: Messages to prompt tokens.
        context: Tokens of prompt and response together.
        journal: File for the responses.
        keep: Keep the weights in memory between calls.
        truncate: Drop the beginning of a prompt that is too long; otherwise a prompt that fills the context is refused.
    """

    def __init__(
        self,
        text_model: TextModel,
        tokenizer: ChatTokenizer,
        context: int,
        journal: Path,
        *,
        keep: bool,
        truncate: bool = False,
    ):
        self._text_model, self._tokenizer, self._context = text_model.with_chat_stops(tokenizer), tokenizer, context
        self._keep, self._truncate = keep, truncate
        header = {**text_model.identity, "tokenizer": tokenizer.fingerprint, "context": context}
        self._journal = Journal(journal, header, _entry_problem)
        self._entries = {entry["request"]: entry for entry in self._journal.lines}
        self._engine: Engine | None = None

    def complete(self, requests: Sequence[ChatRequest], progress: Progress = no_progress) -> list[ChatResponse]:
        """All responses, in order. Raises InputError where the model does not fit into memory."""
        keys = [_key(request) for request in requests]
        copies = Counter(keys)
        pending = {key: request for key, request in zip(keys, requests, strict=True) if key not in self._entries}
        prompts, refusals = self._prompts(pending)
        count = sum(copies[key] for key in copies if key not in prompts)
        progress(count)
        try:
            for key, tokens in self._generate(prompts):
                ended = bool(tokens) and tokens[-1] in self._text_model.stop_ids
                entry = {"request": key, "text": self._text_model.text(tokens), "cut": not ended}
                self._journal.add(entry)
                self._entries[key] = entry
                count += copies[key]
                progress(count)
        finally:
            self._journal.close()
        return [
            refusals[key] if key in refusals else ChatResponse(entry["text"], truncated=entry["cut"])
            for key, entry in ((key, self._entries.get(key, {})) for key in keys)
        ]

    @property
    def name(self) -> str:
        """The last part of the path of the model, or of its adapter."""
        return PurePath(self._text_model.source.asked).name

    @property
    def num_parameters(self) -> int:
        """Size of the model."""
        return self._text_model.source.model_config.num_parameters

    def unanswered(self, requests: Sequence[ChatRequest]) -> list[ChatRequest]:
        """The distinct requests without a journaled response."""
        keyed = {_key(request): request for request in requests}
        return [request for key, request in keyed.items() if key not in self._entries]

    def _generate(self, prompts: dict[str, GenerationRequest]) -> Iterator[tuple[str, list[int]]]:
        """Key and tokens of each response, as they end."""
        if not prompts:
            return
        if self._engine is None:
            self._engine = self._text_model.engine(self._context)
        keys = dict(enumerate(prompts))
        for number, tokens in generate_tokens(self._engine, {number: prompts[key] for number, key in keys.items()}):
            yield keys[number], tokens
        if not self._keep:
            self._engine = None

    def _prompts(
        self, requests: dict[str, ChatRequest]
    ) -> tuple[dict[str, GenerationRequest], dict[str, ChatResponse]]:
        """Requests for the engine by key, and refusals for those that it cannot answer."""
        prompts: dict[str, GenerationRequest] = {}
        refusals: dict[str, ChatResponse] = {}
        truncated = 0
        for key, request in requests.items():
            try:
                tokens = self._tokenizer.prompt(list(request.messages))
            except SkippedRow as error:
                refusals[key] = ChatResponse("", refusal=str(error))
                continue
            fit, limit = (
                fit_to_context(tokens, request.max_tokens, self._context)
                if self._truncate
                else (tokens, request.max_tokens)
            )
            room = self._context - len(fit)
            if room < 1:
                message = f"expected a prompt of less than context={self._context:,} tokens, got {len(tokens):,}"
                refusals[key] = ChatResponse("", refusal=message)
                continue
            truncated += len(fit) < len(tokens)
            seed = int(key[:7], 16) if request.seed is None else request.seed
            seeds = seed if isinstance(seed, tuple) else (seed,)
            sampling = SamplingParams(request.temperature, request.top_p, seed=seeds)
            prompts[key] = GenerationRequest(fit, min(limit, room), self._text_model.stop_ids, sampling)
        log_truncated(truncated)
        return prompts, refusals


def _entry_problem(entry: dict[str, Any]) -> str:
    """Why a journal entry is invalid; empty if it is valid."""
    valid = (
        isinstance(entry.get("request"), str) and isinstance(entry.get("text"), str) and type(entry.get("cut")) is bool
    )
    return "" if valid else f"expected strings in `request` and `text` and a bool in `cut`, got {truncate_repr(entry)}"


def _key(request: ChatRequest) -> str:
    return request.key("", "")
