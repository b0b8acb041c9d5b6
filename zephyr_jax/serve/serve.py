"""`zephyr-jax serve`: a model behind an OpenAI-compatible server on this machine."""

import sys
from collections.abc import Callable
from pathlib import PurePath
from typing import Any

from aiohttp import web

from zephyr_jax.config.models import ServeConfig
from zephyr_jax.errors import InputError
from zephyr_jax.generate.load import find_speaker
from zephyr_jax.serve.app import Served, make_app
from zephyr_jax.serve.engine_worker import Desk
from zephyr_jax.serve.origin import is_loopback
from zephyr_jax.storage.api_key import read_api_key


def open_server(config: ServeConfig) -> Served:
    """Load the model and start its engine. Raises InputError."""
    key = read_api_key(config.api_key_env, "api_key_env")
    found = find_speaker("serve", config.model, config.mesh, config.max_concurrency)
    tokenizer = found.chat_tokenizer(config.chat_template)
    found, context = found.speaking(tokenizer), found.context(config.context_length)
    desk = Desk(found.engine(context), config.max_open_requests)
    name = config.name or PurePath(config.model.path).name
    tokenizer.releases_gil = True
    return Served(
        name, tokenizer, found.tokenizer, found.stops, context, desk, key,
        loopback=is_loopback(config.host),
    )  # fmt: skip


def serve(config: ServeConfig) -> None:
    """Serve until SIGTERM or Ctrl-C. Raises InputError, as when the port is taken."""
    served = open_server(config)
    if not served.loopback and served.key is None:
        print(f"{config.host} lets other machines in, and no key is asked for: --api_key_env NAME", file=sys.stderr)
    try:
        web.run_app(
            make_app(served),
            host=config.host,
            port=config.port,
            print=_say(served.name),
            access_log=None,
            handler_cancellation=True,
        )
    except OSError as error:
        raise InputError(
            f"Cannot listen at {config.host} port {config.port}: {error.strerror or error}. Choose another --port, or 0 for "
            "any that is free."
        ) from error
    finally:
        served.desk.close()


def _say(name: str) -> Callable[..., None]:
    """What the server says when it is ready, in words of ours."""

    def say(text: str, **_: Any) -> None:
        address = text.partition("Running on ")[2].split(" ")[0].strip()
        if address:
            print(f"serving `{name}` at {address}/v1 (Ctrl-C ends it)", file=sys.stderr, flush=True)

    return say


def main(config: ServeConfig, command: str) -> None:
    """`zephyr-jax serve`."""
    serve(config)
