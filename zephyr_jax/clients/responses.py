"""Responses of one client to a list of requests, with a progress bar and a report of refused and empty ones."""

import sys
from collections.abc import Sequence

from zephyr_jax.clients.base import ChatClient, ChatRequest, ChatResponse
from zephyr_jax.clients.remote import RemoteClient
from zephyr_jax.clients.reply import entry_problem
from zephyr_jax.config.sections import EndpointOptions
from zephyr_jax.errors import InputError
from zephyr_jax.progress import progress_bar
from zephyr_jax.storage.files import Path
from zephyr_jax.storage.journal import Journal


def open_address(url: str, options: EndpointOptions, journal: Path) -> RemoteClient:
    """The model at a URL, with its journal. Raises InputError."""
    header = {"address": url, "model": options.model, "what": "answers of a model, by request"}
    return RemoteClient(url, options, Journal(journal, header, entry_problem))


def collect_responses(
    client: ChatClient, requests: Sequence[ChatRequest], noun: str, source: str, *, allow_all_refused: bool = False
) -> list[ChatResponse]:
    """Responses in order, with warnings about refused and empty ones.

    Args:
        client: What answers.
        requests: What to ask.
        noun: What the responses are (`answers`, `judgments`), for messages.
        source: What answers (`model`, `judge`), for messages.
        allow_all_refused: Return refusals even if there is nothing else.

    Raises:
        InputError: Every request was refused.
    """
    with progress_bar(noun, len(requests)) as advance:
        responses = client.complete(requests, advance)
    refusals = [response.refusal for response in responses if response.refusal]
    if refusals and len(refusals) == len(responses) and not allow_all_refused:
        raise InputError(f"The {source} refused all {len(responses)} requests; first refusal: {refusals[0]}")
    if empty := sum(not response.text.strip() and not response.refusal for response in responses):
        print(f"{source}: {empty:,} of {len(responses):,} {noun} are empty", file=sys.stderr)
    if refusals:
        print(
            f"{source}: refused {len(refusals):,} of {len(responses):,} requests; first: {refusals[0]}", file=sys.stderr
        )
    return responses
