"""Files of samples: those that `zephyr-jax generate` writes, and the one that a run keeps for its reports."""

import json
from dataclasses import asdict, dataclass
from pathlib import PurePath
from typing import Any

from zephyr_jax.errors import InputError, truncate_repr
from zephyr_jax.report.html import PromptSamples, Sample
from zephyr_jax.storage.files import Path, check_readable, open_path, write_atomic
from zephyr_jax.storage.strict_json import parse_json

SAMPLES = "samples.json"


@dataclass(frozen=True)
class SampleSet:
    """The samples in a run's folder."""

    prompts: tuple[PromptSamples, ...] = ()
    about: str = ""
    """Origin of the prompts, and which stages are missing and why."""
    held_out: bool = True
    """False if the prompts are training rows."""
    weights: str = ""
    """State of the run's weights that generated; empty for samples from files."""

    @property
    def models(self) -> list[str]:
        """Names of the models that generated."""
        return [sample.model for sample in self.prompts[0].samples] if self.prompts else []


def read_generated(files: tuple[str, ...], max_prompts: int) -> list[PromptSamples]:
    """Samples from the files of `zephyr-jax generate`, for prompts that all files have.

    Args:
        files: PATH or NAME=PATH for each model; without a name, the model is named after the file.
        max_prompts: the first prompts to take. The first sample counts if a prompt occurs twice.

    Raises:
        InputError: for a malformed file, two models of one name, or no common prompt.
    """
    paths = [_split_name(file) for file in files]
    samples = {name: _read_file(name, path) for name, path in paths}
    if len(samples) < len(paths):
        raise InputError(f"expected a different name for each of {', '.join(files)}. Give names as NAME=FILE.")
    common = [prompt for prompt in samples[paths[0][0]] if all(prompt in rows for rows in samples.values())]
    if not common:
        raise InputError(
            f"expected a prompt that all of {', '.join(path for _, path in paths)} contain, got none. Generate them with the "
            "same prompts: zephyr-jax generate --data PROMPTS.jsonl --output FILE"
        )
    return [PromptSamples(prompt, tuple(rows[prompt] for rows in samples.values())) for prompt in common[:max_prompts]]


def write_samples(folder: Path, samples: SampleSet) -> None:
    """Save samples in a run's folder."""
    write_atomic(folder / SAMPLES, json.dumps(asdict(samples), ensure_ascii=False, indent=1) + "\n")


def read_samples(folder: Path) -> SampleSet:
    """The samples in a run's folder; an empty set if it has none. Raises InputError if the file is damaged."""
    path = folder / SAMPLES
    if not path.exists():
        return SampleSet()
    try:
        content = parse_json(path.read_bytes())
        prompts = tuple(_parse_prompt(prompt) for prompt in content["prompts"])
        return SampleSet(prompts, str(content["about"]), content["held_out"] is True, str(content.get("weights", "")))
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"cannot read {path} ({error!r}). Delete it and generate the samples again.") from error


def _parse_prompt(content: Any) -> PromptSamples:
    samples = (Sample(str(row["model"]), str(row["text"]), bool(row["ended"])) for row in content["samples"])
    return PromptSamples(str(content["prompt"]), tuple(samples))


def _split_name(argument: str) -> tuple[str, str]:
    name, equals, path = argument.partition("=")
    return (name, path) if equals and name and "/" not in name else (PurePath(argument).stem, argument)


def _read_file(model: str, path: str) -> dict[str, Sample]:
    """Prompt -> its first sample."""
    check_readable(path)
    file = open_path(path)
    if not file.is_file():
        raise InputError(f"file not found: {path}. Name a file that `zephyr-jax generate --output` wrote.")
    samples: dict[str, Sample] = {}
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        if line.strip():
            row = _parse_row(line, f"{path} line {number}")
            samples.setdefault(row["prompt"], Sample(model, row["answer"], row.get("ended") is not False))
    return samples


def _parse_row(line: bytes, position: str) -> dict[str, Any]:
    try:
        row: Any = parse_json(line)
    except ValueError as error:
        raise InputError(
            f"{position}: expected JSON, got {error}. Name a file that `zephyr-jax generate --output` wrote."
        ) from error
    if not (isinstance(row, dict) and isinstance(row.get("prompt"), str) and isinstance(row.get("answer"), str)):
        raise InputError(
            f"{position}: expected the texts `prompt` and `answer`, as `zephyr-jax generate` writes them, "
            f"got {truncate_repr(row)}"
        )
    return row
