"""`zephyr-jax evaluate alpaca-eval`: a model's outputs for the judge, or the row that a judge's annotations make."""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import PurePath

import numpy as np

from zephyr_jax.data.tokens import ChatTokenizer
from zephyr_jax.evaluation.alpaca_eval import Row, length_controlled, read_instructions, read_list, row_of
from zephyr_jax.generation.engine import Request
from zephyr_jax.recipes.speaker import Found, answers, find_speaker
from zephyr_jax.storage.cloud import explained
from zephyr_jax.storage.files import check_can_be_made, open_path, write_whole
from zephyr_jax.storage.journal import Journal
from zephyr_jax.verbs.benchmarks import AlpacaEvalConfig


@explained()
def replay_annotations(config: AlpacaEvalConfig) -> Row:
    """The leaderboard's row of recorded annotations, also written beside them. Raises InputError."""
    config.check()
    annotations = read_list(str(config.replay), "annotations with a `preference`")
    row = row_of(annotations)
    controlled, why = length_controlled(annotations)
    if why:
        print(f"no length-controlled win rate: {why}", file=sys.stderr)
    row = replace(row, length_controlled_winrate=controlled)
    out = open_path(config.output)
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / f"{_name(config)}.row.json", json.dumps(asdict(row), indent=2) + "\n")
    return row


@explained()
def model_outputs(config: AlpacaEvalConfig) -> str:
    """Answers to all instructions in AlpacaEval's form; the path of the file. Killed, the same command goes on."""
    config.check()
    out = open_path(config.output)
    check_can_be_made(out)
    rows = read_instructions(config.instructions)[: config.limit]
    out.mkdir(parents=True, exist_ok=True)
    name = _name(config)
    header = {
        "model": config.model.path, "template": config.template, "temperature": config.temperature, "top_p": config.top_p,
        "max_new_tokens": config.max_new_tokens, "seed": config.seed, "instructions": len(rows),
    }  # fmt: skip
    journal = Journal(out / f"{name}.journal", header)
    made = {line["index"]: line["output"] for line in journal.lines}
    missing = [index for index in range(len(rows)) if index not in made]
    if missing:
        found = find_speaker("evaluate alpaca-eval", config.model, config.mesh, config.rows)
        for index, text in _answers(config, found, {index: rows[index]["instruction"] for index in missing}):
            made[index] = text
            journal.add({"index": index, "output": text})
    journal.close()
    outputs = [
        {"dataset": row.get("dataset", ""), "instruction": row["instruction"], "output": made[index], "generator": name}
        for index, row in enumerate(rows)
    ]
    path = out / f"{name}.json"
    write_whole(path, json.dumps(outputs, indent=2, ensure_ascii=False) + "\n")
    return str(path)


def _answers(config: AlpacaEvalConfig, found: Found, instructions: dict[int, str]) -> Iterator[tuple[int, str]]:
    """Index and answer of each instruction, as they end."""
    tokenizer: ChatTokenizer = found.chat_tokenizer(config.template)
    prompts = {index: tokenizer.prompt([{"role": "user", "content": text}]) for index, text in instructions.items()}
    context = found.context(max(map(len, prompts.values())) + config.max_new_tokens)
    requests = {}
    for index, prompt in prompts.items():
        kept = prompt if len(prompt) < context else np.concatenate([prompt[:1], prompt[len(prompt) - context // 2 :]])
        most = min(config.max_new_tokens, context - len(kept))
        seed = (config.seed, index)
        requests[index] = Request(kept, most, found.stops, config.temperature, config.top_p, seed=seed)
    for index, tokens in answers(found.engine(context), requests):
        yield index, found.text(tokens).strip()


def _name(config: AlpacaEvalConfig) -> str:
    return config.name or PurePath(config.replay or config.model.path).stem


def table(row: Row) -> str:
    """The row for people."""
    lines = ["| AlpacaEval | |", "|---|---|"]
    for name, value in asdict(row).items():
        if value is not None:
            lines.append(f"| {name} | {f'{value:.4f}' if isinstance(value, float) else value} |")
    return "\n".join(lines)
