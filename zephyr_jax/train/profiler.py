"""Profile some steps of a run: a trace for xprof, and where the time of these steps went."""

import json
import logging
import tempfile
from dataclasses import asdict
from pathlib import Path as LocalPath
from typing import Any, Self

import jax
from jax.profiler import ProfileData, ProfileOptions, StepTraceAnnotation

from zephyr_jax.config.step_range import StepRange
from zephyr_jax.storage.files import Path, write_atomic
from zephyr_jax.train.step import TrainStep
from zephyr_jax.train.trace import Shares, time_shares

PROFILE = "profile"
"""Folder of a run's profile."""
SUMMARY = "summary.json"

_LOG = logging.getLogger(__name__)


class ProfiledStep:
    """A training step that is profiled while a run does certain steps. It waits for the devices before and after these.

    Args:
        step: Of `make_step`.
        steps: First and last step of the profile.
        start: Steps that the run has completed.
        folder: Folder of the run.
    """

    def __init__(self, step: TrainStep, steps: StepRange, start: int, folder: Path):
        self._step, self._steps, self._completed, self._folder = step, steps, start, folder
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._program = ""
        if start >= steps.first:
            _LOG.warning("no profile: step %d has been done already. Set `profile` to later steps.", steps.first)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._scratch:  # the run ended early
            jax.profiler.stop_trace()
            self._scratch.cleanup()

    def __call__(self, state: Any, batch: Any, limits: Any) -> Any:
        """One step, as `make_step` describes it."""
        number = self._completed + 1
        if number == self._steps.first:
            self._begin(state, batch, limits)
        with StepTraceAnnotation("train", step_num=number):
            result = self._step(state, batch, limits)
        self._completed = number
        if number == self._steps.last and self._scratch:
            jax.block_until_ready(result)
            self._end(self._scratch)
        return result

    def _begin(self, *arguments: Any) -> None:
        # Of the same program as the one that runs: JAX's cache of compiled programs has it.
        self._program = self._step.lower(*arguments).compile().as_text()
        self._scratch = tempfile.TemporaryDirectory()
        options = ProfileOptions()
        options.python_tracer_level = 0  # its events would be most of the trace, and slow the host down
        jax.block_until_ready(arguments)
        jax.profiler.start_trace(self._scratch.name, profiler_options=options)

    def _end(self, scratch: tempfile.TemporaryDirectory[str]) -> None:
        jax.profiler.stop_trace()
        self._scratch = None
        with scratch:
            self._save(LocalPath(scratch.name))

    def _save(self, scratch: LocalPath) -> None:
        """Copy the trace to where xprof looks for it, and summarize it on host 0. An error is logged only."""
        name = f"steps-{self._steps.first}-{self._steps.last}"
        folder = self._folder / PROFILE / "plugins" / "profile" / name
        try:
            (trace,) = scratch.rglob("*.xplane.pb")
            folder.mkdir(parents=True, exist_ok=True)
            write_atomic(folder / f"host-{jax.process_index()}.xplane.pb", trace.read_bytes())
            if jax.process_index():
                return
            shares = time_shares(ProfileData.from_file(str(trace)), self._program, self._steps)
            write_atomic(self._folder / PROFILE / SUMMARY, json.dumps(asdict(shares)) + "\n")
            _LOG.info(
                "profile of steps %s: %s; trace for xprof: %s", self._steps, _in_words(shares), self._folder / PROFILE
            )
        except (OSError, ValueError) as error:
            _LOG.warning("no profile of steps %s: %s. The run continues.", self._steps, error)


def _in_words(shares: Shares) -> str:
    ranked = sorted(shares.by_kind.items(), key=lambda item: -item[1])
    return ", ".join(f"{kind} {share:.1%}" for kind, share in ranked if share >= 0.0005)
