"""`zephyr-jax report`, and what each training run leaves by itself: one file of HTML that tells all about a run."""

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from zephyr_jax.checkpoint.provenance import Record, chain
from zephyr_jax.config.inspect import ReportConfig
from zephyr_jax.config.yaml_file import differences, to_dict
from zephyr_jax.data.examples import Examples
from zephyr_jax.report.answers_html import Prompt, side_by_side
from zephyr_jax.report.curves import curves, curves_of
from zephyr_jax.report.histogram import histogram
from zephyr_jax.report.markup import Markup
from zephyr_jax.report.page_html import Section, charts, commands, folded, notes, subheading
from zephyr_jax.report.page_html import page as document
from zephyr_jax.report.record import CONFIGS, PAPER_NAMES, Stage, earlier_stages, read_stage, write_histograms
from zephyr_jax.report.sample_files import Kept, read_answers, read_kept, write_kept
from zephyr_jax.report.scale import spelt
from zephyr_jax.report.table_html import facts, flat, table
from zephyr_jax.storage.files import Path, open_path, write_atomic

PAGE = "report.html"
_SHARES = ("rewards/accuracies", "accuracy", "padding")
_TITLES = {
    "loss": "loss", "rewards/accuracies": "accuracy", "rewards/margins": "margin", "rewards/chosen": "chosen reward",
    "rewards/rejected": "rejected reward", "logps/chosen": "log-prob of chosen", "logps/rejected": "log-prob of rejected",
}  # fmt: skip


def page(config: ReportConfig) -> Path:
    """Write the page of a run, finished or not, with the answers given. Raises InputError."""
    folder = open_path(config.run)
    stage = read_stage(folder)
    if config.sample_files:
        write_kept(folder, Kept(tuple(read_answers(config.sample_files, config.num_prompts))))
    return _write(folder, stage)


def leave_page(folder: Path) -> None:
    """Write a run's page; where that fails, one line says so: no run ends for the sake of its page."""
    try:
        _write(folder, read_stage(folder))
    except Exception as error:  # whatever it is, training matters more
        excuse(error, f"{folder / PAGE} could not be written", f"To make it: zephyr-jax report --run {folder}")


def leave_histograms(folder: Path, examples: Examples) -> None:
    """Count a run's examples for its page, in the same spirit."""
    try:
        write_histograms(folder, examples)
    except Exception as error:  # as above
        excuse(
            error, f"The page of {folder} will show no lengths and scores", "The run's next start counts them again."
        )


def asking(folder: Path) -> str:
    """The command that has a run and the stages before it answer, for its page."""
    return shlex.join(["zephyr-jax", "report", "--run", str(folder), "--num_samples", "10"])


def excuse(error: Exception, what: str, remedy: str) -> None:
    """Say what went wrong with a page, and what to do about it."""
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    print(f"{what} ({reason}). {remedy}", file=sys.stderr, flush=True)


def write_page(
    path: str | os.PathLike[str],
    title: str,
    about: Sequence[str],
    tiles: Mapping[str, str],
    sections: Sequence[Section],
) -> None:
    """Any page, of any sections: see `results_section`, `answers_section`, `notes_section` and `stage_section`."""
    write_atomic(path, document(title, about, tiles, sections))


def results_section(header: Sequence[object], rows: Sequence[Sequence[object]], about: str = "") -> Section:
    """A table; the first of each row is its name."""
    return Section("Results", (table(header, rows),), about)


def answers_section(prompts: Sequence[Prompt], about: str = "") -> Section:
    """The same prompts, answered by each stage."""
    return Section("Answers", (side_by_side(prompts),), about)


def notes_section(texts: Sequence[str]) -> Section:
    """Sentences about the page: what is rule-based, what falls short."""
    return Section("Notes", (notes(texts),))


def stage_section(folder: str | os.PathLike[str], heading: str) -> Section:
    """One run as a section: curves, held-out numbers, data, settings. Raises InputError where it is none."""
    stage = read_stage(open_path(folder))
    return Section(
        heading,
        (*_told(stage), folded("Settings", _all_settings(stage)), folded("Made with", _made_with(stage.record))),
    )


def _write(folder: Path, stage: Stage) -> Path:
    earlier = earlier_stages(stage, folder)
    kept = read_kept(folder)
    sections = [
        _numbers(stage),
        Section("Curves", _curves(stage), "Over the steps. Pointed at, each tells its numbers."),
        answers_section(kept.prompts, kept.about) if kept.prompts else _no_answers(folder, stage),
        *([Section("Data", _data(stage))] if _data(stage) else []),
        *([_before(earlier)] if earlier else []),
        _settings(stage),
        Section("Made with", (_made_with(stage.record), _lineage(stage.record))),
    ]
    write_page(folder / PAGE, folder.name, _about(stage), _tiles(stage), sections)
    return folder / PAGE


def _about(stage: Stage) -> list[str]:
    data, total = stage.section("data"), stage.total
    what = f"{PAPER_NAMES[stage.verb]} of {stage.section('model').get('path')} on {data.get('path')} ({data.get('split')})."
    state = f"Not finished. Step {stage.saved:,} of {total:,} is the newest that is saved. The same command goes on."
    if not stage.saved:
        state = f"Not finished. Nothing is saved yet of {total:,} steps. The same command begins anew."
    state = "Finished." if stage.saved == total else state
    sick = [f"Sick steps were met; their batches are kept: {', '.join(stage.sick)}."] if stage.sick else []
    return [f"{what} {state}", *sick]


def _tiles(stage: Stage) -> dict[str, str]:
    """The few numbers to see first: held out where there are such, of the last step otherwise."""
    ended = stage.saved == stage.total
    tiles = {"steps": f"{stage.saved:,}"} if ended else {"steps saved": f"{stage.saved:,} of {stage.total:,}"}
    measured = stage.evaluations()
    trained = [line for line in stage.lines if "loss" in line]
    last, where = (measured[-1], "held out") if measured else (trained[-1] if trained else {}, "last step")
    for name in ("loss", "rewards/accuracies", "rewards/margins"):
        if name in last:
            tiles[f"{_TITLES[name]}, {where}"] = _spelt(name, last[name])
    speed = [line["tokens_per_second"] for line in stage.lines if "tokens_per_second" in line]
    return tiles | ({"tokens a second, median": spelt(float(np.median(speed)))} if speed else {})


def _told(stage: Stage) -> tuple[Markup, ...]:
    """What a run has to say, without a heading."""
    if not stage.here:
        return (notes(["Its folder is not where it was made, so that only its record is left."]),)
    data = _data(stage)
    return (
        *_curves(stage),
        subheading("Held-out numbers"),
        *_numbers(stage).body,
        *((subheading("Data"), *data) if data else ()),
    )


def _curves(stage: Stage) -> tuple[Markup, ...]:
    drawn = curves(stage.lines, curves_of(stage.verb, stage.section("dpo").get("loss")))
    return (charts(drawn),) if drawn else (notes(["No step has been reported yet."]),)


def _numbers(stage: Stage) -> Section:
    """The first and the last evaluation, and what the card expects of the last."""
    measured, expected = stage.evaluations(), stage.section("expected")
    if not measured:
        words = "Nothing was held out. To evaluate on the way, name rows: data.eval_path or data.eval_split."
        return Section("Held-out numbers", (notes([words]),))
    first, last = measured[0], measured[-1]
    header = ["", f"step {first['step']:,.0f}", f"step {last['step']:,.0f}", *(["expected"] if expected else [])]
    rows = [
        [_TITLES.get(name, name), _spelt(name, first.get(name)), _spelt(name, last[name])]
        + ([_range(expected.get(name))] if expected else [])
        for name in sorted(last.keys() - {"step"}, key=_place)
    ]
    return Section("Held-out numbers", (table(header, rows),))


def _place(name: str) -> tuple[int, str]:
    """Where a number stands in the table: those that everybody looks for first."""
    return (list(_TITLES).index(name) if name in _TITLES else len(_TITLES)), name


def _range(expected: Any) -> str:
    """The two ends of what a card expects."""
    return " to ".join(str(each) for each in expected) if isinstance(expected, list) else ""


def _spelt(name: str, value: float | None) -> str:
    return "" if value is None else spelt(value, name in _SHARES)


def _no_answers(folder: Path, stage: Stage) -> Section:
    """Why there are none, and how they come to be on the page."""
    runs = [stage.record, *(each for each in stage.record.get("resumed") or [] if isinstance(each, dict))]
    processes, wanted = runs[-1].get("processes") or 1, stage.section("report").get("num_samples")
    if wanted == 0:
        why = "None, as the run was told (report.num_samples: 0)."
    elif isinstance(processes, int) and processes > 1:
        why = f"None: the weights of this run were spread over {processes} processes, and one alone makes answers."
    elif stage.saved < stage.total:
        why = "None yet: they are made when the run has ended."
    else:
        why = "None yet: the run had no time for them, or could not make them; its output says why."
    return Section(
        "Answers", (commands([asking(folder)]),), f"{why} To have ten prompts here with each stage's answers:"
    )


def _data(stage: Stage) -> tuple[Markup, ...]:
    whole = "prompt and answer, " if stage.verb == "dpo" else ""
    titles = {"lengths": ("Length", f"{whole}tokens"), "scores": ("Score", "as the rows carry it")}
    drawn = [histogram(*titles[name], counts) for name, counts in stage.histograms.items() if name in titles]
    return (*((charts(drawn),) if drawn else ()), *_lost_rows(stage))


def _lost_rows(stage: Stage) -> tuple[Markup, ...]:
    """Skipped and truncated rows by reason; nothing where the record has none."""
    rows = [
        [each.reason, each.source, each.what, f"{each.rows:,}", f"{each.row_share:.1%}", f"{each.token_share:.1%}"]
        for each in stage.lost_rows()
    ]
    header = ["reason", "rows of", "what happened", "rows", "share of rows", "share of tokens"]
    return (subheading("Skipped and truncated rows"), table(header, rows)) if rows else ()


def _before(earlier: Sequence[Stage]) -> Section:
    stages = [
        folded(
            f"{PAPER_NAMES[each.verb]}: {each.record.get('output')}",
            *_told(each),
            subheading("Settings"),
            _all_settings(each),
        )
        for each in earlier
    ]
    return Section("Earlier stages", tuple(stages), "What the run started from, oldest first.")


def _settings(stage: Stage) -> Section:
    changed = differences(stage.config, to_dict(CONFIGS[stage.verb]()))
    own = {name: value for name, value in flat(stage.config).items() if name in changed}
    about = "What differs from the defaults."
    return Section("Settings", (facts(own), folded("Every setting", _all_settings(stage))), about)


def _all_settings(stage: Stage) -> Markup:
    return facts(flat(stage.config))


def _made_with(record: Record) -> Markup:
    names = ("at", "commit", "devices", "data", "reference")
    told = {name: record[name] for name in names if record.get(name)}
    again = [
        f"at step {each.get('step')}, {each.get('at')}, on {each.get('devices')}"
        for each in record.get("resumed") or []
        if isinstance(each, dict)
    ]
    return facts(told | ({"went on": "; ".join(again)} if again else {}) | (record.get("versions") or {}))


def _lineage(record: Record) -> Markup:
    """One row a stage, from the base on."""
    rows = [
        [
            each.get("made_by") or "base",
            each.get("output") or each.get("path") or "",
            each.get("data") or "",
            each.get("at") or "",
        ]
        for each in chain(record)
    ]
    return folded("Lineage", table(["stage", "where", "data", "when"], rows))
