"""The training loop: evaluate, save, stop, draw a batch, step, report the previous step."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np

from zephyr_jax.config.training_sections import ScheduleOptions
from zephyr_jax.errors import Stopped, TrainingError
from zephyr_jax.mean import Metrics
from zephyr_jax.objective.logprob import Parameters
from zephyr_jax.train.anomalies import Anomaly, AnomalyDetector, StepFlags, StepLimits
from zephyr_jax.train.metrics import Reporter
from zephyr_jax.train.state import TrainState
from zephyr_jax.train.step import TrainStep

type Save = Callable[[int, TrainState, dict[str, float] | None], None]


class PendingStep(NamedTuple):
    """A dispatched step whose numbers were not read yet."""

    step: int
    metrics: Metrics
    flags: StepFlags
    loss_limit: np.float32


@dataclass(frozen=True, kw_only=True)
class Loop:
    """The parts of a run."""

    step: TrainStep
    batches: Iterator[tuple[int, Any]]
    """Pairs of the index in the plan and the batch."""
    evaluate: Callable[[Parameters], dict[str, float]] | None
    save: Save
    should_stop: Callable[[int], bool]
    """Called after every step: whether the run was asked to stop."""
    detector: AnomalyDetector
    save_bad_batch: Callable[[int, list[Anomaly]], str]
    """Saves the batch of an anomalous step; returns a description for logs and errors."""
    reporter: Reporter
    schedule: ScheduleOptions
    total: int
    startup_summary: Callable[[], str]
    """Called once, after the first step, for a log line about the time before it."""

    def run(self, state: TrainState, start: int, halted: Any) -> TrainState:
        """Train from step `start` to step `total`.

        1. Evaluate the state when due (at step 0 too: the baseline).
        2. Save when due: the data iterator is right before the next batch.
        3. Stop when asked to, with this state saved.
        4. Draw the next batch.
        5. Dispatch the step, without waiting for it.
        6. Report the previous step while this one runs; if it is anomalous, apply the policy.

        Args:
            state: At step `start`.
            start: Number of completed steps.
            halted: False, on the device.

        Raises:
            TrainingError: An anomaly stopped the run; the state before it was saved.
            Stopped: The run was asked to stop and saved its state.
        """
        pending: PendingStep | None = None
        for done in range(start, self.total + 1):
            evaluate_now, save_now = self._due(done, start)
            if evaluate_now or save_now:
                self._report(pending, state, start)
                pending = None
            measured = self._evaluate(done, state) if evaluate_now else None
            if save_now:
                self.save(done, state, measured)
            if done == self.total:
                break
            if self.should_stop(done):
                self._report(pending, state, start)
                self._stop(done, state, unsaved=done > start and not save_now)
            batch = self._draw(done)
            loss_limit = self.detector.loss_limit(done)
            state, metrics, flags = self.step(state, batch, StepLimits(loss=loss_limit, halted=halted))
            halted = flags.halted
            self._report(pending, state, start)
            pending = PendingStep(step=done + 1, metrics=metrics, flags=flags, loss_limit=loss_limit)
            if done == start:
                jax.block_until_ready(metrics)
                self.reporter.info(self.startup_summary())
        return state

    def _draw(self, done: int) -> Any:
        index, batch = next(self.batches)
        if index != done:
            raise TrainingError(
                f"expected the batch of step {done + 1}, got that of step {index + 1}: examples would be lost or repeated. "
                "This is a bug of the program or a wrong checkpoint; please report it. No step was run."
            )
        return batch

    def _stop(self, done: int, state: TrainState, unsaved: bool) -> NoReturn:
        if self.schedule.save == "weights":
            raise Stopped(
                f"stopped at step {done} of {self.total} without a checkpoint: schedule.save `weights` saves at the end only, so "
                "the same command starts over. With `state` a run can be resumed."
            )
        if unsaved:
            self.save(done, state, None)
        saved = f"saved step {done} of {self.total} and stopped" if done else "stopped before the first step"
        raise Stopped(f"{saved}, as requested. Run the same command again to resume.")

    def _due(self, done: int, start: int) -> tuple[bool, bool]:
        """Whether to evaluate, and whether to save, after `done` steps."""
        last = done == self.total
        evaluate_now = last or self._is_multiple(self.schedule.evaluate_every, done)
        save_now = last or (self.schedule.save == "state" and self._is_multiple(self.schedule.save_every, done))
        is_new = done > start  # a resumed run has evaluated and saved its first state already
        return self.evaluate is not None and evaluate_now and (is_new or done == 0), save_now and is_new

    @staticmethod
    def _is_multiple(every: int, done: int) -> bool:
        return every > 0 and done % every == 0

    def _evaluate(self, done: int, state: TrainState) -> dict[str, float] | None:
        if self.evaluate is None:
            return None
        self.reporter.pause()
        values = self.evaluate(state.weights)
        self.reporter.evaluation(done, values)
        return values

    def _report(self, pending: PendingStep | None, state: TrainState, start: int) -> None:
        if pending is None:
            return
        step, (metrics, flags) = pending.step, jax.device_get((pending.metrics, pending.flags))
        anomalies = self.detector.check(step, metrics, flags, pending.loss_limit)
        self.reporter.add(metrics)
        if step % self.schedule.log_every == 0 or step == self.total or anomalies:
            self.reporter.train(step)
        if not anomalies:
            return
        description = self.save_bad_batch(step, anomalies)
        if flags.halted:
            self._halt(step, state, start, description)
        if any(anomaly.policy == "stop" for anomaly in anomalies):
            raise TrainingError(f"{description}. The newest checkpoint is kept.")
        self.reporter.warning(f"{description}; {'update skipped' if flags.skipped else 'continuing'}")

    def _halt(self, step: int, state: TrainState, start: int, description: str) -> NoReturn:
        """Save and raise. `state` is the one before `step`: neither that step nor the next one has changed it."""
        before = step - 1
        hint = "To skip such updates: `--anomaly.KIND skip`."
        if self.schedule.save == "weights":
            raise TrainingError(
                f"{description}. Nothing was saved (schedule.save `weights`), so the same command starts over. {hint}"
            )
        if before > start and not self._is_multiple(self.schedule.save_every, before):
            self.save(before, state, None)
        saved = f"Step {before} is saved" if before else "No step is saved"
        raise TrainingError(f"{description}. {saved}; the same command computes this batch again. {hint}")
