"""`zephyr-jax evaluate alpaca-eval`: a model's outputs, in the form that judges take."""

import json
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import PurePath
from typing import Any

from zephyr_jax.data.tokens import ChatTokenizer
from zephyr_jax.evaluation.alpaca_eval import read_instructions
from zephyr_jax.generation.endpoint import Ask
from zephyr_jax.generation.engine import Request
from zephyr_jax.recipes.addressed import ask, open_address
from zephyr_jax.recipes.speaker import Found, answers, find_speaker, fitted, say_cut
from zephyr_jax.storage.cloud import explained
from zephyr_jax.storage.files import Path, check_can_be_made, open_path, write_whole
from zephyr_jax.storage.journal import Journal
from zephyr_jax.verbs.benchmarks import AlpacaEvalConfig, is_address


@explained()
def model_outputs(config: AlpacaEvalConfig) -> str:
    """Answers to all instructions in AlpacaEval's form; the path of the file. Killed, the same command goes on."""
    config.check()
    out = open_path(config.output)
    check_can_be_made(out)
    every = read_instructions(config.instructions)
    rows = every[: config.limit]
    out.mkdir(parents=True, exist_ok=True)
    if is_address(config.model.path):
        model = open_address(config.model.path, config.answering, out / "asked.journal")
        name = file_name(config.name or model.model)
        texts = ask(model, [_ask(config, row["instruction"]) for row in rows])
    else:
        name = file_name(config.name or PurePath(config.model.path).name)
        texts = _own(config, every, out / f"{name}.journal")
    outputs = [
        {"dataset": row.get("dataset", ""), "instruction": row["instruction"], "output": text, "generator": name}
        for row, text in zip(rows, texts, strict=True)
    ]
    path = out / f"{name}.json"
    write_whole(path, json.dumps(outputs, indent=2, ensure_ascii=False) + "\n")
    return str(path)


def _ask(config: AlpacaEvalConfig, instruction: str) -> Ask:
    return Ask(({"role": "user", "content": instruction},), config.temperature, config.max_new_tokens, config.top_p)


def file_name(name: str) -> str:
    """A model's name in the names of files."""
    return name.replace("/", "_")


def _own(config: AlpacaEvalConfig, every: list[dict[str, Any]], path: Path) -> list[str]:
    """A checkpoint's answers, in order, up to the limit; those in the journal as they are."""
    rows = every[: config.limit]
    found = find_speaker("evaluate alpaca-eval", config.model, config.mesh, config.rows)
    tokenizer = found.chat_tokenizer(config.template)
    header = {
        **found.identity, "tokenizer": tokenizer.fingerprint, "temperature": config.temperature, "top_p": config.top_p,
        "max_new_tokens": config.max_new_tokens, "seed": config.seed,
        "instructions": blake2b(json.dumps(every).encode(), digest_size=16).hexdigest(),
    }  # fmt: skip
    journal = Journal(path, header)
    made = {line["index"]: line["output"] for line in journal.lines}
    missing = {index: row["instruction"] for index, row in enumerate(rows) if index not in made}
    for index, text in _answers(config, found, tokenizer, missing) if missing else ():
        made[index] = text
        journal.add({"index": index, "output": text})
    journal.close()
    return [made[index] for index in range(len(rows))]


def _answers(
    config: AlpacaEvalConfig, found: Found, tokenizer: ChatTokenizer, instructions: dict[int, str]
) -> Iterator[tuple[int, str]]:
    """Index and answer of each instruction, as they end."""
    prompts = {index: tokenizer.prompt([{"role": "user", "content": text}]) for index, text in instructions.items()}
    context = found.context(max(map(len, prompts.values())) + config.max_new_tokens)
    requests, cut = {}, 0
    for index, prompt in prompts.items():
        kept, most = fitted(prompt, config.max_new_tokens, context)
        cut += len(kept) < len(prompt)
        how = (config.temperature, config.top_p)
        requests[index] = Request(kept, most, found.stops, *how, seed=(config.seed, index))
    for index, tokens in answers(found.engine(context), requests):
        yield index, found.text(tokens).strip()
    say_cut(cut)
