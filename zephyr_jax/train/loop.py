"""The loop, to be recited: evaluate the old state, save before drawing, draw, step, report the step before."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import jax

from zephyr_jax.config import ScheduleOptions
from zephyr_jax.errors import Stopped, TrainingError
from zephyr_jax.train.evaluate import Evaluate
from zephyr_jax.train.report import Reporter
from zephyr_jax.train.state import TrainState
from zephyr_jax.train.step import Metrics, Step

type Save = Callable[[int, TrainState, dict[str, float] | None], None]


@dataclass(frozen=True)
class Loop:
    """What a run is made of, ready to go."""

    step: Step
    batches: Iterator[Any]
    evaluate: Evaluate | None
    save: Save
    stop: Callable[[int], bool]
    """Asked after every step: whether somebody wants the run to end here."""
    reporter: Reporter
    schedule: ScheduleOptions
    total: int
    first_step: Callable[[], str]
    """Asked once, when the first step is done, for a line about what came before."""

    def run(self, state: TrainState, start: int) -> TrainState:
        """Train from `start` to `total` steps.

        1. Evaluate the state where due (step 0 too: it shows where training starts from).
        2. Save where due; the data iterator stands right before the next batch then.
        3. Stop where asked to, with this state saved.
        4. Draw the next batch.
        5. Step: dispatched, not waited for.
        6. Report the step before, while this one runs.

        Raises TrainingError when a loss is not finite, before such a state could be saved, and Stopped.
        """
        pending: tuple[int, Metrics] | None = None
        for done in range(start, self.total + 1):
            due_evaluation, due_save = self._due(done, start)
            if due_evaluation or due_save:
                self._report(pending)
                pending = None
            measured = self._measure(done, state) if due_evaluation else None
            if due_save:
                self.save(done, state, measured)
            if done == self.total:
                break
            if self.stop(done):
                self._report(pending)
                self._leave(done, state, new=done > start and not due_save)
            batch = next(self.batches)
            state, metrics = self.step(state, batch)
            self._report(pending)
            pending = (done + 1, metrics)
            if done == start:
                jax.block_until_ready(metrics)
                self.reporter.note(self.first_step())
        return state

    def _leave(self, done: int, state: TrainState, new: bool) -> NoReturn:
        if new:
            self.save(done, state, None)
        what = (
            f"Step {done} of {self.total} is saved and the run has stopped" if done else "Stopped before the first step"
        )
        raise Stopped(f"{what}, as asked. Run the same command again to go on.")

    def _due(self, done: int, start: int) -> tuple[bool, bool]:
        last = done == self.total
        evaluation = last or (self.schedule.evaluate_every > 0 and done % self.schedule.evaluate_every == 0)
        save = last or (self.schedule.save_every > 0 and done % self.schedule.save_every == 0)
        fresh = done > start  # a resumed run has evaluated and saved its first state already
        return self.evaluate is not None and evaluation and (fresh or done == 0), save and fresh

    def _measure(self, done: int, state: TrainState) -> dict[str, float] | None:
        if self.evaluate is None:
            return None
        values = self.evaluate(state.parameters)
        self.reporter.evaluation(done, values)
        return values

    def _report(self, pending: tuple[int, Metrics] | None) -> None:
        if pending is None:
            return
        step, metrics = pending[0], jax.device_get(pending[1])
        if step % self.schedule.log_every == 0 or step == self.total:
            self.reporter.train(step, metrics)
        loss, norm = float(metrics["loss"].value), float(metrics["grad_norm"].value)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingError(
                f"Step {step} has loss {loss} and gradient norm {norm}. Nothing of it was saved: the newest checkpoint is "
                "from before. Lower optimizer.learning_rate, or look at the rows of that step."
            )
