"""`zephyr-jax export`: a run's weights as a Hugging Face folder that transformers and vLLM load."""

from pathlib import Path
from typing import Any

from zephyr_jax.checkpoint.huggingface import export_folder
from zephyr_jax.checkpoint.source import abstract_of, find_model, load_weights
from zephyr_jax.data.tokens import load_tokenizer
from zephyr_jax.errors import check_can_be_made
from zephyr_jax.parallel.hosts import require_alone
from zephyr_jax.parallel.rules import open_rules
from zephyr_jax.verbs import ExportConfig


def export(config: ExportConfig) -> Path:
    """Write the folder and return it. Raises InputError when it exists or the model cannot be read."""
    config.check()
    check_can_be_made(Path(config.output).parent)
    rules = open_rules(config.mesh)
    require_alone("export")
    source = find_model(config.model)
    model = abstract_of(source.shape, config.model, rules)
    parameters = load_weights(source, model)
    extras: dict[str, Any] = {path.name: path for path in source.files() if path.name != "config.json"}
    if "generation_config.json" not in extras:
        tokenizer = load_tokenizer(str(source.folder))
        extras["generation_config.json"] = {
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        }
    limit = int(config.max_file_gib * 2**30)
    export_folder(Path(config.output), parameters, source.shape, source.config, extras, config.dtype, limit)
    return Path(config.output)
