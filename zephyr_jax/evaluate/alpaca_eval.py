"""`zephyr-jax evaluate alpaca-eval`: a model's outputs, in the form that judges take."""

import json
from pathlib import PurePath
from typing import Any

from zephyr_jax.clients.base import ChatRequest
from zephyr_jax.clients.local import LocalClient
from zephyr_jax.clients.remote import RemoteClient
from zephyr_jax.clients.responses import collect_responses, open_address
from zephyr_jax.config.benchmarks import AlpacaEvalConfig, is_address
from zephyr_jax.evaluate.alpaca_format import read_instructions
from zephyr_jax.generate.load import open_text_model
from zephyr_jax.seeded_random import draw
from zephyr_jax.storage.files import Path, check_folder_creatable, open_path, write_atomic


def model_outputs(config: AlpacaEvalConfig) -> str:
    """Answers to all instructions in AlpacaEval's form; the path of the file. Killed, the same command goes on."""
    out = open_path(config.output)
    check_folder_creatable(out)
    every = read_instructions(config.instructions)
    rows = every[: config.limit]
    out.mkdir(parents=True, exist_ok=True)
    model: RemoteClient | LocalClient
    if is_address(config.model.path):
        model = open_address(config.model.path, config.answering, out / "asked.journal")
        name, own = file_name(config.name or model.model), False
    else:
        name, own = file_name(config.name or PurePath(config.model.path).name), True
        model = _own(config, every, out / f"{name}.journal")
    responses = collect_responses(model, [_ask(config, row["instruction"], own) for row in rows], "answers", "model")
    outputs = [
        {
            "dataset": row.get("dataset", ""),
            "instruction": row["instruction"],
            "output": response.text.strip(),
            "generator": name,
        }
        for row, response in zip(rows, responses, strict=True)
    ]
    path = out / f"{name}.json"
    write_atomic(path, json.dumps(outputs, indent=2, ensure_ascii=False) + "\n")
    return str(path)


def _ask(config: AlpacaEvalConfig, instruction: str, own: bool) -> ChatRequest:
    """The request for an answer; only a model of ours is told a seed."""
    seed = draw(config.seed, "answer", instruction) % 2**31 if own else None
    return ChatRequest(
        ({"role": "user", "content": instruction},), config.temperature, config.max_new_tokens, config.top_p, seed
    )


def file_name(name: str) -> str:
    """A model's name in the names of files."""
    return name.replace("/", "_")


def _own(config: AlpacaEvalConfig, every: list[dict[str, Any]], path: Path) -> LocalClient:
    """A checkpoint with its journal; its context holds every instruction with its answer, if the model's positions do."""
    found = open_text_model("evaluate alpaca-eval", config.model, config.mesh, config.batch_size)
    tokenizer = found.chat_tokenizer(config.chat_template)
    longest = max(len(tokenizer.prompt([{"role": "user", "content": row["instruction"]}])) for row in every)
    context = found.context_length(longest + config.max_new_tokens)
    return LocalClient(found, tokenizer, context, path, keep=False, truncate=True)
