"""`zephyr-jax serve`: an OpenAI-compatible server for one model on this machine."""

import logging
from pathlib import PurePath

from aiohttp import web

from zephyr_jax.config.models import ServeConfig
from zephyr_jax.errors import InputError
from zephyr_jax.generate.load import open_text_model
from zephyr_jax.serve.app import ServedModel, make_app
from zephyr_jax.serve.engine_worker import EngineWorker
from zephyr_jax.serve.origin import is_loopback
from zephyr_jax.storage.api_key import read_api_key

_logger = logging.getLogger(__name__)


def open_server(config: ServeConfig) -> ServedModel:
    """Load the model and start its engine. Raises InputError."""
    api_key = read_api_key(config.api_key_env, "api_key_env")
    model = open_text_model("serve", config.model, config.mesh, config.max_concurrency)
    tokenizer = model.chat_tokenizer(config.chat_template, config.template_args)
    tokenizer.releases_gil = True
    model, context = model.with_chat_stops(tokenizer), model.context_length(config.context_length)
    return ServedModel(
        name=config.name or PurePath(model.source.asked).name,
        tokenizer=tokenizer,
        decoder=model.tokenizer,
        stop_ids=model.stop_ids,
        context=context,
        worker=EngineWorker(model.engine(context), config.max_open_requests),
        api_key=api_key,
        loopback=is_loopback(config.host),
    )


def serve(config: ServeConfig) -> None:
    """Serve until SIGTERM or Ctrl-C. Raises InputError, also for a port in use."""
    model = open_server(config)
    if not model.loopback and model.api_key is None:
        _logger.warning("%s accepts other machines without an API key; set --api_key_env NAME", config.host)

    def log_address(text: str, **_: object) -> None:
        address = text.partition("Running on ")[2].split(" ")[0].strip()
        if address:
            _logger.info("serving `%s` at %s/v1 (Ctrl-C stops it)", model.name, address)

    try:
        web.run_app(
            make_app(model),
            host=config.host,
            port=config.port,
            print=log_address,
            access_log=None,
            handler_cancellation=True,
        )
    except OSError as error:
        raise InputError(
            f"Cannot listen at {config.host} port {config.port}: {error.strerror or error}. Choose another --port, or 0 for "
            "any free one."
        ) from error
    finally:
        model.worker.close()


def main(config: ServeConfig, command: str) -> None:
    """`zephyr-jax serve`."""
    serve(config)
