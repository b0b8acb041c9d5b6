"""The model and the judge of a benchmark, and the files that both benchmarks read and write."""

import json
import os
from collections.abc import Callable

from zephyr_jax.chat.tokenizer import ChatTokenizer
from zephyr_jax.clients.open import LocalOptions, ModelOpener
from zephyr_jax.config.benchmarks import AlpacaEvalConfig, MtBenchConfig
from zephyr_jax.data.row_formats import Row
from zephyr_jax.errors import InputError, truncate_repr
from zephyr_jax.storage.files import Path, check_regular, open_path


def model_opener(
    command: str,
    config: MtBenchConfig | AlpacaEvalConfig,
    folder: Path,
    context_length: Callable[[ChatTokenizer], int] | None = None,
) -> ModelOpener:
    """The opener of a benchmark's model and judge; both share the budget of `config.endpoint`."""
    local = LocalOptions(
        forward=config.model,
        mesh=config.mesh,
        batch_size=config.batch_size,
        chat_template=config.chat_template,
        context_length=context_length,
        keep=True,
        truncate=True,
    )
    return ModelOpener(command, folder, config.endpoint, local)


def file_name(name: str) -> str:
    """A model's name as part of a file name."""
    return name.replace("/", "_")


def read_json_rows(path: str | os.PathLike[str], content: str) -> list[Row]:
    """Objects of a JSON list or of JSON Lines. Raises InputError, which names the `content` that is expected."""
    check_regular(path)
    try:
        text = open_path(path).read_text()
        rows = (
            json.loads(text)
            if text.lstrip().startswith("[")
            else [json.loads(line) for line in text.split("\n") if line]
        )
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror or error}. Expected a file with {content}.") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}). Expected {content}.") from error
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path}: expected a list of objects with {content}, got {truncate_repr(rows)}.")
    return rows
