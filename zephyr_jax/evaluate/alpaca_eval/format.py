"""AlpacaEval's files and leaderboard rows.

A preference is 1 if the baseline's answer is better, 2 if the model's is, in between with a judge's log-probs (version 2), and
1.5 (in old files 0) for a draw.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from statistics import fmean, stdev
from typing import Any

from huggingface_hub import hf_hub_download

from zephyr_jax.data.row_formats import Row
from zephyr_jax.errors import InputError, truncate_repr
from zephyr_jax.evaluate.models import read_json_rows

_HUB = "tatsu-lab/alpaca_eval"
_BASELINES = {1: "alpaca_eval.json", 2: "alpaca_eval_gpt4_baseline.json"}
"""Instructions with the outputs of text_davinci_003 (version 1) and of gpt4_1106_preview (version 2)."""
VERSIONS = {"text_davinci_003": 1, "gpt4_1106_preview": 2}
"""Version by the baseline's name, `generator_1` of annotations."""
JUDGES = {1: "alpaca_eval_gpt4", 2: "weighted_alpaca_eval_gpt4_turbo"}
"""AlpacaEval's name of the judge, by version."""
_NUM_INSTRUCTIONS = 805


@dataclass(frozen=True)
class LeaderboardRow:
    """A row of the leaderboard. Rates and standard errors are percentages."""

    win_rate: float
    standard_error: float
    n_wins: int
    n_wins_base: int
    n_draws: int
    n_total: int
    discrete_win_rate: float
    """With each preference counted as a win, a loss or a draw."""
    avg_length: int | None
    """Characters of the model's outputs."""
    length_controlled_winrate: float | None = None
    """Win rate at the baseline's length, by the package `alpaca-eval` if it is installed."""
    lc_standard_error: float | None = None
    version: int | None = None
    """1 or 2 by the baseline, for any judge: win rates against different baselines are not comparable. None: other baseline."""
    annotator: str | None = None
    baseline: str | None = None
    n_dropped: int = 0
    """Annotations without a preference from 1 to 2; excluded everywhere else."""

    def to_json(self) -> dict[str, Any]:
        """As a JSON object, with None for NaN."""
        return {name: None if value != value else value for name, value in asdict(self).items()}


def leaderboard_row(annotations: Sequence[Row]) -> LeaderboardRow:
    """The row of a model from its annotations. Raises InputError without any preference."""
    preferences = [parse_preference(annotation.get("preference")) for annotation in annotations]
    valid = [value for value in preferences if 1 <= value <= 2]  # False for NaN
    if not valid:
        first = truncate_repr(annotations[0].get("preference"))
        raise InputError(
            f"Expected preferences from 1 to 2 in {len(annotations)} annotations, got none; the first is {first}."
        )
    baseline = _common_value(annotations, "generator_1")
    wins = [value - 1 for value in valid]
    lengths = [len(str(annotation["output_2"])) for annotation in annotations if "output_2" in annotation]
    return LeaderboardRow(
        win_rate=100 * fmean(wins),
        standard_error=100 * stdev(wins) / math.sqrt(len(wins)) if len(wins) > 1 else math.nan,
        n_wins=sum(value > 0.5 for value in wins),
        n_wins_base=sum(value < 0.5 for value in wins),
        n_draws=sum(value == 0.5 for value in wins),
        n_total=len(wins),
        discrete_win_rate=100 * fmean(0.5 if value == 1.5 else float(round(value) - 1) for value in valid),
        avg_length=int(fmean(lengths)) if lengths else None,
        version=VERSIONS.get(baseline or ""),
        annotator=_common_value(annotations, "annotator"),
        baseline=baseline,
        n_dropped=len(annotations) - len(valid),
    )


def parse_preference(value: Any) -> float:
    """A recorded preference, with 0 as a draw; NaN for anything but a number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    return 1.5 if value == 0 else float(value)


def _common_value(annotations: Sequence[Row], name: str) -> str | None:
    """The field's value if all rows that have it agree."""
    values = {str(annotation.get(name)) for annotation in annotations if annotation.get(name) is not None}
    return values.pop() if len(values) == 1 else None


def leaderboard_row_with_length_control(annotations: Sequence[Row]) -> tuple[LeaderboardRow, str]:
    """The row with a length-controlled win rate, or without it and the reason. Raises InputError."""
    row = leaderboard_row(annotations)
    if row.version != 2 or len(annotations) != _NUM_INSTRUCTIONS:
        return row, f"it is defined for version 2 and all {_NUM_INSTRUCTIONS} instructions in their order"
    if find_spec("alpaca_eval") is None:
        return row, "the package alpaca-eval is not installed"
    try:
        metric = import_module("alpaca_eval.metrics").get_length_controlled_winrate
        with warnings.catch_warnings(action="ignore"):  # of its libraries about each other
            result = metric(list(annotations), save_weights_dir=None)
    except Exception as error:  # it downloads tables from the hub, and raises many kinds
        return row, f"alpaca-eval failed with {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    rate, deviation = float(result["length_controlled_winrate"]), float(result["lc_standard_error"])
    return replace(row, length_controlled_winrate=rate, lc_standard_error=deviation), ""


def read_instructions(path: str | None) -> list[Row]:
    """The instructions from a file, or (None) from the hub. Raises InputError."""
    path = path or _download(_BASELINES[1], "instructions")
    rows = read_json_rows(path, "instructions")
    if not all(isinstance(row.get("instruction"), str) for row in rows):
        raise InputError(
            f"{path}: expected a string in `instruction` of each row, as in AlpacaEval's alpaca_eval.json."
        )
    return rows


def read_baseline(path: str | None, version: int) -> dict[str, Row]:
    """The baseline's outputs by instruction, from a file or (None) from the hub. Raises InputError."""
    path = path or _download(_BASELINES[version], "baseline")
    rows = read_json_rows(path, "outputs of the baseline")
    if not all(isinstance(row.get("instruction"), str) and isinstance(row.get("output"), str) for row in rows):
        raise InputError(
            f"{path}: expected strings in `instruction` and `output` of each row. Set `baseline` to outputs in "
            "AlpacaEval's format."
        )
    return {row["instruction"]: row for row in rows}


def _download(file: str, setting: str) -> str:
    try:
        return str(hf_hub_download(_HUB, file, repo_type="dataset"))
    except Exception as error:  # the hub client raises many kinds
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"Cannot download {file} of {_HUB}: {reason} Set `{setting}` to a local copy.") from error
