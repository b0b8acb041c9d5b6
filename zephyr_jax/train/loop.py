"""The loop, to be recited: evaluate the old state, save before drawing, draw, step, report the step before."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np

from zephyr_jax.config.training_sections import ScheduleOptions
from zephyr_jax.errors import Stopped, TrainingError
from zephyr_jax.train.anomalies import Health, Limits, Sickness, Signs
from zephyr_jax.train.evaluate import Evaluate
from zephyr_jax.train.metrics import Reporter
from zephyr_jax.train.state import TrainState
from zephyr_jax.train.step import Metrics, Step

type Save = Callable[[int, TrainState, dict[str, float] | None], None]


class Pending(NamedTuple):
    """A step that is on its way."""

    step: int
    metrics: Metrics
    signs: Signs
    most: np.float32
    """The largest loss that would have been no spike."""


@dataclass(frozen=True)
class Loop:
    """What a run is made of, ready to go."""

    step: Step
    batches: Iterator[tuple[int, Any]]
    """Each with its place in the plan."""
    evaluate: Evaluate | None
    save: Save
    stop: Callable[[int], bool]
    """Asked after every step: whether somebody wants the run to end here."""
    health: Health
    keep_batch: Callable[[int, list[Sickness]], str]
    """Keeps the batch of a sick step and says in words what it is and where."""
    reporter: Reporter
    schedule: ScheduleOptions
    total: int
    first_step: Callable[[], str]
    """Asked once, when the first step is done, for a line about what came before."""

    def run(self, state: TrainState, start: int, unhalted: Any) -> TrainState:
        """Train from `start` to `total` steps.

        1. Evaluate the state where due (step 0 too: it shows where training starts from).
        2. Save where due; the data iterator stands right before the next batch then.
        3. Stop where asked to, with this state saved.
        4. Draw the next batch.
        5. Step: dispatched, not waited for.
        6. Report the step before, while this one runs; where it is sick, do what its policy says.

        `unhalted` is a False on the device. Raises TrainingError for a sick step that stops the run, with the state from
        before it saved, and Stopped.
        """
        pending: Pending | None = None
        halted = unhalted
        for done in range(start, self.total + 1):
            due_evaluation, due_save = self._due(done, start)
            if due_evaluation or due_save:
                self._report(pending, state, start)
                pending = None
            measured = self._measure(done, state) if due_evaluation else None
            if due_save:
                self.save(done, state, measured)
            if done == self.total:
                break
            if self.stop(done):
                self._report(pending, state, start)
                self._leave(done, state, new=done > start and not due_save)
            batch = self._draw(done)
            most = self.health.most(done)
            state, metrics, signs = self.step(state, batch, Limits(most, halted))
            halted = signs.halted
            self._report(pending, state, start)
            pending = Pending(done + 1, metrics, signs, most)
            if done == start:
                jax.block_until_ready(metrics)
                self.reporter.note(self.first_step())
        return state

    def _draw(self, done: int) -> Any:
        place, batch = next(self.batches)
        if place != done:
            raise TrainingError(
                f"The data stand at step {place + 1} where step {done + 1} is next, so examples would be lost or repeated. "
                "Nothing was done; this is a mistake in the program or in the checkpoint: please report it."
            )
        return batch

    def _leave(self, done: int, state: TrainState, new: bool) -> NoReturn:
        if self.schedule.save == "weights":
            raise Stopped(
                f"Stopped at step {done} of {self.total}, as asked. Nothing is saved before the end with schedule.save "
                "`weights`: the same command starts over. With `state` a run can be resumed."
            )
        if new:
            self.save(done, state, None)
        what = (
            f"Step {done} of {self.total} is saved and the run has stopped" if done else "Stopped before the first step"
        )
        raise Stopped(f"{what}, as asked. Run the same command again to go on.")

    def _due(self, done: int, start: int) -> tuple[bool, bool]:
        last = done == self.total
        evaluation = last or self._falls(self.schedule.evaluate_every, done)
        save = last or (self.schedule.save == "state" and self._falls(self.schedule.save_every, done))
        fresh = done > start  # a resumed run has evaluated and saved its first state already
        return self.evaluate is not None and evaluation and (fresh or done == 0), save and fresh

    @staticmethod
    def _falls(every: int, done: int) -> bool:
        return every > 0 and done % every == 0

    def _measure(self, done: int, state: TrainState) -> dict[str, float] | None:
        if self.evaluate is None:
            return None
        self.reporter.pause()
        values = self.evaluate(state.parameters)
        self.reporter.evaluation(done, values)
        return values

    def _report(self, pending: Pending | None, state: TrainState, start: int) -> None:
        if pending is None:
            return
        step, (metrics, signs) = pending.step, jax.device_get((pending.metrics, pending.signs))
        found = self.health.examine(step, metrics, signs, pending.most)
        self.reporter.add(metrics)
        if step % self.schedule.log_every == 0 or step == self.total or found:
            self.reporter.train(step)
        if not found:
            return
        words = self.keep_batch(step, found)
        if signs.halted:
            self._halt(step, state, start, words)
        if any(each.policy == "stop" for each in found):
            raise TrainingError(f"{words} The newest checkpoint stays.")
        self.reporter.note(f"{words} {'Its update is left out.' if signs.left_out else 'The run goes on.'}")

    def _halt(self, step: int, state: TrainState, start: int, words: str) -> NoReturn:
        """`state` is the one from before `step`: neither that one nor the next has changed it."""
        before = step - 1
        if self.schedule.save == "weights":
            raise TrainingError(
                f"{words} Nothing is saved before the end with schedule.save `weights`: the same command starts over, and "
                "`--anomaly.KIND skip` leaves such an update out."
            )
        if before > start and not self._falls(self.schedule.save_every, before):
            self.save(before, state, None)
        raise TrainingError(
            f"{words} Step {before} is {'saved' if before else 'where the run started'}; the same command meets this batch "
            "again, and `--anomaly.KIND skip` leaves such an update out."
        )
