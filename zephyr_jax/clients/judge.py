"""Models behind an address that take a benchmark: their answers, each asked for once."""

import sys
from collections.abc import Sequence

from zephyr_jax.clients.remote import Ask, Endpoint, Said, problem_of
from zephyr_jax.clients.spec import Speaker
from zephyr_jax.config.sections import EndpointOptions
from zephyr_jax.errors import InputError
from zephyr_jax.progress import progress_bar
from zephyr_jax.storage.files import Path
from zephyr_jax.storage.journal import Journal


def open_address(url: str, options: EndpointOptions, journal: Path) -> Endpoint:
    """The model at an address, with its journal. Raises InputError."""
    header = {"address": url, "model": options.model, "what": "answers of a model, by request"}
    return Endpoint(url, options, Journal(journal, header, problem_of))


def ask(model: Speaker, asks: Sequence[Ask]) -> list[str]:
    """Its answers, in order; empty where it refused. Raises InputError where it refused everything."""
    return [each.text.strip() for each in heard(model, asks, "answers", "the model")]


def heard(model: Speaker, asks: Sequence[Ask], what: str, who: str, some: bool = True) -> list[Said]:
    """What comes back, in order, with a word about refusals. Raises InputError where `some` must be there and none is."""
    with progress_bar(what, len(asks)) as advance:
        said = model.ask_all(asks, advance)
    refusals = [each.refusal for each in said if each.refusal]
    if some and refusals and len(refusals) == len(said):
        raise InputError(f"{who.capitalize()} refused all {len(said)} requests, first: {refusals[0]}")
    if empty := sum(not each.text.strip() and not each.refusal for each in said):
        print(f"{who}: {empty:,} of {len(said):,} {what} are empty", file=sys.stderr)
    if refusals:
        print(f"{who} refused {len(refusals)} of {len(said)} requests, first: {refusals[0]}", file=sys.stderr)
    return said
