"""`zephyr-jax feedback rate`: a judge's ratings of answers, in the form of openbmb/UltraFeedback."""

from collections.abc import Callable, Iterable
from functools import partial
from itertools import batched
from typing import Any

from zephyr_jax.clients.base import ChatModel, ChatResponse
from zephyr_jax.config.feedback import RateConfig
from zephyr_jax.data.row_reader import Columns
from zephyr_jax.data.sources import read_rows
from zephyr_jax.errors import InputError, truncate_repr
from zephyr_jax.feedback.estimate import Estimate, estimate
from zephyr_jax.feedback.judging import SHEETS, Bench, Sheet, rated_row, sheets
from zephyr_jax.feedback.judgment import BadJudgment, Rating
from zephyr_jax.feedback.models import Voices
from zephyr_jax.feedback.setup import open_folder, say, write_rows
from zephyr_jax.progress import progress_bar

type Row = dict[str, Any]
_TOGETHER = 256  # rows whose prompts are in memory at one time


def feedback_rate(config: RateConfig) -> str:
    """What came of it, in words. Killed, the same command goes on and asks for nothing twice. Raises InputError."""
    rows, aside = _read(config)
    folder = open_folder(config.output)
    voices = Voices("feedback rate", config, config.temperature, folder, keep=True)
    judge = voices.open(config.judge)
    bench = Bench(
        judge.temperature, config.max_new_tokens, config.top_p, config.max_answer_chars, config.seed, config.send_seed
    )
    total = sum((_estimate(judge, each, bench) for each in batched(rows, _TOGETHER)), Estimate())
    ahead = f"{total.words()}, and again for judgments that cannot be used"
    if config.estimate:
        return ahead
    say(ahead)
    rated: list[Row] = []
    with progress_bar("judgments", len(rows) * SHEETS) as advance:
        for place, some in enumerate(batched(rows, _TOGETHER)):
            done = partial(lambda before, count: advance(before + count), place * _TOGETHER * SHEETS)
            for row, found in zip(some, _rate(judge, some, bench, done), strict=True):
                if isinstance(found, str):
                    aside.append({"reason": found, **row})
                else:
                    rated.append({**rated_row(row, found), "judge": judge.name})
    return f"{write_rows(folder, rated, aside)}{voices.spent()}"


def _read(config: RateConfig) -> tuple[list[Row], list[Row]]:
    """Rows with answers, and those that have none. Raises InputError for rows of another kind."""
    columns = Columns()
    found = [row.content for row in read_rows(config.data, config.split, limit=config.limit, columns=columns)]
    missing = [name for name in ("instruction", "completions") if name not in columns.fields]
    if missing:
        raise InputError(
            f"{config.data} has no column {' and no '.join(missing)}; it has {', '.join(sorted(columns.fields))}. Rows to "
            "rate are those of `zephyr-jax feedback answers`, or of openbmb/UltraFeedback."
        )
    good: list[Row] = []
    bad: list[Row] = []
    for row in found:
        problem = _problem(row)
        if problem:
            bad.append({"reason": problem, **row})
        else:
            good.append(row)
    return good, bad


def _problem(row: Row) -> str:
    """Why a row cannot be rated; nothing where it can."""
    completions = row["completions"]
    if not isinstance(row["instruction"], str) or not row["instruction"].strip():
        return f"the instruction is {truncate_repr(row['instruction'])}"
    if not isinstance(completions, list) or not completions:
        return "there are no answers"
    responses = [each.get("response") if isinstance(each, dict) else None for each in completions]
    empty = [place for place, text in enumerate(responses) if not isinstance(text, str) or not text.strip()]
    return f"answer {empty[0] + 1} has no text" if empty else ""


def _sheets(rows: Iterable[Row], bench: Bench) -> list[Sheet]:
    return [
        sheet
        for place, row in enumerate(rows)
        for sheet in sheets(place, row["instruction"], [each["response"] for each in row["completions"]], bench)
    ]


def _estimate(judge: ChatModel, rows: Iterable[Row], bench: Bench) -> Estimate:
    return estimate(judge, judge.client.unanswered([sheet.ask for sheet in _sheets(rows, bench)]))


def _rate(
    judge: ChatModel, rows: tuple[Row, ...], bench: Bench, done: Callable[[int], None]
) -> list[dict[str, list[Rating]] | str]:
    """Of each row its ratings by aspect, or why there are none. What cannot be used is asked for once more."""
    asked = _sheets(rows, bench)
    first = judge.client.complete([sheet.ask for sheet in asked], done)
    found = [_ratings(sheet, said) for sheet, said in zip(asked, first, strict=True)]
    bad = {place: each for place, each in enumerate(found) if isinstance(each, BadJudgment)}
    second = judge.client.complete([asked[place].repair(first[place].text, reason) for place, reason in bad.items()])
    for place, said in zip(bad, second, strict=True):
        found[place] = _ratings(asked[place], said)
    ratings: list[dict[str, list[Rating]] | str] = [{} for _ in rows]
    for sheet, each in zip(asked, found, strict=True):
        whole = ratings[sheet.row]
        if isinstance(each, list) and not isinstance(whole, str):
            whole[sheet.aspect.name] = each
        elif not isinstance(each, list) and not isinstance(whole, str):
            ratings[sheet.row] = f"{sheet.aspect.name}: {each}"
    return ratings


def _ratings(sheet: Sheet, said: ChatResponse) -> list[Rating] | BadJudgment | str:
    """Ratings, or what is wrong with the judgment, or why there is none."""
    if said.refusal:
        return f"the judge's model refused: {said.refusal}"
    try:
        return sheet.ratings(said.text)
    except BadJudgment as bad:
        return BadJudgment("it was longer than allowed, and so has no end") if said.truncated else bad


def main(config: RateConfig, command: str) -> str:
    """`zephyr-jax feedback rate`."""
    return feedback_rate(config)
