"""Locating and opening a model: a Hugging Face folder or hub id, or the output folder of a run."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path as LocalPath
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from transformers import PreTrainedTokenizerBase

from zephyr_jax.chat.template import ChatTemplate
from zephyr_jax.chat.tokenizer_files import TRAINING_TEMPLATE
from zephyr_jax.checkpoint.frozen import FROZEN, check_frozen, merge, split
from zephyr_jax.checkpoint.hf.folder import CHAT_TEMPLATES, TOKENIZER_FILES, open_folder
from zephyr_jax.checkpoint.hf.load import load_parameters
from zephyr_jax.checkpoint.hf.weight_files import INDEX, SINGLE, TensorFiles, check_no_adapter
from zephyr_jax.checkpoint.provenance import Record, read_record
from zephyr_jax.checkpoint.steps import FOLDER, Checkpoint, check_step, open_step
from zephyr_jax.config.sections import ForwardOptions, ModelOptions, WeightsOptions
from zephyr_jax.errors import InputError, join_items, truncate_repr
from zephyr_jax.model.config import ModelConfig
from zephyr_jax.model.decoder import Compute, abstract_model
from zephyr_jax.model.families.registry import config_from_hf
from zephyr_jax.objective.logprob import Parameters
from zephyr_jax.parallel.sharding import ShardingRules, parameter_shardings
from zephyr_jax.storage.files import Path, check_readable, list_names, local_copy, open_path
from zephyr_jax.storage.strict_json import read_json

MODEL_FOLDER = "model"
"""Inside a run: config.json, generation_config.json and the files of the tokenizer that it trains with."""
_BESIDE_WEIGHTS = ("config.json", "generation_config.json", *TOKENIZER_FILES)
_COPIED = (*_BESIDE_WEIGHTS, CHAT_TEMPLATES, TRAINING_TEMPLATE, "tekken.json")


@dataclass(frozen=True)
class ModelSource:
    """A located model: everything but its weights."""

    asked: str
    folder: LocalPath
    """Has config.json and tokenizer files; local copies of them when the model is on Cloud Storage."""
    weights: Path
    """The folder of the safetensors, or the run whose checkpoints hold the weights."""
    run: Path | None
    """`weights` where they are a run of this package."""
    step: int | None
    hf_config: dict[str, Any]
    model_config: ModelConfig

    @property
    def record(self) -> Record:
        """Provenance of these weights; for weights from elsewhere: path, revision and architecture."""
        record = read_record(self.weights)
        if record is not None:
            return record if self.step is None else {**record, "step": self.step}
        snapshot = self.folder.name if self.folder.parent.name == "snapshots" else None  # the hub's cache: a commit
        return {"path": self.asked, "revision": snapshot, "architecture": self.hf_config.get("model_type")}


@dataclass(frozen=True)
class AbstractModel:
    """A model on a mesh without its weights."""

    definition: nnx.GraphDef[Any]
    """Static: everything but the weights."""
    parameters: Any
    """Pure dict of shapes (float32) with their shardings."""
    shardings: Any
    """Pure dict of shardings."""
    config: ModelConfig
    compute: Compute


@dataclass(frozen=True)
class OpenedModel:
    """A checked model on a mesh, whose weights are not loaded yet: what every command that computes with a model starts from."""

    source: ModelSource
    options: ForwardOptions
    """`replace` them where a command inherits settings from the model's run; what is compiled follows."""
    rules: ShardingRules

    @cached_property
    def abstract(self) -> AbstractModel:
        """Graph, shapes and shardings. Raises InputError when a dimension does not divide into the mesh."""
        return abstract_of(self.source.model_config, self.options, self.rules)

    def check_weights(self) -> None:
        """Raise InputError where the weights are missing or do not fit config.json; only headers of the files are read.

        For commands that work for a long time before they load weights.
        """
        check_weights(self.source)

    def load_weights(self) -> Parameters:
        """Stream the weights onto the mesh as float32. Raises InputError on missing, unknown or misshapen tensors."""
        return load_weights(self.source, self.abstract)


def open_model(options: ForwardOptions, rules: ShardingRules) -> OpenedModel:
    """Locate a model (Hugging Face folder, hub id, or run) and check its configuration. Raises InputError."""
    return OpenedModel(find_model(options), options, rules)


def tokenizer_path(options: WeightsOptions) -> str:
    """Where a model's tokenizer is: in the run, or at the path itself (a hub id downloads nothing else)."""
    check_readable(options.path)
    path = open_path(options.path)
    run = path / MODEL_FOLDER
    if not (run.is_dir() or path.is_dir()):
        return options.path
    return str(local_copy(run if run.is_dir() else path, _COPIED))


def tokenizer_only(options: WeightsOptions) -> str | None:
    """The path of a folder with a tokenizer and no model, which `preview` takes, too; None for all else."""
    path = open_path(options.path)
    if (path / MODEL_FOLDER).is_dir() or not path.is_dir() or "config.json" in list_names(path):
        return None
    return str(local_copy(path, _COPIED))


def find_model(options: WeightsOptions, *, weights: bool = True) -> ModelSource:
    """Locate a model and read its config. Raises InputError when it is nowhere or not ours to compute.

    With `weights` false, those of a hub id are not downloaded.
    """
    check_readable(options.path)
    path = open_path(options.path)
    step = None
    if path.parent.name == FOLDER and path.name.isdigit():
        path, step = path.parent.parent, int(path.name)
    run = path if (path / MODEL_FOLDER).is_dir() else None
    home = run or open_folder(options.path, options.revision, weights=weights)
    if run is None:
        check_no_adapter(home, list_names(home))
    folder = local_copy(home / MODEL_FOLDER if run else home, _COPIED)
    config = read_json(folder / "config.json")
    try:
        model_config = config_from_hf(config)
    except InputError as error:
        raise InputError(f"{home}: {error}") from error
    named = config.get("transformers_weights")
    if named not in (None, SINGLE, INDEX):
        raise InputError(
            f"{home}/config.json sets transformers_weights to {truncate_repr(named)}, and only {SINGLE} and {INDEX} are read. "
            "Give the file one of these names, and remove the field."
        )
    return ModelSource(
        asked=options.path,
        folder=folder,
        weights=home,
        run=run,
        step=step,
        hf_config=config,
        model_config=model_config,
    )


def abstract_of(config: ModelConfig, options: ForwardOptions, rules: ShardingRules) -> AbstractModel:
    """The model as it will lie on the mesh.

    What the backward pass saves is in `ModelOptions` alone; a model of other options is for forward passes. Raises
    InputError when a dimension does not divide into the mesh.
    """
    device = rules.mesh.devices.flat[0]
    compute = Compute(
        dtype=jnp.dtype(options.compute_dtype),
        placement=rules,
        kernel=_kernel(device.platform, options.compute_dtype),
        chip=device.device_kind,
    )
    if isinstance(options, ModelOptions):
        compute = replace(compute, remat=options.remat, save_logits=options.save_logits)
    definition, state = abstract_model(config, compute)
    shardings = parameter_shardings(state, rules)
    parameters = jax.tree.map(
        lambda leaf, to: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=to), nnx.to_pure_dict(state), shardings
    )
    return AbstractModel(
        definition=definition, parameters=parameters, shardings=shardings, config=config, compute=compute
    )


def _kernel(platform: str, dtype: str) -> Literal["splash", "cudnn", "xla"]:
    if platform == "tpu":
        return "splash"
    return "cudnn" if platform == "gpu" and dtype == "bfloat16" else "xla"


def check_weights(source: ModelSource) -> None:
    """Raise InputError where the weights are missing or do not fit config.json; only headers of the files are read.

    For commands that work for a long time before they load weights.
    """
    if source.run is not None:
        check_step(source.run, source.step)
        return
    files = TensorFiles(source.weights)
    try:
        files.check(source.model_config)
    finally:
        files.close()


def load_weights(source: ModelSource, model: AbstractModel) -> Parameters:
    """Stream the weights onto the mesh as float32. Raises InputError on missing, unknown or misshapen tensors."""
    parameters: Parameters
    if source.run:
        checkpoint = open_step(source.run, source.step)
        frozen = _load_frozen(checkpoint, model)
        names = checkpoint.progress.get(FROZEN, {}).get("names", ())
        saved, _ = split(model.parameters, lambda name: name not in names)
        parameters = merge(checkpoint.restore_parameters(saved), frozen)
    else:
        parameters = load_parameters(source.weights, source.model_config, model.parameters, model.shardings)
    return parameters


def _load_frozen(checkpoint: Checkpoint, model: AbstractModel) -> Parameters:
    """The weights that a step leaves out, from the model that its run started from; {} for a step with all weights."""
    if FROZEN not in checkpoint.progress:
        return {}
    names = set(checkpoint.progress[FROZEN]["names"])
    options = checkpoint.progress["config"]["model"]
    base = load_weights(find_model(WeightsOptions(options["path"], options["revision"])), model)
    frozen = split(base, lambda name: name not in names)[1]
    check_frozen(checkpoint.progress, frozen, checkpoint.run)
    return frozen


def check_vocabulary(
    config: ModelConfig, tokenizer: PreTrainedTokenizerBase, asked: str, template: ChatTemplate | None = None
) -> None:
    """Raise InputError when a token can occur that the model has no embedding for.

    A special token occurs only where the template writes it or where it begins or ends a sequence: text never becomes one. So
    a padding token beyond the embedding is harmless.
    """
    beyond = {token: index for token, index in tokenizer.get_vocab().items() if index >= config.vocab_size}
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    named = {tokenizer.bos_token, tokenizer.eos_token}
    used = [
        token for token in beyond if token not in special or token in named or (template and template.may_write(token))
    ]
    if used:
        raise InputError(
            f"The tokenizer of {asked} has {len(tokenizer)} tokens and the model embeds {config.vocab_size}: {len(used)} tokens "
            f"beyond the embedding can occur ({join_items(map(truncate_repr, sorted(used, key=beyond.__getitem__)), 4)}). Take "
            "the tokenizer from the checkpoint's own folder."
        )
