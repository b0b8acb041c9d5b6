"""Where a model comes from: a Hugging Face folder or hub id, or the output folder of one of our runs."""

import json
from dataclasses import dataclass
from pathlib import Path as LocalPath
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from zephyr_jax.checkpoint.huggingface import TOKENIZER_FILES, load_parameters, open_folder, read_json
from zephyr_jax.checkpoint.provenance import Record, read_record
from zephyr_jax.checkpoint.steps import FOLDER, restore_parameters
from zephyr_jax.config import ModelOptions
from zephyr_jax.errors import InputError
from zephyr_jax.model.mistral import Compute, abstract_model
from zephyr_jax.model.shape import ModelShape, shape_from_hf
from zephyr_jax.objective.logprob import Parameters
from zephyr_jax.parallel.rules import Rules, parameter_shardings
from zephyr_jax.storage.files import Path, check_can_be_read, local_copy, open_path, write_whole

MODEL_FOLDER = "model"
"""Inside a run: config.json, generation_config.json and the tokenizer's files, copied from where it started."""
_BESIDE_WEIGHTS = ("config.json", "generation_config.json", *TOKENIZER_FILES)


@dataclass(frozen=True)
class ModelSource:
    """A found model: everything but its weights."""

    asked: str
    folder: LocalPath
    """Holds config.json and tokenizer files; copies of them when the model is on Cloud Storage."""
    weights: Path
    """The folder of the safetensors, or the run whose checkpoints hold the weights."""
    run: Path | None
    """`weights` where that is a run of ours."""
    step: int | None
    config: dict[str, Any]
    shape: ModelShape

    @property
    def record(self) -> Record:
        """The provenance of these weights; of weights that others made, what is known about them."""
        found = read_record(self.weights)
        if found is not None:
            return found if self.step is None else {**found, "step": self.step}
        snapshot = self.folder.name if self.folder.parent.name == "snapshots" else None  # the hub's cache: a commit
        return {"path": self.asked, "revision": snapshot, "architecture": self.config.get("model_type")}

    def files(self) -> list[LocalPath]:
        """The files beside the weights that an export carries on."""
        return [self.folder / name for name in _BESIDE_WEIGHTS if (self.folder / name).exists()]


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
    compute: Compute


def tokenizer_path(options: ModelOptions) -> str:
    """Where a model's tokenizer is: in the run, or at the path itself (a hub id downloads nothing else)."""
    check_can_be_read(options.path)
    path = open_path(options.path)
    run = path / MODEL_FOLDER
    if not (run.is_dir() or path.is_dir()):
        return options.path
    return str(local_copy(run if run.is_dir() else path, _BESIDE_WEIGHTS))


def find_model(options: ModelOptions) -> ModelSource:
    """Locate a model and read its config. Raises InputError when it is nowhere or not ours to compute."""
    check_can_be_read(options.path)
    path = open_path(options.path)
    step = None
    if path.parent.name == FOLDER and path.name.isdigit():
        path, step = path.parent.parent, int(path.name)
    run = path if (path / MODEL_FOLDER).is_dir() else None
    weights = run or open_folder(options.path, options.revision)
    folder = local_copy(weights / MODEL_FOLDER if run else weights, _BESIDE_WEIGHTS)
    config = read_json(folder / "config.json")
    try:
        shape = shape_from_hf(config)
    except InputError as error:
        raise InputError(f"{weights}: {error}") from error
    return ModelSource(options.path, folder, weights, run, step, config, shape)


def abstract_of(shape: ModelShape, options: ModelOptions, rules: Rules) -> AbstractModel:
    """The model as it will lie on the mesh.

    Raises InputError when a dimension does not divide into the mesh.
    """
    device = rules.mesh.devices.flat[0]
    compute = Compute(
        dtype=jnp.dtype(options.compute_dtype),
        keep=options.keep,
        placement=rules,
        keep_logits=options.keep_logits,
        kernel=_kernel(device.platform, options.compute_dtype),
        chip=device.device_kind,
    )
    definition, state = abstract_model(shape, compute)
    shardings = parameter_shardings(state, rules)
    parameters = jax.tree.map(
        lambda leaf, to: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=to), nnx.to_pure_dict(state), shardings
    )
    return AbstractModel(definition, parameters, shardings, shape, compute)


def _kernel(platform: str, dtype: str) -> Literal["splash", "cudnn", "xla"]:
    if platform == "tpu":
        return "splash"
    return "cudnn" if platform == "gpu" and dtype == "bfloat16" else "xla"


def load_weights(source: ModelSource, model: AbstractModel) -> Parameters:
    """Stream the weights onto the mesh as float32. Raises InputError on missing, unknown or misshapen tensors."""
    if source.run:
        return restore_parameters(source.run, source.step, model.parameters)
    return load_parameters(source.weights, source.shape, model.parameters, model.shardings)


def copy_model_files(source: ModelSource, run: Path, chat_template: str) -> None:
    """Put everything but the weights into a run, with the chat template it trains on."""
    target = run / MODEL_FOLDER
    target.mkdir(parents=True, exist_ok=True)
    settings = source.folder / "tokenizer_config.json"
    content = read_json(settings) if settings.exists() else {}
    text = json.dumps({**content, "chat_template": chat_template}, indent=2, ensure_ascii=False) + "\n"
    for path in source.files():
        write_whole(target / path.name, path.read_bytes())
    write_whole(target / "chat_template.jinja", chat_template)
    write_whole(target / settings.name, text)


def check_vocabulary(shape: ModelShape, tokens: int, asked: str) -> None:
    """Raise InputError when the tokenizer has ids that the model has no embedding for."""
    if tokens > shape.vocab:
        raise InputError(
            f"The tokenizer of {asked} has {tokens} tokens and the model embeds {shape.vocab}. They do not belong together: "
            "take the tokenizer from the checkpoint's own folder."
        )
