"""The loop's order, and what it does with a loss that is not finite."""

import json
import sys
from pathlib import Path
from types import ModuleType

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from zephyr_jax.config.training_sections import AnomalyOptions, ReportOptions, ScheduleOptions
from zephyr_jax.errors import Stopped, TrainingError
from zephyr_jax.mean import WeightedMean
from zephyr_jax.train.anomalies import Anomaly, AnomalyDetector, StepFlags, StepLimits
from zephyr_jax.train.loop import Loop
from zephyr_jax.train.metrics import Reporter
from zephyr_jax.train.state import TrainState


def metrics(loss: float) -> dict[str, WeightedMean]:
    one = np.float32(1)
    return {
        "loss": WeightedMean(np.float32(loss), one),
        "grad_norm": WeightedMean(one, one),
        "learning_rate": WeightedMean(one, one),
        "targets": WeightedMean(np.float32(5), np.float32(10)),
        "padding": WeightedMean(one, np.float32(4)),
    }


class Recorder:
    """A loop of five steps whose parts write down when they are called."""

    def __init__(self, folder: Path, losses: list[float], start: int = 0, **schedule: int):
        self.events: list[str] = []
        self.ahead = 0
        self.losses = losses
        options = ScheduleOptions(**{"evaluate_every": 2, "save_every": 3, **schedule})
        self.reporter = Reporter(
            folder, ReportOptions(progress_bar=False), config={}, total=5, start=start, enabled=True
        )
        self.loop = Loop(
            step=self.step,
            batches=self.batches(start),
            evaluate=self.evaluate,
            save=self.save,
            should_stop=self.stop,
            detector=AnomalyDetector(AnomalyOptions()),
            save_bad_batch=self.keep_batch,
            reporter=self.reporter,
            schedule=options,
            total=len(losses),
            startup_summary=str,
        )
        self.start, self.stop_at = start, len(losses)

    def batches(self, start: int):
        for index in range(start, len(self.losses)):
            self.events.append(f"draw {index}")
            yield index + self.ahead, index

    def step(
        self, state: TrainState, batch: int, limits: StepLimits
    ) -> tuple[TrainState, dict[str, WeightedMean], StepFlags]:
        """Stands for the jitted step; how that leaves a step out is tested in test_health."""
        self.events.append(f"step {batch}")
        anomalous = not np.isfinite(self.losses[batch])
        halted = bool(anomalous or limits.halted)
        after = state if halted else TrainState(jnp.int32(batch + 1), {}, {}, ())
        return after, metrics(self.losses[batch]), StepFlags(anomalous, False, {}, halted, not halted, halted)

    def keep_batch(self, step: int, found: list[Anomaly]) -> str:
        self.events.append(f"keep {step}")
        return f"step {step}: {found[0].text}"

    def stop(self, done: int) -> bool:
        return done >= self.stop_at

    def evaluate(self, parameters: dict) -> dict[str, float]:
        self.events.append("evaluate")
        return {"loss": 1.5}

    def save(self, step: int, state: TrainState, measured: dict[str, float] | None) -> None:
        assert int(state.step) == step
        self.events.append(f"save {step}{' best?' if measured else ''}")

    def run(self) -> TrainState:
        try:
            return self.loop.run(TrainState(jnp.int32(self.start), {}, {}, ()), self.start, np.bool_(False))
        finally:
            self.reporter.close()


def test_the_order_is_the_one_in_the_docstring(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, [3, 2, 1, 1, 1])
    recorder.run()
    assert recorder.events == [
        "evaluate", "draw 0", "step 0", "draw 1", "step 1",
        "evaluate", "draw 2", "step 2",
        "save 3", "draw 3", "step 3",
        "evaluate", "draw 4", "step 4",
        "evaluate", "save 5 best?",
    ]  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5]
    assert [line["step"] for line in lines if "eval/loss" in line] == [0, 2, 4, 5]
    assert [line["loss"] for line in lines if "loss" in line] == [3, 2, 1, 1, 1]


@pytest.mark.parametrize(("at", "last"), [(2, ["evaluate", "save 2"]), (3, ["step 2", "save 3"])])
def test_a_loop_that_is_asked_to_stop_saves_once_and_leaves(tmp_path: Path, at: int, last: list[str]) -> None:
    """Where a checkpoint is due anyway (step 3) it is not written twice; no batch is drawn after the request."""
    recorder = Recorder(tmp_path, [3, 2, 1, 1, 1])
    recorder.stop_at = at
    with pytest.raises(Stopped, match=f"saved step {at} of 5"):
        recorder.run()
    assert recorder.events[-2:] == last
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, at + 1))


def test_a_loop_that_is_stopped_before_its_first_step_claims_no_checkpoint(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, [3, 2, 1, 1, 1])
    recorder.stop_at = 0
    with pytest.raises(Stopped, match="stopped before the first step"):
        recorder.run()
    assert recorder.events == ["evaluate"]


def test_a_resumed_loop_neither_evaluates_nor_saves_its_first_state_again(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, [3, 2, 1, 1, 1], start=3)
    recorder.run()
    assert recorder.events == ["draw 3", "step 3", "evaluate", "draw 4", "step 4", "evaluate", "save 5 best?"]


@pytest.mark.parametrize("anomalous", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_it_is_saved(tmp_path: Path, anomalous: float) -> None:
    """Its batch is kept, the state from before it is saved, and the save that was due right after it does not happen."""
    recorder = Recorder(tmp_path, [3, 2, anomalous, 1, 1], log_every=100)
    with pytest.raises(TrainingError, match=r"step 3: non-finite loss \(loss=(nan|inf).* Step 2 is saved"):
        recorder.run()
    assert recorder.events[-2:] == ["keep 3", "save 2"]


def test_an_anomalous_first_step_saves_nothing(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, [float("nan"), 2, 1, 1, 1])
    with pytest.raises(TrainingError, match="No step is saved"):
        recorder.run()
    assert not any(event.startswith("save") for event in recorder.events)


def test_data_that_stand_elsewhere_are_refused(tmp_path: Path) -> None:
    """Law: no example is lost or repeated in silence."""
    recorder = Recorder(tmp_path, [3, 2, 1, 1, 1])
    recorder.ahead = 1
    with pytest.raises(TrainingError, match="expected the batch of step 1, got that of step 2"):
        recorder.run()
    assert "step 0" not in recorder.events


def test_metrics_beyond_the_restored_step_are_removed(tmp_path: Path) -> None:
    """Each step stands in metrics.jsonl once after a resume; a line cut by a kill goes too."""
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in (1, 2, 3, 4)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 5, "lo')
    Reporter(tmp_path, ReportOptions(progress_bar=False), config={}, total=5, start=2, enabled=True).close()
    kept = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert kept == [1, 2]


def test_a_fresh_run_keeps_nothing_of_a_try_that_never_saved(tmp_path: Path) -> None:
    """It evaluates step 0 again, so the line of the earlier try must go."""
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 0, "eval/loss": 1.0}) + "\n")
    recorder = Recorder(tmp_path, [3, 2, 1, 1, 1])
    recorder.run()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["eval/loss"] for line in lines if line["step"] == 0] == [1.5]


def test_tensorboard_gets_the_same_numbers(tmp_path: Path) -> None:
    """The event file holds every scalar of the JSON line."""
    reporter = Reporter(
        tmp_path, ReportOptions(progress_bar=False, tensorboard=True), config={}, total=5, start=0, enabled=True
    )
    reporter.add(metrics(2.5))
    reporter.train(1)
    reporter.close()
    raw = next((tmp_path / "tensorboard").iterdir()).read_bytes()
    found, cursor = {}, 0
    while cursor < len(raw):
        size = int.from_bytes(raw[cursor : cursor + 8], "little")
        event = Event.FromString(raw[cursor + 12 : cursor + 12 + size])
        found |= {value.tag: (event.step, value.simple_value) for value in event.summary.value}
        cursor += 12 + size + 4
    assert found["loss"] == (1, 2.5)
    assert {"padding", "tokens_per_second"} <= found.keys()


# ---- means over an interval ----


def weighted(loss: float, targets: float, tokens: float) -> dict[str, WeightedMean]:
    return {
        "loss": WeightedMean(np.float32(loss * targets), np.float32(targets)),
        "grad_norm": WeightedMean(np.float32(loss), np.float32(1)),
        "targets": WeightedMean(np.float32(targets), np.float32(tokens)),
    }


STEPS = [(3.0, 10, 100), (2.0, 30, 50), (1.0, 20, 400), (0.5, 40, 200), (0.25, 50, 10)]


def reported(folder: Path, every: int, cut: int | None = None) -> list[dict]:
    """Lines of a run that reports every so many steps; resumed after `cut` steps by another reporter."""
    folder.mkdir(exist_ok=True)
    reporter = Reporter(folder, ReportOptions(progress_bar=False), config={}, total=5, start=0, enabled=True)
    for step, values in enumerate(STEPS, 1):
        reporter.add(weighted(*values))
        if step % every == 0 or step == len(STEPS):
            reporter.train(step)
        if step == cut:
            interval = json.loads(json.dumps(reporter.interval))
            reporter.close()
            reporter = Reporter(
                folder,
                ReportOptions(progress_bar=False),
                config={},
                total=5,
                start=step,
                enabled=True,
                interval=interval,
            )
    reporter.close()
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("every", [1, 2, 3, 5, 9])
def test_a_line_holds_means_over_its_steps(every: int, tmp_path: Path) -> None:
    """Sums are carried and divided once: the loss weighs by targets, and a gradient's norm by steps."""
    lines = reported(tmp_path, every)
    edges = [0, *[step for step in range(1, 6) if step % every == 0 or step == 5]]
    assert [line["step"] for line in lines] == edges[1:]
    for line, start, end in zip(lines, edges, edges[1:], strict=False):
        part = np.array(STEPS[start:end])
        assert line["loss"] == pytest.approx((part[:, 0] * part[:, 1]).sum() / part[:, 1].sum(), rel=1e-6)
        assert line["grad_norm"] == pytest.approx(part[:, 0].mean(), rel=1e-6)
        ratio = line["targets_per_second"] / line["tokens_per_second"]
        assert ratio == pytest.approx(part[:, 1].sum() / part[:, 2].sum(), rel=1e-6)


@pytest.mark.parametrize("cut", [1, 2, 3, 4])
def test_a_resumed_run_reports_the_same_means(cut: int, tmp_path: Path) -> None:
    whole, again = (reported(tmp_path / name, 3, at) for name, at in (("whole", None), ("again", cut)))
    names = ("step", "loss", "grad_norm")
    assert [[line[name] for name in names] for line in again] == [[line[name] for name in names] for line in whole]


def test_speed_is_that_of_all_steps_of_the_interval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation in between takes no time of theirs, and three unequal steps count with what each had."""
    clock = [100.0]
    monkeypatch.setattr("zephyr_jax.train.metrics.time.perf_counter", lambda: clock[0])
    reporter = Reporter(tmp_path, ReportOptions(progress_bar=False), config={}, total=5, start=0, enabled=True)
    for values in STEPS[:2]:
        clock[0] += 1
        reporter.add(weighted(*values))
    reporter.pause()
    clock[0] += 50
    reporter.evaluation(2, {"loss": 1.0})
    clock[0] += 2
    reporter.add(weighted(*STEPS[2]))
    values = reporter.train(3)
    assert values["tokens_per_second"] == pytest.approx(550 / 4) and values["targets_per_second"] == pytest.approx(15)
    clock[0] += 1
    reporter.add(weighted(*STEPS[3]))
    assert reporter.train(4)["tokens_per_second"] == pytest.approx(200)
    reporter.close()


@pytest.mark.parametrize("every", [2, 3])
def test_the_loop_reports_intervals(every: int, tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, [5, 4, 3, 2, 1], log_every=every)
    recorder.run()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    found = {line["step"]: line["loss"] for line in lines if "loss" in line}
    assert found == ({2: 4.5, 4: 2.5, 5: 1.0} if every == 2 else {3: 4.0, 5: 1.5})


# ---- Weights & Biases ----


def test_ids_are_unique_per_folder_and_kept_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two folders of one name have two ids; a resumed run goes on under its own, one of an earlier version under its name."""
    asked: list[dict] = []

    class Run:
        def log(self, values: dict, step: int) -> None: ...
        def finish(self) -> None: ...

    stub = ModuleType("wandb")
    stub.init = lambda **settings: asked.append(settings) or Run()
    monkeypatch.setitem(sys.modules, "wandb", stub)
    options = ReportOptions(progress_bar=False, wandb_project="p")
    for name, start in (("a", 0), ("b", 0), ("a", 3), ("a", 0), ("old", 3), ("old", 3)):
        folder = tmp_path / name / "sft"
        folder.mkdir(parents=True, exist_ok=True)
        Reporter(folder, options, config={}, total=5, start=start, enabled=True).close()
    ids = [settings["id"] for settings in asked]
    assert ids[0] != ids[1] and ids[2] == ids[0] == ids[3] and ids[4:] == ["sft", "sft"]
    assert (tmp_path / "a" / "sft" / "wandb-id.txt").read_text().strip() == ids[0]
    assert {(settings["name"], settings["resume"]) for settings in asked} == {("sft", "allow")}
