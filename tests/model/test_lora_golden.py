"""Adapters equal peft's with torch: log-probs, gradients, trained matrices and merged weights of `make_lora_golden.py`.

Everything is float32. Each array is compared to 1e-5 of its largest magnitude (TOLERANCE).
"""

from dataclasses import dataclass
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import Loaded, load_adapted, load_on, logits, make_rules, packed_rows
from zephyr_jax.batch import PairBatch
from zephyr_jax.checkpoint.frozen import merge, split
from zephyr_jax.checkpoint.hf.peft_files import adapter_tensors
from zephyr_jax.config.adapter import AdapterOptions
from zephyr_jax.config.training_sections import AnomalyOptions, DpoOptions, OptimizerOptions, PairAnomalyOptions
from zephyr_jax.mean import Metrics, WeightedMean
from zephyr_jax.model.families.registry import tensors_of
from zephyr_jax.model.lora import is_adapter
from zephyr_jax.objective.dpo import dpo_loss
from zephyr_jax.objective.example_loss import Objective, make_objective
from zephyr_jax.objective.logprob import sequence_logprob
from zephyr_jax.objective.sft import sft_loss
from zephyr_jax.train.anomalies import StepLimits
from zephyr_jax.train.optimizer import learning_rate, make_optimizer
from zephyr_jax.train.state import initial_state, state_shardings
from zephyr_jax.train.step import accumulate, make_step

TOLERANCE = 1e-5
BASES = {"llama": "llama_untied", "window": "window", "tied": "tied", "rslora": "window"}
MESH = {"devices": 8, "data": 2, "fsdp": 2, "tensor": 2}
OPTIMIZER = OptimizerOptions(
    learning_rate=2e-3, lr_schedule="constant", warmup_ratio=0, weight_decay=0.01, max_grad_norm=None
)
NO_LIMITS = StepLimits(np.float32(np.inf), np.bool_(False))


def mesh_id(value: Any) -> str:
    """Of a parameter."""
    return value if isinstance(value, str) else ("2x2x2" if value else "1x1x1")


@dataclass(frozen=True)
class Case:
    """A model with peft's adapter, and torch's numbers of it."""

    loaded: Loaded
    base: Path
    targets: tuple[str, ...]
    numbers: Any

    def assert_close(self, adapter: Any, prefix: str) -> None:
        """Compare every A and B, in nested dicts, with the numbers under `prefix`."""
        layers = self.loaded.model.config.num_layers
        tensors = adapter_tensors(self.loaded.model.config, self.targets)
        names = {name: (tensor, layer) for tensor in tensors for layer, name in enumerate(tensor.names(layers))}
        expected = {f"{prefix}.{name.removeprefix('base_model.model.')}": place for name, place in names.items()}
        assert expected.keys() == {name for name in self.numbers if name.startswith(f"{prefix}.")}
        for name, (tensor, layer) in expected.items():
            assert_close(tensor.to_hf(np.asarray(reduce(getitem, tensor.path, adapter)[layer])), self.numbers[name])


def open_case(golden: Path, name: str, **mesh: int) -> Case:
    base, folder = golden / "models" / BASES[name], golden / "lora" / name
    loaded = load_adapted(base, AdapterOptions(base_format="float32"), make_rules(**mesh), adapter=str(folder))
    assert loaded.model.weight_format.lora
    return Case(loaded, base, loaded.model.weight_format.lora.targets, np.load(folder / "golden.npz"))


def pairs(case: Case) -> PairBatch:
    """The six segments in two of four rows, two pairs and one, padding before each segment, and the reference of torch."""
    ends = np.cumsum(case.numbers["sizes"])
    segments = np.split(case.numbers["tokens"], ends[:-1])
    reference = np.zeros((4, 4), np.float32)
    reference[0], reference[2, :2] = np.split(case.numbers["reference"], [4])
    rows = packed_rows([segments[:4], [], segments[4:], []], 56, gap=1)
    return PairBatch(rows, jnp.asarray(reference), jnp.asarray([[True, True], [False] * 2, [True, False], [False] * 2]))


def assert_close(found: Any, expected: np.ndarray) -> None:
    """Within TOLERANCE of the largest magnitude."""
    found = np.asarray(found)
    assert found.shape == expected.shape
    gap, scale = np.abs(found - expected).max(), np.abs(expected).max()
    assert gap <= TOLERANCE * scale, f"differs by {gap:.2e}, {gap / scale:.1e} of the largest magnitude"


def objective_of(kind: str, loaded: Loaded) -> Objective:
    loss, options = (dpo_loss, DpoOptions(beta=0.1)) if kind == "dpo" else (sft_loss, None)
    return make_objective(loss, loaded.model.definition, options, segments=4, chunk=16)


def stacked(kind: str, batch: PairBatch, microbatches: int) -> Any:
    arrays = batch if kind == "dpo" else batch.rows
    return jax.tree.map(lambda leaf: leaf.reshape(microbatches, -1, *leaf.shape[1:]), arrays)


@pytest.mark.parametrize(("name", "mesh"), [*((name, {}) for name in BASES), ("window", MESH)], ids=mesh_id)
def test_logits_and_log_probs_equal_peft(golden: Path, name: str, mesh: dict[str, int]) -> None:
    """Of packed rows, against torch's rows of one segment; and of the base, against peft's disabled adapter."""
    case = open_case(golden, name, **mesh)
    batch = pairs(case)
    members = np.asarray(batch.rows.segments) > 0
    if not mesh:
        assert_close(np.asarray(logits(case.loaded, batch.rows))[members], case.numbers["logits"])
    for loaded, key in ((case.loaded, "logprobs"), (load_on(case.base, case.loaded.rules), "reference")):
        sums = sequence_logprob(loaded.model.definition, loaded.parameters, batch.rows, segments=4, chunk=16)
        assert_close(np.concatenate([sums.sum[0], sums.sum[2, :2]]), case.numbers[key])
    assert np.abs(case.numbers["logprobs"] - case.numbers["reference"]).min() > 0.1


@pytest.mark.parametrize(
    ("name", "kind", "mesh"),
    [
        *((name, "dpo" if index % 2 else "sft", {}) for index, name in enumerate(BASES)),
        ("tied", "sft", MESH),
        ("window", "dpo", MESH),
    ],
    ids=mesh_id,
)
def test_gradients_equal_peft(golden: Path, name: str, kind: str, mesh: dict[str, int]) -> None:
    """The loss, and its gradient by every A and B."""
    case = open_case(golden, name, **mesh)
    loaded = case.loaded
    objective = objective_of(kind, loaded)
    trainable, frozen = split(loaded.parameters, is_adapter)
    shardings = split(loaded.model.shardings, is_adapter)[0]
    assert len(jax.tree.leaves(trainable)) == 2 * len(case.targets)

    def adapter_objective(adapter: Any, batch: Any) -> tuple[WeightedMean, Metrics]:
        return objective(merge(adapter, frozen), batch)

    batch = stacked(kind, pairs(case), 1)
    totals, metrics = jax.jit(lambda adapter: accumulate(adapter_objective, adapter, batch, shardings))(trainable)
    np.testing.assert_allclose(metrics["loss"].value, case.numbers[f"loss_{kind}"], rtol=TOLERANCE)
    grads = jax.tree.map(lambda total: total / metrics["loss"].weight, totals)
    case.assert_close(grads, f"grad_{kind}")


@pytest.mark.parametrize(
    ("name", "kind", "microbatches"),
    [("llama", "sft", 2), ("window", "dpo", 2), ("tied", "sft", 1), ("rslora", "dpo", 1)],
)
def test_trained_adapters_equal_peft(golden: Path, name: str, kind: str, microbatches: int) -> None:
    """A and B after three steps of AdamW with weight decay; all other weights keep their bits."""
    case = open_case(golden, name)
    loaded = case.loaded
    model, optimizer = loaded.model, make_optimizer(OPTIMIZER, 3)
    shardings = state_shardings(model.parameters, model.shardings, optimizer, loaded.rules, is_trainable=is_adapter)
    step = make_step(
        objective_of(kind, loaded),
        optimizer,
        learning_rate(OPTIMIZER, 3),
        shardings,
        PairAnomalyOptions() if kind == "dpo" else AnomalyOptions(),
    )
    before = jax.tree.map(np.asarray, split(loaded.parameters, is_adapter)[1])
    state = initial_state(jax.tree.map(jnp.array, loaded.parameters), optimizer, shardings)
    for _ in range(3):
        state, _, flags = step(state, stacked(kind, pairs(case), microbatches), NO_LIMITS)
        assert float(flags.changed) > 0.99
    assert int(state.step) == 3
    case.assert_close(state.trainable, f"after_{kind}")
    jax.tree.map(np.testing.assert_array_equal, state.frozen, before)


@pytest.mark.parametrize("name", BASES)
def test_merged_weights_equal_peft(golden: Path, name: str) -> None:
    """Weights loaded for training without an adapter, which merges peft's, against merge_and_unload; others are the base's."""
    case = open_case(golden, name)
    folder = str(golden / "lora" / name)
    merged = load_adapted(case.base, AdapterOptions(rank=0), case.loaded.rules, adapter=folder)
    assert merged.model.weight_format.lora is None
    base, config = load_on(case.base, case.loaded.rules), merged.model.config
    compared = set()
    for tensor in tensors_of(config):
        value = np.asarray(reduce(getitem, tensor.path, merged.parameters))
        if ".".join(tensor.path[1:]) not in case.targets:
            np.testing.assert_array_equal(value, reduce(getitem, tensor.path, base.parameters))
            continue
        for layer, key in zip(value, tensor.names(config.num_layers), strict=True):
            assert_close(tensor.to_hf(layer), case.numbers[f"merged.{key}"])
            compared.add(f"merged.{key}")
    assert compared == {key for key in case.numbers if key.startswith("merged.")}
