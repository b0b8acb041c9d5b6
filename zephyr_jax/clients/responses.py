"""Responses of one client to a list of requests, with a progress bar and a report of refused and empty ones."""

import logging
from collections.abc import Sequence

from zephyr_jax.clients.base import ChatClient, ChatRequest, ChatResponse
from zephyr_jax.errors import InputError
from zephyr_jax.progress import progress_bar

logger = logging.getLogger(__name__)


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
        logger.warning("%s: %d of %d %s are empty", source, empty, len(responses), noun)
    if refusals:
        logger.warning("%s refused %d of %d requests; first: %s", source, len(refusals), len(responses), refusals[0])
    return responses
