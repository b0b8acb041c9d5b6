"""AlpacaEval judging: verdicts on pairs of answers, recorded or new, and the leaderboard row."""

import json
import math
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from zephyr_jax.clients.remote import RemoteClient
from zephyr_jax.clients.reply import entry_problem
from zephyr_jax.clients.responses import collect_responses
from zephyr_jax.config.benchmarks import AlpacaEvalConfig
from zephyr_jax.errors import InputError, join_items
from zephyr_jax.evaluate.agreement import Agreement, agreement
from zephyr_jax.evaluate.alpaca_eval import file_name, model_outputs
from zephyr_jax.evaluate.alpaca_format import (
    JUDGES,
    LeaderboardRow,
    open_baseline,
    preference_of,
    read_instructions,
    read_list,
    row_with_length_control,
)
from zephyr_jax.evaluate.pairwise import Pair, PairwiseJudge, open_template
from zephyr_jax.storage.files import Path, open_path, write_atomic
from zephyr_jax.storage.journal import Journal


@dataclass(frozen=True)
class OpenedJudge:
    """A judge with its endpoint and baseline, opened before the first paid request."""

    judge: PairwiseJudge
    endpoint: RemoteClient
    baseline: dict[str, dict[str, Any]]
    """The baseline's rows by instruction; empty for recorded pairs."""


def open_judge(config: AlpacaEvalConfig) -> OpenedJudge:
    """Open the judge prompt, the endpoint and the baseline. Raises InputError."""
    judge = PairwiseJudge(
        config.version, open_template(config.judge_prompt, config.version), config.seed, config.swap_order
    )
    baseline = {}
    if not config.annotations:
        own = config.instructions if config.version == 1 else None
        baseline = open_baseline(config.baseline or own, config.version)
        if config.instructions:
            for row in read_instructions(config.instructions)[: config.limit]:
                _answer_of_baseline(baseline, row["instruction"])
    out = open_path(config.output)
    out.mkdir(parents=True, exist_ok=True)
    header = {"judge": config.judge, "what": "replies of a judge, by request"}
    endpoint = RemoteClient(str(config.judge), config.endpoint, Journal(out / "judge.journal", header, entry_problem))
    return OpenedJudge(judge, endpoint, baseline)


def judge_outputs(config: AlpacaEvalConfig, opened: OpenedJudge, path: str) -> LeaderboardRow:
    """Judge a file of outputs against the baseline; write annotations and the leaderboard row. Raises InputError."""
    outputs = read_list(path, "outputs of a model")[: config.limit]
    rows = [_annotation(output, opened.baseline, path) for output in outputs]
    position = {instruction: index for index, instruction in enumerate(opened.baseline)}
    rows.sort(key=lambda row: position[row["instruction"]])  # length control depends on the order
    return _write(config, PurePath(path).stem, _judge(opened, rows))


def replay_annotations(config: AlpacaEvalConfig) -> LeaderboardRow:
    """Leaderboard row of recorded annotations; writes it. Raises InputError."""
    rows = read_list(str(config.annotations), "annotations with a `preference`")[: config.limit]
    out = open_path(config.output)
    out.mkdir(parents=True, exist_ok=True)
    result = _write_row(out / f"{_name(config, rows)}.row.json", rows)
    if result.n_dropped:
        print(f"{result.n_dropped:,} of {len(rows):,} annotations have no preference and are skipped", file=sys.stderr)
    pairs = Counter((str(row.get("instruction")), str(row.get("output_2"))) for row in rows if "instruction" in row)
    if twice := sum(count > 1 for count in pairs.values()):
        print(f"warning: {twice:,} pairs are annotated more than once: every annotation counts", file=sys.stderr)
    return result


def judge_again(config: AlpacaEvalConfig, opened: OpenedJudge) -> Agreement:
    """Judge recorded pairs again; write the new annotations and their agreement. Raises InputError."""
    recorded = read_list(str(config.annotations), "annotations with a `preference`")[: config.limit]
    for row in recorded:
        if wrong := [name for name in ("instruction", "output_1", "output_2") if not isinstance(row.get(name), str)]:
            raise InputError(
                f"{config.annotations}: expected text in {join_items(wrong)} of every annotation; judging "
                "again needs both answers."
            )
    rows = _judge(opened, [{**row} for row in recorded])
    _write(config, _name(config, recorded), rows)
    before, after = ([preference_of(row.get("preference")) for row in annotations] for annotations in (recorded, rows))
    result = agreement(before, after, [list(map(_winner, before)), list(map(_winner, after))])
    write_atomic(open_path(config.output) / "agreement.json", result.to_json())
    return result


def _name(config: AlpacaEvalConfig, rows: list[dict[str, Any]]) -> str:
    """Model name for files: `name`, else the generator of all rows, else the file name."""
    models = {str(row.get("generator_2")) for row in rows}
    only = models.pop() if len(models) == 1 else "None"
    return file_name(config.name or (only if only != "None" else PurePath(str(config.annotations)).stem))


def _write(config: AlpacaEvalConfig, name: str, rows: list[dict[str, Any]]) -> LeaderboardRow:
    stem = file_name(config.name or name) + ("" if config.version == 1 else ".v2")
    out = open_path(config.output)
    write_atomic(out / f"{stem}.annotations.json", json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
    return _write_row(out / f"{stem}.row.json", rows)


def table(row: LeaderboardRow) -> str:
    """The row as a Markdown table."""
    lines = ["| AlpacaEval | |", "|---|---|"]
    for name, value in row.to_json().items():
        if value is not None:
            lines.append(f"| {name} | {f'{value:.4f}' if isinstance(value, float) else value} |")
    return "\n".join(lines)


def _write_row(path: Path, annotations: list[dict[str, Any]]) -> LeaderboardRow:
    """Leaderboard row of annotations; writes it, and prints why the length-controlled rate is missing."""
    row, reason = row_with_length_control(annotations)
    if reason:
        print(f"no length-controlled win rate: {reason}", file=sys.stderr)
    write_atomic(path, json.dumps(row.to_json(), indent=2) + "\n")
    return row


def _annotation(output: dict[str, Any], baseline: dict[str, dict[str, Any]], path: str) -> dict[str, Any]:
    """An annotation without its preference."""
    instruction = output.get("instruction")
    if not isinstance(instruction, str) or not isinstance(output.get("output"), str):
        raise InputError(
            f"{path}: not every row has an `instruction` and an `output`. Take outputs in AlpacaEval's form."
        )
    answer = _answer_of_baseline(baseline, instruction)
    return {
        "instruction": instruction,
        "output_1": answer["output"],
        "generator_1": answer.get("generator", "baseline"),
        "dataset": output.get("dataset", ""),
        "output_2": output["output"],
        "generator_2": output.get("generator", PurePath(path).stem),
    }


def _answer_of_baseline(baseline: dict[str, dict[str, Any]], instruction: str) -> dict[str, Any]:
    if instruction not in baseline:
        raise InputError(
            f"The baseline has no answer to {instruction[:80]!r}. Set `baseline` to the baseline's outputs for the same "
            "instructions."
        )
    return baseline[instruction]


def _judge(opened: OpenedJudge, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add `preference` and `annotator` to annotations."""
    judge, endpoint = opened.judge, opened.endpoint
    requests = [judge.requests(Pair(row["instruction"], row["output_1"], row["output_2"])) for row in rows]
    flat = [request for pair in requests for _, request in pair]
    responses = collect_responses(endpoint, flat, "verdicts", "judge") if flat else []
    remaining = iter(responses)
    preferences = [judge.preference(pair, [next(remaining) for _ in pair]) for pair in requests]
    annotator = f"{JUDGES[judge.version]} by {endpoint.model}{', both orders' if judge.swap else ''}"
    for row, preference in zip(rows, preferences, strict=True):
        row |= {"annotator": annotator, "preference": None if math.isnan(preference) else preference}
    if invalid := sum(map(math.isnan, preferences)):
        print(f"{invalid:,} of {len(preferences):,} pairs got no verdict and are skipped", file=sys.stderr)
    if judge.version == 2 and responses and not any(response.first_token_logprobs for response in responses):
        print("judge returned no logprobs; using hard win counts", file=sys.stderr)
    print(f"judge used {endpoint.usage_summary()}", file=sys.stderr)
    return rows


def _winner(preference: float) -> float:
    return (preference > 1.5) - (preference < 1.5)


def main(config: AlpacaEvalConfig, command: str) -> str:
    """`zephyr-jax evaluate alpaca-eval`."""
    opened = open_judge(config) if config.judge else None
    if config.annotations:
        return judge_again(config, opened).report() if opened else table(replay_annotations(config))
    path = config.outputs or model_outputs(config)
    return table(judge_outputs(config, opened, path)) if opened else f"{path}\nPass --judge to judge them."
