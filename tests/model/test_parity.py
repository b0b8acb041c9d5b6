"""Numbers equal torch's, for every variant of the architecture."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import load, logits, whole_rows
from zephyr_jax.objective.logprob import sequence_logprob

VARIANTS = ("mha", "gqa", "mqa", "window", "tied", "theta", "head_dim", "llama", "llama_untied")


@pytest.mark.parametrize("variant", VARIANTS)
def test_random_models_equal_torch(golden: Path, variant: str) -> None:
    """Logits, sequence log-probs and the gradient by the embedding, for each way to shape a Mistral."""
    folder = golden / "models" / variant
    numbers = np.load(folder / "golden.npz")
    loaded = load(folder)
    batch = whole_rows(numbers["tokens"], first_target=5)
    np.testing.assert_allclose(logits(loaded, batch), numbers["logits"], atol=1e-4)

    def negative(parameters):
        found = sequence_logprob(loaded.model.definition, parameters, batch, segments=1, chunk=7)
        return -jnp.sum(found.sum), found

    gradient, found = jax.grad(negative, has_aux=True)(loaded.parameters)
    np.testing.assert_allclose(found.sum[:, 0], numbers["logprobs"], atol=1e-4)
    np.testing.assert_array_equal(found.num_targets[:, 0], 19)
    np.testing.assert_allclose(gradient["embedding"], numbers["grad_embed"], atol=2e-4)


def test_a_trained_model_equals_torch(golden: Path, shared: Path) -> None:
    """The same for stories260k, whose logits are those of a real language model, on a mesh of eight devices."""
    numbers = np.load(golden / "stories260k.npz")
    loaded = load(shared / "models" / "stories260k", devices=8, data=2, fsdp=2, tensor=2)
    batch = whole_rows(numbers["tokens"])
    np.testing.assert_allclose(logits(loaded, batch), numbers["logits"], atol=1e-4)
    found = sequence_logprob(loaded.model.definition, loaded.parameters, batch, segments=1, chunk=16)
    np.testing.assert_allclose(found.sum[:, 0], numbers["logprobs"], atol=1e-4)
