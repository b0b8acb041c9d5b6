"""Models and tokenizers in memory: `load_model` and `load_tokenizer`."""

import os
from dataclasses import dataclass
from functools import cached_property

import jax

from zephyr_jax.chat.tokenizer import ChatTokenizer
from zephyr_jax.chat.tokenizer_files import load_tokenizer as load_hf_tokenizer
from zephyr_jax.checkpoint.inheritance import inherit_model, resolve, training_tokenizer
from zephyr_jax.checkpoint.model_source import ModelSource
from zephyr_jax.checkpoint.opened import OpenedModel
from zephyr_jax.checkpoint.resolve import find_model, tokenizer_only
from zephyr_jax.config.sections import MODEL, DataOptions, ForwardOptions, MeshOptions, ScoringOptions, WeightsOptions
from zephyr_jax.config.validation import validate
from zephyr_jax.config.yaml_file import expand_home
from zephyr_jax.errors import InputError
from zephyr_jax.model.config import ModelConfig
from zephyr_jax.objective.logprob import Parameters
from zephyr_jax.parallel.devices import describe_devices
from zephyr_jax.parallel.sharding import ShardingRules, init_devices
from zephyr_jax.storage.cloud import translate_cloud_errors
from zephyr_jax.storage.files import check_readable

_COMMAND = "evaluate"
"""The command whose rules of inheritance hold for a model in memory."""


@dataclass(frozen=True)
class RowTokenizer:
    """A tokenizer with its chat template and the rules that turn rows into tokens; `load_tokenizer` makes one."""

    chat: ChatTokenizer
    data: DataOptions
    """Targets, lengths and truncation, with the values that a run passes on."""


@dataclass(frozen=True, eq=False, repr=False)
class LoadedModel:
    """A model whose weights are on the devices of a mesh; `load_model` makes one."""

    opened: OpenedModel
    options: ScoringOptions
    parameters: Parameters
    """Pure dict of arrays; projections with an adapter or in a quantized format are dicts of arrays, too."""
    data: DataOptions
    """As given to `load_model`; `tokenizer.data` has the inherited values."""

    def __repr__(self) -> str:
        devices = describe_devices(list(self.rules.mesh.devices.flat))
        size = f"{self.config.num_parameters:,} parameters"
        return f"LoadedModel({self.source.asked!r}, {size}, {self.options.compute_dtype}, {devices})"

    @property
    def source(self) -> ModelSource:
        """Where the weights were found."""
        return self.opened.source

    @property
    def rules(self) -> ShardingRules:
        """The mesh, and how weights and batches lie on it."""
        return self.opened.rules

    @property
    def config(self) -> ModelConfig:
        """Architecture: `d_model`, `num_layers`, `vocab_size`, `num_parameters`, ..."""
        return self.source.model_config

    @cached_property
    def tokenizer(self) -> RowTokenizer:
        """The tokenizer that scores rows. Raises InputError for a chat template that does not show where answers are."""
        return _row_tokenizer(self.source, self.options, self.data)


@translate_cloud_errors()
def load_model(
    model: str | os.PathLike[str] | ScoringOptions, *, data: DataOptions | None = None, mesh: MeshOptions | None = None
) -> LoadedModel:
    """Load a model's weights onto a mesh.

    Args:
        model: A Hugging Face folder or hub id, a run of `sft` or `dpo`, a step of a run (`RUN/checkpoints/STEP`), or a folder or
            hub id of a LoRA adapter in PEFT's format: a path, or options with a revision, an adapter or a compute dtype. An unset
            compute dtype is the run's, else bfloat16. `EvaluationOptions` also have the format that weights are stored in
            (`base_format`, `block_size`), by default the one that an adapter was trained with, else float32.
        data: Chat template, targets, lengths and truncation of the rows that `score` takes; what is unset is the run's, else the
            default. Paths, splits and the other settings of files are not used.
        mesh: Sizes of the mesh; default: `fsdp` over all devices. With `fsdp` every generated token gathers the weights; with
            `MeshOptions(fsdp=1, tensor=-1)` none is gathered, where the number of devices divides heads, KV heads and `d_ff`.

    Returns:
        The model with float32 weights, or with an adapter beside weights in their base format.

    Raises:
        InputError: The model cannot be used, does not divide into the mesh, or this process is one of several.
    """
    options = _as_options(ScoringOptions, model)
    data = _checked_data(data)
    mesh = mesh or MeshOptions()
    validate(mesh, "mesh.")
    rules = init_devices(mesh)
    if jax.process_count() > 1:
        raise InputError(
            f"load_model: expected a single process, got {jax.process_count()}. On several hosts use the commands `zephyr-jax "
            "evaluate` and `zephyr-jax reference`."
        )
    source = find_model(options)
    options = inherit_model(_COMMAND, options, source)
    opened = OpenedModel(source, options, rules)
    return LoadedModel(opened=opened, options=options, parameters=opened.load_weights(), data=data)


@translate_cloud_errors()
def load_tokenizer(model: str | os.PathLike[str] | WeightsOptions, *, data: DataOptions | None = None) -> RowTokenizer:
    """Load a model's tokenizer with its chat template; weights are neither read nor downloaded, and no device is started.

    Args:
        model: A Hugging Face folder or hub id, a run, or a folder with a tokenizer and no model.
        data: As `load_model`.

    Returns:
        The tokenizer as `load_model(...).tokenizer` has it.

    Raises:
        InputError: No tokenizer can be loaded, or its chat template cannot be used for training.
    """
    options, data = _as_options(WeightsOptions, model), _checked_data(data)
    check_readable(options.path)
    folder = tokenizer_only(options)
    if folder:
        return RowTokenizer(training_tokenizer(options.path, load_hf_tokenizer(folder), data), data)
    source = find_model(options, weights=False)
    return _row_tokenizer(source, ForwardOptions(path=options.path, revision=options.revision), data)


def _as_options[O: WeightsOptions](kind: type[O], model: str | os.PathLike[str] | WeightsOptions) -> O:
    """Options of a kind from a path or from options, checked. Raises InputError."""
    if not isinstance(model, kind):
        if isinstance(model, WeightsOptions):
            raise InputError(f"model: expected a path or {kind.__name__}, got {type(model).__name__}.")
        model = kind(path=os.fspath(model))
    options = expand_home(model)
    validate(options, "model.")
    if not options.path:
        raise InputError(f"model.path is empty: expected {MODEL}.")
    return options


def _checked_data(data: DataOptions | None) -> DataOptions:
    """The data settings, or the defaults, checked. Raises InputError."""
    data = expand_home(data or DataOptions())
    validate(data.fitted(2), "data.")  # lengths that nothing has set are fitted later, when the run's are known
    return data


def _row_tokenizer(source: ModelSource, options: ForwardOptions, data: DataOptions) -> RowTokenizer:
    resolved = resolve(_COMMAND, source, options, data)
    validate(resolved.data, "data.")
    return RowTokenizer(resolved.chat, resolved.data)
