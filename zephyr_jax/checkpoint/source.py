"""Where a model comes from: a Hugging Face folder or hub id, or the output folder of one of our runs."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from zephyr_jax.checkpoint.huggingface import TOKENIZER_FILES, load_parameters, open_folder, read_json
from zephyr_jax.checkpoint.manager import FOLDER, restore_parameters
from zephyr_jax.config import ModelOptions
from zephyr_jax.errors import InputError
from zephyr_jax.model.mistral import Compute, abstract_model
from zephyr_jax.model.shape import ModelShape, shape_from_hf
from zephyr_jax.objective.logprob import Parameters
from zephyr_jax.parallel.rules import Rules, parameter_shardings

MODEL_FOLDER = "model"
"""Inside a run: config.json, generation_config.json and the tokenizer's files, copied from where it started."""


@dataclass(frozen=True)
class ModelSource:
    """A found model: everything but its weights."""

    asked: str
    folder: Path
    """Holds config.json and tokenizer files."""
    run: Path | None
    """The run whose checkpoints hold the weights; None: `folder` holds safetensors."""
    step: int | None
    config: dict[str, Any]
    shape: ModelShape

    def files(self) -> list[Path]:
        """The files beside the weights that an export carries on."""
        names = ("config.json", "generation_config.json", *TOKENIZER_FILES)
        return [self.folder / name for name in names if (self.folder / name).exists()]


@dataclass(frozen=True)
class AbstractModel:
    """A model on a mesh without its weights."""

    definition: nnx.GraphDef
    """Static: everything but the weights."""
    parameters: Any
    """Pure dict of shapes (float32) with their shardings."""
    shardings: Any
    """Pure dict of shardings."""
    shape: ModelShape


def tokenizer_path(options: ModelOptions) -> str:
    """Where a model's tokenizer is: in the run, or at the path itself (a hub id downloads nothing else)."""
    run = Path(options.path) / MODEL_FOLDER
    return str(run) if run.is_dir() else options.path


def find_model(options: ModelOptions) -> ModelSource:
    """Locate a model and read its config. Raises InputError when it is nowhere or not ours to compute."""
    path = Path(options.path)
    step = None
    if path.parent.name == FOLDER and path.name.isdigit():
        path, step = path.parent.parent, int(path.name)
    run = path if (path / MODEL_FOLDER).is_dir() else None
    folder = path / MODEL_FOLDER if run else open_folder(options.path, options.revision)
    config = read_json(folder / "config.json")
    try:
        shape = shape_from_hf(config)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from error
    return ModelSource(options.path, folder, run, step, config, shape)


def abstract_of(shape: ModelShape, options: ModelOptions, rules: Rules) -> AbstractModel:
    """The model as it will lie on the mesh.

    Raises InputError when a dimension does not divide into the mesh.
    """
    on_tpu = rules.mesh.devices.flat[0].platform == "tpu"
    compute = Compute(
        dtype=jnp.dtype(options.compute_dtype),
        remat=options.remat,
        placement=rules,
        keep_logits=options.keep_logits,
        kernel="splash" if on_tpu else "xla",
    )
    definition, state = abstract_model(shape, compute)
    shardings = parameter_shardings(state, rules)
    parameters = jax.tree.map(
        lambda leaf, to: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=to), nnx.to_pure_dict(state), shardings
    )
    return AbstractModel(definition, parameters, shardings, shape)


def load_weights(source: ModelSource, model: AbstractModel) -> Parameters:
    """Stream the weights onto the mesh as float32. Raises InputError on missing, unknown or misshapen tensors."""
    if source.run:
        return restore_parameters(source.run, source.step, model.parameters)
    return load_parameters(source.folder, source.shape, model.parameters, model.shardings)


def copy_model_files(source: ModelSource, run: Path, chat_template: str) -> None:
    """Put everything but the weights into a run, with the chat template it trains on."""
    target = run / MODEL_FOLDER
    target.mkdir(parents=True, exist_ok=True)
    for path in source.files():
        if (target / path.name).absolute() != path.absolute():
            (target / path.name).write_bytes(path.read_bytes())
    (target / "chat_template.jinja").write_text(chat_template)
    settings = target / "tokenizer_config.json"
    content = read_json(settings) if settings.exists() else {}
    settings.write_text(json.dumps({**content, "chat_template": chat_template}, indent=2, ensure_ascii=False) + "\n")


def check_vocabulary(shape: ModelShape, tokens: int, asked: str) -> None:
    """Raise InputError when the tokenizer has ids that the model has no embedding for."""
    if tokens > shape.vocab:
        raise InputError(
            f"The tokenizer of {asked} has {tokens} tokens and the model embeds {shape.vocab}. They do not belong together: "
            "take the tokenizer from the checkpoint's own folder."
        )
