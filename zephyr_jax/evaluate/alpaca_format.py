"""AlpacaEval (arXiv 2305.14387, length control 2404.04475): a row of its leaderboard from a judge's preferences.

A preference is 1 where the baseline's answer is the better one, 2 where the model's is, between them where the judge's own
probabilities weigh (version 2), and 1.5 (in old files 0) for a draw.
"""

import json
import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from statistics import fmean, stdev
from typing import Any

from huggingface_hub import hf_hub_download

from zephyr_jax.errors import InputError, truncate_repr
from zephyr_jax.storage.files import check_regular, open_path

_HUB = "tatsu-lab/alpaca_eval"
_BASELINES = {1: "alpaca_eval.json", 2: "alpaca_eval_gpt4_baseline.json"}
"""Instructions with the answers of text_davinci_003 (version 1) and of gpt4_1106_preview (version 2)."""
VERSIONS = {"text_davinci_003": 1, "gpt4_1106_preview": 2}
"""Version by the baseline's name, `generator_1` of annotations."""
JUDGES = {1: "alpaca_eval_gpt4", 2: "weighted_alpaca_eval_gpt4_turbo"}
"""AlpacaEval's names of the two ways to ask, by version."""
_INSTRUCTIONS = 805


@dataclass(frozen=True)
class Row:
    """A row of the leaderboard. Rates and errors in percent."""

    win_rate: float
    standard_error: float
    n_wins: int
    n_wins_base: int
    n_draws: int
    n_total: int
    discrete_win_rate: float
    """Each preference counted as a win, a loss or a draw."""
    avg_length: int | None
    """Characters of an answer of the model."""
    length_controlled_winrate: float | None = None
    """What the win rate would be at the baseline's length; by the package `alpaca-eval`, where it is installed."""
    lc_standard_error: float | None = None
    version: int | None = None
    """1 or 2, by the baseline, for any judge: rates against two baselines do not compare. None for any other baseline."""
    annotator: str | None = None
    baseline: str | None = None
    """Whose answers it was compared with."""
    n_dropped: int = 0
    """Annotations without a preference from 1 to 2; they count nowhere else."""

    def written(self) -> dict[str, Any]:
        """The row as an object of JSON, in which NaN has no place."""
        return {name: None if value != value else value for name, value in asdict(self).items()}


def row_of(annotations: Sequence[dict[str, Any]]) -> Row:
    """The row of a model from its annotations. Raises InputError where no preference is in them."""
    given = [each.get("preference") for each in annotations]
    numbers = [preference_of(value) for value in given]
    good = [value for value in numbers if 1 <= value <= 2]  # NaN is neither
    if not good:
        raise InputError(
            f"There is no preference from 1 to 2 in {len(annotations)} annotations; the first is {truncate_repr(given[:1])}."
        )
    baseline = _only(annotations, "generator_1")
    wins = [value - 1 for value in good]
    whole = [0.5 if value == 1.5 else float(round(value) - 1) for value in good]
    lengths = [len(str(each["output_2"])) for each in annotations if "output_2" in each]
    return Row(
        win_rate=100 * fmean(wins),
        standard_error=100 * stdev(wins) / math.sqrt(len(wins)) if len(wins) > 1 else math.nan,
        n_wins=sum(value > 0.5 for value in wins),
        n_wins_base=sum(value < 0.5 for value in wins),
        n_draws=sum(value == 0.5 for value in wins),
        n_total=len(wins),
        discrete_win_rate=100 * fmean(whole),
        avg_length=int(fmean(lengths)) if lengths else None,
        version=VERSIONS.get(baseline or ""),
        annotator=_only(annotations, "annotator"),
        baseline=baseline,
        n_dropped=len(annotations) - len(good),
    )


def preference_of(value: Any) -> float:
    """A recorded preference as a number, where 0 is an old draw; NaN where there is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    return 1.5 if value == 0 else float(value)


def _only(annotations: Sequence[dict[str, Any]], name: str) -> str | None:
    """What all rows say of themselves, if it is the same."""
    found = {str(each.get(name)) for each in annotations if each.get(name) is not None}
    return found.pop() if len(found) == 1 else None


def row_with_length_control(annotations: Sequence[dict[str, Any]]) -> tuple[Row, str]:
    """The row, with a length-controlled win rate by the package that defines it, or why there is none. Raises InputError."""
    row = row_of(annotations)
    if row.version != 2 or len(annotations) != _INSTRUCTIONS:
        return row, f"length control is defined for version 2 and all {_INSTRUCTIONS} instructions in their order"
    if find_spec("alpaca_eval") is None:
        return row, "the package alpaca-eval is not installed"
    try:
        measure = import_module("alpaca_eval.metrics").get_length_controlled_winrate
        with warnings.catch_warnings(action="ignore"):  # of its libraries about one another
            found = measure(list(annotations), save_weights_dir=None)
    except Exception as error:  # it fetches its tables from the hub, and raises many kinds
        return row, f"the package alpaca-eval says: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    rate, deviation = float(found["length_controlled_winrate"]), float(found["lc_standard_error"])
    return replace(row, length_controlled_winrate=rate, lc_standard_error=deviation), ""


def read_list(path: str | os.PathLike[str], what: str) -> list[dict[str, Any]]:
    """Objects from a JSON list, or from lines of JSON. Raises InputError."""
    check_regular(path)
    try:
        text = open_path(path).read_text()
        content = (
            json.loads(text)
            if text.lstrip().startswith("[")
            else [json.loads(line) for line in text.split("\n") if line]
        )
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror or error}. It should hold {what}.") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}). It should hold {what}.") from error
    if not content or not all(isinstance(each, dict) for each in content):
        raise InputError(f"{path} holds {truncate_repr(content)}. It should hold {what}: a list of objects.")
    return content


def read_instructions(place: str | None) -> list[dict[str, Any]]:
    """The instructions, from a file or the hub. Raises InputError."""
    place = place or _from_hub(_BASELINES[1], "instructions")
    rows = read_list(place, "instructions")
    if not all(isinstance(row.get("instruction"), str) for row in rows):
        raise InputError(
            f"{place}: not every row has an `instruction`. Take AlpacaEval's alpaca_eval.json, or one like it."
        )
    return rows


def open_baseline(place: str | None, version: int) -> dict[str, dict[str, Any]]:
    """The baseline's rows by instruction, from a file or the hub. Raises InputError."""
    place = place or _from_hub(_BASELINES[version], "baseline")
    rows = read_list(place, "outputs of the baseline")
    if not all(isinstance(row.get("instruction"), str) and isinstance(row.get("output"), str) for row in rows):
        raise InputError(
            f"{place}: not every row has an `instruction` and an `output`. Name the outputs of a baseline in AlpacaEval's form "
            "in `baseline`."
        )
    return {row["instruction"]: row for row in rows}


def _from_hub(file: str, setting: str) -> str:
    try:
        return str(hf_hub_download(_HUB, file, repo_type="dataset"))
    except Exception as error:  # the hub client raises many kinds; all mean: not to be had
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"AlpacaEval's {file} cannot be had from the hub: {reason} Name the file in `{setting}`."
        ) from error
