"""Raw rows as tests make them, and verbs as users call them."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from zephyr_jax.cli import main

SPLITS = ("train_prefs", "train_sft", "test_prefs", "test_sft", "train_gen", "test_gen")
ASPECTS = ("instruction_following", "honesty", "truthfulness", "helpfulness")


def plain(prompt: str, *scores: float | None, **more: Any) -> dict[str, Any]:
    """A plain row: an answer `answer N` for each score."""
    answers = [{"model": f"m{n}", "response": f"answer {n}", "score": score} for n, score in enumerate(scores)]
    return {"prompt": prompt, "completions": answers, **more}


def judged(text: str, overall: float | str | None, *ratings: int | str, model: str = "m") -> dict[str, Any]:
    """An answer as UltraFeedback has it."""
    annotations = {name: {"Rating": str(each), "Rationale": "."} for name, each in zip(ASPECTS, ratings, strict=False)}
    return {"model": model, "response": text, "overall_score": overall, "annotations": annotations}


def ultrafeedback(prompt: str, *answers: dict[str, Any], source: str = "flan") -> dict[str, Any]:
    """A row of UltraFeedback."""
    return {"source": source, "instruction": prompt, "models": [], "completions": list(answers)}


def prepare(kind: str, path: Path, output: Path, *words: object) -> dict[str, Any]:
    """Call the verb; the record that it leaves."""
    main(["prepare", kind, "--data", str(path), "--output", str(output), *map(str, words)])
    return json.loads((output / "prepared.json").read_text())


def split(output: Path, name: str) -> list[dict[str, Any]]:
    """Rows of a split."""
    return pq.read_table(output / f"{name}.parquet").to_pylist()


def pairs(output: Path) -> dict[str, dict[str, Any]]:
    """All pairs by their prompts."""
    return {row["prompt"]: row for name in ("train_prefs", "test_prefs") for row in split(output, name)}


def rejected_lines(output: Path) -> list[dict[str, Any]]:
    """What was left out."""
    return [json.loads(line) for line in (output / "rejected.jsonl").read_text().splitlines()]


def files(output: Path) -> dict[str, bytes]:
    """Everything that was written, but for the list of places."""
    found = {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("*") if path.is_file()}
    return {name: content for name, content in found.items() if name != "rejected.jsonl"}
