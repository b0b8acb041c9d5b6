"""Numbers of every family equal torch's: a tiny random model per architecture, made by `tests/golden/make_family_golden.py`."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.models import Loaded, load, logits, packed_rows, whole_rows
from zephyr_jax.batch import TokenBatch
from zephyr_jax.model.families.registry import tensors_of
from zephyr_jax.objective.logprob import Parameters, sequence_logprob

FOLDERS = sorted(path for path in (Path(__file__).parents[1] / "golden" / "families").iterdir())
CASES = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)


def gradients(loaded: Loaded, tokens: np.ndarray) -> tuple[Parameters, jax.Array]:
    """Gradients of -sum(log-probs), and the log-probs."""

    def negative(parameters: Parameters, batch: TokenBatch) -> tuple[jax.Array, jax.Array]:
        found = sequence_logprob(loaded.model.definition, parameters, batch, segments=1, chunk=7)
        return -jnp.sum(found.sum), found.sum[:, 0]

    return jax.jit(jax.grad(negative, has_aux=True))(loaded.parameters, whole_rows(tokens, first_target=5))


@CASES
def test_numbers_equal_torch(folder: Path) -> None:
    check_numbers(folder, {})


@pytest.mark.parametrize("name", ["qwen2_window", "gemma2", "olmo2"])
def test_numbers_equal_torch_on_a_mesh(golden: Path, name: str) -> None:
    """One family for each operation whose sharding differs."""
    check_numbers(golden / "families" / name, {"data": 2, "fsdp": 2, "tensor": 2})


def check_numbers(folder: Path, mesh: dict[str, int]) -> None:
    """Logits of packed segments, log-probs of whole rows and gradients by every tensor are within 1e-4 of torch's."""
    numbers, expected = np.load(folder / "golden.npz"), load_file(folder / "gradients.safetensors")
    loaded = load(folder, devices=8 if mesh else 1, **mesh)
    tokens = np.tile(numbers["tokens"], (4 if mesh else 1, 1))
    repeats = len(tokens) // 2
    # Two segments between padding in a row: what they see of each other, of other windows or positions would show.
    packed = logits(loaded, packed_rows([list(numbers["tokens"])] * (len(tokens) // 2), length=53, gap=1))[0]
    np.testing.assert_allclose(jnp.stack([packed[1:25], packed[26:50]]), numbers["logits"], atol=1e-4)
    found, logprobs = gradients(loaded, tokens)
    np.testing.assert_allclose(logprobs[:2], numbers["logprobs"], atol=1e-4)
    seen = set()
    for tensor in tensors_of(loaded.model.config):
        stacked = found
        for key in tensor.path:
            stacked = stacked[key]
        layers = np.asarray(stacked) / repeats
        for name, layer in zip(tensor.names(len(layers)), layers if tensor.stacked else [layers], strict=False):
            rows = tensor.hf_index(layer.shape, tuple(slice(size) for size in layer.shape))
            np.testing.assert_allclose(tensor.to_hf(layer), expected[name][rows], atol=2e-4, err_msg=name)
            seen.add(name)
    assert seen == expected.keys()
