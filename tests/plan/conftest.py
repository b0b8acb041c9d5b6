"""What the tests of recipes share."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shape_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but a config.json: planning reads no weights."""
    folder = tmp_path_factory.mktemp("shape")
    (folder / "config.json").write_text(
        '{"model_type": "mistral", "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, '
        '"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 128, "vocab_size": 1024, "rms_norm_eps": 1e-5}'
    )
    return folder
