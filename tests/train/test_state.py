"""The train state: frozen weights stay bit-equal and out of gradients, optimizer state and checkpoints."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from tests.conftest import write_rows
from tests.methods.small import sft_config
from tests.models import Loaded, load
from tests.train.test_resume import Killed, curve, kill_after
from tests.train.test_step import NO_LIMITS, split, uneven_rows
from zephyr_jax import train_command
from zephyr_jax.checkpoint.steps import find_checkpoint
from zephyr_jax.config.sections import Remat
from zephyr_jax.config.training_sections import AnomalyOptions, OptimizerOptions
from zephyr_jax.demo.corpus import conversations
from zephyr_jax.objective.example_loss import make_objective
from zephyr_jax.objective.sft import sft_loss
from zephyr_jax.train import state as states
from zephyr_jax.train.fit import fit
from zephyr_jax.train.optimizer import learning_rate, make_optimizer
from zephyr_jax.train.state import TrainState, initial_state, merge, state_shardings
from zephyr_jax.train.step import make_step
from zephyr_jax.train_command import train


def not_embedding(name: str) -> bool:
    return name != "embedding"


@pytest.fixture(scope="module")
def gqa(golden: Path) -> Loaded:
    return load(golden / "models" / "gqa", remat=Remat.NONE)


def arrays(tree: Any) -> list[np.ndarray]:
    return [np.array(leaf) for leaf in jax.tree.leaves(tree)]


def test_merge_undoes_split() -> None:
    weights = {"a": 1, "b": {"c": 2, "d": {"e": 3}}, "f": {"g": 4}}
    trainable, frozen = states.split(weights, lambda name: name in ("b.c", "f.g"))
    assert (trainable, frozen) == ({"b": {"c": 2}, "f": {"g": 4}}, {"a": 1, "b": {"d": {"e": 3}}})
    assert merge(trainable, frozen) == weights
    everything, nothing = states.split(weights, lambda _: True)
    assert nothing == {} and merge(everything, nothing) is everything


def one_step(gqa: Loaded, **options: Any) -> tuple[TrainState, dict[str, Any]]:
    settings = OptimizerOptions(learning_rate=1e-2, warmup_ratio=0, weight_decay=0.1, **options)
    optimizer = make_optimizer(settings, 4)
    shardings = state_shardings(
        gqa.model.parameters,
        gqa.model.shardings,
        optimizer,
        gqa.rules,
        settings.offload_moments,
        is_trainable=not_embedding,
    )
    state = initial_state(jax.tree.map(jnp.array, gqa.parameters), optimizer, shardings)
    objective = make_objective(sft_loss, gqa.model.definition, None, segments=2, chunk=16)
    step = make_step(objective, optimizer, learning_rate(settings, 4), shardings, AnomalyOptions())
    next_state, metrics, flags = step(state, split(uneven_rows(), 2), NO_LIMITS)
    assert flags.changed > 0.2
    return next_state, metrics


@pytest.mark.parametrize("offload", [False, True])
def test_a_step_updates_only_trainable_weights(gqa: Loaded, offload: bool) -> None:
    """The frozen embedding is used and keeps its bits, has no moments, and does not count in the gradient norm."""
    state, metrics = one_step(gqa, offload_moments=offload)
    assert set(state.frozen) == {"embedding"} and "embedding" not in state.trainable
    np.testing.assert_array_equal(state.frozen["embedding"], gqa.parameters["embedding"])
    assert jax.tree.structure(state.weights) == jax.tree.structure(gqa.parameters)
    changed = [
        not np.array_equal(new, old)
        for new, old in zip(arrays(state.trainable), arrays({**gqa.parameters, "embedding": {}}), strict=True)
    ]
    assert all(changed)
    moments = {leaf.shape for leaf in jax.tree.leaves(state.optimizer_state) if leaf.ndim}
    assert gqa.parameters["embedding"].shape not in moments
    objective = make_objective(sft_loss, gqa.model.definition, None, segments=2, chunk=16)

    def mean_loss(trainable: Any) -> jax.Array:
        loss, _ = objective({**trainable, "embedding": gqa.parameters["embedding"]}, uneven_rows())
        return loss.sum / loss.weight

    grads = jax.grad(mean_loss)({name: node for name, node in gqa.parameters.items() if name != "embedding"})
    norm = np.sqrt(sum(float(np.sum(np.square(grad))) for grad in arrays(grads)))
    np.testing.assert_allclose(metrics["grad_norm"].value, norm, rtol=1e-5)


def test_a_run_with_frozen_weights_resumes_bit_for_bit(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Path, tmp_path: Path
) -> None:
    """Checkpoints hold the trainable weights only; the frozen ones come from the base model again."""
    rows = write_rows(tmp_path / "chats.jsonl", list(conversations(0, 40, "train")))
    finished: list[TrainState] = []

    def partial_fit(*args: Any, **kwargs: Any) -> TrainState:
        finished.append(fit(*args, **kwargs, is_trainable=not_embedding))
        return finished[-1]

    monkeypatch.setattr(train_command, "fit", partial_fit)
    monkeypatch.setattr(train_command, "add_samples", lambda config, folder: None)
    config = partial(sft_config, tiny_model, rows, epochs=2)
    train(config(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        kill_after(patch, 3)
        with pytest.raises(Killed):
            train(config(tmp_path / "killed"))
    train(config(tmp_path / "killed"))
    whole, resumed = finished
    for left, right in zip(arrays(whole), arrays(resumed), strict=True):
        np.testing.assert_array_equal(left, right)
    assert curve(tmp_path / "whole") == curve(tmp_path / "killed")
    base = load(tiny_model).parameters
    np.testing.assert_array_equal(resumed.frozen["embedding"], base["embedding"])
    newest = find_checkpoint(epath.Path(tmp_path / "killed"))
    assert set(newest.restore_item("parameters", None)) == set(resumed.trainable)
