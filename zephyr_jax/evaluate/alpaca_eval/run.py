"""`zephyr-jax evaluate alpaca-eval`: a model's outputs, a judge's verdicts and the leaderboard row."""

import json

from zephyr_jax.chat.tokenizer import ChatTokenizer
from zephyr_jax.clients.base import ChatModel, ChatRequest
from zephyr_jax.clients.local import LocalClient
from zephyr_jax.clients.open import ModelOpener
from zephyr_jax.clients.responses import collect_responses
from zephyr_jax.config.benchmarks import AlpacaEvalConfig
from zephyr_jax.data.row_formats import Row
from zephyr_jax.evaluate.alpaca_eval.format import read_instructions
from zephyr_jax.evaluate.alpaca_eval.judge import (
    format_row,
    judge_outputs,
    open_judge,
    rejudge,
    replay_annotations,
)
from zephyr_jax.evaluate.models import file_name, model_opener
from zephyr_jax.seeded_random import draw
from zephyr_jax.storage.files import Path, create_folder, write_atomic


def main(config: AlpacaEvalConfig, command: str = "") -> str:
    """Run the benchmark, or replay recorded annotations; the leaderboard row as a table. Raises InputError."""
    folder = create_folder(config.output)
    instructions = read_instructions(config.instructions) if config.model.path else []
    opener = model_opener(
        "evaluate alpaca-eval", config, folder, lambda tokenizer: _context(config, instructions, tokenizer)
    )
    judge = open_judge(config, opener) if config.judge else None  # before any output is paid for
    with opener.log_usage():
        if config.annotations:
            if judge:
                return rejudge(config, judge, folder).report()
            return format_row(replay_annotations(config, folder))
        path = config.outputs or str(generate_outputs(config, opener, instructions[: config.limit], folder))
        if judge:
            return format_row(judge_outputs(config, judge, path, folder))
        return f"{path}\nSet --judge to compare the outputs with a baseline."


def generate_outputs(config: AlpacaEvalConfig, opener: ModelOpener, instructions: list[Row], folder: Path) -> Path:
    """Answer all instructions and write them in AlpacaEval's format. Rerun after a kill, it requests nothing twice."""
    model = opener.open(config.model.path)
    requests = [_request(config, model, row["instruction"]) for row in instructions]
    responses = collect_responses(model.client, requests, "answers", "model")
    name = file_name(config.name or model.name)
    outputs = [
        {
            "dataset": row.get("dataset", ""),
            "instruction": row["instruction"],
            "output": response.text.strip(),
            "generator": name,
        }
        for row, response in zip(instructions, responses, strict=True)
    ]
    path = folder / f"{name}.json"
    write_atomic(path, json.dumps(outputs, indent=2, ensure_ascii=False) + "\n")
    return path


def _request(config: AlpacaEvalConfig, model: ChatModel, instruction: str) -> ChatRequest:
    local = isinstance(model.client, LocalClient)
    return ChatRequest(
        ({"role": "user", "content": instruction},),
        config.temperature,
        config.max_new_tokens,
        config.top_p,
        seed=draw(config.seed, "answer", instruction) % 2**31 if local else None,
    )


def _context(config: AlpacaEvalConfig, instructions: list[Row], tokenizer: ChatTokenizer) -> int:
    """Tokens of the longest instruction with its answer: the same for any `limit`, so that answers do not depend on it."""
    prompts = (tokenizer.prompt([{"role": "user", "content": row["instruction"]}]) for row in instructions)
    return max(map(len, prompts)) + config.max_new_tokens
