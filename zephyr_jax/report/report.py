"""`zephyr-jax report`: a training run as one self-contained HTML file. Every run also writes its own, RUN/report.html."""

import logging
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import jax

from zephyr_jax.config.inspect import ReportConfig
from zephyr_jax.config.training import SftConfig
from zephyr_jax.data.examples import Examples
from zephyr_jax.parallel.hosts import is_host0
from zephyr_jax.report.html import Section, render_report
from zephyr_jax.report.run_record import earlier_runs, read_run, write_histograms
from zephyr_jax.report.sample_files import SampleSet, read_generated, read_samples, write_samples
from zephyr_jax.report.samples import sample_run, update_samples
from zephyr_jax.report.sections import (
    curves_section,
    data_section,
    earlier_section,
    metrics_section,
    missing_samples_section,
    profile_section,
    provenance_section,
    samples_command,
    samples_section,
    settings_section,
    status_lines,
    tiles,
    time_section,
)
from zephyr_jax.storage.files import Path, open_path, write_atomic

_LOG = logging.getLogger(__name__)

REPORT = "report.html"


def report(config: ReportConfig) -> Path:
    """Write the report of a run, finished or not, with new samples if the settings ask for them. Raises InputError."""
    folder = open_path(config.run)
    run = read_run(folder)
    if config.num_samples and not sample_run(folder, run, config):
        _LOG.info("%s has samples of the current weights already: nothing was generated", folder)
    if config.sample_files:
        write_samples(folder, SampleSet(tuple(read_generated(config.sample_files, config.num_prompts))))
    return _write_run_report(folder)


def write_report(
    path: str | os.PathLike[str],
    title: str,
    about: Sequence[str],
    tiles: Mapping[str, str],
    sections: Sequence[Section],
) -> None:
    """Write an HTML report of any sections; see the functions `*_section` of `report.sections`."""
    write_atomic(path, render_report(title, about, tiles, sections))


def try_write_report(folder: Path) -> None:
    """Write the report of a run. An error is logged only: a training run must not fail because of its report."""
    try:
        _write_run_report(folder)
    except Exception as error:
        log_failure(
            error, f"could not write {folder / REPORT}", f"To retry: zephyr-jax report --run {shlex.quote(str(folder))}"
        )


def try_write_histograms(folder: Path, examples: Examples) -> None:
    """Save the histograms that the report of a run shows. An error is logged only."""
    try:
        write_histograms(folder, examples)
    except Exception as error:
        log_failure(error, f"could not write the histograms of {folder}", "Resuming the run writes them again.")


@contextmanager
def run_report(folder: Path, examples: Examples) -> Iterator[Callable[[], None]]:
    """Write the report of a training run by process 0: when the yielded function is called, and at the end, also on an error."""
    started = False

    def write_first() -> None:
        nonlocal started
        started = True
        if is_host0():
            try_write_histograms(folder, examples)
            try_write_report(folder)

    try:
        yield write_first
    finally:
        if started and is_host0():
            try_write_report(folder)


def add_samples(config: SftConfig, folder: Path) -> None:
    """Generate `report.num_samples` samples after training and write the report again. An error is logged only."""
    if not config.report.num_samples:
        return
    if jax.process_count() > 1:
        if jax.process_index() == 0:
            _LOG.info("no samples: the run has several processes. To generate them: %s", samples_command(folder))
        return
    try:
        if update_samples(config, folder, config.report.num_samples):
            try_write_report(folder)
    except Exception as error:
        log_failure(error, f"could not generate samples for {folder / REPORT}", f"To retry: {samples_command(folder)}")


def log_report(folder: Path) -> None:
    """Log where the report of a run is, on host 0, if it was written."""
    if is_host0() and (folder / REPORT).is_file():
        _LOG.info("report: %s", folder / REPORT)


def log_failure(error: Exception, problem: str, remedy: str) -> None:
    """Log an error that does not stop the run, on one line."""
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    _LOG.warning("%s (%s). %s", problem, reason, remedy)


def _write_run_report(folder: Path) -> Path:
    run = read_run(folder)
    earlier, samples, data = earlier_runs(run, folder), read_samples(folder), data_section(run)
    sections = [
        metrics_section(run),
        curves_section(run),
        *([profile_section(run.profile)] if run.profile else []),
        *([time_section(run.starts)] if run.starts else []),
        samples_section(samples.prompts, samples.about) if samples.prompts else missing_samples_section(folder, run),
        *([data] if data else []),
        *([earlier_section(earlier)] if earlier else []),
        settings_section(run),
        provenance_section(run),
    ]
    write_report(folder / REPORT, folder.name, status_lines(run), tiles(run), sections)
    return folder / REPORT


def main(config: ReportConfig, command: str) -> str:
    """`zephyr-jax report`."""
    return str(report(config))
