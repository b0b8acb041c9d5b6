"""AlpacaEval's judge: verdicts on pairs of answers, new or recorded, and the leaderboard row."""

import json
import logging
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import PurePath

from zephyr_jax.clients.base import ChatModel
from zephyr_jax.clients.open import ModelOpener
from zephyr_jax.clients.responses import collect_responses
from zephyr_jax.config.benchmarks import AlpacaEvalConfig
from zephyr_jax.data.row_formats import Row
from zephyr_jax.errors import InputError, join_items
from zephyr_jax.evaluate.agreement import Agreement, agreement
from zephyr_jax.evaluate.alpaca_eval.format import (
    JUDGES,
    LeaderboardRow,
    leaderboard_row_with_length_control,
    parse_preference,
    read_baseline,
    read_instructions,
)
from zephyr_jax.evaluate.alpaca_eval.pairwise import AnswerPair, PairwisePrompt, read_judge_prompt
from zephyr_jax.evaluate.models import file_name, read_json_rows
from zephyr_jax.storage.files import Path, write_atomic

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PairwiseJudge:
    """A judge with everything that it needs."""

    model: ChatModel
    prompt: PairwisePrompt
    baseline: dict[str, Row]
    """Instruction -> the baseline's output; empty for recorded pairs."""

    @property
    def annotator(self) -> str:
        """Its name in annotations."""
        return f"{JUDGES[self.prompt.version]} by {self.model.name}{', both orders' if self.prompt.swap_order else ''}"


def open_judge(config: AlpacaEvalConfig, opener: ModelOpener) -> PairwiseJudge:
    """The judge's prompt, its client, and the outputs to compare with. Raises InputError."""
    template = read_judge_prompt(config.judge_prompt, config.version)
    baseline = {}
    if not config.annotations:
        source = config.baseline or (config.instructions if config.version == 1 else None)
        baseline = read_baseline(source, config.version)
        for row in read_instructions(config.instructions)[: config.limit] if config.instructions else ():
            _baseline_output(baseline, row["instruction"])
    prompt = PairwisePrompt(config.version, template, config.seed, config.swap_order)
    return PairwiseJudge(opener.open(str(config.judge)), prompt, baseline)


def judge_outputs(config: AlpacaEvalConfig, judge: PairwiseJudge, path: str, folder: Path) -> LeaderboardRow:
    """Compare a file of outputs with the baseline; write annotations and the leaderboard row. Raises InputError."""
    outputs = read_json_rows(path, "outputs of a model")[: config.limit]
    rows = [_unjudged_row(output, judge.baseline, path) for output in outputs]
    position = {instruction: index for index, instruction in enumerate(judge.baseline)}
    rows.sort(key=lambda row: position[row["instruction"]])  # length control depends on the order
    return _write(config, PurePath(path).stem, _judge(judge, rows), folder)


def replay_annotations(config: AlpacaEvalConfig, folder: Path) -> LeaderboardRow:
    """The leaderboard row of recorded annotations, also written to a file. Raises InputError."""
    rows = _recorded_annotations(config)
    row = _write_row(folder / f"{_model_name(config, rows)}.row.json", rows)
    if row.n_dropped:
        logger.warning("%d of %d annotations have no preference and are excluded", row.n_dropped, len(rows))
    pairs = Counter((str(row.get("instruction")), str(row.get("output_2"))) for row in rows if "instruction" in row)
    if repeated := sum(count > 1 for count in pairs.values()):
        logger.warning("%d pairs are annotated more than once; all annotations count", repeated)
    return row


def rejudge(config: AlpacaEvalConfig, judge: PairwiseJudge, folder: Path) -> Agreement:
    """Judge the pairs of recorded annotations again; write annotations, row and agreement. Raises InputError."""
    recorded = _recorded_annotations(config)
    for row in recorded:
        if wrong := [name for name in ("instruction", "output_1", "output_2") if not isinstance(row.get(name), str)]:
            raise InputError(
                f"{config.annotations}: expected strings in instruction, output_1 and output_2 of each annotation; not a string: "
                f"{join_items(wrong)}."
            )
    rows = _judge(judge, recorded)
    _write(config, _model_name(config, recorded), rows, folder)
    before, after = ([parse_preference(row.get("preference")) for row in part] for part in (recorded, rows))
    result = agreement(before, after, [list(map(_winner, before)), list(map(_winner, after))])
    write_atomic(folder / "agreement.json", result.to_json())
    return result


def format_row(row: LeaderboardRow) -> str:
    """The row as a Markdown table."""
    lines = ["| AlpacaEval | |", "|---|---|"]
    for name, value in row.to_json().items():
        if value is not None:
            lines.append(f"| {name} | {f'{value:.4f}' if isinstance(value, float) else value} |")
    return "\n".join(lines)


def _recorded_annotations(config: AlpacaEvalConfig) -> list[Row]:
    return read_json_rows(str(config.annotations), "annotations with a `preference`")[: config.limit]


def _model_name(config: AlpacaEvalConfig, rows: list[Row]) -> str:
    """The model's name in file names: from the settings, else from the rows if they agree, else the file's."""
    names = [row.get("generator_2") for row in rows]
    agree = names and names[0] is not None and all(name == names[0] for name in names)
    return file_name(config.name or (str(names[0]) if agree else PurePath(str(config.annotations)).stem))


def _write(config: AlpacaEvalConfig, name: str, rows: list[Row], folder: Path) -> LeaderboardRow:
    stem = file_name(config.name or name) + ("" if config.version == 1 else ".v2")
    write_atomic(folder / f"{stem}.annotations.json", json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
    return _write_row(folder / f"{stem}.row.json", rows)


def _write_row(path: Path, annotations: list[Row]) -> LeaderboardRow:
    row, reason = leaderboard_row_with_length_control(annotations)
    if reason:
        logger.info("no length-controlled win rate: %s", reason)
    write_atomic(path, json.dumps(row.to_json(), indent=2) + "\n")
    return row


def _unjudged_row(output: Row, baseline: dict[str, Row], path: str) -> Row:
    """An annotation without its preference."""
    instruction = output.get("instruction")
    if not isinstance(instruction, str) or not isinstance(output.get("output"), str):
        raise InputError(
            f"{path}: expected strings in `instruction` and `output` of each row, as in AlpacaEval's outputs."
        )
    reference = _baseline_output(baseline, instruction)
    return {
        "instruction": instruction,
        "output_1": reference["output"],
        "generator_1": reference.get("generator", "baseline"),
        "dataset": output.get("dataset", ""),
        "output_2": output["output"],
        "generator_2": output.get("generator", PurePath(path).stem),
    }


def _baseline_output(baseline: dict[str, Row], instruction: str) -> Row:
    if instruction not in baseline:
        raise InputError(
            f"The baseline has no answer to {instruction[:80]!r}. Set `baseline` to outputs for the same instructions."
        )
    return baseline[instruction]


def _judge(judge: PairwiseJudge, rows: list[Row]) -> list[Row]:
    """The rows with the judge's preferences."""
    requests = [judge.prompt.requests(AnswerPair(row["instruction"], row["output_1"], row["output_2"])) for row in rows]
    flat = [request for pair in requests for _, request in pair]
    responses = collect_responses(judge.model.client, flat, "verdicts", "judge") if flat else []
    remaining = iter(responses)
    preferences = [judge.prompt.preference(pair, [next(remaining) for _ in pair]) for pair in requests]
    verdicts = [None if math.isnan(preference) else preference for preference in preferences]
    if invalid := sum(map(math.isnan, preferences)):
        logger.warning("%d of %d pairs have no valid verdict and are excluded", invalid, len(preferences))
    if judge.prompt.version == 2 and responses and not any(response.first_token_logprobs for response in responses):
        logger.warning("judge returned no logprobs; using hard win counts")
    return [
        {**row, "annotator": judge.annotator, "preference": verdict}
        for row, verdict in zip(rows, verdicts, strict=True)
    ]


def _winner(preference: float) -> float:
    return (preference > 1.5) - (preference < 1.5)
