"""The train state: frozen weights stay bit-equal and out of gradients, optimizer state and checkpoints."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from shutil import copytree, rmtree
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from safetensors.numpy import load_file, save_file

from tests.conftest import write_rows
from tests.methods.small import sft_config
from tests.models import Loaded, load
from tests.train.test_resume import Killed, curve, kill_after
from tests.train.test_step import NO_LIMITS, split, uneven_rows
from zephyr_jax import train_command
from zephyr_jax.checkpoint.fingerprint import weights_fingerprint
from zephyr_jax.checkpoint.frozen import FROZEN, merge
from zephyr_jax.checkpoint.frozen import split as split_weights
from zephyr_jax.checkpoint.steps import find_checkpoint, saved_fingerprint
from zephyr_jax.cli import main
from zephyr_jax.config.sections import Remat
from zephyr_jax.config.training import SftConfig
from zephyr_jax.config.training_sections import AnomalyOptions, OptimizerOptions
from zephyr_jax.demo.corpus import conversations
from zephyr_jax.errors import InputError
from zephyr_jax.objective.example_loss import make_objective
from zephyr_jax.objective.sft import sft_loss
from zephyr_jax.train.fit import fit
from zephyr_jax.train.optimizer import learning_rate, make_optimizer
from zephyr_jax.train.state import TrainState, initial_state, state_shardings
from zephyr_jax.train.step import make_step
from zephyr_jax.train_command import train

EMBEDDING = "model.embed_tokens.weight"


def not_embedding(name: str) -> bool:
    return name != "embedding"


@pytest.fixture(scope="module")
def gqa(golden: Path) -> Loaded:
    return load(golden / "models" / "gqa", remat=Remat.NONE)


def arrays(tree: Any) -> list[np.ndarray]:
    return [np.array(leaf) for leaf in jax.tree.leaves(tree)]


def test_merge_undoes_split() -> None:
    weights = {"a": 1, "b": {"c": 2, "d": {"e": 3}}, "f": {"g": 4}}
    trainable, frozen = split_weights(weights, lambda name: name in ("b.c", "f.g"))
    assert (trainable, frozen) == ({"b": {"c": 2}, "f": {"g": 4}}, {"a": 1, "b": {"d": {"e": 3}}})
    assert merge(trainable, frozen) == weights
    everything, nothing = split_weights(weights, lambda _: True)
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


class FrozenRuns(NamedTuple):
    """Two runs of the same settings with a frozen embedding, and their last states."""

    base: Path
    whole: Path
    resumed: Path
    """Killed after step 3, and resumed."""
    states: list[TrainState]
    settings: Callable[[Path], SftConfig]


@pytest.fixture(scope="module")
def runs(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FrozenRuns]:
    """Trained from a copy of the tiny model; the command does not train with frozen weights, so `fit` is given them here."""
    folder = tmp_path_factory.mktemp("frozen")
    base = Path(copytree(tiny_model, folder / "base"))
    rows = write_rows(folder / "chats.jsonl", list(conversations(0, 40, "train")))
    finished: list[TrainState] = []

    def partial_fit(*args: Any, **kwargs: Any) -> TrainState:
        finished.append(fit(*args, **{**kwargs, "is_trainable": not_embedding}))
        return finished[-1]

    settings = partial(sft_config, base, rows, epochs=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_command, "fit", partial_fit)
        train(settings(folder / "whole"))
        with pytest.MonkeyPatch.context() as killing, pytest.raises(Killed):
            kill_after(killing, 3)
            train(settings(folder / "resumed"))
        train(settings(folder / "resumed"))
        yield FrozenRuns(base, folder / "whole", folder / "resumed", finished, settings)


def test_a_run_with_frozen_weights_resumes_bit_for_bit(runs: FrozenRuns) -> None:
    """Checkpoints hold the trainable weights only; the frozen ones come from the base model again."""
    whole, resumed = runs.states
    for left, right in zip(arrays(whole), arrays(resumed), strict=True):
        np.testing.assert_array_equal(left, right)
    assert curve(runs.whole) == curve(runs.resumed)
    base = load(runs.base).parameters
    np.testing.assert_array_equal(resumed.frozen["embedding"], base["embedding"])
    newest = find_checkpoint(epath.Path(runs.resumed))
    assert set(newest.restore_item("parameters", None)) == set(resumed.trainable)
    assert newest.progress[FROZEN]["names"] == ["embedding"]


def test_every_command_loads_a_run_with_its_frozen_weights(runs: FrozenRuns, tmp_path: Path) -> None:
    """Trained and frozen weights together: from the run, from its export, and in the fingerprint that names them."""
    main(["export", "--model", str(runs.whole), "--output", str(tmp_path / "hf"), "--dtype", "float32"])
    expected = runs.states[0].weights
    for folder in (runs.whole, tmp_path / "hf"):
        loaded = load(folder).parameters
        assert jax.tree.structure(loaded) == jax.tree.structure(expected)
        for left, right in zip(arrays(loaded), arrays(expected), strict=True):
            np.testing.assert_array_equal(left, right)
    assert saved_fingerprint(epath.Path(runs.whole), None) == weights_fingerprint(expected)


def test_frozen_weights_that_changed_are_refused(runs: FrozenRuns) -> None:
    """Neither a loader nor a resumed run takes other weights than those that the run was trained with."""
    file = runs.base / "model.safetensors"
    tensors, before = load_file(file), file.read_bytes()
    save_file(tensors | {EMBEDDING: -tensors[EMBEDDING]}, file)
    try:
        with pytest.raises(
            InputError, match=r"frozen weights of .*whole.*base.*expected weights .*, got .*Put the model"
        ):
            load(runs.whole)
        newest = max((runs.resumed / "checkpoints").iterdir(), key=lambda step: int(step.name))
        rmtree(newest)  # so that there is a step to train
        with pytest.raises(InputError, match=r"frozen weights of .*resumed.*base"):
            train(runs.settings(runs.resumed))
    finally:
        file.write_bytes(before)
