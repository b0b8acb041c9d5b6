"""What a run answers to held-out prompts when it has ended, for its page: beside what the stages before it answered."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import PurePath
from typing import Any

import jax

from zephyr_jax.config import DataOptions, ModelOptions
from zephyr_jax.data.sources import open_rows
from zephyr_jax.page.answers import Prompt, Said
from zephyr_jax.recipes.generate import generate
from zephyr_jax.recipes.page import excuse, leave_page
from zephyr_jax.recipes.page_answers import read_kept, write_kept
from zephyr_jax.recipes.run import evaluation_source
from zephyr_jax.storage.files import Path, open_path
from zephyr_jax.verbs.models import GenerateConfig
from zephyr_jax.verbs.training import SftConfig

_NEW = 256
_LONGEST = 1000  # characters of a prompt
_LATER = (
    "To have answers on the page: zephyr-jax generate --output FILE, then zephyr-jax page --run RUN --answers FILE."
)


def leave_answers(config: SftConfig, folder: Path) -> None:
    """Answer `report.answers` prompts, once, and write the page again; what goes wrong is one line: the run has ended well."""
    if not config.report.answers:
        return
    if jax.process_count() > 1:
        if jax.process_index() == 0:
            print(f"answers are made by one process, and this run has {jax.process_count()}. {_LATER}", file=sys.stderr)
        return
    try:
        name = PurePath(str(folder)).name
        kept = read_kept(folder)
        if kept and any(said.stage == name for said in kept[0].answers):
            return
        prompts = kept or read_kept(open_path(config.model.path)) or _answered(_asked(config), config, config.model)
        write_kept(folder, _answered(prompts, config, replace(config.model, path=str(folder), revision=None)))
        leave_page(folder)
    except Exception as error:  # whatever it is, the run is done
        excuse(error, "no answers were made for the page", _LATER)


def _answered(prompts: list[Prompt], config: SftConfig, model: ModelOptions) -> list[Prompt]:
    """The prompts with one more stage's greedy answers; the stage is called after the last part of its path."""
    settings = GenerateConfig(
        model=model,
        mesh=config.mesh,
        prompts=tuple(prompt.text for prompt in prompts),
        template=config.data.template,
        rows=len(prompts),
        max_new_tokens=min(_NEW, config.data.max_length // 2),
    )
    answers = generate(settings)
    return [
        Prompt(prompt.text, (*prompt.answers, Said(PurePath(model.path).name, answer.text, answer.ended)))
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


def _asked(config: SftConfig) -> list[Prompt]:
    """The first different prompts of the held-out rows, or where there are none, of the training rows."""
    path, split = evaluation_source(config.data) or (config.data.path, config.data.split)
    texts = dict.fromkeys(_texts(config.data, path, split))
    return [Prompt(text, ()) for text, _ in zip(texts, range(config.report.answers), strict=False)]


def _texts(data: DataOptions, path: str, split: str) -> Iterator[str]:
    for row in open_rows(path, split, data.revision, data.limit):
        text = _first_question(row)
        if text and len(text) <= _LONGEST:
            yield text


def _first_question(row: Mapping[str, Any]) -> str:
    """What a person asks first; empty where a row does not say."""
    for name in ("messages", "chosen"):
        for message in row.get(name) or ():
            if (
                isinstance(message, Mapping)
                and message.get("role") == "user"
                and isinstance(message.get("content"), str)
            ):
                return str(message["content"])
    return row["prompt"] if isinstance(row.get("prompt"), str) else ""
