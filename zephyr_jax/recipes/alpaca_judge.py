"""The judge's half of `zephyr-jax evaluate alpaca-eval`: verdicts on pairs of answers, recorded or new, and their row."""

import json
import math
import sys
from pathlib import PurePath
from typing import Any

from zephyr_jax.errors import InputError, listing
from zephyr_jax.evaluation.agreement import Agreement, agreement
from zephyr_jax.evaluation.alpaca_eval import Row, open_baseline, read_list, row_with_length_control
from zephyr_jax.evaluation.pairwise import JUDGES, Judge, Pair, open_template
from zephyr_jax.generation.endpoint import Endpoint
from zephyr_jax.recipes.progress import bar
from zephyr_jax.storage.cloud import explained
from zephyr_jax.storage.files import Path, open_path, write_whole
from zephyr_jax.storage.journal import Journal
from zephyr_jax.verbs.benchmarks import AlpacaEvalConfig


@explained()
def replay_annotations(config: AlpacaEvalConfig) -> Row:
    """The leaderboard's row of recorded annotations, also written down. Raises InputError."""
    config.check()
    annotations = read_list(str(config.replay), "annotations with a `preference`")
    out = open_path(config.output)
    out.mkdir(parents=True, exist_ok=True)
    name = config.name or PurePath(str(config.replay)).stem
    return _write_row(out / f"{name}.row.json", annotations)


@explained()
def judge_outputs(config: AlpacaEvalConfig, path: str) -> Row:
    """Have a file of outputs judged against the baseline's; write annotations and row beside it. Raises InputError."""
    judge = _judge(config)
    outputs = read_list(path, "outputs of a model")
    baseline = open_baseline(config.baseline or (config.instructions if config.version == 1 else None), config.version)
    rows = [_annotation(each, baseline, path) for each in outputs[: config.limit]]
    out = open_path(config.output)
    out.mkdir(parents=True, exist_ok=True)
    for row, preference in zip(rows, _preferences(config, judge, rows, out), strict=True):
        row["preference"] = None if math.isnan(preference) else preference
    name = config.name or PurePath(path).stem
    write_whole(out / f"{name}.annotations.json", json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
    return _write_row(out / f"{name}.row.json", rows)


@explained()
def judge_again(config: AlpacaEvalConfig) -> Agreement:
    """Have the pairs of recorded annotations judged anew, and compare. Raises InputError."""
    config.check()
    judge = _judge(config)
    rows = read_list(str(config.replay), "annotations with a `preference`")[: config.limit]
    for row in rows:
        if missing := [name for name in ("instruction", "output_1", "output_2", "preference") if name not in row]:
            raise InputError(
                f"{config.replay}: an annotation lacks {listing(missing)}; to judge it anew takes both answers."
            )
    out = open_path(config.output)
    out.mkdir(parents=True, exist_ok=True)
    recorded = [_number(row["preference"]) for row in rows]
    anew = _preferences(config, judge, rows, out)
    return agreement(recorded, anew, [[_winner(each) for each in numbers] for numbers in (recorded, anew)])


def table(row: Row) -> str:
    """The row for people."""
    lines = ["| AlpacaEval | |", "|---|---|"]
    for name, value in row.written().items():
        if value is not None:
            lines.append(f"| {name} | {f'{value:.4f}' if isinstance(value, float) else value} |")
    return "\n".join(lines)


def _write_row(path: Path, annotations: list[dict[str, Any]]) -> Row:
    """The leaderboard's row of annotations, also written down; says where there is no length control, and why."""
    row, why = row_with_length_control(annotations)
    if why:
        print(f"no length-controlled win rate: {why}", file=sys.stderr)
    write_whole(path, json.dumps(row.written(), indent=2) + "\n")
    return row


def _judge(config: AlpacaEvalConfig) -> Judge:
    return Judge(config.version, open_template(config.prompt, config.version), config.seed, config.swap)


def _annotation(output: dict[str, Any], baseline: dict[str, dict[str, Any]], path: str) -> dict[str, Any]:
    """A row of annotations that waits for its preference."""
    instruction = output.get("instruction")
    if not isinstance(instruction, str) or not isinstance(output.get("output"), str):
        raise InputError(
            f"{path}: not every row has an `instruction` and an `output`. Take outputs in AlpacaEval's form."
        )
    if instruction not in baseline:
        raise InputError(
            f"The baseline has no answer to {instruction[:80]!r}, which {path} has. Name the baseline's outputs for the same "
            "instructions in `baseline`."
        )
    return {
        "instruction": instruction, "output_1": baseline[instruction]["output"],
        "generator_1": baseline[instruction].get("generator", "baseline"), "dataset": output.get("dataset", ""),
        "output_2": output["output"], "generator_2": output.get("generator", PurePath(path).stem),
    }  # fmt: skip


def _preferences(config: AlpacaEvalConfig, judge: Judge, rows: list[dict[str, Any]], out: Path) -> list[float]:
    """The judge's word on each row; all are marked with the way they were judged."""
    header = {"judge": config.judge, "what": "replies of a judge, by request"}
    endpoint = Endpoint(str(config.judge), config.endpoint, Journal(out / "judge.journal", header))
    asked = [judge.asks(Pair(row["instruction"], row["output_1"], row["output_2"])) for row in rows]
    flat = [ask for each in asked for _, ask in each]
    with bar("verdicts", len(flat)) as advance:
        said = endpoint.ask_all(flat, advance)
    refusals = [each.refusal for each in said if each.refusal]
    if len(refusals) == len(said):
        raise InputError(f"The judge refused all {len(said)} pairs, first: {refusals[0]}")
    if refusals:
        print(f"the judge refused {len(refusals)} of {len(said)} pairs, first: {refusals[0]}", file=sys.stderr)
    width = len(asked[0])
    found = [judge.preference(pair, said[at * width : (at + 1) * width]) for at, pair in enumerate(asked)]
    for row in rows:
        row["annotator"] = f"{JUDGES[judge.version]} by {endpoint.model}{', both orders' if judge.swap else ''}"
    if odd := sum(map(math.isnan, found)):
        print(f"{odd:,} of {len(found):,} pairs got no verdict and count nowhere", file=sys.stderr)
    if judge.version == 2 and not any(each.first_token for each in said):
        print("the judge gives no log-probs: its words were counted, nothing is weighed", file=sys.stderr)
    print(f"the judge used {endpoint.spent()}", file=sys.stderr)
    return found


def _number(preference: Any) -> float:
    """A recorded preference, where 0 is an old draw; NaN where there is none."""
    if not isinstance(preference, int | float):
        return math.nan
    return 1.5 if preference == 0 else float(preference)


def _winner(preference: float) -> float:
    return (preference > 1.5) - (preference < 1.5)
