"""`zephyr-jax feedback rate`: a judge's ratings of answers, in the format of openbmb/UltraFeedback."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import batched

from zephyr_jax.clients.base import ChatModel, ChatResponse, Progress, progress_after
from zephyr_jax.config.feedback import RateConfig
from zephyr_jax.data.row_formats import Row
from zephyr_jax.data.row_reader import Columns
from zephyr_jax.data.sources import read_rows
from zephyr_jax.errors import InputError, join_items, truncate_repr
from zephyr_jax.feedback.judge_prompt import NUM_ASPECTS, RatingPrompt, rated_row, rating_prompts
from zephyr_jax.feedback.judgment import BadJudgment, Rating
from zephyr_jax.feedback.session import Estimate, Session, estimate_requests
from zephyr_jax.progress import progress_bar

logger = logging.getLogger(__name__)

_CHUNK_ROWS = 256  # rows whose prompts are in memory at a time

type RowRatings = dict[str, list[Rating]]
"""Aspect -> ratings of the row's answers."""


def main(config: RateConfig, command: str = "") -> str:
    """Request the ratings and write the rows. Rerun after a kill, it continues and requests nothing twice.

    Returns:
        A summary, or with `config.estimate` the estimate.

    Raises:
        InputError: Bad settings or rows, an endpoint that fails, or an exhausted budget.
    """
    rows, rejected = _read_rows(config)
    session = Session("feedback rate", config, config.temperature, keep=True)
    judge = session.models.open(config.judge)
    config = replace(config, temperature=judge.temperature)
    estimate = sum((_estimate(judge, chunk, config) for chunk in batched(rows, _CHUNK_ROWS)), Estimate())
    if config.estimate:
        return f"{estimate}, plus one retry of each invalid judgment"
    logger.info("%s, plus one retry of each invalid judgment", estimate)
    rated: list[Row] = []
    with progress_bar("judgments", len(rows) * NUM_ASPECTS) as advance:
        for number, chunk in enumerate(batched(rows, _CHUNK_ROWS)):
            before = number * _CHUNK_ROWS * NUM_ASPECTS
            results = _rate(judge, chunk, config, progress_after(before, advance))
            for row, ratings in zip(chunk, results, strict=True):
                if isinstance(ratings, str):
                    rejected.append({"reason": ratings, **row})
                else:
                    rated.append({**rated_row(row, ratings), "judge": judge.name})
    return session.write_rows(rated, rejected)


def _read_rows(config: RateConfig) -> tuple[list[Row], list[Row]]:
    """Rows with answers, and rejected rows. Raises InputError where columns are missing."""
    columns = Columns()
    rows: list[Row] = [row.content for row in read_rows(config.data, config.split, limit=config.limit, columns=columns)]
    if missing := [name for name in ("instruction", "completions") if name not in columns.fields]:
        raise InputError(
            f"{config.data}: expected the columns instruction and completions, got {join_items(sorted(columns.fields))}; "
            f"missing: {join_items(missing)}. Rate rows of `zephyr-jax feedback answers` or of openbmb/UltraFeedback."
        )
    reasons = [_reject_reason(row) for row in rows]
    accepted = [row for row, reason in zip(rows, reasons, strict=True) if not reason]
    return accepted, [{"reason": reason, **row} for row, reason in zip(rows, reasons, strict=True) if reason]


def _reject_reason(row: Row) -> str:
    """Why a row cannot be rated; empty if it can."""
    instruction, completions = row["instruction"], row["completions"]
    if not isinstance(instruction, str) or not instruction.strip():
        return f"expected text in instruction, got {truncate_repr(instruction)}"
    if not isinstance(completions, list) or not completions:
        return "no completions"
    for number, completion in enumerate(completions, 1):
        response = completion.get("response") if isinstance(completion, dict) else None
        if not isinstance(response, str) or not response.strip():
            return f"completion {number} has no text"
    return ""


def _prompts(rows: Iterable[Row], config: RateConfig) -> list[RatingPrompt]:
    return [
        prompt
        for index, row in enumerate(rows)
        for prompt in rating_prompts(
            index, row["instruction"], [completion["response"] for completion in row["completions"]], config
        )
    ]


def _estimate(judge: ChatModel, rows: Iterable[Row], config: RateConfig) -> Estimate:
    requests = [prompt.request for prompt in _prompts(rows, config)]
    return estimate_requests(judge, judge.client.unanswered(requests))


def _rate(judge: ChatModel, rows: Sequence[Row], config: RateConfig, progress: Progress) -> list[RowRatings | str]:
    """The ratings of each row, or why it has none. An invalid judgment is requested once more, with the problem."""
    prompts = _prompts(rows, config)
    responses = judge.client.complete([prompt.request for prompt in prompts], progress)
    judgments = [_parse(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
    invalid = {index: judgment for index, judgment in enumerate(judgments) if isinstance(judgment, BadJudgment)}
    retries = judge.client.complete(
        [prompts[index].retry_request(responses[index].text, problem) for index, problem in invalid.items()]
    )
    for index, response in zip(invalid, retries, strict=True):
        judgments[index] = _parse(prompts[index], response)
    results: list[RowRatings | str] = [{} for _ in rows]
    for prompt, judgment in zip(prompts, judgments, strict=True):
        result = results[prompt.row]
        if isinstance(result, str):
            continue
        if isinstance(judgment, list):
            result[prompt.aspect.name] = judgment
        else:
            results[prompt.row] = f"{prompt.aspect.name}: {judgment}"
    return results


def _parse(prompt: RatingPrompt, response: ChatResponse) -> list[Rating] | BadJudgment | str:
    """The ratings, what is wrong with the judgment, or why it is missing."""
    if response.refusal:
        return f"judge refused: {response.refusal}"
    try:
        return prompt.parse(response.text)
    except BadJudgment as error:
        return BadJudgment("it is longer than allowed, so its end is missing") if response.truncated else error
