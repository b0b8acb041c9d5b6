"""The paper's tables: published rows and measured ones side by side, as Markdown, as CSV and as an SVG picture."""

import csv
import io
import json
import logging
import pathlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import yaml

from zephyr_jax.charts.bars import Bar, bar_chart
from zephyr_jax.charts.chart import LegendEntry
from zephyr_jax.charts.picture import picture
from zephyr_jax.errors import InputError, truncate_repr
from zephyr_jax.storage.files import Path, check_regular, open_path

logger = logging.getLogger(__name__)

GROUPS = ("chat", "ablation")


@dataclass(frozen=True)
class Result:
    """Scores of a model; None where not measured."""

    model: str
    source: str
    """The publication, or the folder of the result files."""
    group: Literal["chat", "ablation", "measured"]
    size: float | None = None
    """Billions of parameters."""
    alignment: str = ""
    mt_bench: float | None = None
    alpaca_eval: float | None = None
    error: float | None = None
    """Standard error of `alpaca_eval`, in percent."""
    mt_error: float | None = None
    """Standard error of `mt_bench`."""


def published() -> list[Result]:
    """Published rows."""
    rows = yaml.safe_load(pathlib.Path(__file__).with_name("published.yaml").read_text())
    return [Result(**row) for row in rows]


def measured(folders: Iterable[str]) -> list[Result]:
    """Results of `evaluate mt-bench` and `evaluate alpaca-eval` in folders, one per model. Raises InputError."""
    results: dict[str, dict[str, Any]] = {}
    for folder in folders:
        if not open_path(folder).is_dir():
            raise InputError(
                f"Expected a folder written by `evaluate mt-bench` or `evaluate alpaca-eval`, got {folder}."
            )
        for path in sorted(open_path(folder).glob("*.json")):
            row = _row(path)
            if row:
                results.setdefault(row.pop("model"), {"source": str(folder)}).update(row)
    if not results:
        raise InputError("Expected an MT-Bench summary or an AlpacaEval row (*.json) in the folders, got neither.")
    return [Result(model, group="measured", **row) for model, row in results.items()]


def _row(path: Path) -> dict[str, Any]:
    """Scores of one file; empty for other files, and for rates against another baseline than AlpacaEval 1's."""
    check_regular(path)
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}). Delete it, or evaluate again.") from error
    if not isinstance(content, dict):
        return {}
    try:
        if "by_category" in content:
            size = _number(content.get("parameters"))
            scores = {"mt_bench": _number(content["overall"]), "mt_error": _number(content.get("error"))}
            return {"model": str(content["model"]), "size": size and size / 1e9, **scores}
        if "discrete_win_rate" in content and content.get("version") != 1:
            logger.warning(
                "%s is skipped in the AlpacaEval column: expected version 1 (baseline text_davinci_003), got baseline %s",
                path,
                truncate_repr(content.get("baseline")),
            )
        elif "discrete_win_rate" in content:
            rate = {"alpaca_eval": _number(content["win_rate"]), "error": _number(content["standard_error"])}
            return {"model": path.name.removesuffix(".row.json"), **rate}
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"Expected a result file of `zephyr-jax evaluate` in {path}, got {error!r}. Delete it, or evaluate again."
        ) from error
    return {}


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def markdown(results: Sequence[Result]) -> str:
    """One table per group; measured rows are in both, in bold."""
    parts = []
    for group in GROUPS:
        lines = [
            "| model | size | alignment | MT-Bench | AlpacaEval (win %) | source |",
            "|---|---|---|---|---|---|",
            *(_line(result) for result in sorted(results, key=_order) if result.group in (group, "measured")),
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _order(result: Result) -> tuple[bool, float]:
    return result.mt_bench is None, result.mt_bench or 0.0


def _line(result: Result) -> str:
    name = f"**{result.model}**" if result.group == "measured" else result.model
    size = f"{result.size:.3g}B" if result.size else "-"
    rate, bench = _with_error(result.alpaca_eval, result.error), _with_error(result.mt_bench, result.mt_error)
    return f"| {name} | {size} | {result.alignment or '-'} | {bench} | {rate} | {result.source} |"


def _with_error(score: float | None, error: float | None) -> str:
    if score is None:
        return "-"
    return f"{score:.2f}" + (f" ± {error:.2f}" if error is not None else "")


def as_csv(results: Sequence[Result]) -> str:
    """All rows with all fields."""
    out = io.StringIO()
    fields = ("model", "group", "size", "alignment", "mt_bench", "mt_error", "alpaca_eval", "error", "source")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(fields)
    writer.writerows([getattr(result, name) for name in fields] for result in results)
    return out.getvalue()


def scores_picture(results: Sequence[Result]) -> str:
    """An SVG file: both scores of every model as bars with standard errors; measured ones in another color."""
    scored = [one for one in results if one.mt_bench is not None or one.alpaca_eval is not None]
    scored.sort(key=lambda one: -(one.mt_bench or 0))
    colors = [1 if one.group == "measured" else 0 for one in scored]
    mt_bench = [
        Bar(one.model, one.mt_bench or 0, _with_error(one.mt_bench, one.mt_error), one.mt_error, color)
        for one, color in zip(scored, colors, strict=True)
    ]
    alpaca_eval = [
        Bar(one.model, one.alpaca_eval or 0, _with_error(one.alpaca_eval, one.error), one.error, color)
        for one, color in zip(scored, colors, strict=True)
    ]
    legend = [LegendEntry("measured here", 1, marker="bar"), LegendEntry("published", 0, marker="bar")]
    charts = [
        bar_chart("MT-Bench", "1 to 10", mt_bench, maximum=10, width=520),
        bar_chart("AlpacaEval", "wins in percent", alpaca_eval, maximum=100, width=520),
    ]
    return picture([[replace(chart, legend=legend) for chart in charts]])
