"""What a anomalous step does to a run: nothing, where its policy says so, bit for bit."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models import Loaded, load, packed_rows, random_segments
from zephyr_jax.config.sections import Remat
from zephyr_jax.config.training import SftConfig
from zephyr_jax.config.training_sections import AnomalyOptions, OptimizerOptions, PairAnomalyOptions
from zephyr_jax.config.validation import validate
from zephyr_jax.errors import InputError
from zephyr_jax.mean import WeightedMean
from zephyr_jax.objective.example_loss import make_objective
from zephyr_jax.objective.sft import sft_loss
from zephyr_jax.train.anomalies import AnomalyDetector, StepFlags, StepLimits, detect
from zephyr_jax.train.optimizer import learning_rate, make_optimizer
from zephyr_jax.train.state import TrainState, initial_state, state_shardings
from zephyr_jax.train.step import make_step

WELL = StepLimits(np.float32(np.inf), np.bool_(False))
HALTED = StepLimits(np.float32(np.inf), np.bool_(True))
OPTIONS = OptimizerOptions(learning_rate=1e-2, warmup_ratio=0, lr_schedule="linear")


@pytest.fixture(scope="module")
def gqa(golden: Path) -> Loaded:
    return load(golden / "models" / "gqa", remat=Remat.NONE)


def batch(targets: bool = True) -> Any:
    a, b = random_segments([14, 15])
    rows = packed_rows([[a], [b]], 32)
    rows = rows if targets else rows._replace(targets=np.zeros_like(rows.targets))
    return jax.tree.map(lambda leaf: np.array(leaf)[None], rows)


class Run:
    """A model with its step under some policies."""

    def __init__(self, gqa: Loaded, health: AnomalyOptions, options: OptimizerOptions = OPTIONS):
        optimizer = make_optimizer(options, 10)
        shardings = state_shardings(gqa.model.parameters, gqa.model.shardings, optimizer, gqa.rules)
        copy = jax.tree.map(jnp.array, gqa.parameters)
        self.state: TrainState = initial_state(copy, optimizer, shardings)
        objective = make_objective(sft_loss, gqa.model.definition, None, segments=1, chunk=16)

        def poisoned(parameters: Any, rows: Any) -> Any:
            loss, metrics = objective(parameters, rows)
            bad = jnp.any(rows.tokens[:, 0] == 0)  # a batch whose first token is 0 is anomalous
            return WeightedMean(jnp.where(bad, jnp.nan, 1.0) * loss.sum, loss.weight), metrics

        self.step = make_step(poisoned, optimizer, learning_rate(options, 10), shardings, health)

    def __call__(self, rows: Any, limits: StepLimits = WELL) -> StepFlags:
        self.state, self.metrics, signs = self.step(self.state, rows, limits)
        return jax.device_get(signs)

    def numbers(self) -> list[np.ndarray]:
        return [np.asarray(leaf) for leaf in jax.tree.leaves((self.state.trainable, self.state.optimizer_state))]


def anomalous() -> Any:
    rows = batch()
    rows.tokens[..., 0] = 0
    return rows


def equal(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b, equal_nan=True) for a, b in zip(one, other, strict=True))


def test_a_skipped_step_leaves_no_trace_but_its_number(gqa: Loaded) -> None:
    """Weights and moments are those of a run that never met the batch; the step and its learning rate go on."""
    run, other = Run(gqa, AnomalyOptions(non_finite="skip")), Run(gqa, AnomalyOptions(non_finite="skip"))
    run(batch())
    other(batch())
    signs = run(anomalous())
    assert signs.non_finite
    assert signs.skipped
    assert not signs.changed
    assert not signs.halted
    assert int(run.state.step) == 2
    moments = [leaf for leaf in jax.tree.leaves(run.state) if leaf.ndim]
    for left, right in zip(moments, [leaf for leaf in jax.tree.leaves(other.state) if leaf.ndim], strict=True):
        np.testing.assert_array_equal(left, right)
    assert run(batch()).changed > 0.2
    assert float(run.metrics["learning_rate"].value) == pytest.approx(1e-2 * (1 - 2 / 10))


def test_a_step_that_stops_the_run_holds_it_still(gqa: Loaded) -> None:
    """Neither the anomalous step nor the healthy one behind it, which is on its way already, changes anything."""
    run = Run(gqa, AnomalyOptions())
    run(batch())
    before = run.numbers()
    signs = run(anomalous())
    assert signs.halted
    after = run(batch(), HALTED)
    assert after.halted
    assert not after.non_finite
    assert equal(before, run.numbers())
    assert int(run.state.step) == 1


def test_going_on_is_going_on(gqa: Loaded) -> None:
    """`continue` means what it says: NaN reaches the weights."""
    run = Run(gqa, AnomalyOptions(non_finite="continue"))
    signs = run(anomalous())
    assert signs.non_finite
    assert not signs.skipped
    assert np.isnan(run.numbers()[0]).any()


def test_a_batch_without_targets_has_no_gradient(gqa: Loaded) -> None:
    """It is named for what it is, and under `continue` it moves nothing."""
    run = Run(gqa, AnomalyOptions(non_finite="continue"))
    signs = run(batch(targets=False))
    assert not signs.changed
    found = AnomalyDetector(AnomalyOptions()).check(1, jax.device_get(run.metrics), signs, WELL.loss)
    assert [each.text for each in found] == ["no target tokens in the batch"]


def test_a_spike_is_left_out_by_what_the_host_says(gqa: Loaded) -> None:
    run = Run(gqa, AnomalyOptions(spike="skip"))
    before = run.numbers()
    assert run(batch(), StepLimits(np.float32(0.5), np.bool_(False))).spike
    assert equal(before[:3], run.numbers()[:3])
    assert not run(batch(), StepLimits(np.float32(50), np.bool_(False))).skipped


def test_moments_on_the_host_are_left_out_too(gqa: Loaded) -> None:
    options = replace(OPTIONS, offload_moments=True)
    run = Run(gqa, AnomalyOptions(non_finite="skip"), options)
    run(batch())
    before = run.numbers()
    run(anomalous())
    moved = [not np.array_equal(one, other) for one, other in zip(before, run.numbers(), strict=True)]
    assert sum(moved) == 1  # the schedule's place


def test_a_learning_rate_too_small_for_float32_is_seen(gqa: Loaded) -> None:
    """Law: `changed` is about the weights' bits, whatever the update's size; few are so near zero that they feel this."""
    run = Run(gqa, AnomalyOptions(), replace(OPTIONS, learning_rate=1e-12))
    assert 0 < run(batch()).changed < 0.01
    assert Run(gqa, AnomalyOptions())(batch()).changed > 0.2


def numbers(loss: float, margin: float = 0.0, weight: float = 1.0) -> dict[str, WeightedMean]:
    one = np.float32(1)
    return {
        "loss": WeightedMean(np.float32(loss), np.float32(weight)),
        "grad_norm": WeightedMean(one, one),
        "learning_rate": WeightedMean(np.float32(1e-12), one),
        "rewards/margins": WeightedMean(np.float32(margin), one),
    }


def signs_of(
    health: AnomalyOptions, metrics: dict[str, WeightedMean], most: np.float32, changed: bool = True
) -> StepFlags:
    found = detect(health, metrics, StepLimits(most, np.bool_(False)))
    return jax.tree.map(bool, found)._replace(changed=float(changed))


def test_a_margin_that_explodes_is_named() -> None:
    options = PairAnomalyOptions(margin="skip", margin_limit=50)
    found = signs_of(options, numbers(0.1, margin=-51), np.float32(np.inf))
    assert found.skipped
    [anomaly] = AnomalyDetector(options).check(1, numbers(0.1, margin=-51), found, np.float32(np.inf))
    assert (anomaly.kind, anomaly.policy, anomaly.text) == (
        "margin",
        "skip",
        "margin out of range (rewards/margins=-51, limit=50)",
    )
    assert not signs_of(options, numbers(0.1, margin=49), np.float32(np.inf)).skipped


def test_nothing_that_changes_for_long_is_named_once() -> None:
    options = AnomalyOptions(stalled_steps=3)
    health, said = AnomalyDetector(options), []
    for step in range(1, 8):
        metrics = numbers(1)
        said += health.check(step, metrics, signs_of(options, metrics, np.float32(9), changed=step == 1), np.float32(9))
    assert [each.text for each in said] == [
        "stalled weights (fewer than 1% changed in each of 3 steps, learning_rate=1e-12)"
    ]


def test_the_tail_of_a_schedule_is_no_sickness() -> None:
    """Cosine ends so low that float32 weights stand still for dozens of steps; that is not a dead learning rate."""
    options = AnomalyOptions(stalled_steps=3)
    health = AnomalyDetector(options, peak_rate=1e-9)  # the numbers' rate is 1e-12
    for step in range(1, 30):
        metrics = numbers(1)
        assert not health.check(step, metrics, signs_of(options, metrics, np.float32(9), changed=False), np.float32(9))
    assert health.state["unchanged"] == 0


def play(losses: list[float], options: AnomalyOptions, cuts: set[int]) -> list[np.float32]:
    """The limits that each step is reported; at each cut the run is saved and goes on from JSON."""
    health, printed = AnomalyDetector(options), []
    for done, loss in enumerate(losses):
        if done in cuts:
            health = AnomalyDetector(options, json.loads(json.dumps(health.state)))
        printed.append(health.loss_limit(done))
        metrics = numbers(loss)
        health.check(done + 1, metrics, signs_of(options, metrics, printed[-1]), printed[-1])
    return printed


@settings(deadline=None, max_examples=50)
@given(
    losses=st.lists(st.floats(-5, 50, width=32) | st.just(float("nan")), min_size=1, max_size=40),
    cuts=st.sets(st.integers(0, 39)),
    window=st.integers(1, 15),
)
def test_limits_do_not_depend_on_kills(losses: list[float], cuts: set[int], window: int) -> None:
    """Law: what a step is reported is a function of the losses before it, at whichever step a run was cut."""
    options = AnomalyOptions(spike_window=window)
    assert play(losses, options, cuts) == play(losses, options, set())


def test_a_spike_is_measured_by_the_median() -> None:
    printed = play([2.0] * 12 + [9.0], AnomalyOptions(spike_factor=4), set())
    assert all(np.isinf(printed[:11]))
    assert printed[-1] == 8.0


@pytest.mark.parametrize("options", [{"spike_factor": 1.0}, {"spike_window": 0}, {"stalled_steps": 0}])
def test_thresholds_that_mean_nothing_are_refused(options: dict[str, Any]) -> None:
    config = SftConfig(output="o", anomaly=AnomalyOptions(**options))
    config = replace(config, model=replace(config.model, path="m"), data=replace(config.data, path="d"))
    config = replace(config, batch=replace(config.batch, rows=8))
    with pytest.raises(InputError, match=f"`anomaly.{next(iter(options))}`: expected"):
        validate(config)
