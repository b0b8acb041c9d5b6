"""AlpacaEval outputs of a model, in the format of the package alpaca-eval."""

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
    """Answer all instructions and return the path of the output file. The same command resumes after a kill."""
    out = open_path(config.output)
    check_folder_creatable(out)
    instructions = read_instructions(config.instructions)
    rows = instructions[: config.limit]
    out.mkdir(parents=True, exist_ok=True)
    model: RemoteClient | LocalClient
    if is_address(config.model.path):
        model = open_address(config.model.path, config.answering, out / "asked.journal")
        name, is_local = file_name(config.name or model.model), False
    else:
        name, is_local = file_name(config.name or PurePath(config.model.path).name), True
        model = _local_client(config, instructions, out / f"{name}.journal")
    responses = collect_responses(
        model, [_request(config, row["instruction"], is_local) for row in rows], "answers", "model"
    )
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


def _request(config: AlpacaEvalConfig, instruction: str, is_local: bool) -> ChatRequest:
    """The request for an answer; a seed only for local models, as some endpoints refuse it."""
    seed = draw(config.seed, "answer", instruction) % 2**31 if is_local else None
    return ChatRequest(
        ({"role": "user", "content": instruction},), config.temperature, config.max_new_tokens, config.top_p, seed
    )


def file_name(name: str) -> str:
    """A model's name as a part of file names."""
    return name.replace("/", "_")


def _local_client(config: AlpacaEvalConfig, instructions: list[dict[str, Any]], path: Path) -> LocalClient:
    """A checkpoint with its journal; the context fits every instruction with its answer, if the model's positions allow it."""
    model = open_text_model("evaluate alpaca-eval", config.model, config.mesh, config.batch_size)
    tokenizer = model.chat_tokenizer(config.chat_template)
    longest = max(len(tokenizer.prompt([{"role": "user", "content": row["instruction"]}])) for row in instructions)
    context = model.context_length(longest + config.max_new_tokens)
    return LocalClient(model, tokenizer, context, path, keep=False, truncate=True)
