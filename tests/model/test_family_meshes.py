"""Every family on a mesh, with packed rows: log-probs are torch's, and a segment sees nothing of its neighbor."""

from functools import partial
from pathlib import Path

import jax
import numpy as np

from tests.model.family_folders import EACH, FIRST
from tests.models import load, packed_rows
from zephyr_jax.batch import TokenBatch
from zephyr_jax.model.families.registry import FAMILIES
from zephyr_jax.objective.logprob import Parameters, sequence_logprob

PROMPT = 5
"""Of the golden log-probs: tokens that are no targets."""


def test_every_family_has_a_golden_folder() -> None:
    """Those of mistral are in `tests/golden/models`."""
    assert {*FIRST, "mistral"} == FAMILIES.keys()


@EACH
def test_packed_log_probs_on_a_mesh(folder: Path) -> None:
    """2 x 2 x 2 devices, two segments a row; another second segment changes no bit of the first one's log-prob."""
    numbers = np.load(folder / "golden.npz")
    loaded = load(folder, devices=8, data=2, fsdp=2, tensor=2)
    first, second = numbers["tokens"]

    # Compiled without optimization, which takes most of the time of a program that runs twice.
    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True})
    def score(parameters: Parameters, batch: TokenBatch) -> jax.Array:
        return sequence_logprob(loaded.model.definition, parameters, batch, segments=2, chunk=7).sum

    def scores(segments: list[np.ndarray]) -> np.ndarray:
        return np.asarray(score(loaded.parameters, packed_rows([segments] * 4, length=53, prompt=PROMPT, gap=1)))

    together = scores([first, second])
    np.testing.assert_allclose(together, np.tile(numbers["logprobs"], (4, 1)), atol=1e-4)
    other = scores([first, second[::-1]])
    np.testing.assert_array_equal(other[:, 0], together[:, 0])
    assert (other[:, 1] != together[:, 1]).all()
