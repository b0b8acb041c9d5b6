"""The judge's half of `zephyr-jax evaluate alpaca-eval`: verdicts on pairs of answers, recorded or new, and their row."""

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
    Row,
    open_baseline,
    preference_of,
    read_instructions,
    read_list,
    row_with_length_control,
)
from zephyr_jax.evaluate.pairwise import Judge, Pair, open_template
from zephyr_jax.storage.files import Path, open_path, write_atomic
from zephyr_jax.storage.journal import Journal


@dataclass(frozen=True)
class Jury:
    """A judge with all that it needs, opened before anything is paid for."""

    judge: Judge
    endpoint: RemoteClient
    baseline: dict[str, dict[str, Any]]
    """The baseline's rows by instruction; empty where recorded pairs are judged."""


def open_jury(config: AlpacaEvalConfig) -> Jury:
    """The judge's prompt, its address, and the answers to compare with. Raises InputError."""
    judge = Judge(config.version, open_template(config.judge_prompt, config.version), config.seed, config.swap_order)
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
    return Jury(judge, endpoint, baseline)


def judge_outputs(config: AlpacaEvalConfig, jury: Jury, path: str) -> Row:
    """Have a file of outputs judged against the baseline's; write annotations and row beside it. Raises InputError."""
    outputs = read_list(path, "outputs of a model")[: config.limit]
    rows = [_annotation(each, jury.baseline, path) for each in outputs]
    place = {instruction: number for number, instruction in enumerate(jury.baseline)}
    rows.sort(key=lambda row: place[row["instruction"]])  # length control goes by the place
    return _write(config, PurePath(path).stem, _judged(jury, rows))


def replay_annotations(config: AlpacaEvalConfig) -> Row:
    """The leaderboard's row of recorded annotations, also written down. Raises InputError."""
    rows = read_list(str(config.annotations), "annotations with a `preference`")[: config.limit]
    out = open_path(config.output)
    out.mkdir(parents=True, exist_ok=True)
    row = _write_row(out / f"{_name(config, rows)}.row.json", rows)
    if row.n_dropped:
        print(f"{row.n_dropped:,} of {len(rows):,} annotations hold no preference and count nowhere", file=sys.stderr)
    pairs = Counter((str(each.get("instruction")), str(each.get("output_2"))) for each in rows if "instruction" in each)
    if twice := sum(count > 1 for count in pairs.values()):
        print(f"warning: {twice:,} pairs are annotated more than once: every annotation counts", file=sys.stderr)
    return row


def judge_again(config: AlpacaEvalConfig, jury: Jury) -> Agreement:
    """Have the pairs of recorded annotations judged anew; write the new ones and how far they agree. Raises InputError."""
    recorded = read_list(str(config.annotations), "annotations with a `preference`")[: config.limit]
    for row in recorded:
        if wrong := [name for name in ("instruction", "output_1", "output_2") if not isinstance(row.get(name), str)]:
            raise InputError(
                f"{config.annotations}: {join_items(wrong)} of an annotation is no text; to judge it anew takes both answers."
            )
    rows = _judged(jury, [{**row} for row in recorded])
    _write(config, _name(config, recorded), rows)
    before, after = ([preference_of(row.get("preference")) for row in each] for each in (recorded, rows))
    found = agreement(before, after, [list(map(_winner, before)), list(map(_winner, after))])
    write_atomic(open_path(config.output) / "agreement.json", found.written())
    return found


def _name(config: AlpacaEvalConfig, rows: list[dict[str, Any]]) -> str:
    """What the files call the model: as asked, else as all rows do, else after the file."""
    models = {str(row.get("generator_2")) for row in rows}
    only = models.pop() if len(models) == 1 else "None"
    return file_name(config.name or (only if only != "None" else PurePath(str(config.annotations)).stem))


def _write(config: AlpacaEvalConfig, name: str, rows: list[dict[str, Any]]) -> Row:
    stem = file_name(config.name or name) + ("" if config.version == 1 else ".v2")
    out = open_path(config.output)
    write_atomic(out / f"{stem}.annotations.json", json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
    return _write_row(out / f"{stem}.row.json", rows)


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
    write_atomic(path, json.dumps(row.written(), indent=2) + "\n")
    return row


def _annotation(output: dict[str, Any], baseline: dict[str, dict[str, Any]], path: str) -> dict[str, Any]:
    """A row of annotations that waits for its preference."""
    instruction = output.get("instruction")
    if not isinstance(instruction, str) or not isinstance(output.get("output"), str):
        raise InputError(
            f"{path}: not every row has an `instruction` and an `output`. Take outputs in AlpacaEval's form."
        )
    answer = _answer_of_baseline(baseline, instruction)
    return {
        "instruction": instruction, "output_1": answer["output"], "generator_1": answer.get("generator", "baseline"),
        "dataset": output.get("dataset", ""), "output_2": output["output"],
        "generator_2": output.get("generator", PurePath(path).stem),
    }  # fmt: skip


def _answer_of_baseline(baseline: dict[str, dict[str, Any]], instruction: str) -> dict[str, Any]:
    if instruction not in baseline:
        raise InputError(
            f"The baseline has no answer to {instruction[:80]!r}. Name the baseline's outputs for the same instructions in "
            "`baseline`."
        )
    return baseline[instruction]


def _judged(jury: Jury, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with the judge's word on each, and marked with the way they were judged."""
    judge, endpoint = jury.judge, jury.endpoint
    asked = [judge.asks(Pair(row["instruction"], row["output_1"], row["output_2"])) for row in rows]
    flat = [ask for each in asked for _, ask in each]
    said = collect_responses(endpoint, flat, "verdicts", "judge") if flat else []
    replies = iter(said)
    found = [judge.preference(pair, [next(replies) for _ in pair]) for pair in asked]
    way = f"{JUDGES[judge.version]} by {endpoint.model}{', both orders' if judge.swap else ''}"
    for row, preference in zip(rows, found, strict=True):
        row |= {"annotator": way, "preference": None if math.isnan(preference) else preference}
    if odd := sum(map(math.isnan, found)):
        print(f"{odd:,} of {len(found):,} pairs got no verdict and count nowhere", file=sys.stderr)
    if judge.version == 2 and said and not any(each.first_token_logprobs for each in said):
        print("the judge gives no log-probs: its words were counted, nothing is weighed", file=sys.stderr)
    print(f"the judge used {endpoint.usage_summary()}", file=sys.stderr)
    return rows


def _winner(preference: float) -> float:
    return (preference > 1.5) - (preference < 1.5)


def main(config: AlpacaEvalConfig, command: str) -> str:
    """`zephyr-jax evaluate alpaca-eval`."""
    jury = open_jury(config) if config.judge else None
    if config.annotations:
        return judge_again(config, jury).report() if jury else table(replay_annotations(config))
    path = config.outputs or model_outputs(config)
    return table(judge_outputs(config, jury, path)) if jury else f"{path}\nTo have them judged, pass --judge."
