"""Steps with adapters: DPO starts at ln 2 with every format of the base; mesh, packing and accumulation change nothing."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tests.checkpoint.adapters import base_config, build, write
from tests.models import packed_rows, random_segments
from tests.train.test_step import NO_LIMITS, split
from zephyr_jax.batch import PairBatch
from zephyr_jax.checkpoint.fingerprint import weights_fingerprint
from zephyr_jax.checkpoint.frozen import split as split_weights
from zephyr_jax.checkpoint.opened import OpenedModel
from zephyr_jax.checkpoint.training_format import open_for_training
from zephyr_jax.config.adapter import AdapterOptions
from zephyr_jax.config.sections import MeshOptions, ModelOptions, Remat
from zephyr_jax.config.training_sections import DpoOptions, OptimizerOptions, PairAnomalyOptions
from zephyr_jax.errors import InputError
from zephyr_jax.model.lora import is_adapter
from zephyr_jax.objective.dpo import dpo_loss
from zephyr_jax.objective.example_loss import make_objective
from zephyr_jax.objective.logprob import sequence_logprob
from zephyr_jax.parallel.mesh import make_mesh
from zephyr_jax.parallel.sharding import ShardingRules
from zephyr_jax.train.optimizer import learning_rate, make_optimizer
from zephyr_jax.train.state import TrainState, initial_state, state_shardings
from zephyr_jax.train.step import make_step

ONE, ALL = MeshOptions(data=1, fsdp=1, tensor=1), MeshOptions(data=2, fsdp=2, tensor=2)
STEPS = 3
BLOCK = 4  # divides the inputs of each of eight devices


@dataclass(frozen=True)
class Trained:
    """Some steps of DPO."""

    losses: list[float]
    grad_norms: list[float]
    changed: list[float]
    state: TrainState
    reference: str
    """Fingerprint by which the reference table of this model is found."""


@dataclass(frozen=True)
class Layout:
    """What must not change the losses."""

    mesh: MeshOptions = ONE
    devices: tuple[int, ...] = (0,)
    pairs_per_row: int = 1
    microbatches: int = 1


def options(base_format: str, **settings: Any) -> AdapterOptions:
    """Of adapters of two projections, one with its inputs along `embed` and one along `mlp`."""
    block = {"block_size": BLOCK} if base_format in ("int8", "int4", "nf4") else {}
    return AdapterOptions(
        **{"rank": 4, "targets": ("q_proj", "down_proj"), "base_format": base_format, **block, **settings}
    )


def opened(
    folder: Path, adapter: AdapterOptions, layout: Layout, dtype: str = "float32", below: Path | None = None
) -> OpenedModel:
    """The model with the settings of an adapter, and perhaps an adapter that it has already."""
    devices = [jax.devices()[index] for index in layout.devices]
    rules = ShardingRules(make_mesh(layout.mesh, devices))
    settings = ModelOptions(
        path=str(folder), compute_dtype=dtype, remat=Remat.NONE, adapter=str(below) if below else None
    )
    return open_for_training(settings, adapter, rules, seed=0)


def pairs(pairs_per_row: int) -> tuple[Any, int]:
    """Sixteen answers to eight prompts, and segments of a row."""
    answers = random_segments([6 + index % 5 for index in range(16)])
    width = 2 * pairs_per_row
    lines = [answers[start : start + width] for start in range(0, 16, width)]
    return packed_rows(lines, 10 * width), width


def dpo(model: OpenedModel, layout: Layout, grad_dtype: str = "float32", **optimizer: Any) -> Trained:
    """Steps from the loaded weights, with a reference that is computed from the model before training."""
    rows, segments = pairs(layout.pairs_per_row)
    before = model.as_reference()
    start = before.load_weights()
    reference = sequence_logprob(before.abstract.definition, start, rows, segments=segments, chunk=16)
    sums = np.asarray(reference.sum)
    batch = split(PairBatch(rows, sums, np.ones((len(sums), segments // 2), bool)), layout.microbatches)
    settings = OptimizerOptions(learning_rate=1e-2, warmup_ratio=0, lr_schedule="constant", **optimizer)
    update = make_optimizer(settings, STEPS)
    abstract, weights = model.abstract, model.load_weights()
    fingerprint = model.reference_fingerprint(weights)
    assert fingerprint == before.reference_fingerprint(start)
    shardings = state_shardings(
        abstract.parameters, abstract.shardings, update, model.rules, settings.offload_moments, is_adapter
    )
    state = initial_state(weights, update, shardings)
    objective = make_objective(dpo_loss, abstract.definition, DpoOptions(), segments=segments, chunk=16)
    rate = learning_rate(settings, STEPS)
    step = make_step(objective, update, rate, shardings, PairAnomalyOptions(), grad_dtype)
    losses, norms, changed = [], [], []
    for _ in range(STEPS):
        state, metrics, flags = step(state, batch, NO_LIMITS)
        losses.append(float(metrics["loss"].value))
        norms.append(float(metrics["grad_norm"].value))
        changed.append(float(flags.changed))
    return Trained(losses, norms, changed, state, fingerprint)


@pytest.fixture(scope="module")
def plain(golden: Path) -> Callable[[str], Trained]:
    """Training of a new adapter on one device, by the base's format."""
    return cache(lambda base_format: dpo(opened(golden / "models" / "gqa", options(base_format), Layout()), Layout()))


@pytest.mark.parametrize("base_format", ["float32", "bfloat16", "int8", "int4", "nf4"])
def test_a_new_adapter_starts_at_ln_2_and_learns(plain: Callable[[str], Trained], base_format: str) -> None:
    """The first loss is ln 2 to 1e-6; the first step changes B alone, the second A too: the base keeps its bits."""
    run = plain(base_format)
    np.testing.assert_allclose(run.losses[0], np.log(2), atol=1e-6)
    assert run.losses[0] - run.losses[-1] > 0.02
    assert 0.3 < run.changed[0] < 0.7 and run.changed[1] > 0.95


def test_tables_differ_by_the_format_of_the_base(plain: Callable[[str], Trained]) -> None:
    names = {plain(base_format).reference for base_format in ("float32", "bfloat16", "int8", "int4", "nf4")}
    assert len(names) == 5 and {name.partition(":")[0] for name in names} >= {"bfloat16", "nf4-4", "int4-4", "int8-4"}


LAYOUTS = {
    "packing and accumulation": Layout(pairs_per_row=2, microbatches=2),
    "data 8": Layout(MeshOptions(data=8, fsdp=1, tensor=1), tuple(range(8))),
    "fsdp 8": Layout(MeshOptions(data=1, fsdp=8, tensor=1), tuple(range(8))),
    "2 x 2 x 2, permuted devices": Layout(ALL, (5, 2, 7, 0, 3, 6, 1, 4)),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_train_alike(golden: Path, plain: Callable[[str], Trained], name: str) -> None:
    """Initial values, reference, losses and gradients of a QLoRA run are those of one device and one pair a row."""
    layout, expected = LAYOUTS[name], plain("nf4")
    run = dpo(opened(golden / "models" / "gqa", options("nf4"), layout), layout)
    assert run.reference == expected.reference
    np.testing.assert_allclose(run.losses, expected.losses, rtol=2e-5)
    np.testing.assert_allclose(run.grad_norms, expected.grad_norms, rtol=1e-3)
    for name, array, other in zip(
        ("codes", "scales"), *(frozen_bits(state) for state in (run.state, expected.state)), strict=True
    ):
        np.testing.assert_array_equal(array, other, err_msg=name)


def frozen_bits(state: TrainState) -> list[np.ndarray]:
    node = state.frozen["decoder"]["feed_forward"]["down"]
    return [np.asarray(node[name]).astype(np.float32) for name in ("codes", "scales")]


def test_moments_in_host_memory_change_nothing(golden: Path, plain: Callable[[str], Trained]) -> None:
    run = dpo(opened(golden / "models" / "gqa", options("nf4"), Layout()), Layout(), offload_moments=True)
    np.testing.assert_allclose(run.losses, plain("nf4").losses, rtol=1e-6)
    shapes = {leaf.shape for leaf in jax.tree.leaves(run.state.optimizer_state) if leaf.ndim}
    assert shapes == {leaf.shape for leaf in jax.tree.leaves(run.state.trainable)}


def test_bfloat16_gradients_store_those_of_adapters(golden: Path) -> None:
    """The same first loss, and gradients that differ by bfloat16's rounding."""
    model = opened(golden / "models" / "gqa", options("bfloat16"), Layout(), "bfloat16")
    wide, narrow = (dpo(model, Layout(), grad_dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert wide.losses[0] == narrow.losses[0]
    np.testing.assert_allclose(narrow.grad_norms[0], wide.grad_norms[0], rtol=2**-8)
    assert narrow.losses[-1] < narrow.losses[0] - 0.02


@pytest.mark.parametrize(("start", "base_format"), [("continue", "nf4"), ("merge", "bfloat16"), ("merge", "nf4")])
def test_an_earlier_adapter_is_part_of_the_reference(
    golden: Path, tmp_path: Path, plain: Callable[[str], Trained], start: str, base_format: str
) -> None:
    """Continued or merged, DPO starts at ln 2 against the model with the adapter, which is another reference than the base."""
    adapter = build(base_config(golden), ("attention.query", "feed_forward.down"), rank=4, alpha=8)
    folder = write(adapter, tmp_path / "adapter")
    asked = options(base_format, start=start, alpha=8.0)
    run = dpo(opened(golden / "models" / "gqa", asked, Layout(), below=folder), Layout())
    np.testing.assert_allclose(run.losses[0], np.log(2), atol=1e-6)
    assert run.losses[-1] < run.losses[0] - 0.01
    assert run.reference != plain(base_format).reference


@pytest.mark.parametrize(
    "other",
    [
        {"rank": 8}, {"alpha": 32.0}, {"targets": ("q_proj",)}, {"use_rslora": True}, {"base_format": "int8"},
        {"block_size": 8}, {"init": "pissa"},
    ],
    ids=str,
)  # fmt: skip
def test_settings_of_adapters_change_the_parameters(golden: Path, other: dict[str, Any]) -> None:
    """With any one setting changed, the parameters that training starts from are others."""
    folder, settings = golden / "models" / "gqa", options("nf4", targets=("q_proj", "v_proj"))
    one, another = (
        weights_fingerprint(opened(folder, options, Layout()).load_weights())
        for options in (settings, replace(settings, **other))
    )
    assert one != another


def test_initial_values_depend_on_seed_and_name_alone(golden: Path) -> None:
    """A is uniform within 1/sqrt(inputs), as kaiming_uniform_(a=sqrt(5)) of torch; B is 0; the same bits on every mesh."""
    folder, layouts = golden / "models" / "gqa", (Layout(), LAYOUTS["fsdp 8"], LAYOUTS["2 x 2 x 2, permuted devices"])
    settings = options("bfloat16", rank=8, targets=("*_proj",))
    loaded = (opened(folder, settings, layout).load_weights() for layout in layouts)
    adapters = [split_weights(weights, is_adapter)[0]["decoder"] for weights in loaded]
    first = adapters[0]
    for other in adapters[1:]:
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(first), jax.device_get(other))
    inputs = {"query": 32, "key": 32, "value": 32, "output": 32, "gate": 32, "up": 32, "down": 48}
    for node in first.values():
        for name, pair in node.items():
            bound, a = 1 / np.sqrt(inputs[name]), np.asarray(pair["lora_a"])
            assert not np.asarray(pair["lora_b"]).any()
            assert 0.95 * bound < np.abs(a).max() <= bound
            assert abs(a.mean()) < 0.2 * bound
            np.testing.assert_allclose(a.std(), bound / np.sqrt(3), rtol=0.1)
    assert not np.array_equal(first["attention"]["key"]["lora_a"], first["attention"]["value"]["lora_a"])


def test_settings_of_a_continued_adapter_are_not_ignored(golden: Path, tmp_path: Path) -> None:
    """Without a rank, settings that are given must still be those of the adapter."""
    folder = write(build(base_config(golden), ("attention.query",), rank=4, alpha=8), tmp_path / "adapter")
    for given, message in (
        ({"alpha": 32.0}, r"adapter.alpha: expected 8.0, got 32.0"),
        ({"targets": ("k_proj",)}, "adapter.targets: expected q_proj, got k_proj"),
        ({"use_rslora": True}, r"adapter.use_rslora: expected False, got True"),
    ):
        with pytest.raises(InputError, match=message):
            opened(golden / "models" / "gqa", AdapterOptions(**given), Layout(), below=folder)
