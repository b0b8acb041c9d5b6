"""AlpacaEval (arXiv 2305.14387, length control 2404.04475): a row of its leaderboard from a judge's preferences.

A preference is 1 where the baseline's answer is the better one, 2 where the model's is, between them where the judge's
probabilities weight it (version 2), and 1.5 (in old files 0) for a draw.
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
class LeaderboardRow:
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
    """Model of the baseline's answers."""
    n_dropped: int = 0
    """Annotations without a preference from 1 to 2, which no other field counts."""

    def to_json(self) -> dict[str, Any]:
        """Fields as JSON values, with null for NaN."""
        return {name: None if value != value else value for name, value in asdict(self).items()}


def row_of(annotations: Sequence[dict[str, Any]]) -> LeaderboardRow:
    """Leaderboard row of a model. Raises InputError where all annotations lack a preference."""
    given = [annotation.get("preference") for annotation in annotations]
    numbers = [preference_of(value) for value in given]
    good = [value for value in numbers if 1 <= value <= 2]  # NaN is neither
    if not good:
        raise InputError(
            f"Expected a `preference` from 1 to 2 in at least one of {len(annotations)} annotations, got "
            f"{truncate_repr(given[:1])} in the first."
        )
    baseline = _only(annotations, "generator_1")
    wins = [value - 1 for value in good]
    discrete = [0.5 if value == 1.5 else float(round(value) - 1) for value in good]
    lengths = [len(str(annotation["output_2"])) for annotation in annotations if "output_2" in annotation]
    return LeaderboardRow(
        win_rate=100 * fmean(wins),
        standard_error=100 * stdev(wins) / math.sqrt(len(wins)) if len(wins) > 1 else math.nan,
        n_wins=sum(value > 0.5 for value in wins),
        n_wins_base=sum(value < 0.5 for value in wins),
        n_draws=sum(value == 0.5 for value in wins),
        n_total=len(wins),
        discrete_win_rate=100 * fmean(discrete),
        avg_length=int(fmean(lengths)) if lengths else None,
        version=VERSIONS.get(baseline or ""),
        annotator=_only(annotations, "annotator"),
        baseline=baseline,
        n_dropped=len(annotations) - len(good),
    )


def preference_of(value: Any) -> float:
    """A recorded preference as a number; 0 is a draw in old files. NaN for other values."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    return 1.5 if value == 0 else float(value)


def _only(annotations: Sequence[dict[str, Any]], name: str) -> str | None:
    """The value of a column, where all annotations have the same."""
    values = {str(annotation.get(name)) for annotation in annotations if annotation.get(name) is not None}
    return values.pop() if len(values) == 1 else None


def row_with_length_control(annotations: Sequence[dict[str, Any]]) -> tuple[LeaderboardRow, str]:
    """The row with the length-controlled win rate of the package alpaca-eval, or why it is missing. Raises InputError."""
    row = row_of(annotations)
    if row.version != 2 or len(annotations) != _INSTRUCTIONS:
        return row, f"length control is defined for version 2 and all {_INSTRUCTIONS} instructions in their order"
    if find_spec("alpaca_eval") is None:
        return row, "the package alpaca-eval is not installed"
    try:
        measure = import_module("alpaca_eval.metrics").get_length_controlled_winrate
        with warnings.catch_warnings(action="ignore"):  # of its libraries about one another
            rates = measure(list(annotations), save_weights_dir=None)
    except Exception as error:  # it fetches its tables from the hub, and raises many kinds
        return row, f"the package alpaca-eval failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    rate, deviation = float(rates["length_controlled_winrate"]), float(rates["lc_standard_error"])
    return replace(row, length_controlled_winrate=rate, lc_standard_error=deviation), ""


def read_list(path: str | os.PathLike[str], content_name: str) -> list[dict[str, Any]]:
    """Objects of a JSON list or of JSON lines. Raises InputError."""
    check_regular(path)
    try:
        text = open_path(path).read_text()
        content = (
            json.loads(text)
            if text.lstrip().startswith("[")
            else [json.loads(line) for line in text.split("\n") if line]
        )
    except OSError as error:
        raise InputError(f"Could not read {content_name} from {path}: {error.strerror or error}.") from error
    except ValueError as error:
        raise InputError(f"Expected {content_name} as JSON in {path}, got: {error}.") from error
    if not content or not all(isinstance(row, dict) for row in content):
        raise InputError(f"Expected {content_name}, a list of objects, in {path}, got {truncate_repr(content)}.")
    return content


def read_instructions(path: str | None) -> list[dict[str, Any]]:
    """The instructions, from a file or the hub. Raises InputError."""
    path = path or _from_hub(_BASELINES[1], "instructions")
    rows = read_list(path, "instructions")
    if not all(isinstance(row.get("instruction"), str) for row in rows):
        raise InputError(
            f"{path}: not every row has an `instruction`. Take AlpacaEval's alpaca_eval.json, or one like it."
        )
    return rows


def open_baseline(path: str | None, version: int) -> dict[str, dict[str, Any]]:
    """The baseline's rows by instruction, from a file or the hub. Raises InputError."""
    path = path or _from_hub(_BASELINES[version], "baseline")
    rows = read_list(path, "outputs of the baseline")
    if not all(isinstance(row.get("instruction"), str) and isinstance(row.get("output"), str) for row in rows):
        raise InputError(
            f"{path}: not every row has an `instruction` and an `output`. Name the outputs of a baseline in AlpacaEval's form "
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
