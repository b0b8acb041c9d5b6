"""Answers for a run's page: read from what `zephyr-jax generate` wrote, and kept beside the run for pages to come."""

import json
from dataclasses import asdict, dataclass
from pathlib import PurePath
from typing import Any

from zephyr_jax.errors import InputError, truncate_repr
from zephyr_jax.report.answers_html import Prompt, Said
from zephyr_jax.storage.files import Path, check_readable, open_path, write_atomic
from zephyr_jax.storage.strict_json import parse_json

ANSWERS = "answers.json"

type _Row = tuple[str, str, bool]


@dataclass(frozen=True)
class Kept:
    """The answers that a run's folder holds for its page."""

    prompts: tuple[Prompt, ...] = ()
    about: str = ""
    """Where the prompts are from, and which stage did not answer, and why."""
    held_out: bool = True
    """Whether the prompts are none of the training rows."""
    weights: str = ""
    """State of the run's own weights when it answered; empty for answers that came from files."""

    @property
    def stages(self) -> list[str]:
        """Who has answered."""
        return [said.stage for said in self.prompts[0].answers] if self.prompts else []


def read_answers(files: tuple[str, ...], most: int) -> list[Prompt]:
    """The first `most` prompts that are answered in every file. Raises InputError for what is no answer.

    A file is named by its path, or as NAME=PATH; otherwise the stage is called after the file. Of a prompt that is asked
    more than once the first answer is taken.
    """
    stages = [_stage(each) for each in files]
    rows = {name: _rows(path) for name, path in stages}
    said = {name: {row[0]: Said(name, *row[1:]) for row in reversed(each)} for name, each in rows.items()}
    if len(said) < len(stages):
        raise InputError(f"Two of {', '.join(files)} have the same name. Tell them apart: NAME=FILE.")
    shared = [
        each for each in dict.fromkeys(row[0] for row in rows[stages[0][0]]) if all(each in of for of in said.values())
    ]
    if not shared:
        raise InputError(
            f"No prompt of {stages[0][1]} is answered in all of {', '.join(path for _, path in stages)}. Give each stage the "
            "same prompts: zephyr-jax generate --data PROMPTS.jsonl --output FILE"
        )
    return [Prompt(each, tuple(of[each] for of in said.values())) for each in shared[:most]]


def write_kept(folder: Path, kept: Kept) -> None:
    """Keep them in a run's folder."""
    write_atomic(folder / ANSWERS, json.dumps(asdict(kept), ensure_ascii=False, indent=1) + "\n")


def read_kept(folder: Path) -> Kept:
    """What was kept; nothing where nothing was. Raises InputError where the file is damaged."""
    path = folder / ANSWERS
    if not path.exists():
        return Kept()
    try:
        content = parse_json(path.read_bytes())
        prompts = tuple(_prompt(each) for each in content["prompts"])
        return Kept(prompts, str(content["about"]), content["held_out"] is True, str(content.get("weights", "")))
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path} cannot be read ({error!r}). Delete it and give the answers again.") from error


def _prompt(content: Any) -> Prompt:
    said = (Said(str(each["stage"]), str(each["text"]), bool(each["ended"])) for each in content["answers"])
    return Prompt(str(content["text"]), tuple(said))


def _stage(word: str) -> tuple[str, str]:
    name, equals, path = word.partition("=")
    return (name, path) if equals and name and "/" not in name else (PurePath(word).stem, word)


def _rows(path: str) -> list[_Row]:
    check_readable(path)
    file = open_path(path)
    if not file.is_file():
        raise InputError(f"There is no file {path}. Name one that `zephyr-jax generate --output` wrote.")
    lines = file.read_bytes().splitlines()
    return [_row(line, f"{path} line {number}") for number, line in enumerate(lines, 1) if line.strip()]


def _row(line: bytes, where: str) -> _Row:
    try:
        row: Any = parse_json(line)
    except ValueError as error:
        raise InputError(
            f"{where} is no JSON: {error}. Name a file that `zephyr-jax generate --output` wrote."
        ) from error
    if not (isinstance(row, dict) and isinstance(row.get("prompt"), str) and isinstance(row.get("answer"), str)):
        raise InputError(
            f"{where} is {truncate_repr(row)}. It needs the texts `prompt` and `answer`, as `zephyr-jax generate` writes."
        )
    return row["prompt"], row["answer"], row.get("ended") is not False
