"""Published weights compute what torch computes: opt-in, with folders that `tests/golden/make_real_weights.py` writes."""

import os
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer

from tests.model.test_family_folders import CHECK
from tests.models import load, logits, whole_rows
from zephyr_jax.checkpoint.resolve import find_model
from zephyr_jax.config.sections import ModelOptions

TEXT = (
    "The capital of France is Paris. Water boils at 100 degrees Celsius at sea level, and freezes at zero degrees. The sun rises "
    "in the east and sets in the west."
)
QUESTION, ANSWER = "The capital of France is", " Paris"
MAX_LOSS = 2.5
"""Nats a token: measured 1.72 (SmolLM2 135M) and 2.24 (Gemma 3 270M); a mistake in the architecture costs several."""


@pytest.mark.slow
def test_published_weights_equal_torch(tmp_path: Path) -> None:
    """Logits within 5e-4 of values up to 40, a loss of English, a fact among five guesses; of folders in ZEPHYR_REAL_WEIGHTS."""
    python, weights = os.environ.get("ZEPHYR_TORCH_PYTHON"), os.environ.get("ZEPHYR_REAL_WEIGHTS")
    if not python or not weights:
        pytest.skip("ZEPHYR_TORCH_PYTHON and ZEPHYR_REAL_WEIGHTS are not set")
    ours = {}
    for folder in sorted(Path(weights).iterdir()):
        copy = tmp_path / "folders" / folder.name
        copy.mkdir(parents=True)
        for file in folder.iterdir():
            (copy / file.name).symlink_to(file.resolve())
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        is_gemma = find_model(ModelOptions(path=str(folder))).model_config.model_type == "gemma3_text"
        start = [tokenizer.token_to_id("<bos>")] if is_gemma else []
        tokens = np.array([start + tokenizer.encode(TEXT, add_special_tokens=False).ids], np.int32)
        np.save(copy / "tokens.npy", tokens)
        ours[folder.name] = np.asarray(logits(load(folder), whole_rows(tokens)))[0]
        log_probs = jax.nn.log_softmax(ours[folder.name][:-1])
        assert -jnp.mean(jnp.take_along_axis(log_probs, tokens[0, 1:, None], axis=1)) < MAX_LOSS
        last = len(start) + len(tokenizer.encode(QUESTION, add_special_tokens=False).ids) - 1
        best = np.argsort(ours[folder.name][last])[-5:]
        assert ANSWER in [tokenizer.decode([int(token)]) for token in best]
    assert ours, f"{weights} has no folder"
    subprocess.run([python, CHECK, tmp_path / "folders", tmp_path / "logits.npz"], check=True)
    for name, theirs in np.load(tmp_path / "logits.npz").items():
        np.testing.assert_allclose(ours[name], theirs[0], atol=5e-4, err_msg=name)
